"""The command line: one thin command per verb. Each parses, calls and prints."""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

import tellapart
from tellapart.errors import RecipeError, TellapartError
from tellapart.records import DecisionRule, EpochLog, Issue, SourceOptions
from tellapart.training.curves import sparkline

app = typer.Typer(
    help="A folder of labelled images in, an image recogniser that can be trusted out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out_console = Console(soft_wrap=True)  # commands stay on one line, to be copied
err_console = Console(stderr=True, soft_wrap=True)

ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="A model.onnx that tellapart wrote.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document, for machines.")]


SourceArgument = Annotated[
    str,
    typer.Argument(
        help="Class folders; a table (.csv, .jsonl, .parquet); .tar shards; hf:OWNER/NAME.", show_default=False
    ),
]
ImageColumn = Annotated[str, typer.Option("--image-column", help="Column with the images or their paths.")]
LabelColumn = Annotated[str, typer.Option("--label-column", help="Column with the class, or a list of labels.")]
Labels = Annotated[str, typer.Option("--labels", help="Several labels an image: columns of 0 and 1, by comma.")]
LabelSeparator = Annotated[str, typer.Option(help="Between the labels of a list; none: a cell is one class.")]
SplitColumn = Annotated[str, typer.Option("--split-column", help="Column with train, val, calib or test.")]
Root = Annotated[str, typer.Option(metavar="DIR", help="Folder that paths begin with. [default: the table's]")]
OutsideRoot = Annotated[bool, typer.Option("--outside-root", help="Let a table name files outside that folder.")]


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """Train, measure and use image recognisers."""
    if show:
        out_console.print(f"tellapart {tellapart.__version__}", highlight=False)
        raise typer.Exit


