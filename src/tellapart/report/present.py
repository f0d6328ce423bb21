"""From a measured model to its page: which images to show, what speaks for their answers, and how to get the same again."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tellapart.data.dataset import Dataset
from tellapart.evaluation.metrics import Answer
from tellapart.inference.model import ModelFile
from tellapart.records import Progress, SourceOptions
from tellapart.report.examples import choose_examples
from tellapart.report.heat import class_maps, has_class_maps, in_turns, occlusion_maps
from tellapart.report.page import render_report
from tellapart.training.recipes import RECIPES, Recipe, build_recipe, recipe_settings


def present(
    report: Mapping[str, Any],
    dataset: Dataset,
    answers: Mapping[str, Answer],
    model: ModelFile,
    *,
    title: str,
    command: str,
    progress: Progress,
) -> bytes:
    """The report as one HTML page, with heat maps: the model file's own, or found by covering places.

    Args:
        report: as in ``report.json``.
        dataset: every file; its test images are shown, and all that are in use where there is no test part.
        answers: what the model file says of them, by path.
        model: the file.
        title: such as the name of the run.
        command: what to type to get the same again.
        progress: called as thumbnails are made.
    """
    part = dataset.used("test") if len(dataset.used("test")) else dataset.used()
    examples = choose_examples(part, answers, model.card)
    paths = in_turns((examples.most_wrong, examples.least_sure, examples.least_familiar))
    images = {path: dataset.stored.get(path, path) for path in paths}
    covered = not has_class_maps(model)
    return render_report(
        report,
        dataset,
        answers,
        model.card,
        examples=examples,
        heatmaps=(occlusion_maps if covered else class_maps)(model, images, examples.about),
        covered=covered,
        title=title,
        command=command,
        progress=progress,
    )


def training_command(source: str, options: SourceOptions, recipe: Recipe, seed: int) -> str:
    """What to type to train the same model again. Folders are left out: they are nobody else's business.

    Args:
        source: where the images are; empty for a table in memory.
        options: of the source.
        recipe: as it was asked for.
        seed: of the run.
    """
    words = ["tellapart", "train", _last(source) or "TABLE", "--recipe", recipe.name]
    defaults = recipe_settings(build_recipe(recipe.name)) if recipe.name in RECIPES else {}
    for key, value in recipe_settings(recipe).items():
        if key != "name" and value != defaults.get(key):
            words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    for key, value in asdict(options).items():
        flag = f"--{key.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value:
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            words += [flag, _last(text) if key in ("root", "exclude", "relabel") else text]
    return shlex.join([*words, "--seed", str(seed)])


def _last(source: str) -> str:
    """Of a path the last part; an address as it is."""
    return source if ":" in source else Path(source).name
