"""The whole page, number by number: each belongs to the answers or to the report, and the page stays small."""

import html
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from sklearn import metrics as sk
from test_report import HOSTILE, _Page, interval

from tellapart.data.dataset import SCHEMA, Dataset
from tellapart.evaluation.measure import measure
from tellapart.records import Calibration, FamiliarityRule, ModelCard, Preprocess
from tellapart.report.examples import choose_examples
from tellapart.report.page import render_report
from tellapart.report.run_folder import describe

PROSE = {"9", "10", "90", "95", "100", "1,000"}
"""Numbers in what the page says whatever was measured."""


def generated(folder, task, names, n, side=24):
    """Answers that are right more often than not, and images of noise to show."""
    rng = np.random.default_rng(3)
    k = len(names)
    paths = [str(folder / f"image-{'abcdefghij'[i % 10]}.png") + "#" * (i // 10) for i in range(n)]
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(paths[i])
    if task == "multilabel":
        truth = rng.random((n, k)) < 0.4
        logits = rng.normal(0, 1.5, (n, k)) + 3 * truth - 1.5
        probs = 1 / (1 + np.exp(-logits))
        column = {"labels": [[names[j] for j in np.flatnonzero(row)] for row in truth]}
    else:
        truth = rng.integers(0, k, n)
        logits = rng.normal(0, 1.5, (n, k))
        logits[np.arange(n), truth] += 4
        probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        column = {"label": [names[j] for j in truth]}
    rows = {"path": paths, "split": ["test"] * n, "status": ["used"] * n, **column}
    table = pl.DataFrame(rows).with_columns(
        [pl.lit(None, kind).alias(name) for name, kind in SCHEMA.items() if name not in rows]
    )
    dataset = Dataset(table=table.select(SCHEMA.names()).cast(SCHEMA), class_names=names, root=folder, task=task)
    card = ModelCard(
        class_names=names, preprocess=Preprocess(input_size_px=32), embedding_dim=4, created="", task=task,
        calibration=Calibration(temperature=1.437, method="calib", n=317),
        label_thresholds=(0.463,) * k if task == "multilabel" else (),
        familiarity=FamiliarityRule(threshold=-2, rate=0.02, promised=0.023, achieved=0.02, method="calib", n=317),
    )  # fmt: skip
    answers = {"probs": probs.astype(np.float32), "familiarity": rng.normal(size=n).astype(np.float32)}
    return dataset, answers, card


def paged(dataset, answers, card, report, heat=True):
    by_path = {path: {key: row[i] for key, row in answers.items()} for i, path in enumerate(dataset.paths)}
    examples = choose_examples(dataset, by_path, card)
    maps = {path: np.random.default_rng(5).normal(size=(7, 7)) for path in examples.paths} if heat else {}
    # Many rows share a file: what follows its name only tells them apart.
    stored = {path: path.rstrip("#") for path in dataset.paths}
    return render_report(
        report,
        replace(dataset, stored=stored),
        by_path,
        card,
        examples=examples,
        heatmaps=maps,
        title="shop",
        command="make it",
    )


def leaves(value):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(key if isinstance(key, int | float) else 0)
            yield from leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from leaves(inner)
    elif isinstance(value, bool | str) or value is None:
        yield from (word for word in re.findall(r"\d[\d,]*(?:\.\d+)?", value or "") if isinstance(value, str))
    else:
        yield value


def spelled(values):
    """Every way in which the page may write these numbers."""
    for value in values:
        if isinstance(value, str):
            yield value
            continue
        yield from (f"{value:,}", f"{value:.2f}", f"{value:.3f}", f"{value:.4f}", f"{value:.1f}")
        if value <= 1:
            yield from (f"{100 * value:.1f}", f"{100 * value:.0f}", f"{round(1000 * value):,}")


FIT = {
    "verdict": "Settled.",
    "log": [
        {"epoch": i, "train_loss": 1.1 / i, "train_accuracy": 0.61 + i / 50, "val_loss": 1.23 / i, "val_accuracy": 0.6,
         "running_loss": 1.37 / i, "running_accuracy": 0.57} for i in range(1, 4)
    ],
}  # fmt: skip
BANDS = [
    {"class_name": HOSTILE[0], "bands": [{"name": "certain", "goal": "precision 0.97", "min_prob": 0.873, "n": 77,
     "rate": interval(0.911, 0.83, 0.951), "precision": interval(0.913, 0.833, 0.957), "recall": interval(0.417, 0.331, 0.52)},
     {"name": "empty", "goal": "recall 0.97", "min_prob": None, "note": "cannot be reached", "n": 0,
     "rate": interval(0.0, 0.0, 0.111), "precision": interval(None, None, None), "recall": interval(0.0, 0.0, 0.222)}]}
]  # fmt: skip


@pytest.mark.parametrize("task", ["classification", "multilabel"])
@pytest.mark.parametrize("k", [4, 14])
def test_every_number_belongs_to_the_report(tmp_path, task, k):
    names = (*HOSTILE, *(f"class {'abcdefghij'[i]}" for i in range(k - 4)))
    dataset, answers, card = generated(tmp_path, task, names, 403)
    test = {**measure(dataset.labels, answers, card), "bands": BANDS}
    leaks = {"n": 3, "paths": dataset.paths[:3], "test_without": {**test, "n": 400}}
    report = {"test": test, "dataset": describe(dataset), "leaks": leaks, "fit": FIT, "seconds": {"total": 12.7}}
    raw = paged(dataset, answers, card, report)
    page = _Page()
    page.feed(raw.decode())
    assert raw == paged(dataset, answers, card, report)
    assert str(tmp_path).encode() not in raw, "where the images lie is nobody else's business"
    assert all(Path(path).name.encode() in raw for path in leaks["paths"])
    assert "script" not in page.tags
    assert not re.search(rb"https?://|@import|url\(", raw)
    by_path = {path: {key: row[i] for key, row in answers.items()} for i, path in enumerate(dataset.paths)}
    about = choose_examples(dataset, by_path, card).about
    per_image = [float(by_path[path]["probs"][of]) for path, of in about.items()]
    counted = list(range(404))  # images, mistakes, and shares of 100
    known = set(spelled([*leaves(report), *leaves(asdict(card)), *per_image, k, *counted])) | PROSE
    text = html.unescape(re.sub(r"<[^>]*>", " ", re.sub(r"<style>.*?</style>", "", raw.decode(), flags=re.DOTALL)))
    for name in (*names, "shop", dataset.fingerprint()):
        text = text.replace(name, "")
    # A tick of an axis is a number of the axis, not of the report.
    ticks = {tick.strip("%") for tick in re.findall(r"<text[^>]*>([^<]*)</text>", raw.decode())}
    found = set(re.findall(r"\d[\d,]*(?:\.\d+)?", text))
    assert len(found) > 100
    assert {number.rstrip(",") for number in found} - known - ticks == set()
    if task == "classification":
        matches_scikit_learn(page.text, raw.decode(), dataset.labels, answers["probs"], names)


def matches_scikit_learn(text, raw, truth, probs, names):
    said = probs.argmax(axis=1)
    recalls = sk.recall_score(truth, said, average=None)
    for share in (sk.accuracy_score(truth, said), sk.balanced_accuracy_score(truth, said),
                  sk.f1_score(truth, said, average="macro"), *recalls, *sk.precision_score(truth, said, average=None),
                  *sk.f1_score(truth, said, average=None), sk.roc_auc_score(truth, probs, multi_class="ovr")):  # fmt: skip
        assert f"{100 * share:.1f}% (" in text
    for score in (sk.log_loss(truth, probs), sk.cohen_kappa_score(truth, said)):
        assert f"{score:.3f} (" in text
    matrix = sk.confusion_matrix(truth, said)
    if len(names) <= 12:
        cells = re.findall(r'<td class="(?:right|wrong|zero)">(\d+)</td>', raw)
        assert [int(cell) for cell in cells] == matrix.ravel().tolist()
    else:
        cells = [int(cell) for cell in re.findall(r"→ [^<]*: (\d+)</title>", raw)]
        assert cells == matrix[matrix > 0].tolist()


def test_ten_thousand_test_images_of_a_hundred_classes_stay_under_5_mb(tmp_path):
    names = tuple(f"class {i}" for i in range(100))
    dataset, answers, card = generated(tmp_path, "classification", names, 10_000, side=256)
    test = measure(dataset.labels, answers, card)
    raw = paged(dataset, answers, card, {"test": test, "dataset": describe(dataset)})
    assert raw.count(b'alt="Heat map') == 36
    assert raw.count(b"data:image/jpeg") == 2 * 36 + 100
    assert len(raw) < 5_000_000


def test_all_test_answers_count_where_labels_are_contradicted(tmp_path):
    dataset, answers, card = generated(tmp_path, "classification", ("cat", "dog"), 4000)
    by_path = {path: {"probs": row} for path, row in zip(dataset.paths, answers["probs"], strict=True)}
    wrong = answers["probs"].argmax(axis=1) != dataset.labels
    expected = int((wrong & (answers["probs"].max(axis=1) >= 0.9)).sum())
    assert choose_examples(dataset, by_path, card).contradicted == expected > 0


def test_of_several_labels_the_wrong_one_is_named(tmp_path):
    dataset, answers, card = generated(tmp_path, "multilabel", ("sea", "sand", "sky"), 60)
    probs = answers["probs"].astype(np.float64)
    by_path = {path: {"probs": row} for path, row in zip(dataset.paths, answers["probs"], strict=True)}
    examples = choose_examples(dataset, by_path, card)
    for path in examples.most_wrong:
        i, k = dataset.paths.index(path), examples.about[path]
        off = np.abs(probs[i] - dataset.labels[i])
        is_wrong = (probs[i] >= 0.463) != dataset.labels[i].astype(bool)
        assert is_wrong[k]
        assert off[k] == off[is_wrong].max()
