"""How well model files tell strange images; run through bench/trust.py."""

import tempfile
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.stats import rankdata, t

import tellapart
from strange import all_strange
from tellapart.evaluation.familiarity import fit_familiarity, fit_familiarity_rule
from tellapart.evaluation.metrics import wilson_interval
from tellapart.evaluation.ranking import auroc_interval
from tellapart.inference.predict import Classifier
from tellapart.records import Interval
from tellapart.training.folds import even_folds, strata_of
from trust_sets import RECIPE, ImageSet, cifar, digits, fit, multilabel, probs_of

DRAWS = 12
FEW = 400


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


def score_left_out(
    embeddings: np.ndarray, labels: np.ndarray, strange: np.ndarray, few: int | None, seed: int
) -> dict:
    """A model for the other classes, as the recipe ``probe`` makes one, but on embeddings that are known already.

    A quarter of the familiar images tests, a tenth sets the threshold, and the rest, or only a few of it, trains.
    """
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(~strange))
    test, calib, train = np.split(rows, [len(rows) // 4, len(rows) // 4 + len(rows) // 10])
    strata = strata_of(labels)
    train = train[:few][np.argsort(strata[train[:few]], kind="stable")]
    probe = fit(embeddings[train], labels[train], seed)
    fold = even_folds(strata[train], 2, seed)
    score = fit_familiarity(embeddings[train], probe.fold_logits, fold).score
    asked = {"calib": calib, "familiar": test, "strange": np.flatnonzero(strange)}
    logits = {name: probe.head.logits(embeddings[part]) for name, part in asked.items()}
    scores = {name: score.score(embeddings[part], logits[name]) for name, part in asked.items()}
    rule = fit_familiarity_rule(scores["calib"], rate=RECIPE.false_alarms, method="calib")
    largest = {name: probs_of(each, multilabel=labels.ndim == 2).max(axis=1) for name, each in logits.items()}
    return {
        "familiarity": auroc(scores["familiar"], scores["strange"]),
        "largest probability": auroc(largest["familiar"], largest["strange"]),
        "found": float((scores["strange"] < rule.threshold).mean()),
        "false alarms": float((scores["familiar"] < rule.threshold).mean()),
        "promised": rule.promised,
        "familiar": len(test),
        "strange": len(asked["strange"]),
    }


def student(values: Sequence[float]) -> str:
    margin = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.4f} ({np.mean(values) - margin:.4f} to {np.mean(values) + margin:.4f})"


def mean_of_draws(name: str, draws: list[dict]) -> dict:
    gains = [draw["familiarity"] - draw["largest probability"] for draw in draws]
    row = {"recipe": "probe, on embeddings", "against": f"{name}, classes left out, {len(draws)} draws"}
    row |= {key: sum(draw[key] for draw in draws) for key in ("familiar", "strange")}
    for key in ("familiarity", "largest probability", "found", "false alarms", "promised"):
        row[key] = student([draw[key] for draw in draws])
    row |= {"gain": student(gains), "better in": sum(gain > 0 for gain in gains)}
    print(row, flush=True)
    return row


def classes_left_out(images: ImageSet) -> dict:
    """Three or two classes drawn by turns; of every third draw, 400 images train."""
    draws = []
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        out = rng.choice(np.unique(images.labels), 3 - seed % 2, replace=False)
        labels = np.searchsorted(np.setdiff1d(images.labels, out), images.labels)
        few = FEW if seed % 3 == 2 else None
        draws.append(score_left_out(images.embeddings, labels, np.isin(images.labels, out), few, seed))
    return mean_of_draws(images.name, draws)


def labels_left_out(images: ImageSet) -> dict:
    """Each label and each pair in turn: the images that have it are strange, the others have the other labels."""
    several = range(images.labels.shape[1])
    draws = []
    for seed, out in enumerate([*combinations(several, 1), *combinations(several, 2)]):
        strange = images.labels[:, out].any(axis=1)
        labels = np.delete(images.labels, out, axis=1)
        few = FEW if seed % 3 == 2 else None
        draws.append(score_left_out(images.embeddings, labels, strange, few, seed))
    return mean_of_draws(images.name, draws)


def measure_familiarity(data: Path) -> list[dict]:
    return measure_strange(data) + measure_strange(data, recipe="cnn")


def measure_all_left_out(data: Path) -> list[dict]:
    return [classes_left_out(cifar(data)), classes_left_out(digits(data)), labels_left_out(multilabel(data))]
