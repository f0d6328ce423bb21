"""A training run of half a second, and all that it must come to. Importing this starts no thread."""

import json

import tellapart
from tellapart.inference.model import read_model

SETTINGS = {
    "input_size_px": 12,
    "layers": "conv 6x3, batchnorm, pool 2, dropout 0.3, conv 5x2, flatten, dense 7",
    "epochs": 3,
    "batch_size": 8,
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "schedule": "one-cycle",
    "ema_decay": 0.9,
    "lr": 0.01,
    "augment": "zoom 0.2, rotation 10, mixup 0.2",
}
CLOCK = ("images_per_s", "seconds")
EVERY_RUN = {
    "model.onnx",
    "report.html",
    "model_card.md",
    "report.json",
    "recipe.toml",
    "dataset.parquet",
    "predictions.parquet",
}
RUN_FILES = EVERY_RUN | {"log.jsonl", "curves.svg", ".lock"}


def outcome(folder):
    """All that a finished run must have in common with one that was never stopped, without its clocks."""
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for entry in log:
        for key in CLOCK:
            del entry[key]
    report = json.loads((folder / "report.json").read_text())
    fit = {key: report["fit"][key] for key in ("best_epoch", "epochs_trained", "interrupted", "verdict")}
    model = read_model(folder / "model.onnx").card.graph_sha256  # of weights and temperature
    return {"model": model, "log": log, "fit": fit, "test": report["test"], "dataset": report["dataset"]}


def begin(source, out, **options):
    return tellapart.train(source, recipe="cnn", settings=SETTINGS, out=out, **options)
