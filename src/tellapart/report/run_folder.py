"""The files of a run folder, each whole or not at all."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from tellapart.data.dataset import LABEL_KEY, Dataset, Split
from tellapart.evaluation.decide import decide
from tellapart.evaluation.metrics import Answer
from tellapart.inference.model import ModelFile
from tellapart.records import ModelCard, Progress, no_progress
from tellapart.report.model_card import render_model_card
from tellapart.report.present import present
from tellapart.storage import atomic_file, write_bytes, write_json
from tellapart.training.recipes import Recipe, recipe_toml


def describe(dataset: Dataset) -> dict[str, Any]:
    """What became of every file, as numbers."""
    splits: tuple[Split, ...] = ("train", "val", "calib", "test")
    return {
        **asdict(dataset.counts()),
        "notes": list(dataset.notes),
        "reasons": dataset.reasons(),
        "classes": dataset.class_counts(),
        "splits": {name: dataset.class_counts(name) for name in splits if len(dataset.used(name))},
        "fingerprint": dataset.fingerprint(),
    }


def write_run(
    folder: Path,
    model: ModelFile,
    dataset: Dataset,
    answers: Mapping[str, Answer],
    report: Mapping[str, Any],
    *,
    recipe: Recipe,
    command: str,
    progress: Progress = no_progress,
) -> None:
    """Write the run's files; the model comes last, so that it never lacks its report.

    Args:
        folder: the run's own.
        model: the finished file.
        dataset: every file that was seen, and what became of it.
        answers: what the model file says of calib and test images, by path.
        report: as in ``report.json``.
        recipe: with nothing left open.
        command: what to type to get the same again.
        progress: called as thumbnails are made.

    Raises:
        StorageError: cannot-write.
    """
    title = folder.resolve().name
    page = present(report, dataset, answers, model, title=title, command=command, progress=progress)
    dataset.write_parquet(folder / "dataset.parquet")
    with atomic_file(folder / "predictions.parquet") as file:
        _prediction_table(dataset, answers, model.card).write_parquet(file)
    write_bytes(folder / "recipe.toml", recipe_toml(recipe).encode())
    write_json(folder / "report.json", report)
    write_bytes(folder / "report.html", page)
    write_bytes(
        folder / "model_card.md",
        render_model_card(report, model.card, title=title, command=command).encode(),
    )
    model.save(folder / "model.onnx")


def _prediction_table(dataset: Dataset, answers: Mapping[str, Answer], card: ModelCard) -> pl.DataFrame:
    """One row for each image the model file was asked about."""
    rows = []
    for path, split_name, label in dataset.used().table.select("path", "split", LABEL_KEY).iter_rows():
        if path in answers:
            said = decide(path, answers[path], card)
            row = {
                "path": path,
                "split": split_name,
                "label": label,
                "predicted": said.label,
                "prob": said.prob,
            }
            bands = {f"band_{name}": band for name, band in said.bands}
            rows.append({**row, "verdict": said.verdict, **bands, "probs": said.probs})
    return pl.DataFrame(rows)
