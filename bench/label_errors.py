"""Ranking of wrong labels against known truth: plain self-confidence, cleanlab, tellapart.

    python bench/label_errors.py ../shared/data/label_noise [--seeds 5]

The clean labels measure and choose nothing. Every ranking is given the same out-of-fold probabilities: those of the plain probe
(one round) and those of tellapart (two rounds, wrong labels weighing less in the second). cleanlab lives in an environment that
this script makes; it is left out with a message where it cannot be installed.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from scipy.special import softmax

from tellapart.evaluation.label_errors import find_label_errors
from tellapart.evaluation.ranking import areas_under_curves
from tellapart.inference.bundled import open_backbone
from tellapart.inference.embed import embed_files
from tellapart.records import Preprocess
from tellapart.storage import sha256
from tellapart.training.label_check import out_of_fold_probs
from tellapart.training.probe import fit_probe
from train import save

FEATURES = {"stage 8 at 224 px": ((8,), 224), "stages 5-7 at 160 px": ((5, 6, 7), 160)}
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
LABEL_SETS = ("random_label1", "worse_label")
RESAMPLES = 1_000

# Its scores are high for good labels. The number of issues is its own default, too.
CLEANLAB = """
import sys
import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
given = np.load(sys.argv[1])
labels, probs = given["labels"], given["probs"]
np.savez(
    sys.argv[2],
    default=-get_label_quality_scores(labels, probs),
    margin=-get_label_quality_scores(labels, probs, method="normalized_margin"),
    entropy=-get_label_quality_scores(labels, probs, method="confidence_weighted_entropy"),
    issues=find_label_issues(labels, probs, n_jobs=1),
)
"""


def cleanlab_python(scratch: Path) -> str | None:
    """The Python of a new environment with cleanlab; None, with a message, where it cannot be made."""
    python = scratch / "cleanlab/bin/python"
    for made in (
        [sys.executable, "-m", "venv", str(scratch / "cleanlab")],
        [python, "-m", "pip", "install", "-q", "cleanlab"],
    ):
        if subprocess.run(made, capture_output=True, check=False).returncode:
            print("left out: cleanlab cannot be installed here")
            return None
    return str(python)


def ask_cleanlab(python: str, labels: np.ndarray, probs: np.ndarray) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as scratch:
        given, answer = Path(scratch) / "given.npz", Path(scratch) / "answer.npz"
        np.savez(given, labels=labels, probs=probs.astype(np.float64))
        subprocess.run([python, "-c", CLEANLAB, given, answer], check=True)
        with np.load(answer) as found:
            return dict(found)


def embed(folder: Path, paths: list[str], stages: tuple[int, ...], side_px: int) -> np.ndarray:
    files = {path: str(folder / path) for path in paths}
    contents = {path: sha256(Path(file).read_bytes()) for path, file in files.items()}
    by_content = {contents[path]: file for path, file in files.items()}
    backbone = open_backbone("efficientnet_lite0", stages)
    found = embed_files(by_content, backbone, Preprocess(input_size_px=side_px))
    if found.errors:
        raise SystemExit(f"{len(found.errors)} images cannot be decoded")
    return np.stack([found.embeddings[contents[path]] for path in paths])


def plain_probs(embeddings: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Out-of-fold probabilities of the probe as it is trained."""
    probe = fit_probe(embeddings, labels, strengths=STRENGTHS, folds=5, seed=seed)
    if len(probe.fold_images) != len(labels):
        raise SystemExit("the plain probe answers only some of so many images")
    probs = np.empty_like(probe.fold_logits)
    probs[probe.fold_images] = softmax(probe.fold_logits, axis=1)
    return probs


def rank(
    labels: np.ndarray, probs: np.ndarray, python: str | None
) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """For each way to rank: scores, high for bad labels, and which labels are called wrong, where it says so."""
    ours = find_label_errors(labels, probs)
    rankings = {
        "self-confidence": (-probs[np.arange(len(labels)), labels], None),
        "tellapart": (ours.score, ours.suspected),
    }
    if python:
        theirs = ask_cleanlab(python, labels, probs)
        rankings["cleanlab, default"] = (theirs["default"], theirs["issues"])
        rankings["cleanlab, normalized_margin"] = (theirs["margin"], None)
        rankings["cleanlab, confidence_weighted_entropy"] = (theirs["entropy"], None)
    return rankings


