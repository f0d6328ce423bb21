"""The command line: one thin command per verb. Each parses, calls and prints."""

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

import tellapart
from tellapart.console import err_console, out_console, print_json, progress_bar, say, user_errors
from tellapart.errors import RecipeError, RequestError
from tellapart.printing import (
    print_backbones,
    print_comparison,
    print_dataset,
    print_issues,
    print_metrics,
    print_run,
    said_of_familiarity,
    said_of_rules,
    said_of_sets,
    said_of_test,
)
from tellapart.records import SourceOptions
from tellapart.training.budget import parse_budget

app = typer.Typer(
    help="A folder of labelled images in, an image recogniser that can be trusted out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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

RunFolder = Annotated[Path | None, typer.Option(help="Run folder. [default: runs/NAME]")]
RecipeName = Annotated[
    str | None, typer.Option(help="How to train: probe, auto, finetune, cnn or scratch. [default: probe]")
]
BudgetOption = Annotated[
    str | None, typer.Option(metavar="TIME", help="The best model in this time, such as 10m, all included.")
]
BackboneOption = Annotated[str, typer.Option(metavar="NAME", help="Pretrained network: see tellapart backbones.")]
WeightsOption = Annotated[str, typer.Option(metavar="FILE", help="Its weights, a .safetensors file of yours.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting of the recipe.")
]
Seed = Annotated[int | None, typer.Option(min=0, help="Draws the split and all else that is random. [default: 0]")]
Resume = Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with the interrupted run in this folder.")]
Preview = Annotated[
    bool, typer.Option("--preview-augmentation", help="Only draw what augmentation does to some images.")
]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard events, too.")]
Offline = Annotated[bool, typer.Option("--offline", help="Ask nothing of the network.")]
GroupColumn = Annotated[str, typer.Option(help="Column: its groups stay on one side of every split.")]
GroupPattern = Annotated[str, typer.Option(help="Regular expression: finds the group in a path.")]
Exclude = Annotated[str, typer.Option(metavar="CSV", help="Fix list: leave out what it says to exclude.")]
Relabel = Annotated[str, typer.Option(metavar="CSV", help="Fix list: relabel what it says.")]


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
    out: RunFolder = None,
    recipe: RecipeName = None,
    budget: BudgetOption = None,
    backbone: BackboneOption = "",
    weights: WeightsOption = "",
    settings: Settings = None,
    seed: Seed = None,
    resume: Resume = None,
    preview: Preview = False,
    tensorboard: TensorBoard = False,
    offline: Offline = False,
    image_column: ImageColumn = "",
    label_column: LabelColumn = "",
    labels: Labels = "",
    label_separator: LabelSeparator = "",
    group_column: GroupColumn = "",
    group_pattern: GroupPattern = "",
    split_column: SplitColumn = "",
    root: Root = "",
    outside_root: OutsideRoot = False,
    exclude: Exclude = "",
    relabel: Relabel = "",
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Turn labelled images into one verified model file and a report."""
    if (source is None) == (resume is None):
        raise typer.BadParameter("give a folder of images, or --resume and a run folder: one of the two")
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before anything that reads it is imported
    folder = resume or out
    with user_errors(as_json, lambda: _how_to_go_on(folder)):
        name, changes = _recipe(recipe, settings, budget=budget, backbone=backbone, weights=weights)
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
        about_run = (out, name, changes, preview, seed is not None)
        if resume is not None and (any(about_run) or options != SourceOptions()):
            raise typer.BadParameter(
                "--resume goes on as the run began: it takes no other option but --tensorboard"
            )
        from tellapart import pipeline

        folder = folder or pipeline.default_folder(source or "")
        about: dict[str, Any] = {"settings": changes, "out": folder, "seed": seed or 0}
        with progress_bar(quiet or as_json) as bar:
            told: dict[str, Any] = {"tensorboard": tensorboard, "progress": bar, "on_epoch": bar.epoch}
            if preview and source is not None:
                picture = pipeline.preview_augmentation(
                    source, options, recipe=name or "cnn", progress=bar, **about
                )
            elif source is not None:
                run = pipeline.train(source, options, recipe=name or "probe", **about, **told)
            else:
                run = pipeline.resume(folder, **told)
        if preview:
            _print_picture(picture, quiet=quiet, as_json=as_json)
            return
        if as_json:
            print_json({"run": str(run.folder), "model": str(run.model_path), **run.report})
        elif not quiet:
            print_run(run.report, run.model_path)
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
            print_json(
                {
                    "counts": dict(result.counts),
                    "notes": list(result.notes),
                    "dataset": dataset,
                    "out": str(folder),
                }
            )
        elif not quiet:
            print_dataset(dataset)
            print_issues(result.counts, {issue.kind: issue for issue in reversed(result.issues)}, result.notes)
            say(
                quiet,
                f"\n{folder / 'check.html'}: look through it   {folder / 'issues.parquet'}: all of it as a table",
            )
            if fix_list is not None:
                say(
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
            print_json(result)
        elif not quiet:
            print_dataset(result["dataset"])
            print_metrics(result["test"])
            if report is not None:
                say(quiet, f"{report}: look through it")


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
            print_json({**found.result, "changed": list(found.changed), "dataset": found.dataset})
        elif not quiet:
            print_comparison(found.result)
            if out is not None:
                say(quiet, f"\n{out}: the {len(found.changed):,} images with another answer")


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
            print_json({"out": out, "verdicts": verdicts})
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
            print_json({"html": str(found.html_path), "png": str(found.png_path), **asdict(said)})
        else:
            say(quiet, f"{image}: {said.label} {said.prob:.1%} ({said.verdict})")
            say(quiet, f"{found.html_path}\n{found.png_path}")


@app.command()
def serve(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Model files; NAME=FILE names one.", show_default=False)
    ],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Holds the token to demand. [default: a new one, if others can connect]"
        ),
    ] = None,
    allowed_hosts: Annotated[
        list[str] | None, typer.Option("--allowed-host", metavar="NAME", help="A name that others reach it by.")
    ] = None,
    collect: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep images the model was unsure about, for labelling.")
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Serve models: a page to drop photos on, and an HTTP interface for programs."""
    with user_errors():
        try:
            from tellapart.serving.run import make_token, needs_token, read_token
            from tellapart.serving.run import serve as run_serve
            from tellapart.serving.settings import Settings
        except ImportError as error:
            message = f"the server needs the package {error.name}, which is not installed"
            raise RequestError("package-missing", message, hint="pip install 'tellapart[serve]'") from error
        token = read_token(token_file) if token_file else make_token() if needs_token(host) else ""
        settings = Settings(
            host=host,
            port=port,
            token=token,
            allowed_hosts=tuple(allowed_hosts or ()),
            collect=collect,
            access_log=not quiet,
        )
        run_serve(models, settings, lambda address: say(False, f"{address}\nCtrl-C ends it."))


@app.command()
def info(model: ModelArgument, as_json: JsonOption = False) -> None:
    """Say what a model file knows about itself."""
    with user_errors(as_json):
        from tellapart.inference.model import card_document, read_model

        card = read_model(model).card
        if as_json:
            print_json(card_document(card))
            return
        table = Table.grid(padding=(0, 2))
        rows = {
            "classes": ", ".join(card.class_names),
            "input": f"{card.preprocess.input_size_px} x {card.preprocess.input_size_px} px, {card.preprocess.resize}",
            "recipe": str(card.recipe.get("name")),
            **said_of_test(card.metrics),
            **said_of_rules(card.decision_rules, card.metrics),
            "temperature": f"{card.calibration.temperature:.3f} ({card.calibration.method}, {card.calibration.n} images)",
            "prediction sets": said_of_sets(card.conformal),
            "unfamiliar": said_of_familiarity(card.familiarity),
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
def backbones(
    pattern: Annotated[str, typer.Argument(help="Part of a name: lists timm's, too, such as convnext.")] = "",
    as_json: JsonOption = False,
) -> None:
    """List pretrained backbones: where they are, how large, how accurate, how fast on this machine."""
    with user_errors(as_json):
        from tellapart.training.backbones import list_backbones

        found = [asdict(backbone) for backbone in list_backbones(pattern)]
        if as_json:
            print_json({"backbones": found})
            return
        print_backbones(found)
        if not pattern:
            say(False, "timm's, by a part of their name: tellapart backbones convnext")


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
        say(quiet, f"wrote {count:,} real handwritten digits to {folder}")
        say(quiet, f"\n$ tellapart train {folder} --out {run}")
        train(str(folder), out=run, quiet=quiet)
        say(quiet, f"\n$ tellapart predict {run / 'model.onnx'} {folder / '3'} | head -5")
        from tellapart.inference.predict import load

        for prediction in load(run / "model.onnx").predict(sorted((folder / "3").iterdir())[:4]):
            say(quiet, f"{prediction.path},{prediction.label},{prediction.prob:.4f},{prediction.verdict}")
        say(quiet, f"\nNow with your own: tellapart train FOLDER   (the run folder is {run})")


def _how_to_go_on(folder: Path | None) -> str:
    from tellapart.training.resume import is_unfinished

    if folder is not None and is_unfinished(folder):
        return f"go on with: tellapart train --resume {folder}"
    return "what was computed is kept: type the same again to go on from there"


def _print_picture(picture: Path, *, quiet: bool, as_json: bool) -> None:
    if as_json:
        print_json({"picture": str(picture)})
    else:
        say(quiet, f"{picture}: the first column is the image, the others are what training sees of it")


def _recipe(
    recipe: str | None, settings: list[str] | None, *, budget: str | None, backbone: str, weights: str
) -> tuple[str | None, dict[str, Any]]:
    """Name of the recipe, where one was given, and changes to it."""
    changes: dict[str, Any] = dict(_setting(text) for text in settings or [])
    changes |= {key: value for key, value in (("backbone", backbone), ("weights", weights)) if value}
    if budget is None:
        return recipe, changes
    if recipe not in (None, "auto"):
        message = f"--budget is what the recipe 'auto' keeps, and --recipe {recipe} has none"
        raise RecipeError("bad-setting", message, hint="leave one of the two out")
    return "auto", {**changes, "budget_seconds": parse_budget(budget)}


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
