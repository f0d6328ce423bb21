"""What results look like as text."""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tellapart.console import out_console, say
from tellapart.records import ConformalRule, DecisionRule, FamiliarityRule, Issue
from tellapart.report.story import duration, more_time, tried

_FINETUNE_SHARE = 1.5
"""Of a fine-tune's own time, what a budget needs so that it has its turn: estimates are cautious, and sizes are tried first."""


def said_of_test(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Headline metrics of a model card, by what they are called."""
    if not metrics:
        return {"test": "not measured"}
    return {
        f"test {name.replace('_', ' ')}": f"{_interval(metrics[name])} on {metrics['n']} images"
        for name in metrics["headline"]
    }


def said_of_rules(rules: Sequence[DecisionRule], metrics: Mapping[str, Any]) -> dict[str, str]:
    """Bands of a model card's decision rules, and what came of them on the test images."""
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


def said_of_sets(rule: ConformalRule | None) -> str:
    """Coverages of a model's prediction sets."""
    if rule is None:
        return "none"
    others = ", ".join(f"{level.coverage:.0%}" for level in rule.levels if level.coverage != rule.coverage)
    return f"{rule.coverage:.0%} coverage, {rule.n:,} images" + (f"; also {others}" if others else "")


def said_of_familiarity(rule: FamiliarityRule | None) -> str:
    """When a model calls an image unfamiliar."""
    if rule is None:
        return "never: the file has no score"
    return (
        f"familiarity below {rule.threshold:.4g}: {rule.promised:.1%} of images like its own ({rule.n:,} images)"
    )


def _print_bands(rule: Mapping[str, Any]) -> None:
    out_console.print(f"bands of {rule['class_name']}", markup=False, highlight=False)
    for band in rule["bands"]:
        out_console.print(f"  {_said_of_band(band, band)}", markup=False, highlight=False)


def print_run(report: Mapping[str, Any], model_path: Path) -> None:
    """What a finished run made of the images, and what to do next."""
    print_dataset(report["dataset"])
    print_metrics(report["test"])
    _print_leaks(report["leaks"])
    _print_verification(report["verification"])
    if "verdict" in report["fit"]:
        out_console.print(report["fit"]["verdict"], markup=False, highlight=False)
    if "search" in report["fit"]:
        _print_search(report["fit"]["search"])
    seconds = report["seconds"]["total"]
    out_console.print(f"\n[bold]{escape(str(model_path))}[/] written in {seconds:.1f} s")
    say(False, f"Look: {model_path.with_name('report.html')}")
    if report["finetune_seconds"] is not None:
        say(False, f"More: {_said_of_more(report['finetune_seconds'], seconds)}")
    out_console.print("Next: ", end="")
    out_console.print(f"tellapart predict {model_path} NEW_IMAGES -o predictions.csv", style="cyan")


def _said_of_more(finetune_seconds: float, total_seconds: float) -> str:
    """What a fine-tune would cost here, and the budget in which it has its turn."""
    minutes = math.ceil((_FINETUNE_SHARE * finetune_seconds + total_seconds) / 60)
    cost = duration(finetune_seconds)
    said = f"training its last stages would take about {cost} here: --budget {minutes}m tries that and more"
    return said if importlib.util.find_spec("torch") else f"{said}, with PyTorch: pip install 'tellapart[train]'"


def _print_search(search: Mapping[str, Any]) -> None:
    table = Table(title=f"\nbudget {duration(search['budget_seconds'])}", title_justify="left", title_style="")
    for column in ("tried", "took", "log loss, best before to this", "result"):
        table.add_column(column)
    for row in tried(search):
        table.add_row(*map(Text, row))
    if table.rows:
        out_console.print(table)
    out_console.print(more_time(search), markup=False, highlight=False)


def print_dataset(dataset: Mapping[str, Any]) -> None:
    """What became of the files."""
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


def print_issues(counts: Mapping[str, int], worst: Mapping[str, Issue], notes: Sequence[str]) -> None:
    """What a check found, the worst of each kind."""
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


def print_metrics(test: Mapping[str, Any]) -> None:
    """How good a model is, class by class."""
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


def print_comparison(result: Mapping[str, Any]) -> None:
    """Whether one model is better than another."""
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


def print_backbones(found: Sequence[Mapping[str, Any]]) -> None:
    """Backbones, a line each, and how to use one."""
    head = ("backbone", "where", "MB", "px", "ImageNet", "images/s here", "licence")
    forms = {"size_mb": "{:.0f}", "input_size_px": "{}", "accuracy": "{:.1%}", "images_per_s": "{:,.0f}"}
    rows = [
        (
            one["name"],
            one["place"],
            *("-" if one[key] is None else form.format(one[key]) for key, form in forms.items()),
            one["license"] or "-",
        )
        for one in found
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        say(False, "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for hint in dict.fromkeys(one["hint"] for one in found if one["place"] == "not installed"):
        say(False, f"not installed: {hint}")
    say(False, "use one: tellapart train FOLDER --backbone NAME")
