"""The walk told as sections: pictures, a scale and one plain sentence each; page and poster show the same."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from tellapart.explain.colors import FloatArray, Scale, common_scale, overlay, palette_colors
from tellapart.explain.evidence import Evidence
from tellapart.explain.layers import Step, Walk
from tellapart.explain.sentences import map_sentence, number, percent, vector_sentence
from tellapart.imaging.decode import Pixels
from tellapart.records import ModelCard, Prediction

MAX_MAPS = 64
MAX_MAPS_SUMMED_UP = 16  # a layer, of a network too deep to show every layer
MAX_FILTERS = 32
MAX_FILTER_SLICES = 16
MAX_BARS = 10
MAX_UNITS = 5
PHOTO_PX = 480

_STRIP_COLUMNS = 256
_HEATMAP_PX = 448
_BETWEEN_FILTERS = 200  # a gray that can be told from the page in light and dark
_READING_COLOR = "Gray is 0; a filter answers most to a piece of image that looks like it."
_READING_GRAY = "Gray is 0, white positive, black negative."
_READING_SQUARES = " A filter has one square for each map it reads."
_TITLES = {
    "Conv": "Convolution",
    "Relu": "ReLU",
    "Clip": "ReLU with a ceiling",
    "MaxPool": "Max pooling",
    "GlobalAveragePool": "Global average",
    "GlobalMaxPool": "Global maximum",
    "ReduceMean": "Average",
    "Flatten": "Flatten",
    "Concat": "Join",
    "Gemm": "Dense layer",
    "MatMul": "Dense layer",
}

Layout = Literal["photos", "filters", "wide filters", "maps", "strip"]
Tone = Literal["high", "low", "faint"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One picture, (H, W, 3) uint8; ``photo`` says that small losses do not matter."""

    pixels: Pixels
    caption: str
    photo: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One bar: ``share`` of the full length, 0-1."""

    label: str
    value: str
    share: float
    tone: Tone


@dataclass(frozen=True, kw_only=True, slots=True)
class Legend:
    """The colours of a section and the numbers at their ends."""

    ramp: Pixels
    low: str
    high: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One stop of the walk.

    Attributes:
        shape: of the numbers, in words; empty where there are none.
        text: what the step does.
        note: what is left out, or how to read the pictures.
    """

    title: str
    text: str
    layout: Layout = "maps"
    shape: str = ""
    figures: tuple[Figure, ...] = ()
    legend: Legend | None = None
    bars: tuple[Bar, ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """Everything that page and poster show, in order."""

    title: str
    verdict: str
    intro: str
    sections: tuple[Section, ...]
    footer: str


def tell(
    original: Pixels, pixels: Pixels, walk: Walk, evidence: Evidence, prediction: Prediction, card: ModelCard
) -> Story:
    """Put the story together.

    Args:
        original: (H, W, 3) uint8, the image as it was given.
        pixels: (S, S, 3) uint8, what the model saw of it.
        walk: the layers' values.
        evidence: for the predicted class.
        prediction: of the same file.
        card: the model's.
    """
    return Story(
        title=f"How the model sees {prediction.path or 'the image'}",
        verdict=_verdict(prediction, card),
        intro=_intro(walk),
        sections=(
            _input_section(original, pixels, walk, card),
            _evidence_section(pixels, evidence, prediction),
            *_layer_sections(walk, card),
            _answer_section(prediction, card),
        ),
        footer="All values are read out of the model file itself, computed in 32-bit floats.",
    )


def _intro(walk: Walk) -> str:
    if not walk.convolutions:
        return "The image, what the answer depends on, and what the model computes, step by step."
    if walk.whole:
        return "The way of one image through the network, layer by layer. Colours within one step can be compared."
    return (
        f"The network has {walk.convolutions} convolutions, too many to show. Here are its first one, the last maps of"
        f" each size, {MAX_MAPS_SUMMED_UP} of them a time, and everything after the maps."
    )


def _verdict(prediction: Prediction, card: ModelCard) -> str:
    found = f"{prediction.verdict}: {prediction.label}, {percent(prediction.prob or 0)}"
    if card.conformal is None:
        return f"{found}. No prediction set was fitted for this model."
    names = ", ".join(prediction.prediction_set[:MAX_BARS])
    more = len(prediction.prediction_set) - MAX_BARS
    names += f" and {more} more" if more > 0 else ""
    return f"{found}. Prediction set at {card.conformal.coverage:.0%} coverage: {names}."


# Input and evidence


def _input_section(original: Pixels, pixels: Pixels, walk: Walk, card: ModelCard) -> Section:
    side = len(pixels)
    height, width = original.shape[:2]
    how = {"squash": "squeezed", "crop": "cut to its middle square and reduced", "pad": "reduced, with gray bars,"}
    low, high = walk.input_range
    return Section(
        title="The image",
        layout="photos",
        shape=f"{side} x {side} pixels, 3 colours",
        text=f"The image is {how[card.preprocess.resize]} to {side} x {side} pixels. The first layer gets them as numbers"
        f" from {number(low)} to {number(high)}.",
        figures=(
            Figure(pixels=_reduced(original), caption=f"as given, {width} x {height}", photo=True),
            Figure(pixels=pixels, caption=f"as the model sees it, {side} x {side}"),
        ),
    )


def _reduced(image: Pixels) -> Pixels:
    picture = Image.fromarray(image)
    picture.thumbnail((PHOTO_PX, PHOTO_PX))
    return np.asarray(picture)


def _evidence_section(pixels: Pixels, evidence: Evidence, prediction: Prediction) -> Section:
    largest = float(np.abs(evidence.values).max())
    scale = Scale(palette="diverging", low=-largest, high=largest)
    ramp = overlay(
        np.linspace(-largest, largest, 256, dtype=np.float32)[None], scale, np.full((1, 256, 3), 128, np.uint8)
    )
    return Section(
        title=f"What the answer “{prediction.label}” depends on",
        layout="photos",
        text=evidence.text,
        shape=evidence.method,
        figures=(
            Figure(pixels=heat(evidence.values, scale, pixels), caption=evidence.caption, photo=True),
            Figure(pixels=pixels, caption="as the model sees it"),
        ),
        legend=Legend(ramp=ramp, low=evidence.low, high=evidence.high),
        note=evidence.note,
    )


def heat(values: FloatArray, scale: Scale, pixels: Pixels) -> Pixels:
    """Lay a heat map (h, w) over the model's input, enlarged before it is painted: small maps come out smooth."""
    size = (max(_HEATMAP_PX, len(pixels)),) * 2
    smooth = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BICUBIC))
    return overlay(smooth, scale, np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)))