@app.command()
def train(
    source: Annotated[
        str | None,
        typer.Argument(help="Class folders; a table (.csv, .jsonl, .parquet); .tar shards; hf:OWNER/NAME."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. [default: runs/NAME]")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="How to train: probe, finetune, cnn or scratch. [default: probe]")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting of the recipe.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Draws the split and all else that is random. [default: 0]")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with the interrupted run in this folder.")
    ] = None,
    preview: Annotated[
        bool, typer.Option("--preview-augmentation", help="Only draw what augmentation does to some images.")
    ] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard events, too.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Ask nothing of the network.")] = False,
    image_column: ImageColumn = "",
    label_column: LabelColumn = "",
    labels: Labels = "",
    label_separator: LabelSeparator = "",
    group_column: Annotated[str, typer.Option(help="Column: its groups stay on one side of every split.")] = "",
    group_pattern: Annotated[str, typer.Option(help="Regular expression: finds the group in a path.")] = "",
    split_column: SplitColumn = "",
    root: Root = "",
    outside_root: OutsideRoot = False,
    exclude: Annotated[str, typer.Option(metavar="CSV", help="Fix list: leave out what it says to exclude.")] = "",
    relabel: Annotated[str, typer.Option(metavar="CSV", help="Fix list: relabel what it says.")] = "",
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Turn labelled images into one verified model file and a report."""
    if (source is None) == (resume is None):
        raise typer.BadParameter("give a folder of images, or --resume and a run folder: one of the two")
    folder = resume or out
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before anything that reads it is imported
    with user_errors(as_json, lambda: _how_to_go_on(folder)):
        changes = dict(_setting(text) for text in settings or [])
        options = SourceOptions(
            image_column=image_column,
            label_column=label_column,
            labels=_names(labels),
            label_separator=label_separator,
            group_column=group_column,
            group_pattern=group_pattern,
            split_column=split_column,
            root=root,
            outside_root=outside_root,
            exclude=exclude and str(Path(exclude).resolve()),
            relabel=relabel and str(Path(relabel).resolve()),
        )
        about_run = (out, recipe, settings, preview, seed is not None)
        if resume is not None and (any(about_run) or options != SourceOptions()):
            raise typer.BadParameter(
                "--resume goes on as the run began: it takes no other option but --tensorboard"
            )
        from tellapart import pipeline

        folder = folder or (pipeline.default_folder(source) if source else None)
        with progress_bar(quiet or as_json) as bar:
            if resume is not None:
                run = pipeline.resume(resume, tensorboard=tensorboard, progress=bar, on_epoch=bar.epoch)
            elif source is not None and preview:
                picture = pipeline.preview_augmentation(
                    source,
                    options,
                    recipe=recipe or "cnn",
                    settings=changes,
                    out=folder,
                    seed=seed or 0,
                    progress=bar,
                )
            elif source is not None:
                run = pipeline.train(
                    source,
                    options,
                    recipe=recipe or "probe",
                    settings=changes,
                    out=folder,
                    seed=seed or 0,
                    tensorboard=tensorboard,
                    progress=bar,
                    on_epoch=bar.epoch,
                )
        if preview and as_json:
            _print_json({"picture": str(picture)})
            return
        if preview:
            _say(quiet, f"{picture}: the first column is the image, the others are what training sees of it")
            return
        if as_json:
            _print_json({"run": str(run.folder), "model": str(run.model_path), **run.report})
        elif not quiet:
            _print_run(run.report, run.model_path)
        if run.interrupted:
            err_console.print(f"stopped early; {_how_to_go_on(folder)}", markup=False, highlight=False)
            raise typer.Exit(130)


@app.command()
def check(
    source: SourceArgument,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page and the table. [default: checks/NAME]")
    ] = None,
    fix_list: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Write what could be excluded or relabelled.")
    ] = None,
    image_column: ImageColumn = "",
    label_column: LabelColumn = "",
    labels: Labels = "",
    label_separator: LabelSeparator = "",
    split_column: SplitColumn = "",
    root: Root = "",
    outside_root: OutsideRoot = False,
    seed: Annotated[int, typer.Option(min=0, help="Draws the folds of the search for label errors.")] = 0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find what is wrong with images and labels, worst first; nothing in the folder is changed."""
    with user_errors(as_json):
        options = SourceOptions(
            image_column=image_column,
            label_column=label_column,
            labels=_names(labels),
            label_separator=label_separator,
            split_column=split_column,
            root=root,
            outside_root=outside_root,
        )
        from tellapart import pipeline
        from tellapart.report.run_folder import describe

        folder = out or Path("checks") / pipeline.default_folder(source).name
        with progress_bar(quiet or as_json) as progress:
            result = pipeline.check(source, options, out=folder, fix_list=fix_list, seed=seed, progress=progress)
        dataset = describe(result.dataset)
        if as_json:
            _print_json(
                {
                    "counts": dict(result.counts),
                    "notes": list(result.notes),
                    "dataset": dataset,
                    "out": str(folder),
                }
            )
        elif not quiet:
            _print_dataset(dataset)
            _print_issues(result.counts, {issue.kind: issue for issue in reversed(result.issues)}, result.notes)
            _say(
                quiet,
                f"\n{folder / 'check.html'}: look through it   {folder / 'issues.parquet'}: all of it as a table",
            )
            if fix_list is not None:
                _say(
                    quiet,
                    f"{fix_list}: edit it, then tellapart train {source} --exclude {fix_list} --relabel {fix_list}",
                )


@app.command()
def evaluate(
    model: ModelArgument,
    source: SourceArgument,
    image_column: ImageColumn = "",
    label_column: LabelColumn = "",
    labels: Labels = "",
    label_separator: LabelSeparator = "",
    split_column: SplitColumn = "",
    root: Root = "",
    outside_root: OutsideRoot = False,
    report: Annotated[Path | None, typer.Option(metavar="HTML", help="Write a page to look through, too.")] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a model file on labelled images it has not seen."""
    with user_errors(as_json):
        options = SourceOptions(
            image_column=image_column,
            label_column=label_column,
            labels=_names(labels),
            label_separator=label_separator,
            split_column=split_column,
            root=root,
            outside_root=outside_root,
        )
        from tellapart.pipeline import evaluate as run_evaluate

        with progress_bar(quiet or as_json) as progress:
            result = run_evaluate(model, source, options, report=report, progress=progress)
        if as_json:
            _print_json(result)
        elif not quiet:
            _print_dataset(result["dataset"])
            _print_metrics(result["test"])
            if report is not None:
                _say(quiet, f"{report}: look through it")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A model.onnx that tellapart wrote.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another, for the same classes.")],
    source: SourceArgument,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="CSV", help="Write the images with another answer.")
    ] = None,
    image_column: ImageColumn = "",
    label_column: LabelColumn = "",
    labels: Labels = "",
    label_separator: LabelSeparator = "",
    split_column: SplitColumn = "",
    root: Root = "",
    outside_root: OutsideRoot = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say whether model B is really better than model A, on labelled images that neither has seen."""
    with user_errors(as_json):
        options = SourceOptions(
            image_column=image_column,
            label_column=label_column,
            labels=_names(labels),
            label_separator=label_separator,
            split_column=split_column,
            root=root,
            outside_root=outside_root,
        )
        from tellapart.comparing import compare as run_compare

        with progress_bar(quiet or as_json) as progress:
            found = run_compare(a, b, source, options, out=out, progress=progress)
        if as_json:
            _print_json({**found.result, "changed": list(found.changed), "dataset": found.dataset})
        elif not quiet:
            _print_comparison(found.result)
            if out is not None:
                _say(quiet, f"\n{out}: the {len(found.changed):,} images with another answer")


@app.command()
def predict(
    model: ModelArgument,
    images: Annotated[
        list[str],
        typer.Argument(
            help="Folders, files or globs, or a table or shards; - reads a list of files from standard input."
        ),
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="A .csv, .jsonl or .parquet file; - prints.")] = "-",
    probs: Annotated[bool, typer.Option("--probs", help="Add the probability of every class.")] = False,
    coverage: Annotated[
        float | None, typer.Option(help="Share of prediction sets that hold the truth. [default: the model's]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after an interruption.")] = False,
    image_column: ImageColumn = "",
    label_column: LabelColumn = "",
    root: Root = "",
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Predict images: one row a file, in order, also for those that cannot be read."""
    with user_errors(
        as_json, lambda: "" if out == "-" else "the rows so far are kept: type the same again with --resume"
    ):
        from tellapart.inference.predict import load
        from tellapart.inference.rows import columns, row, stream_rows, write_predictions

        arguments = (
            (line.rstrip("\r\n") for line in sys.stdin if line.strip()) if images == ["-"] else iter(images)
        )
        options = SourceOptions(image_column=image_column, label_column=label_column, root=root)
        found = _images(arguments, options)
        classifier = load(model, coverage=coverage)
        if out == "-":
            rules = classifier.card.decision_rules
            rows = (
                row(prediction, classifier.class_names, all_probs=probs, rules=rules)
                for prediction in classifier.iter_predictions(found)
            )
            names = columns(classifier.class_names, all_probs=probs, rules=rules)
            stream_rows(rows, names, sys.stdout, as_json=as_json)
            return
        with progress_bar(quiet or as_json) as progress:
            verdicts = write_predictions(
                classifier,
                found,
                Path(out),
                all_probs=probs,
                resume=resume,
                progress=progress,
            )
        if as_json:
            _print_json({"out": out, "verdicts": verdicts})
        elif not quiet:
            said = ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(verdicts.items()))
            out_console.print(f"[bold]{escape(out)}[/]: {sum(verdicts.values()):,} images ({said})")


@app.command()
def explain(
    model: ModelArgument,
    image: Annotated[Path, typer.Argument(help="A photo.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the pages. [default: explain/NAME]")] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Walk one image through a model, layer by layer, and show what its answer depends on."""
    with user_errors(as_json):
        from tellapart.explain.explanation import explain as run_explain

        with progress_bar(quiet or as_json) as progress:
            found = run_explain(model, image, out=out or Path("explain") / image.stem, progress=progress)
        said = found.prediction
        if as_json:
            _print_json({"html": str(found.html_path), "png": str(found.png_path), **asdict(said)})
        else:
            _say(quiet, f"{image}: {said.label} {said.prob:.1%} ({said.verdict})")
            _say(quiet, f"{found.html_path}\n{found.png_path}")


@app.command()
def info(model: ModelArgument, as_json: JsonOption = False) -> None:
    """Say what a model file knows about itself."""
    with user_errors(as_json):
        from tellapart.inference.model import card_document, read_model

        card = read_model(model).card
        if as_json:
            _print_json(card_document(card))
            return
        table = Table.grid(padding=(0, 2))
        rows = {
            "classes": ", ".join(card.class_names),
            "input": f"{card.preprocess.input_size_px} x {card.preprocess.input_size_px} px, {card.preprocess.resize}",
            "recipe": str(card.recipe.get("name")),
            **_said_of_test(card.metrics),
            **_said_of_rules(card.decision_rules, card.metrics),
            "temperature": f"{card.calibration.temperature:.3f} ({card.calibration.method}, {card.calibration.n} images)",
            "prediction sets": f"{card.conformal.coverage:.0%} coverage, {card.conformal.n} images"
            if card.conformal
            else "none",
            "weights": f"{card.weights.name}, {card.weights.source}, {card.weights.license}"
            if card.weights
            else "own",
            "trained": card.created,
            "software": ", ".join(f"{name} {number}" for name, number in card.software.items()),
            "checksum": card.graph_sha256,
        }
        for name, value in rows.items():
            table.add_row(name, Text(value))
        out_console.print(table)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for images and model.")] = Path("tellapart-demo"),
    quiet: QuietOption = False,
) -> None:
    """Train on handwritten digits that come with scikit-learn, and show what a user would see."""
    with user_errors():
        from tellapart.demo import write_digits

        count = write_digits(out / "digits")
        folder, run = out / "digits", out / "run"
        _say(quiet, f"wrote {count:,} real handwritten digits to {folder}")
        _say(quiet, f"\n$ tellapart train {folder} --out {run}")
        train(str(folder), out=run, quiet=quiet)
        _say(quiet, f"\n$ tellapart predict {run / 'model.onnx'} {folder / '3'} | head -5")
        from tellapart.inference.predict import load

        for prediction in load(run / "model.onnx").predict(sorted((folder / "3").iterdir())[:4]):
            _say(quiet, f"{prediction.path},{prediction.label},{prediction.prob:.4f},{prediction.verdict}")
        _say(quiet, f"\nNow with your own: tellapart train FOLDER   (the run folder is {run})")


@contextmanager
def user_errors(as_json: bool = False, interrupted: Callable[[], str] = str) -> Iterator[None]:
    """Print what a user can put right as two lines, not as a traceback; 1 for errors, 130 for Ctrl-C."""
    warnings.filterwarnings("ignore", module="PIL")  # about tags of broken files, which get their own rows
    try:
        yield
    except TellapartError as error:
        if as_json:
            _print_json({"error": {"code": error.code, "message": error.message, "hint": error.hint}})
        else:
            err_console.print(f"[bold red]error[/] \\[{error.code}]: ", end="")
            err_console.print(error.message, markup=False, highlight=False)
            if error.hint:
                err_console.print(f"  {error.hint}", markup=False, highlight=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        err_console.print("\n" + "; ".join(filter(None, ["interrupted", interrupted()])), markup=False)
        raise typer.Exit(130) from None
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


@contextmanager
def progress_bar(hidden: bool) -> Iterator["_Reporter"]:
    """A bar for each stage on standard error, with a rate and the time left, and a line for each epoch."""
    bar = Progress(
        TextColumn("{task.description:10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=err_console,
        disable=hidden,
    )
    with bar:
        yield _Reporter(bar, hidden)


class _Reporter:
    """Shows what the pipeline says while it works."""

    def __init__(self, bar: Progress, hidden: bool) -> None:
        self._bar = bar
        self._hidden = hidden
        self._tasks: dict[str, TaskID] = {}
        self._begun: dict[str, int] = {}
        self._losses: list[float] = []

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Move the bar of a stage."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=total, rate="")
            self._begun[stage] = done  # cached, or of an earlier session: not the work of this one
        task = self._bar.tasks[self._tasks[stage]]
        rate = f"{(done - self._begun[stage]) / task.elapsed:,.0f} images/s" if task.elapsed else ""
        self._bar.update(self._tasks[stage], completed=done, total=total, rate=rate)

    def epoch(self, entry: EpochLog) -> None:
        """Write a line about an epoch, with the course of the loss so far."""
        loss, accuracy, part = entry.val_loss, entry.val_accuracy, "val"
        if loss is None or accuracy is None:
            loss, accuracy, part = entry.train_loss, entry.train_accuracy, "train"
        self._losses.append(loss)
        if self._hidden:
            return
        self._bar.print(
            f"epoch {entry.epoch}/{entry.epochs}  train loss {entry.train_loss:.3f} accuracy {entry.train_accuracy:.1%}"
            + (f"  val loss {loss:.3f} accuracy {accuracy:.1%}" if part == "val" else "")
            + f"  lr {entry.lr:.2g}  {entry.images_per_s:,.0f} images/s  {part} loss {sparkline(self._losses)}",
            highlight=False,
        )


def _how_to_go_on(folder: Path | None) -> str:
    from tellapart.training.resume import is_unfinished

    if folder is not None and is_unfinished(folder):
        return f"go on with: tellapart train --resume {folder}"
    return "what was computed is kept: type the same again to go on from there"


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise RecipeError(
            "bad-setting", f"--set takes KEY=VALUE, got {text!r}", hint="such as --set input_size_px=160"
        )
    return key.strip(), value.strip()


def _images(arguments: Iterator[str], options: SourceOptions) -> Iterator[Any]:
    """Files as they are; of tables and shards every row, with its name."""
    from tellapart.inference.rows import iter_paths

    for argument in arguments:
        if argument.startswith("hf:") or Path(argument).suffix.casefold() in (
            ".csv",
            ".tsv",
            ".jsonl",
            ".parquet",
            ".tar",
        ):
            from tellapart.data.sources import list_images

            rows = list_images(argument, options).without("skipped")
            yield from zip(rows.paths, rows.images, strict=True)
        else:
            yield from iter_paths([argument])


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _print_json(document: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        out_console.print(text, markup=False, highlight=False)


def _said_of_test(metrics: Mapping[str, Any]) -> dict[str, str]:
    if not metrics:
        return {"test": "not measured"}
    return {
        f"test {name.replace('_', ' ')}": f"{_interval(metrics[name])} on {metrics['n']} images"
        for name in metrics["headline"]
    }


def _said_of_rules(rules: Sequence[DecisionRule], metrics: Mapping[str, Any]) -> dict[str, str]:
    measured = {rule["class_name"]: rule["bands"] for rule in metrics.get("bands", [])}
    return {
        f"bands of {rule.class_name}": "\n".join(
            _said_of_band(asdict(band), reached)
            for band, reached in zip_longest(rule.bands, measured.get(rule.class_name, []))
        )
        for rule in rules
    }


def _said_of_band(band: Mapping[str, Any], reached: Mapping[str, Any] | None) -> str:
    """One line: from which probability, what for, and what came of it on the test images."""
    if band["note"]:
        return f"{band['name']} ({band['goal']}): empty: {band['note']}"
    goal = f" ({band['goal']})" if band["goal"] else ""
    line = f"{band['name']}{goal}: from {band['min_prob']:.4f}"
    if reached is None:
        return line
    return (
        f"{line}; {reached['n']:,} test images, precision {_interval(reached['precision'])}, "
        f"recall with those above {_interval(reached['recall_at_or_above'])}"
    )


def _print_bands(rule: Mapping[str, Any]) -> None:
    out_console.print(f"bands of {rule['class_name']}", markup=False, highlight=False)
    for band in rule["bands"]:
        out_console.print(f"  {_said_of_band(band, band)}", markup=False, highlight=False)


def _print_run(report: Mapping[str, Any], model_path: Path) -> None:
    _print_dataset(report["dataset"])
    _print_metrics(report["test"])
    _print_leaks(report["leaks"])
    _print_verification(report["verification"])
    if "verdict" in report["fit"]:
        out_console.print(report["fit"]["verdict"], markup=False, highlight=False)
    seconds = report["seconds"]["total"]
    out_console.print(f"\n[bold]{escape(str(model_path))}[/] written in {seconds:.1f} s")
    _say(False, f"Look: {model_path.with_name('report.html')}")
    out_console.print("Next: ", end="")
    out_console.print(f"tellapart predict {model_path} NEW_IMAGES -o predictions.csv", style="cyan")


def _print_dataset(dataset: Mapping[str, Any]) -> None:
    counts = {name: dataset[name] for name in ("seen", "used", "refused", "duplicates", "skipped")}
    out_console.print(
        "{seen:,} files seen = {used:,} used + {refused:,} refused + {duplicates:,} duplicates"
        " + {skipped:,} skipped".format(**counts),
        highlight=False,
    )
    for note in dataset["notes"]:
        out_console.print(f"  {note}", markup=False, highlight=False)
    for reason, count in dataset["reasons"].items():
        out_console.print(f"  {count:,} {reason}", highlight=False)


def _print_issues(counts: Mapping[str, int], worst: Mapping[str, Issue], notes: Sequence[str]) -> None:
    if not counts:
        out_console.print("nothing was found")
    else:
        table = Table(title="")
        for column in ("issue", "count", "severity", "the worst"):
            table.add_column(column, justify="right" if column in ("count", "severity") else "left")
        for kind, count in counts.items():
            first = worst[kind]
            shown = (
                first.paths[0]
                if first.paths
                else ", ".join(f"{key} {value}" for key, value in first.evidence.items())
            )
            table.add_row(
                kind, f"{count:,}", f"{first.severity:.2f}", Text(shown, overflow="ellipsis", no_wrap=True)
            )
        out_console.print(table)
    for note in notes:
        out_console.print(f"  {note}", markup=False, highlight=False)


def _print_metrics(test: Mapping[str, Any]) -> None:
    table = Table(title=f"\n{test['n']:,} test images", title_justify="left", title_style="")
    of_any_class = next(iter(test["per_class"].values()))
    metrics = [name for name in ("average_precision", "precision", "recall") if name in of_any_class]
    for column in ("class", "images", *metrics):
        table.add_column(column.replace("_", " "), justify="left" if column == "class" else "right")
    for name, of_class in test["per_class"].items():
        table.add_row(Text(name), str(of_class["n"]), *(_interval(of_class[metric]) for metric in metrics))
    out_console.print(table)
    for name in test["headline"]:
        out_console.print(f"{name.replace('_', ' ')} [bold]{_interval(test[name])}[/]", highlight=False)
    if "confusion_matrix" in test:
        _print_confusions(test["class_names"], test["confusion_matrix"])
    for warning in test.get("warnings", ()):
        out_console.print(f"note: {warning}", markup=False, highlight=False)
    for rule in test.get("bands", []):
        _print_bands(rule)


def _print_comparison(result: Mapping[str, Any]) -> None:
    out_console.print(f"[bold]{escape(result['sentence'])}[/]", highlight=False)
    table = Table(title=f"\n{result['n']:,} test images", title_justify="left", title_style="")
    for column in ("", "images", "A", "B", "B - A, in points", "p"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in {result["measure"]: result, **result["per_class"]}.items():
        label = name if row is result else f"recall of {name}"
        shares = (_share(row["a"]), _share(row["b"]), _points(row["difference"]))
        table.add_row(Text(label), f"{row['n']:,}", *shares, f"{row['p']:.2g}")
    out_console.print(table)
    if "map_difference" in result:
        out_console.print(f"mAP, B - A: {_points(result['map_difference'])} points", highlight=False)
    loss = "{value:+.4f} ({low:+.4f} to {high:+.4f})".format(**result["log_loss_difference"])
    out_console.print(f"log loss, B - A: {loss}, below 0 B is better", highlight=False)
    pairs = ", ".join(f"{count:,} {name}" for name, count in result["pairs"].items())
    out_console.print(f"images from A to B: {pairs}", highlight=False)


def _share(interval: Mapping[str, float | None]) -> str:
    return "-" if interval["value"] is None else f"{interval['value']:.1%}"


def _points(interval: Mapping[str, float | None]) -> str:
    value, low, high = interval["value"], interval["low"], interval["high"]
    if value is None or low is None or high is None:
        return "-"
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _print_confusions(names: Sequence[str], confusion: Sequence[Sequence[int]]) -> None:
    """The most frequent mistakes; the whole matrix is in the report."""
    mistakes = [
        (count, names[i], names[j])
        for i, line in enumerate(confusion)
        for j, count in enumerate(line)
        if count and i != j
    ]
    said = [
        f"{true} taken for {wrong} ({count}x)" for count, true, wrong in sorted(mistakes, key=lambda m: -m[0])[:5]
    ]
    if said:
        out_console.print(f"mistakes: {', '.join(said)}", markup=False, highlight=False)


def _print_leaks(leaks: Mapping[str, Any]) -> None:
    if not leaks["n"]:
        return
    without = leaks["test_without"]
    said = "none would be left without them"
    if without:
        metric = without["headline"][0]
        said = f"without them {metric.replace('_', ' ')} {_interval(without[metric])} on {without['n']:,}"
    out_console.print(
        f"[bold yellow]{leaks['n']:,} test images show a picture that was trained on, too[/]; {said}",
        highlight=False,
    )


def _print_verification(found: Mapping[str, Any]) -> None:
    out_console.print(
        f"model file verified on {found['n']} images: same class on {found['n'] - found['top1_differs']}, "
        f"probabilities within {found['max_abs_difference']:.4f} ({found['precision']})",
        highlight=False,
    )


def _interval(interval: Mapping[str, float | None]) -> str:
    if interval["value"] is None:
        return "-"
    return f"{interval['value']:.1%} ({interval['low']:.1%} to {interval['high']:.1%})"


def main() -> None:
    """Entry point of the command ``tellapart``."""
    try:
        app()
    except SystemExit as end:
        if end.code in (None, 0):
            # Every file is closed by now. Taking the libraries apart one by one would cost 0.15 s more.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        raise
