"""Which numbers of the report make which plot, and the same in words for those who cannot see it."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from tellapart.report import story
from tellapart.report.plots import Axis, Line, Point, interval_bar, line_plot, matrix_plot

_LOWEST = 0.5  # an axis of accuracies begins here or lower


def bar(interval: Mapping[str, float | None]) -> Markup:
    """One row's interval."""
    return interval_bar(interval, says=story.percent(interval))


def matrix(test: Mapping[str, Any]) -> Markup:
    """The confusion matrix as a picture; nothing without one."""
    counts = test.get("confusion_matrix")
    if not counts:
        return Markup("")
    right, wrong = sum(row[i] for i, row in enumerate(counts)), test["n"]
    says = (
        f"Confusion matrix of {len(counts)} classes: {right:,} of {wrong:,} images on the"
        " diagonal. The table lists the mistakes."
    )
    return matrix_plot(counts, test["class_names"], says=says)


def reliability(test: Mapping[str, Any]) -> Markup:
    """Claimed probability against how often it came true."""
    points = _points(test.get("reliability", ()), "prob", "share")
    if not points:
        return Markup("")
    low = 0.0 if min(point.x for point in points) < _LOWEST else _LOWEST
    low = 0.0 if any(point.y < low for point in points) else low
    says = "Reliability: " + "; ".join(f"claimed {point.x:.0%}, right {point.y:.0%}" for point in points)
    axes = (
        Axis(title="probability the model claims", low=low, high=1),
        Axis(title="how often it is right", low=low, high=1),
    )
    return line_plot([Line(name="reliability", points=points)], *axes, says=says, diagonal=True)


def selective(test: Mapping[str, Any]) -> Markup:
    """Accuracy against the share of images that are answered."""
    points = _points(test.get("selective", ()), "answered", "accuracy")
    if not points:
        return Markup("")
    low = _floor(points)
    first, last = points[0], points[-1]
    says = (
        f"Answering the surest {first.x:.0%} of the images, {first.y:.1%} are right; answering"
        f" {last.x:.0%}, {last.y:.1%}."
    )
    axes = (
        Axis(title="share of images answered, the surest first", low=0, high=1),
        Axis(title="accuracy", low=low, high=1),
    )
    return line_plot([Line(name="accuracy", points=points)], *axes, says=says)


def curves(log: Sequence[Mapping[str, Any]]) -> list[tuple[str, Markup]]:
    """Loss and accuracy over the epochs, each with its title.

    ``curves.svg`` shows the same while training goes on: a document with colours of its own, whereas these follow the page.
    """
    if not log:
        return []
    found = []
    for metric, title in (("loss", "Log loss: lower is better"), ("accuracy", "Accuracy: higher is better")):
        lines = []
        for name, tone in (("running", "third"), ("train", "first"), ("val", "second")):
            key = f"{name}_{metric}"
            points = tuple(Point(x=row["epoch"], y=row[key]) for row in log if row.get(key) is not None)
            if points:
                lines.append(Line(name=name, points=points, tone=tone))
        highest = max(point.y for line in lines for point in line.points)
        every = [point for line in lines for point in line.points]
        y = (
            Axis(title=metric, low=0, high=highest or 1, format="{:.2f}".format)
            if metric == "loss"
            else Axis(title=metric, low=_floor(every), high=1)
        )
        first, last = log[0]["epoch"], max(log[-1]["epoch"], log[0]["epoch"] + 1)
        steps = max(step for step in range(1, 6) if (last - first) % step == 0)  # at whole epochs
        x = Axis(title="epoch", low=first, high=last, format="{:.0f}".format, steps=steps)
        ends = "; ".join(f"{line.name} from {line.points[0].y:.3f} to {line.points[-1].y:.3f}" for line in lines)
        found.append((title, line_plot(lines, x, y, says=f"{title}. Over {len(log)} epochs, {ends}.")))
    return found


def _points(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> tuple[Point, ...]:
    return tuple(
        Point(x=row[x], y=row[y]["value"], low=row[y]["low"], high=row[y]["high"])
        for row in rows
        if row[y]["value"] is not None
    )


def _floor(points: Sequence[Point]) -> float:
    """A round number below all of them, and not above one half."""
    lowest = min(
        min(point.y for point in points), *(point.low for point in points if point.low is not None), _LOWEST
    )
    return max(0.0, int(10 * lowest) / 10)