# Layers


def _layer_sections(walk: Walk, card: ModelCard) -> Iterator[Section]:
    total = Counter(step.operator for step in walk.steps)
    seen: Counter[str] = Counter()
    for step in walk.steps:
        seen[step.operator] += 1
        title = _TITLES[step.operator]
        if step.skipped and step.values.ndim == 3:
            title = f"The last maps of {step.shape[1]} x {step.shape[2]}"
        elif total[step.operator] > 1 and walk.whole:
            title += f" {seen[step.operator]}"
        if step.operator == "Conv" and not step.skipped:
            yield from _filter_sections(step, title)
        if step.values.ndim == 3:
            yield _map_section(step, title, walk)
        elif step is walk.steps[-1] and step.shape == (len(card.class_names),):
            yield _logits_section(step, title, card.class_names)
        else:
            yield _vector_section(step, title)


def _filter_sections(step: Step, title: str) -> Iterator[Section]:
    """The learned filters, where there is something to see: a filter of one pixel is a number."""
    if step.filters is None or step.filters.shape[2:] == (1, 1):
        return
    weight = np.nan_to_num(step.filters)
    count, depth, height, width = weight.shape
    in_color = depth == 3 and step.convolutions == 1
    reading = _READING_COLOR if in_color else _READING_GRAY + (_READING_SQUARES if depth > 1 else "")
    notes = [_left_out(count, MAX_FILTERS, "filters")]
    if depth > MAX_FILTER_SLICES:
        notes.append(f"Of each filter, the first {MAX_FILTER_SLICES} of {depth} squares are shown.")
    yield Section(
        title=f"{title}: the learned filters",
        layout="filters" if in_color or depth == 1 else "wide filters",
        shape=f"{count:,} filters of {height} x {width} x {depth:,}, {weight.size:,} weights",
        text=f"These are the weights that training found. {reading} Each filter is on a scale of its"
        " own: the number below is the size of its largest weight.",
        figures=tuple(
            _filter_figure(i, filters, in_color=in_color) for i, filters in enumerate(weight[:MAX_FILTERS])
        ),
        legend=Legend(ramp=palette_colors("gray")[None], low="- largest", high="+ largest"),
        note=" ".join(notes).strip(),
    )


def _filter_figure(index: int, filters: FloatArray, *, in_color: bool) -> Figure:
    """One filter, (C, h, w): in colour where it reads colours, otherwise a gray square for each map it reads."""
    largest = float(np.abs(filters).max())
    gray = Scale(palette="gray", low=-largest, high=largest).paint(filters)
    pixels = gray[..., 0].transpose(1, 2, 0) if in_color else _mosaic(gray[:MAX_FILTER_SLICES])
    return Figure(pixels=pixels, caption=f"{index + 1}: {largest:.2g}")


