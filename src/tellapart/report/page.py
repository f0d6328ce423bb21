"""The report as one HTML file: no script, nothing fetched, readable on a phone and on paper."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from tellapart.data.dataset import LABEL_KEY, Dataset
from tellapart.errors import ImageError
from tellapart.evaluation.decide import decide
from tellapart.evaluation.metrics import Answer
from tellapart.explain.colors import Scale, overlay
from tellapart.imaging.decode import StoredImage, decode_image
from tellapart.imaging.pool import map_ordered
from tellapart.imaging.preprocess import preprocess_image
from tellapart.pages.pictures import jpeg_uri, thumbnail
from tellapart.pages.template import PageTemplate
from tellapart.records import ModelCard, Preprocess, Progress, no_progress
from tellapart.report import charts, story
from tellapart.report.examples import Examples

THUMBNAIL_PX = 192
CLASS_THUMBNAIL_PX = 112
MAX_NUMBERED_CLASSES = 12
"""Up to so many classes the confusion matrix is a table of numbers, beyond it a picture."""

_JPEG_QUALITY = 72
_MOST_WRONG = "The answer is not the label; the most probable answers come first. Is it the model, or the label?"
_LEAST_SURE = "The model could hardly decide. Images like these are worth adding to the training images."
_CLASS_IMAGES = 24  # thumbnails of the data set in all; at least one a class
_MAX_CLASS_ROWS = 200
_MAX_LEAKS = 50
_MAX_CLASS_FIGURES = 120  # classes with thumbnails, so that the page stays small
_MAX_WORDS = 90

HeatMap = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One image with what is said of it; ``heat`` is empty without a heat map, ``uri`` where it cannot be read.

    ``prob`` is that of the class ``about``, and so is the heat map.
    """

    path: str
    label: str
    answer: str = ""
    about: str = ""
    prob: float = 0.0
    verdict: str = ""
    right: bool = True
    uri: str = ""
    heat: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """Images of one kind."""

    title: str
    text: str
    pictures: tuple[Picture, ...]


def render_report(
    report: Mapping[str, Any],
    dataset: Dataset,
    answers: Mapping[str, Answer],
    card: ModelCard,
    *,
    examples: Examples,
    heatmaps: Mapping[str, HeatMap],
    title: str,
    command: str,
    covered: bool = False,
    progress: Progress = no_progress,
) -> bytes:
    """The page as UTF-8; names of files and classes are escaped, and the same input gives the same page.

    Args:
        report: as in ``report.json``; of ``test`` only ``n``, ``headline``, ``class_names`` and ``per_class`` must be there, and
            nothing beside ``test`` and ``dataset``.
        dataset: the images; those shown are read again for their thumbnails.
        answers: what the model file says of the test images, by path.
        card: of the model file.
        examples: test images to show.
        heatmaps: (h, w) by path, what speaks for the predicted class (above 0) and against it; may be empty.
        title: such as the name of the run.
        command: what to type to get the same again.
        covered: whether the heat maps were found by covering places, for as many images as there was time for.
        progress: called with the number of thumbnails made.
    """
    report = {**{name: {} for name in _OPTIONAL}, **report}
    test = report["test"]
    galleries, by_class = _pictures(dataset, answers, card, examples, heatmaps, progress)
    return _PAGE.fill(
        title=title,
        command=command,
        report=report,
        test={**dict.fromkeys(_OPTIONAL_OF_TEST), **test},
        card=card,
        leaked=[_place(path, dataset) for path in report["leaks"].get("paths", ())[:_MAX_LEAKS]],
        answer=story.answer(test),
        grade=story.grade(test),
        basis=story.basis(report),
        when_unsure=story.when_unsure(report),
        warnings=story.warnings(report),
        advice=story.advice(report, examples.contradicted),
        galleries=[gallery for gallery in galleries if gallery.pictures],
        by_class=by_class,
        confusions=story.confusions(test),
        tried=story.tried(report["fit"].get("search", {})),
        more_time=story.more_time(report["fit"].get("search", {})),
        numbered=len(test["class_names"]) <= MAX_NUMBERED_CLASSES,
        matrix=charts.matrix(test),
        class_rows=_class_rows(test),
        class_metrics=[m for m in CLASS_METRICS if any(m in row for row in test["per_class"].values())],
        left_out=max(0, len(test["per_class"]) - _MAX_CLASS_ROWS),
        not_pictured=dataset.class_names[_MAX_CLASS_FIGURES:],
        metrics=[(name, test[name]) for name in METRICS if test.get(name) is not None],
        reliability=charts.reliability(test),
        selective=charts.selective(test),
        notes=[note.replace(str(dataset.root), dataset.root.name) for note in report["dataset"]["notes"]],
        limits=story.limits(card),
        several=card.task == "multilabel",
        amounts=SCORES,
        curves=charts.curves(report.get("fit", {}).get("log", ())),
        covered=covered,
        heat=any(picture.heat for gallery in galleries for picture in gallery.pictures),
    )


_OPTIONAL = ("leaks", "fit", "calibration", "verification", "seconds")
_OPTIONAL_OF_TEST = ("accuracy", "top_k", "confusion_matrix", "thresholds", "reliability", "selective", "verdicts", "coverage",
                     "bands", "familiarity")  # fmt: skip
CLASS_METRICS = ("recall", "precision", "f1", "average_precision", "auroc", "auprc")
METRICS = ("accuracy", "map", "balanced_accuracy", "macro_f1", "micro_f1", "exact_match", "hamming_loss", "kappa", "auroc",
            "auprc", "log_loss", "brier", "ece", "aurc")  # fmt: skip
SCORES = ("hamming_loss", "kappa", "log_loss", "brier", "ece", "aurc")  # no percentages


