"""The product on one screen: from labelled images to a verified model file and honest numbers."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tellapart.checking.fixes import apply_fixes, read_fix_list, write_fix_list
from tellapart.checking.page import render_page
from tellapart.checking.run import CheckResult, run_check, write_issues
from tellapart.data.check import check_contents, require_enough
from tellapart.data.copies import find_copies
from tellapart.data.dataset import Dataset
from tellapart.data.sources import (
    DEFAULT_OPTIONS,
    Source,
    is_elsewhere,
    open_dataset,
    open_images,
    open_test_images,
)
from tellapart.data.split import split
from tellapart.errors import DataError, RecipeError, TrainingError
from tellapart.evaluation.rules import parse_rules
from tellapart.inference.bundled import open_backbone
from tellapart.inference.model import pack
from tellapart.inference.predict import Classifier, load
from tellapart.records import (
    EpochLog,
    ModelCard,
    Progress,
    SourceOptions,
    no_progress,
)
from tellapart.report.present import present, training_command
from tellapart.report.run_folder import describe, write_run
from tellapart.storage import locked_folder, write_bytes
from tellapart.training.answers import Answered, answer, measure_answers, measure_leaks
from tellapart.training.calibrate import build_card
from tellapart.training.cost import finetune_seconds
from tellapart.training.label_check import out_of_fold_probs
from tellapart.training.probe_recipe import ProbeRecipe, probe
from tellapart.training.recipes import Recipe, build_recipe, recipe_settings
from tellapart.training.resume import UnfinishedRun, begin_run, finish_run, read_run, require_same_images
from tellapart.training.train import LOG_FILES, Way, learning_part, open_loop_way, open_way
from tellapart.training.verify import verify

REPORT_VERSION = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A finished training run.

    Attributes:
        folder: holds ``model.onnx``, ``report.html``, ``model_card.md``, ``report.json``, ``recipe.toml``,
            ``dataset.parquet`` and ``predictions.parquet``; after a gradient loop also ``log.jsonl`` and ``curves.svg``.
        report: the content of ``report.json``.
        interrupted: whether training was asked to stop before its end; ``resume`` goes on from there.
    """

    folder: Path
    report: Mapping[str, Any]
    interrupted: bool = False

    @property
    def model_path(self) -> Path:
        """The model file."""
        return self.folder / "model.onnx"


def no_epoch(entry: EpochLog) -> None:
    """Say nothing after an epoch."""


def train(
    source: Source,
    options: SourceOptions = DEFAULT_OPTIONS,
    *,
    recipe: str | Recipe = "probe",
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    tensorboard: bool = False,
    progress: Progress = no_progress,
    on_epoch: Callable[[EpochLog], None] = no_epoch,
) -> Run:
    """Turn labelled images into one verified model file and a report.

    Args:
        source: a folder of class folders, or of train, val and test folders with class folders; a table (CSV, JSON lines,
            Parquet, polars, pandas); WebDataset shards; ``hf:owner/name``.
        options: where in the source the images, labels, groups and parts are; what is empty is recognised.
        recipe: a recipe's name, or a recipe.
        settings: changes to the named recipe, such as ``{"input_size_px": 160}``.
        out: run folder; ``runs/`` and the source's name when None.
        seed: draws splits, folds, and all that is random in training.
        tensorboard: whether a recipe with a gradient loop writes TensorBoard events, too.
        progress: called as the work goes on.
        on_epoch: called after each epoch of a recipe with a gradient loop.

    Raises:
        TellapartError: the images, the recipe or the folder are at fault; its code and hint say how.
    """
    began = time.monotonic()
    recipe = build_recipe(recipe, settings) if isinstance(recipe, str) else recipe
    run = UnfinishedRun(source=_lasting_name(source), options=options, recipe=recipe, seed=seed)
    dataset = _open(source, options)
    parse_rules(
        recipe.decision_rules, dataset.class_names
    )  # what is wrong with them is said before anything is done
    with locked_folder(Path(out) if out else default_folder(source)) as folder:
        begin_run(folder, run)
        return _train(
            dataset, run, folder, tensorboard=tensorboard, progress=progress, on_epoch=on_epoch, began=began
        )


