"""Training curves: as a picture, as a few characters, and as a sentence."""

import math
from collections.abc import Sequence

from tellapart.records import EpochLog

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 420, 240, 52, 34, 40
_BARS = "▁▂▃▄▅▆▇█"
_SERIES = (("train", "train"), ("val", "val"), ("running", "while training (augmented)"))

_STYLE = """
text{font:12px system-ui,sans-serif;fill:#333}.title{font-weight:600;font-size:14px}.axis{stroke:#bbb}.grid{stroke:#eee}
polyline{fill:none;stroke-width:2}.train{stroke:#1f6fb4}.val{stroke:#d1690e}.running{stroke:#999;stroke-dasharray:4 3}
.back{fill:#fff}
@media(prefers-color-scheme:dark){.back{fill:#16181c}text{fill:#ddd}.axis{stroke:#555}.grid{stroke:#2a2d33}
.train{stroke:#6db3f2}.val{stroke:#f2a65a}}
"""


def draw_curves(log: Sequence[EpochLog]) -> str:
    """Loss and accuracy over the epochs, as one SVG document that needs nothing else.

    Args:
        log: at least one epoch.
    """
    height = _TOP + _HEIGHT + 64
    width = 2 * (_LEFT + _WIDTH) + _GAP
    body = [
        _panel(log, "loss", "log loss (nats): lower is better", _LEFT),
        _panel(log, "accuracy", "accuracy: higher is better", 2 * _LEFT + _WIDTH + _GAP - 20),
        _legend(log, height - 14),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
        f"<title>Training curves over {log[-1].epoch} epochs</title><style>{_STYLE}</style>"
        f'<rect class="back" width="{width}" height="{height}"/>{"".join(body)}</svg>\n'
    )


def sparkline(values: Sequence[float]) -> str:
    """Values as a row of small bars, the last 20 of them."""
    shown = [value for value in values if math.isfinite(value)][-20:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in shown)


def describe_fit(log: Sequence[EpochLog]) -> str:
    """One plain sentence on over- and underfitting, from the curves."""
    if len(log) < 2:
        return "Too few epochs to tell whether more training would help."
    last = log[-1]
    if last.val_loss is None or last.val_accuracy is None:
        return "Without val images it cannot be told whether the network generalises: see the test accuracy."
    val = [entry.val_loss for entry in log if entry.val_loss is not None]
    best = val.index(min(val))
    gap = last.train_accuracy - last.val_accuracy
    if last.val_loss > 1.05 * val[best] and log[best].train_loss > last.train_loss and best < len(log) - 1:
        return (
            f"Overfitting: val loss was lowest after epoch {log[best].epoch} and has risen since while train loss still fell. "
            f"The weights of epoch {log[best].epoch} are kept. More images, augmentation or dropout would help more than epochs."
        )
    learning = last.train_loss < 0.98 * log[-2].train_loss and last.train_accuracy < 0.99
    if learning and best == len(log) - 1:
        also = f", though train accuracy is already {gap:.0%} above val" if gap > 0.1 else ""
        more = f"Try more epochs: --set epochs={2 * last.epochs}"
        return f"Still learning: train and val loss were falling when it stopped{also}. {more}"
    if gap > 0.1:
        return (
            f"Learning by heart: {last.train_accuracy:.0%} on train images, {last.val_accuracy:.0%} on val. "
            "More images, more augmentation or dropout would help."
        )
    if last.train_loss > 0.9 * log[0].train_loss:
        return "Underfitting: train loss has hardly fallen. Try more epochs, another learning rate or a larger network."
    return "Settled: val loss no longer falls, and train and val agree."


def _panel(log: Sequence[EpochLog], metric: str, title: str, left: float) -> str:
    values = {name: _values(log, name, metric) for name, _ in _SERIES}
    everything = [value for series in values.values() for value in series if value is not None]
    low, high = (0.0, max(everything)) if metric == "loss" else (min(0.5, *everything), 1.0)
    high = high if high > low else low + 1

    def x(i: int) -> float:
        return left + _WIDTH * (i / max(1, len(log) - 1))

    def y(value: float) -> float:
        return _TOP + _HEIGHT * (1 - (value - low) / (high - low))

    parts = [f'<text class="title" x="{left}" y="{_TOP - 14}">{title}</text>']
    for i in range(5):
        value = low + (high - low) * i / 4
        parts.append(
            f'<line class="grid" x1="{left}" x2="{left + _WIDTH}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        )
        text = f"{value:.0%}" if metric == "accuracy" else f"{value:.2f}"
        parts.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{text}</text>')
    for name, series in values.items():
        points = [f"{x(i):.1f},{y(value):.1f}" for i, value in enumerate(series) if value is not None]
        if len(points) == 1:
            points *= 2
        if points:
            cap = ' stroke-linecap="round"'
            parts.append(f'<polyline class="{name}"{cap} points="{" ".join(points)}"/>')
    bottom = _TOP + _HEIGHT
    parts.append(f'<line class="axis" x1="{left}" x2="{left + _WIDTH}" y1="{bottom}" y2="{bottom}"/>')
    parts += [
        f'<text x="{x(i):.1f}" y="{bottom + 16}" text-anchor="middle">{log[i].epoch}</text>'
        for i in sorted({0, len(log) // 2, len(log) - 1})
    ]
    return "".join(parts)


def _legend(log: Sequence[EpochLog], y: float) -> str:
    parts, x = [], float(_LEFT)
    for name, words in _SERIES:
        if any(value is not None for value in _values(log, name, "loss")):
            parts.append(f'<polyline class="{name}" points="{x},{y - 4} {x + 24},{y - 4}"/>')
            parts.append(f'<text x="{x + 30}" y="{y}">{words}</text>')
            x += 60 + 7 * len(words)
    parts.append(f'<text x="{x}" y="{y}">epochs from left to right</text>')
    return "".join(parts)


def _values(log: Sequence[EpochLog], name: str, metric: str) -> list[float | None]:
    fields: dict[tuple[str, str], list[float | None]] = {
        ("train", "loss"): [entry.train_loss for entry in log],
        ("train", "accuracy"): [entry.train_accuracy for entry in log],
        ("val", "loss"): [entry.val_loss for entry in log],
        ("val", "accuracy"): [entry.val_accuracy for entry in log],
        ("running", "loss"): [entry.running_loss for entry in log],
        ("running", "accuracy"): [entry.running_accuracy for entry in log],
    }
    return fields[name, metric]