def _class_rows(test: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """In the order of the classes; of very many, those recognised worst."""
    rows = list(test["per_class"].items())
    if len(rows) <= _MAX_CLASS_ROWS:
        return rows
    return sorted(rows, key=lambda row: (row[1]["recall"]["value"] is None, row[1]["recall"]["value"] or 0))[
        :_MAX_CLASS_ROWS
    ]


def _pictures(
    dataset: Dataset,
    answers: Mapping[str, Answer],
    card: ModelCard,
    examples: Examples,
    heatmaps: Mapping[str, HeatMap],
    progress: Progress,
) -> tuple[list[Gallery], list[tuple[str, list[Picture]]]]:
    """The images of the three galleries, and some of each class."""
    chosen = _class_examples(dataset)
    rest = [path for paths in chosen.values() for path in paths]
    jobs = [(path, THUMBNAIL_PX, heatmaps.get(path)) for path in examples.paths]
    jobs += [(path, CLASS_THUMBNAIL_PX, None) for path in rest]
    draw = partial(_draw, stored=dataset.stored, preprocess=card.preprocess)
    drawn: list[tuple[str, str]] = []
    for found in map_ordered(draw, jobs):
        drawn.append(found)
        progress("thumbnails", len(drawn), len(jobs))
    large = dict(zip(examples.paths, drawn, strict=False))
    small = dict(zip(rest, drawn[len(examples.paths) :], strict=True))
    wanted = dataset.where(pl.col("path").is_in([*examples.paths, *rest]))
    labels = dict(wanted.table.select("path", LABEL_KEY).iter_rows())
    shown = {
        path: _picture(
            path,
            _place(path, dataset),
            labels.get(path) or "",
            answers[path],
            card,
            examples.about[path],
            large[path],
        )
        for path in examples.paths
    }
    galleries = [
        Gallery(title=name, text=text, pictures=tuple(shown[path] for path in paths))
        for name, text, paths in (
            ("Most wrong", _MOST_WRONG, examples.most_wrong),
            ("Least sure", _LEAST_SURE, examples.least_sure),
            ("Least familiar", "The least like what the model learned from.", examples.least_familiar),
        )
    ]  # fmt: skip
    by_class = [
        (name, [Picture(path=_place(path, dataset), label=name, uri=small[path][0]) for path in paths])
        for name, paths in chosen.items()
    ]
    return galleries, by_class


def _picture(
    path: str, place: str, label: str, answer: Answer, card: ModelCard, about: int, drawn: tuple[str, str]
) -> Picture:
    said = decide(path, answer, card)
    given = ", ".join(sorted(said.labels)) if card.task == "multilabel" else said.label or ""
    uri, heat = drawn
    return Picture(
        path=place, label=label, answer=given, about=card.class_names[about], prob=float(said.probs[about]),
        verdict=said.verdict, right=given == label, uri=uri, heat=heat,
    )  # fmt: skip


def _class_examples(dataset: Dataset) -> dict[str, list[str]]:
    """Some images of each class, evenly over the folder: of the training images where there are any."""
    part = dataset.used("train") if len(dataset.used("train")) else dataset.used()
    many = max(1, min(4, _CLASS_IMAGES // max(1, len(dataset.class_names))))
    column = pl.col("label") if dataset.task == "classification" else pl.col("labels")
    rows = part.table.select("path", column.alias("name"))
    if dataset.task == "multilabel":
        rows = rows.explode("name")
    paths: dict[str, list[str]] = {name: [] for name in dataset.class_names[:_MAX_CLASS_FIGURES]}
    for path, name in rows.iter_rows():
        if name in paths:
            paths[name].append(path)
    return {
        name: [found[len(found) * i // many] for i in range(many)] if len(found) > many else found
        for name, found in paths.items()
    }


def _draw(
    job: tuple[str, int, HeatMap | None], *, stored: Mapping[str, StoredImage], preprocess: Preprocess
) -> tuple[str, str]:
    """A thumbnail, and the same under its heat map."""
    path, side_px, heat = job
    try:
        pixels = decode_image(stored.get(path, path), target_px=side_px)
    except ImageError:  # it could be read when it was tested; the page says that there is no picture
        return "", ""
    small = thumbnail(pixels, side_px)
    uri = jpeg_uri(small, quality=_JPEG_QUALITY)
    if heat is None:
        return uri, ""
    seen = preprocess_image(pixels, replace(preprocess, input_size_px=side_px))
    values = np.asarray(
        Image.fromarray(np.asarray(heat, np.float32)).resize((side_px, side_px), Image.Resampling.BILINEAR)
    )
    end = float(np.abs(values).max(initial=0)) or 1.0
    painted = overlay(values, Scale(palette="diverging", low=-end, high=end), seen)
    if preprocess.resize == "squash":  # back to the image's own shape
        painted = np.asarray(Image.fromarray(painted).resize((small.shape[1], small.shape[0])))
    return uri, jpeg_uri(painted, quality=_JPEG_QUALITY)


def _place(path: str, dataset: Dataset) -> str:
    """Of a path, what lies below the images' folder; of one that lies elsewhere, its own folder and name."""
    below = path.removeprefix(f"{dataset.root}/")
    return "/".join(below.split("/")[-2:]) if below.startswith("/") else below


def _short(text: str) -> str:
    """Long names keep both ends."""
    return text if len(text) <= _MAX_WORDS else f"{text[: _MAX_WORDS // 2]} … {text[-_MAX_WORDS // 3 :]}"


_PAGE = PageTemplate(
    "tellapart.report",
    "page.html",
    {
        "percent": story.percent,
        "amount": story.amount,
        "words": story.words,
        "sentence": story.sentence,
        "short": _short,
        "bar": charts.bar,
        "span": story.span,
        "duration": story.duration,
    },
)