def _mosaic(slices: Pixels) -> Pixels:
    """Squares side by side, at most eight a row, with thin lines between them."""
    rows = -(-len(slices) // 8)
    columns = -(-len(slices) // rows)
    enlarged = slices.repeat(8, axis=1).repeat(8, axis=2)
    framed = np.pad(
        enlarged, ((0, rows * columns - len(slices)), (0, 3), (0, 3), (0, 0)), constant_values=_BETWEEN_FILTERS
    )
    _, height, width, _ = framed.shape
    grid = framed.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, 3)[:-3, :-3]


def _map_section(step: Step, title: str, walk: Walk) -> Section:
    maps, height, width = step.shape
    limit = MAX_MAPS if walk.whole else MAX_MAPS_SUMMED_UP
    order, note = np.arange(maps)[:limit], _left_out(maps, limit, "maps")
    if not walk.whole and maps > limit:
        order = np.argsort(-step.values.std(axis=(1, 2)), kind="stable")[:limit]
        note = (
            f"Shown are the {limit} of {maps:,} maps that vary most over the image; {maps - limit:,} are left out."
        )
    scale = common_scale(step.values[order])
    return Section(
        title=title,
        shape=f"{maps:,} map{'s' * (maps != 1)} of {height} x {width}",
        text=map_sentence(step, walk),
        figures=tuple(Figure(pixels=scale.paint(step.values[i]), caption=str(i + 1)) for i in order),
        legend=_legend(scale),
        note=note,
    )


def _logits_section(step: Step, title: str, class_names: tuple[str, ...]) -> Section:
    order = np.argsort(-step.values, kind="stable")[:MAX_BARS]
    return Section(
        title=f"{title}: one number a class",
        layout="strip",
        shape=_numbers(step),
        text=f"{vector_sentence(step)} The larger the number of a class, the more the image speaks for it; only the"
        " differences count.",
        bars=_bars(step.values, {int(i): class_names[i] for i in order}),
        note=_left_out(len(class_names), MAX_BARS, "classes"),
    )


def _vector_section(step: Step, title: str) -> Section:
    folded = _folded(step)
    scale = common_scale(step.values)
    rows, columns = folded.shape
    caption = "one cell a number" if rows == 1 else f"read like a text: {rows} lines of {columns} numbers"
    order = np.argsort(-np.abs(step.values), kind="stable")[:MAX_UNITS]
    shows_bars = step.operator != "Flatten"
    return Section(
        title=title,
        layout="strip",
        shape=_numbers(step),
        text=vector_sentence(step),
        figures=(Figure(pixels=scale.paint(folded), caption=caption),),
        legend=_legend(scale),
        bars=_bars(step.values, {int(i): f"number {i + 1}" for i in order}) if shows_bars else (),
        note=f"The bars are the {len(order)} numbers furthest from 0." if shows_bars else "",
    )


def _bars(values: FloatArray, labels: Mapping[int, str]) -> tuple[Bar, ...]:
    largest = float(np.abs(values).max(initial=0)) or 1.0
    return tuple(
        Bar(
            label=label,
            value=number(values[i]),
            share=abs(float(values[i])) / largest,
            tone="low" if values[i] < 0 else "high",
        )
        for i, label in labels.items()
    )


def _folded(step: Step) -> FloatArray:
    """(rows, columns) of a vector in reading order; what was flattened gets a row a map."""
    columns = min(len(step.values), _STRIP_COLUMNS)
    if step.operator == "Flatten" and len(step.input_shape) == 3:
        columns = int(np.prod(step.input_shape[1:]))
    rows = -(-len(step.values) // columns)
    return np.pad(step.values, (0, rows * columns - len(step.values))).reshape(rows, columns)


def _numbers(step: Step) -> str:
    return f"{len(step.values):,} number{'s' * (len(step.values) != 1)}"


def _legend(scale: Scale) -> Legend:
    low, high = number(scale.low), number(scale.high)
    if scale.beyond:
        low, high = (f"{low} and less" if scale.low < 0 else low), f"{high} and more"
    return Legend(ramp=palette_colors(scale.palette)[None], low=low, high=high)


def _left_out(count: int, limit: int, things: str) -> str:
    return (
        f"The first {limit} of {count:,} {things} are shown; {count - limit:,} are left out."
        if count > limit
        else ""
    )


# The answer


def _answer_section(prediction: Prediction, card: ModelCard) -> Section:
    probs = np.array(prediction.probs)
    order = np.argsort(-probs, kind="stable")
    bars = tuple(
        Bar(
            label=card.class_names[i],
            value=percent(probs[i]),
            share=float(np.nan_to_num(probs[i])),
            tone="high" if card.class_names[i] in prediction.prediction_set else "faint",
        )
        for i in order[:MAX_BARS]
    )
    note = _verdict(prediction, card)
    note += " " + _left_out(len(probs), MAX_BARS, "classes")
    return Section(
        title="The answer",
        layout="strip",
        shape=f"{len(probs)} probabilities",
        text=f"Divided by the temperature {number(card.calibration.temperature)}, which was fitted on"
        f" {card.calibration.n:,} images, the numbers go through a softmax: all become positive and add up to 1. The classes"
        " of the prediction set are in orange.",
        bars=bars,
        note=note.strip(),
    )