def measure(wrong: np.ndarray, score: np.ndarray, called: np.ndarray | None) -> dict[str, float]:
    first = np.argsort(-score, kind="stable")[: wrong.sum()]
    figures = {
        "average_precision": float(areas_under_curves(wrong, score, np.ones((len(wrong), 1)))[1][0]),
        "precision_at_errors": float(wrong[first].mean()),
    }
    if called is not None:
        hits = (wrong & called).sum()
        figures |= {
            "called_wrong": float(called.sum()),
            "called_precision": float(hits / max(1, called.sum())),
            "called_recall": float(hits / wrong.sum()),
        }
    return figures


def gain(wrong: np.ndarray, score: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """95 % interval of the average precision of one ranking less another's, over resamples of the images."""
    rng = np.random.default_rng(0)
    n = len(wrong)
    drawn = []
    for _ in range(RESAMPLES // 50):
        weights = rng.multinomial(n, np.full(n, 1 / n), size=50).T.astype(np.float64)
        mine, theirs = (areas_under_curves(wrong, ranking, weights)[1] for ranking in (score, other))
        drawn.append(mine - theirs)
    low, high = np.quantile(np.concatenate(drawn), (0.025, 0.975))
    return round(float(low), 4), round(float(high), 4)


def summary(figures: list[dict[str, float]]) -> dict[str, object]:
    """Mean over the seeds, and the standard deviation of the two that count."""
    row: dict[str, object] = {}
    for key in ("average_precision", "precision_at_errors", "called_wrong", "called_precision", "called_recall"):
        values = [figure[key] for figure in figures if key in figure]
        row[key] = round(statistics.mean(values), 4) if values else ""
        if key in ("average_precision", "precision_at_errors"):
            row[f"{key}_sd"] = round(statistics.stdev(values), 4) if len(values) > 1 else ""
    return row


def compare(
    embeddings: np.ndarray, labels: np.ndarray, wrong: np.ndarray, *, seeds: int, python: str | None
) -> list[dict[str, object]]:
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    scores: dict[tuple[str, str], np.ndarray] = {}
    seconds: dict[str, list[float]] = {}
    for seed in range(seeds):
        for rounds, probs_of in (
            ("plain probe", plain_probs),
            ("two rounds", lambda *a: out_of_fold_probs(*a[:2], seed=a[2])),
        ):
            start = time.perf_counter()
            probs = probs_of(embeddings, labels, seed)
            seconds.setdefault(rounds, []).append(time.perf_counter() - start)
            for name, (score, called) in rank(labels, probs, python).items():
                found.setdefault((rounds, name), []).append(measure(wrong, score, called))
                scores.setdefault((rounds, name), score)
    rows = []
    for (rounds, name), figures in found.items():
        low, high = gain(wrong, scores[rounds, name], scores["plain probe", "self-confidence"])
        rows.append(
            {
                "probabilities": rounds,
                "ranking": name,
                "images": len(labels),
                "wrong": int(wrong.sum()),
                "seeds": seeds,
                **summary(figures),
                "gain_over_plain_low": low,
                "gain_over_plain_high": high,
                "probabilities_seconds": round(statistics.median(seconds[rounds]), 2),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cleanlab", help="a Python that has cleanlab; without it an environment is made")
    options = parser.parse_args()
    table = pl.read_csv(options.folder / "labels.csv")
    names = sorted(table["clean_label"].unique())
    columns = {c: np.array([names.index(label) for label in table[c]]) for c in ("clean_label", *LABEL_SETS)}
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        python = options.cleanlab or cleanlab_python(Path(scratch))
        for features, (stages, side_px) in FEATURES.items():
            embeddings = embed(options.folder, table["path"].to_list(), stages, side_px)
            for label_set in LABEL_SETS:
                labels = columns[label_set]
                wrong = labels != columns["clean_label"]
                for row in compare(embeddings, labels, wrong, seeds=options.seeds, python=python):
                    rows.append({"labels": label_set, "features": features, **row})
                    print(rows[-1], flush=True)
    save("label_errors", rows)


if __name__ == "__main__":
    main()
