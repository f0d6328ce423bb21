"""How well model files tell strange images; run through bench/trust.py."""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from scipy.stats import rankdata, t

import tellapart
from strange import all_strange
from tellapart.demo import write_digits
from tellapart.evaluation.metrics import wilson_interval
from tellapart.evaluation.ranking import auroc_interval
from tellapart.inference.predict import Classifier
from tellapart.records import Interval, SourceOptions
from trust_sets import rows

DRAWS = 3
LEFT_OUT = 3


def auroc(familiar: np.ndarray, strange: np.ndarray) -> float:
    """How often a familiar image scores above a strange one."""
    n = len(familiar)
    ranks = rankdata(np.concatenate([familiar, strange]))[:n]
    return float((ranks.sum() - n * (n + 1) / 2) / (n * len(strange)))


def said(interval: Interval) -> str:
    return f"{interval.value:.4f} ({interval.low:.4f} to {interval.high:.4f})"


def ask(model: Classifier, images: Iterable) -> dict[str, np.ndarray]:
    answers = list(model.iter_answers(images))
    return {
        "familiarity": np.array([answer["familiarity"] for answer in answers]),
        "largest probability": np.array([answer["probs"].max() for answer in answers]),
    }


def compare(model: Classifier, familiar: dict[str, np.ndarray], strange: dict[str, np.ndarray]) -> dict:
    """AUROC of both scores, and the shares below the file's threshold."""
    row: dict = {}
    for name, scores in familiar.items():
        n, m = len(scores), len(strange[name])
        row[f"auroc {name}"] = auroc(scores, strange[name])
        row[f"interval {name}"] = said(auroc_interval(row[f"auroc {name}"], n, m))
    threshold = model.card.familiarity.threshold
    for name, scores in (("found", strange["familiarity"]), ("false alarms", familiar["familiarity"])):
        row[name] = said(wilson_interval(int((scores < threshold).sum()), len(scores)))
    return {"familiar": len(familiar["familiarity"]), "strange": len(strange["familiarity"]), **row}


def measure_strange(data: Path, recipe: str = "probe", seed: int = 0) -> list[dict]:
    """A model for cats and dogs against what is neither."""
    with tempfile.TemporaryDirectory() as scratch:
        run = tellapart.train(data / "cats_dogs", recipe=recipe, out=f"{scratch}/run", seed=seed)
        model = tellapart.load(run.model_path)
        familiar = ask(model, sorted((data / "cats_dogs/test").rglob("*.jpg")))
        result = []
        for name, images in all_strange(data).items():
            row = compare(model, familiar, ask(model, images))
            result.append({"recipe": recipe, "against": name, **row})
            print(result[-1], flush=True)
    return result


def measure_left_out(name: str, table: pl.DataFrame, left: Sequence[bool], out: str, seed: int) -> dict:
    """A model for the other classes, its test images against those left out."""
    left = np.array(left)
    with tempfile.TemporaryDirectory() as scratch:
        options = SourceOptions(outside_root=True)
        run = tellapart.train(table.filter(pl.Series(~left)), options, out=f"{scratch}/run", seed=seed)
        model = tellapart.load(run.model_path)
        predicted = pl.read_parquet(run.folder / "predictions.parquet").filter(split="test")
        row = compare(model, ask(model, predicted["path"]), ask(model, table.filter(pl.Series(left))["path"]))
    print({"set": name, "left out": out, **row}, flush=True)
    return row


def mean_of_draws(name: str, draws: list[dict]) -> dict:
    row: dict = {"recipe": "probe", "against": f"{name}, classes left out, {len(draws)} draws"}
    row |= {key: sum(draw[key] for draw in draws) for key in ("familiar", "strange")}
    for key in ("familiarity", "largest probability"):
        values = [draw[f"auroc {key}"] for draw in draws]
        margin = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
        row[f"auroc {key}"] = float(np.mean(values))
        row[f"interval {key}"] = (
            f"{np.mean(values):.4f} ({np.mean(values) - margin:.4f} to {min(1, np.mean(values) + margin):.4f})"
        )
    for key in ("found", "false alarms"):
        shares = [float(draw[key].split()[0]) for draw in draws]
        row[key] = f"{np.mean(shares):.4f} ({min(shares):.4f} to {max(shares):.4f}, least and most)"
    return row


def classes_left_out(name: str, paths: Sequence[Path], labels: Sequence[str]) -> dict:
    draws = []
    for seed in range(DRAWS):
        out = sorted(np.random.default_rng(seed).choice(np.unique(labels), LEFT_OUT, replace=False).tolist())
        table = pl.DataFrame({"path": [str(path) for path in paths], "label": list(labels)})
        draws.append(measure_left_out(name, table, [label in out for label in labels], " ".join(out), seed))
    return mean_of_draws(name, draws)


def labels_left_out(data: Path) -> dict:
    """Each label in turn: the images that have it are strange, the others have the other labels."""
    found = rows(data / "multilabel/miml_labels_1.csv")
    paths = [str(data / "multilabel/images" / row.pop("Filenames")) for row in found]
    draws = []
    for seed, out in enumerate(found[0]):
        others = {name: [int(row[name]) for row in found] for name in found[0] if name != out}
        table = pl.DataFrame({"path": paths, **others})
        draws.append(measure_left_out("several labels", table, [row[out] == "1" for row in found], out, seed))
    return mean_of_draws("several labels", draws)


def measure_familiarity(data: Path) -> list[dict]:
    result = measure_strange(data) + measure_strange(data, recipe="cnn")
    return [*result, *measure_all_left_out(data)]


def measure_all_left_out(data: Path) -> list[dict]:
    result = []
    table = rows(data / "label_noise/labels.csv")
    images = [data / "label_noise" / row["path"] for row in table]
    result.append(classes_left_out("CIFAR-10", images, [row["clean_label"] for row in table]))
    with tempfile.TemporaryDirectory() as folder:
        write_digits(Path(folder) / "digits")
        images = sorted(Path(folder).rglob("*.png"))
        result.append(classes_left_out("digits", images, [path.parent.name for path in images]))
    return [*result, labels_left_out(data)]
