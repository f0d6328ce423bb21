"""What every command shares: two consoles, errors in two lines, progress, JSON."""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from tellapart.errors import TellapartError
from tellapart.records import EpochLog
from tellapart.training.curves import sparkline

out_console = Console(soft_wrap=True)  # commands stay on one line, to be copied
err_console = Console(stderr=True, soft_wrap=True)


@contextmanager
def user_errors(as_json: bool = False, interrupted: Callable[[], str] = str) -> Iterator[None]:
    """Print what a user can put right as two lines, not as a traceback; 1 for errors, 130 for Ctrl-C."""
    warnings.filterwarnings("ignore", module="PIL")  # about tags of broken files, which get their own rows
    try:
        yield
    except TellapartError as error:
        if as_json:
            print_json({"error": {"code": error.code, "message": error.message, "hint": error.hint}})
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
def progress_bar(hidden: bool) -> Iterator["Reporter"]:
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
        yield Reporter(bar, hidden)


class Reporter:
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


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document on standard output."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def say(quiet: bool, text: str) -> None:
    """Print a line as it is, unless it is to be quiet."""
    if not quiet:
        out_console.print(text, markup=False, highlight=False)