def resume(
    folder: str | Path,
    source: Source | None = None,
    *,
    tensorboard: bool = False,
    progress: Progress = no_progress,
    on_epoch: Callable[[EpochLog], None] = no_epoch,
) -> Run:
    """Go on with a run that was stopped, as if it had never been: same images, same recipe, same seed.

    Args:
        folder: the run folder.
        source: as given to ``train``; needed only for a table in memory.
        tensorboard: as in ``train``.
        progress: as in ``train``.
        on_epoch: as in ``train``; called for the epochs that lie behind, too.

    Raises:
        TrainingError: nothing-to-resume, damaged-checkpoint, resume-changed.
        TellapartError: as ``train``.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TrainingError("nothing-to-resume", f"there is no run folder {folder}")
    with locked_folder(folder):
        run = read_run(folder)
        if source is None and not run.source:
            message = f"the run in {folder} learned from a table in memory, which is gone"
            raise TrainingError("nothing-to-resume", message, hint="in Python: tellapart.resume(folder, table)")
        dataset = _open(run.source if source is None else source, run.options)
        return _train(dataset, run, folder, tensorboard=tensorboard, progress=progress, on_epoch=on_epoch)


def preview_augmentation(
    source: Source,
    options: SourceOptions = DEFAULT_OPTIONS,
    *,
    recipe: str | Recipe = "cnn",
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Path:
    """Write ``augmentation.png`` into the run folder: training images, and what the recipe's augmentation makes of them.

    Arguments are those of ``train``.

    Raises:
        RecipeError: bad-setting, for a recipe without augmentation.
        TellapartError: as ``train``.
    """
    recipe = build_recipe(recipe, settings) if isinstance(recipe, str) else recipe
    if isinstance(recipe, ProbeRecipe):
        hint = "choose one that augments: --recipe finetune, or cnn"
        raise RecipeError("bad-setting", f"the recipe {recipe.name!r} augments nothing by itself", hint=hint)
    folder = Path(out) if out else default_folder(source)
    way = open_loop_way(recipe, folder, on_epoch=no_epoch)
    dataset = way.prepare(check_contents(_open(source, options), progress), progress)
    require_enough(dataset)
    return way.preview(_split(dataset, recipe, seed), seed=seed)


def default_folder(source: Source) -> Path:
    """Where a run goes when nobody says: a folder in ``runs`` with the source's name."""
    if not isinstance(source, str | Path):
        return Path("runs") / "table"
    text = str(source)
    last = Path(text.rstrip("/*")).name if is_elsewhere(text) else Path(text).resolve().name
    return Path("runs") / (
        re.sub(r"[^\w.-]+", "_", last.removesuffix(Path(last).suffix if not Path(text).is_dir() else "")) or "run"
    )


def _lasting_name(source: Source) -> str:
    """The source by a name that holds in every folder; empty for a table in memory."""
    if not isinstance(source, str | Path):
        return ""
    return str(source) if is_elsewhere(str(source)) else str(Path(source).resolve())


def _train(
    dataset: Dataset,
    run: UnfinishedRun,
    folder: Path,
    *,
    tensorboard: bool,
    progress: Progress,
    on_epoch: Callable[[EpochLog], None],
    began: float | None = None,
) -> Run:
    """The way of every run, new or gone on with, in a folder that is held."""
    clock = _Clock()
    way = open_way(run.recipe, folder, on_epoch=on_epoch, tensorboard=tensorboard, began=began)
    with clock.stage("read"):
        dataset = check_contents(dataset, progress)
        require_enough(dataset)
    with clock.stage("features"):
        dataset = _prepare(dataset, way, progress)
    with clock.stage("fit"):
        dataset = _split(dataset, way.recipe, run.seed)
        require_same_images(folder, run, dataset.fingerprint())
        fitted = way.fit(dataset, seed=run.seed, progress=progress)
        card = build_card(fitted, dataset, way.recipe)
    with clock.stage("verify"):
        model = pack(fitted.to_onnx(card.calibration, dataset.task), card)
        part = dataset.used("calib") if fitted.method == "calib" else dataset.used("train")
        classifier = Classifier(model)
        verification, answers = verify(
            classifier,
            model,
            part,
            fitted.expected(part, card.calibration),
            lambda rows: fitted.in_full(part, rows, card.preprocess, card.calibration),
            progress,
        )
    with clock.stage("test"):
        tested = answer(classifier, dataset.used("test"), progress)
        dataset = _with_tested(dataset, tested)
        test = measure_answers(dataset.used("test"), tested.answers, model.card)
        learned = dataset.used("train", "val", "calib")
        leaks = measure_leaks(learned, way.thumbnails(learned), dataset.used("test"), tested, model.card)
    report: dict[str, Any] = {
        "schema_version": REPORT_VERSION,
        "test": test,
        "leaks": leaks,
        "calibration": _calibration(card),
        "verification": verification,
        "dataset": describe(dataset),
        "recipe": recipe_settings(way.recipe),
        "fit": fitted.details,
        "seed": run.seed,
        "seconds": clock.seconds(),
        "finetune_seconds": finetune_seconds(run.recipe, learning=learned, tested=tested),
    }
    card = replace(model.card, metrics=test, verification=verification, dataset=report["dataset"])
    write_run(
        folder,
        model.with_card(card),
        dataset,
        answers | tested.answers,
        report,
        recipe=way.recipe,
        command=training_command(run.source, run.options, run.recipe, run.seed),
        progress=progress,
    )
    if not fitted.log:
        _forget_log(folder)
    if not fitted.interrupted:
        finish_run(folder)
    return Run(folder=folder, report=report, interrupted=fitted.interrupted)


def _forget_log(folder: Path) -> None:
    """An earlier run of another recipe may have left its own."""
    for name in LOG_FILES:
        (folder / name).unlink(missing_ok=True)


