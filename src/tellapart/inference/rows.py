"""Predictions as rows of a table: CSV, JSON lines or Parquet, whole or continued."""

import csv
import glob
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import polars as pl

from tellapart.errors import StorageError
from tellapart.imaging.files import iter_files
from tellapart.inference.engine import ImageSource
from tellapart.inference.predict import Classifier, NamedImage, name_of
from tellapart.records import DecisionRule, Prediction, Progress
from tellapart.storage import atomic_file, sha256, writing

Row = dict[str, Any]

OUTPUT_SUFFIXES = (".csv", ".jsonl", ".parquet")
_FLUSH_ROWS = 200
_STREAMED_ROWS = 16  # the first row at once, then a few at a time: each write wakes the reader


def iter_paths(arguments: Iterable[str]) -> Iterator[str]:
    """The files that are meant: folders with all below them, globs, and single files; in the order given.

    What is neither a folder nor a glob that matches stays as it is: if there is no such file, its row will say so.
    """
    for argument in arguments:
        if Path(argument).is_dir():
            yield from (str(found.path) for found in iter_files(Path(argument)) if not found.skip)
        elif glob.has_magic(argument) and not Path(argument).exists():
            matches = sorted(glob.glob(argument, recursive=True))
            yield from (path for path in matches or [argument] if not Path(path).is_dir())
        else:
            yield argument


def row(
    prediction: Prediction,
    class_names: Sequence[str],
    *,
    all_probs: bool,
    rules: Sequence[DecisionRule] = (),
) -> Row:
    """One prediction as a row; without an answer its cells are empty, not missing.

    Args:
        prediction: of one image.
        class_names: K names.
        all_probs: add a column ``prob_NAME`` for each class.
        rules: the model's; each adds a column ``band_NAME``.
    """
    cells: Row = {
        "path": prediction.path,
        "label": prediction.label,
        "prob": None if prediction.prob is None else round(prediction.prob, 6),
        "verdict": prediction.verdict,
        "familiarity": None if prediction.familiarity is None else round(prediction.familiarity, 6),
        "prediction_set": "|".join(prediction.prediction_set) or None,
        "error": prediction.error or None,
    }
    bands = dict(prediction.bands)
    cells |= {f"band_{rule.class_name}": bands.get(rule.class_name) for rule in rules}
    if all_probs:
        probs: Sequence[float | None] = prediction.probs or [None] * len(class_names)
        cells |= {f"prob_{name}": prob for name, prob in zip(class_names, probs, strict=True)}
    return cells


def stream_rows(rows: Iterable[Row], columns: Sequence[str], file: IO[str], *, as_json: bool) -> None:
    """Write rows as they come, for a pipe or a terminal."""
    table = csv.DictWriter(file, columns, lineterminator="\n")
    if not as_json:
        table.writeheader()
    for number, cells in enumerate(rows):
        if as_json:
            file.write(json.dumps(cells) + "\n")
        else:
            table.writerow(cells)
        if number % _STREAMED_ROWS == 0:
            file.flush()
    file.flush()


def write_predictions(
    classifier: Classifier,
    images: Iterable[ImageSource | NamedImage],
    out: Path,
    *,
    all_probs: bool,
    resume: bool,
    progress: Progress,
) -> dict[str, int]:
    """Predict files into a table that appears under its name when it is complete.

    Until then rows are kept beside it in a hidden file that belongs to this model and these options. ``resume`` goes on
    after its last whole row; without ``resume`` it is begun anew.

    Returns:
        Number of rows for each verdict.

    Raises:
        StorageError: bad-output, cannot-write, resume-mismatch.
    """
    if out.suffix not in OUTPUT_SUFFIXES:
        hint = f"end it in one of {', '.join(OUTPUT_SUFFIXES)}, or write - for standard output"
        raise StorageError("bad-output", f"{out} has no ending that says what to write", hint=hint)
    rules = classifier.card.decision_rules
    key = sha256(f"{classifier.card.graph_sha256} {all_probs} {classifier.coverage} {rules}".encode())[:12]
    part = out.with_name(f".{out.name}.{key}.part")
    verdicts: dict[str, int] = {}
    with writing(part):
        out.parent.mkdir(parents=True, exist_ok=True)
        if not resume:
            part.unlink(missing_ok=True)
        rest = _skip_done(part, iter(images), verdicts)
        with part.open("a", encoding="utf-8") as file:
            for done, prediction in enumerate(classifier.iter_predictions(rest), start=sum(verdicts.values()) + 1):
                cells = row(prediction, classifier.class_names, all_probs=all_probs, rules=rules)
                file.write(json.dumps(cells) + "\n")
                verdicts[prediction.verdict] = verdicts.get(prediction.verdict, 0) + 1
                if done % _FLUSH_ROWS == 0:
                    file.flush()
                progress("predicting", done, None)
    if not verdicts:
        raise StorageError("nothing-to-predict", "no image was found", hint="give a folder, a glob or files")
    _WRITERS[out.suffix](part, out, columns(classifier.class_names, all_probs=all_probs, rules=rules))
    part.unlink()
    return verdicts


def columns(class_names: Sequence[str], *, all_probs: bool, rules: Sequence[DecisionRule] = ()) -> list[str]:
    """Names of the columns."""
    nothing = Prediction(path="", verdict="error", error="-")
    return list(row(nothing, class_names, all_probs=all_probs, rules=rules))


def _skip_done(
    part: Path, images: Iterator[ImageSource | NamedImage], verdicts: dict[str, int]
) -> Iterator[ImageSource | NamedImage]:
    """Count the rows that are there, cut off a half-written one, and go past their paths."""
    if not part.exists():
        return images
    whole = 0
    with part.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            cells = json.loads(line)
            image = next(images, None)
            path = None if image is None else name_of(image)
            if path != cells["path"]:
                hint = "without --resume it is begun anew"
                raise StorageError(
                    "resume-mismatch",
                    f"the interrupted run went on with {cells['path']}, this one with {path}",
                    hint=hint,
                )
            verdicts[cells["verdict"]] = verdicts.get(cells["verdict"], 0) + 1
            whole += len(line)
    os.truncate(part, whole)
    return images


def _write_csv(part: Path, out: Path, names: Sequence[str]) -> None:
    with part.open(encoding="utf-8") as rows, atomic_file(out) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
        table = csv.DictWriter(text, names, lineterminator="\n")
        table.writeheader()
        table.writerows(json.loads(line) for line in rows)
        text.detach()  # flushes, and leaves the file to its owner


def _write_jsonl(part: Path, out: Path, _names: Sequence[str]) -> None:
    with part.open("rb") as rows, atomic_file(out) as file:
        for line in rows:
            file.write(line)


def _write_parquet(part: Path, out: Path, names: Sequence[str]) -> None:
    schema = {
        name: pl.Float64 if name.startswith("prob_") or name in ("prob", "familiarity") else pl.String
        for name in names
    }
    with atomic_file(out) as file:
        pl.scan_ndjson(part, schema=schema).sink_parquet(file)


_WRITERS: dict[str, Callable[[Path, Path, Sequence[str]], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
