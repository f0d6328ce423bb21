"""Plots as SVG, drawn with the page's own colours so that they follow light and dark; each says in words what it shows."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

_WIDTH, _HEIGHT = 400, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 14, 44
_CELLS_PX = 480  # side of a compact matrix


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A point of a line, and its interval where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of a plot; ``tone`` is a class of the page's styles."""

    name: str
    points: tuple[Point, ...]
    tone: str = "first"


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """What runs along one side of a plot, from ``low`` to ``high``."""

    title: str
    low: float
    high: float
    format: Callable[[float], str] = "{:.0%}".format
    steps: int = 5

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"an axis runs from a number to a larger one, got {self.low} to {self.high}")


def line_plot(lines: Sequence[Line], x: Axis, y: Axis, *, says: str, diagonal: bool = False) -> Markup:
    """Lines with the intervals of their points; ``diagonal`` is where claim and truth are equal."""
    place = _Place(x, y)
    parts = [place.axes()]
    if diagonal:
        low, high = max(x.low, y.low), min(x.high, y.high)
        parts.append(
            _svg("line", cls="ideal", x1=place.x(low), y1=place.y(low), x2=place.x(high), y2=place.y(high))
        )
    for line in lines:
        for point in line.points:
            if point.low is not None and point.high is not None:
                px = place.x(point.x)
                parts.append(
                    _svg(
                        "line",
                        cls=f"whisker {line.tone}",
                        x1=px,
                        x2=px,
                        y1=place.y(point.low),
                        y2=place.y(point.high),
                    )
                )
        points = " ".join(f"{place.x(point.x)},{place.y(point.y)}" for point in line.points)
        parts.append(_svg("polyline", cls=line.tone, points=points))
        if len(line.points) <= 25:
            parts += [
                _svg("circle", cls=line.tone, cx=place.x(point.x), cy=place.y(point.y), r=3)
                for point in line.points
            ]
    return _figure(_WIDTH, _HEIGHT, Markup("").join(parts), says)


def interval_bar(interval: Mapping[str, float | None], *, says: str) -> Markup:
    """An estimate between 0 and 1 as a bar, its interval as a line across the bar's end; empty where nothing was measured."""
    value, low, high = interval["value"], interval["low"], interval["high"]
    parts = [_svg("rect", cls="track", x=0, y=4, width=100, height=8)]
    if value is not None and low is not None and high is not None:
        parts.append(_svg("rect", cls="value", x=0, y=4, width=_round(100 * value), height=8))
        parts.append(_svg("line", cls="interval", x1=_round(100 * low), x2=_round(100 * high), y1=8, y2=8))
    body = Markup("").join(parts)
    return Markup(
        '<svg class="bar" viewBox="0 0 100 16" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    ).format(says, body)


def matrix_plot(counts: Sequence[Sequence[int]], names: Sequence[str], *, says: str) -> Markup:
    """A confusion matrix without numbers, for many classes: the darker, the larger the share of the true class (row).

    Mistakes have a colour of their own. Each cell that is not empty names itself.
    """
    cell = _CELLS_PX / max(1, len(counts))
    parts = [_svg("rect", cls="track", x=0, y=0, width=_CELLS_PX, height=_CELLS_PX)]
    for i, row in enumerate(counts):
        total = sum(row) or 1
        for j, count in enumerate(row):
            if not count:
                continue
            opacity = _round(0.2 + 0.8 * count / total)
            parts.append(
                Markup(
                    '<rect class="{}" x="{}" y="{}" width="{}" height="{}" fill-opacity="{}"><title>{} → {}: {}</title></rect>'
                ).format(
                    "right" if i == j else "wrong",
                    _round(j * cell),
                    _round(i * cell),
                    _round(cell),
                    _round(cell),
                    opacity,
                    names[i][:40],
                    names[j][:40],
                    count,
                )
            )
    return _figure(_CELLS_PX, _CELLS_PX, Markup("").join(parts), says, shape="plot square")


class _Place:
    """From numbers to pixels."""

    def __init__(self, x: Axis, y: Axis) -> None:
        self._x, self._y = x, y

    def x(self, value: float) -> float:
        share = _within((value - self._x.low) / (self._x.high - self._x.low))
        return _round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * share)

    def y(self, value: float) -> float:
        share = _within((value - self._y.low) / (self._y.high - self._y.low))
        return _round(_TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - share))

    def axes(self) -> Markup:
        parts = []
        bottom = _HEIGHT - _BOTTOM
        for step in range(self._y.steps + 1):
            at = self._y.low + (self._y.high - self._y.low) * step / self._y.steps
            parts.append(_svg("line", cls="grid", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=self.y(at), y2=self.y(at)))
            parts.append(_text(self._y.format(at), _LEFT - 6, self.y(at) + 4, "end"))
        for step in range(self._x.steps + 1):
            at = self._x.low + (self._x.high - self._x.low) * step / self._x.steps
            parts.append(_text(self._x.format(at), self.x(at), bottom + 16, "middle"))
        parts.append(_svg("line", cls="axis", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=bottom, y2=bottom))
        parts.append(_text(self._x.title, (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, "middle"))
        return Markup("").join(parts)


def _within(share: float) -> float:
    return min(1.0, max(0.0, share))


def _round(number: float) -> float:
    return round(number, 2)


def _svg(tag: str, *, cls: str, **attributes: Any) -> Markup:
    written = Markup("").join(Markup(' {}="{}"').format(name, value) for name, value in attributes.items())
    return Markup('<{} class="{}"{}/>').format(Markup(tag), cls, written)  # noqa: S704  our own tags


def _text(text: str, x: float, y: float, anchor: str) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(_round(x), _round(y), anchor, text)


def _figure(width: float, height: float, body: Markup, says: str, shape: str = "plot") -> Markup:
    return Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        shape, width, height, says, body
    )