def _prepare(dataset: Dataset, way: Way, progress: Progress) -> Dataset:
    """Read the images to learn from, refuse those that cannot be, and find copies among the others."""
    dataset = way.prepare(dataset, progress)
    require_enough(dataset)
    learning = learning_part(dataset)
    return find_copies(dataset, learning, way.thumbnails(learning), progress)


def _with_tested(dataset: Dataset, tested: Answered) -> Dataset:
    """Without the test images that could not be read; one at least must be left."""
    if not tested.answers:
        raise DataError("no-images", "no test image could be read", hint="tellapart check says why for each")
    return dataset.with_outcome("refused", tested.refused)


def _calibration(card: ModelCard) -> dict[str, Any]:
    return {**asdict(card.calibration), "conformal": asdict(card.conformal) if card.conformal else None}


def _split(dataset: Dataset, recipe: Recipe, seed: int) -> Dataset:
    dataset = split(
        dataset,
        seed=seed,
        test_fraction=recipe.test_fraction,
        val_fraction=recipe.val_fraction,
        calib_fraction=recipe.calib_fraction,
        cross_fit=recipe.cross_fits,
    )
    calib = dataset.used("calib").labels
    if len(calib) and len(np.unique(calib)) < 2:  # class indices, or labels that are there or not
        message = "the images to calibrate on are all of one class"
        raise DataError("too-few-images", message, hint="add images of the others to val, or leave val out")
    return dataset


def evaluate(
    model: str | Path | Classifier,
    source: Source,
    options: SourceOptions = DEFAULT_OPTIONS,
    *,
    report: str | Path | None = None,
    progress: Progress = no_progress,
) -> Mapping[str, Any]:
    """Measure a model file on labelled images.

    Args:
        model: a model file, or one that is open.
        source: as for ``train``, with the model's classes; of a source with a test part that part only.
        options: as for ``train``.
        report: HTML page to write, too.
        progress: called as the images are answered.

    Returns:
        ``test`` and ``dataset``, as in ``report.json``.

    Raises:
        ModelError: the file is at fault.
        DataError: the source is at fault.
        StorageError: cannot-write.
    """
    classifier = model if isinstance(model, Classifier) else load(model)
    task = classifier.card.task
    dataset = check_contents(open_test_images(source, classifier.class_names, options, task=task), progress)
    found = answer(classifier, dataset.used(), progress)
    dataset = dataset.with_outcome("refused", found.refused)
    if not len(dataset.used()):
        raise DataError(
            "no-images", f"no image in {source} could be read", hint="tellapart predict says why for each"
        )
    measured = {
        "test": measure_answers(dataset.used(), found.answers, classifier.card),
        "dataset": describe(dataset),
    }
    if report is not None:
        title, command = (
            default_folder(source).name,
            f"tellapart evaluate model.onnx {default_folder(source).name}",
        )
        page = present(
            measured, dataset, found.answers, classifier.model, title=title, command=command, progress=progress
        )
        write_bytes(Path(report), page)
    return measured


def check(
    source: Source,
    options: SourceOptions = DEFAULT_OPTIONS,
    *,
    out: str | Path | None = None,
    fix_list: str | Path | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> CheckResult:
    """Find what is wrong with images and their labels; the images themselves are never changed.

    Args:
        source: as for ``train``; a folder of images without classes is enough for what needs no label.
        options: as for ``train``.
        out: folder for ``issues.parquet`` and ``check.html``; nothing is written when None.
        fix_list: CSV to write, of what could be excluded or relabelled; ``train`` takes it back.
        seed: draws the folds of the search for label errors.
        progress: called as the work goes on.

    Raises:
        DataError: the source is missing or damaged.
        StorageError: cannot-write.
    """
    recipe = probe()
    result = run_check(
        _apply_fixes(open_images(source, options), options),
        backbone=open_backbone(recipe.backbone, recipe.feature_stages, recipe.feature_pooling),
        out_of_fold=partial(out_of_fold_probs, seed=seed),
        preprocess=recipe.preprocess,
        progress=progress,
    )
    if out is not None:
        write_issues(result.issues, Path(out) / "issues.parquet")
        name = default_folder(source).name
        write_bytes(Path(out) / "check.html", render_page(result, title=name, progress=progress))
    if fix_list is not None:
        write_fix_list(result.issues, Path(fix_list))
    return result


def _open(source: Source, options: SourceOptions) -> Dataset:
    return _apply_fixes(open_dataset(source, options), options)


def _apply_fixes(dataset: Dataset, options: SourceOptions) -> Dataset:
    excluded, relabelled = (
        read_fix_list(Path(path)) if path else None for path in (options.exclude, options.relabel)
    )
    return apply_fixes(dataset, excluded, relabelled)


class _Clock:
    """Wall time of each stage, and of all."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._stages[name] = round(time.perf_counter() - start, 3)

    def seconds(self) -> dict[str, float]:
        return {**self._stages, "total": round(time.perf_counter() - self._start, 3)}
