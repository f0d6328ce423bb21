"""Made-up runs for tests of the page: answers that are right more often than not, to images of noise."""

import re
from dataclasses import replace

import numpy as np
import polars as pl
from PIL import Image

from tellapart.data.dataset import SCHEMA, Dataset
from tellapart.records import (
    Band,
    Calibration,
    ConformalRule,
    DecisionRule,
    FamiliarityRule,
    ModelCard,
    Preprocess,
    SetLevel,
)
from tellapart.report.examples import choose_examples
from tellapart.report.page import render_report

NAMES = tuple(
    f"{color} {animal}" for animal in ("fox", "wolf", "bear", "lynx") for color in ("red", "gray", "old", "wet")
)
THRESHOLD = 0.463
ALARMS = FamiliarityRule(threshold=-2, rate=0.02, promised=0.02, achieved=0.02, method="calib", n=317)


def made_card(task, names):
    """A model card with everything a page may speak of."""
    k = len(names)
    several = task == "multilabel"
    levels = tuple(
        SetLevel(coverage=coverage, min_probs=(0.95 - coverage * (0.6 if several else 0.9),))
        for coverage in (0.8, 0.9, 0.95, 0.99)
    )
    bands = (
        Band(name="certain", min_prob=0.873, goal="precision nine tenths"),
        Band(name="never", min_prob=None, goal="recall of all", note="cannot be reached"),
        Band(name="likely", min_prob=0.512, goal="cost of five"),
        Band(name="other", min_prob=0.0),
    )
    return ModelCard(
        class_names=names, preprocess=Preprocess(input_size_px=32), embedding_dim=4, created="", task=task,
        calibration=Calibration(temperature=1.437, method="calib", n=317),
        conformal=ConformalRule(coverage=0.95, levels=levels, method="calib", per_class=False, n=319),
        label_thresholds=(THRESHOLD,) * k if several else (), familiarity=ALARMS,
        decision_rules=(DecisionRule(class_name=names[1], bands=bands),),
    )  # fmt: skip


def generated(folder, task, names, n, side=24):
    """Answers that are right more often than not, to images of noise; and other files that no answer is about."""
    rng = np.random.default_rng(3)
    k = len(names)
    paths = [str(folder / f"image-{'abcdefghij'[i % 10]}.png") + "_" * (i // 10) for i in range(n)]
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(paths[i])
    if task == "multilabel":
        truth = rng.random((n, k)) < 0.4
        logits = rng.normal(0, 1.5, (n, k)) + 3 * truth - 1.5
        probs = 1 / (1 + np.exp(-logits))
        column, label = "labels", [[names[j] for j in np.flatnonzero(row)] for row in truth]
    else:
        truth = rng.integers(0, k, n)
        logits = rng.normal(0, 1.5, (n, k))
        logits[np.arange(n), truth] += 4
        logits[truth == 1] += 2 * np.eye(k)[0]  # the second class is often taken for the first
        probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        column, label = "label", [names[j] for j in truth]
    learned = [names[0]] * 18 + [name for name in names for _ in range(3)]
    others = [
        *((f"{paths[i % 10]}+{i}", "train", "used", name, None) for i, name in enumerate(learned)),
        *((f"{paths[0]}-{i}", "calib", "used", name, None) for i, name in enumerate(names)),
        *((f"{paths[0]}={i}", None, "refused", names[0], reason) for i, reason in enumerate(("truncated", "truncated", "empty"))),
        *((f"{paths[0]}~{i}", None, "duplicate", names[0], "duplicate") for i in range(4)),
        *((f"{paths[0]}!{i}", None, "skipped", names[0], "not-an-image") for i in range(5)),
    ]  # fmt: skip
    table_of = {
        "path": [*paths, *(row[0] for row in others)],
        "split": ["test"] * n + [row[1] for row in others],
        "status": ["used"] * n + [row[2] for row in others],
        column: [*label, *([row[3]] if task == "multilabel" else row[3] for row in others)],
        "reason": [None] * n + [row[4] for row in others],
    }
    frame = pl.DataFrame(table_of, strict=False).with_columns(
        [pl.lit(None, kind).alias(name) for name, kind in SCHEMA.items() if name not in table_of]
    )
    dataset = Dataset(table=frame.select(SCHEMA.names()).cast(SCHEMA), class_names=names, root=folder, task=task)
    answers = {"probs": probs.astype(np.float32), "familiarity": rng.normal(size=n).astype(np.float32)}
    return dataset, answers


def paged(dataset, answers, card, report):
    part = dataset.used("test")
    by_path = {path: {key: row[i] for key, row in answers.items()} for i, path in enumerate(part.paths)}
    examples = choose_examples(part, by_path, card)
    maps = {path: np.random.default_rng(5).normal(size=(7, 7)) for path in examples.paths}
    # Many rows share a file: what follows its name only tells them apart.
    stored = {path: re.sub(r"png.*", "png", path) for path in dataset.paths}
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
