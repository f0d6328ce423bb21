"""The walk as one tall picture, for a slide or a wall."""

import functools
import io
import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tellapart.explain.story import Bar, Figure, Layout, Legend, Section, Story

WIDTH_PX = 1200

_MARGIN_PX = 48  # around the poster
_PADDING_PX = 32  # inside a card
_GAP_PX = 14
_TEXT_WIDTH_PX = 900  # longer lines are hard to read
_INNER_PX = WIDTH_PX - 2 * (_MARGIN_PX + _PADDING_PX)
_PAPER, _CARD, _LINE = (246, 245, 242), (255, 255, 255), (227, 224, 217)
_INK, _SOFT = (29, 28, 26), (102, 98, 91)
_TONES = {"high": (196, 86, 15), "low": (61, 107, 179), "faint": (150, 145, 136)}
_COLUMNS: dict[Layout, int] = {"photos": 2, "filters": 12, "wide filters": 7, "maps": 8, "strip": 1}
_LARGEST_PX: dict[Layout, int] = {
    "photos": 440,
    "filters": 76,
    "wide filters": 136,
    "maps": 200,
    "strip": _INNER_PX,
}
_SMALLEST_STRIP_PX = 36
_BAR_LABEL_PX, _BAR_VALUE_PX, _BAR_LINE_PX = 200, 110, 30
_LEGEND_PX = 380
# The font that comes with Pillow has the letters of English and little else.
_SPELLED = str.maketrans({"ß": "ss", "ø": "o", "Ø": "O", "æ": "ae", "Æ": "Ae", "ł": "l", "Ł": "L"})

Color = tuple[int, int, int]


def render_poster(story: Story) -> bytes:
    """The story as a PNG, ``WIDTH_PX`` wide and as tall as it needs to be."""
    header = _stack(
        [
            _text(story.title, 34, _INK, _PAPER),
            _text(story.verdict, 22, _INK, _PAPER),
            _text(story.intro, 18, _SOFT, _PAPER),
        ],
        _PAPER,
    )
    footer = _text(story.footer, 16, _SOFT, _PAPER)
    blocks = [header, *(_card(section) for section in story.sections), footer]
    height = sum(block.height for block in blocks) + 20 * (len(blocks) - 1) + 2 * _MARGIN_PX
    poster = Image.new("RGB", (WIDTH_PX, height), _PAPER)
    top = _MARGIN_PX
    for block in blocks:
        poster.paste(block, ((WIDTH_PX - block.width) // 2, top))
        top += block.height + 20
    file = io.BytesIO()
    poster.save(file, "PNG", compress_level=6)
    return file.getvalue()


def _card(section: Section) -> Image.Image:
    parts = [_text(section.title, 26, _INK, _CARD)]
    if section.shape:
        parts.append(_text(section.shape, 17, _SOFT, _CARD))
    parts.append(_text(section.text, 18, _INK, _CARD))
    if section.figures:
        parts.append(_figures(section.figures, section.layout))
    if section.legend:
        parts.append(_legend(section.legend))
    if section.bars:
        parts.append(_bars(section.bars))
    if section.note:
        parts.append(_text(section.note, 16, _SOFT, _CARD))
    body = _stack(parts, _CARD)
    size = (WIDTH_PX - 2 * _MARGIN_PX, body.height + 2 * _PADDING_PX)
    card = Image.new("RGB", size, _PAPER)
    frame = (0, 0, size[0] - 1, size[1] - 1)
    ImageDraw.Draw(card).rounded_rectangle(frame, radius=14, fill=_CARD, outline=_LINE)
    card.paste(body, (_PADDING_PX, _PADDING_PX))
    return card


def _stack(parts: Sequence[Image.Image], color: Color) -> Image.Image:
    """Blocks below each other, flush left."""
    height = sum(part.height for part in parts) + _GAP_PX * (len(parts) - 1)
    stacked = Image.new("RGB", (_INNER_PX, height), color)
    top = 0
    for part in parts:
        stacked.paste(part, (0, top))
        top += part.height + _GAP_PX
    return stacked


def _figures(figures: Sequence[Figure], layout: Layout) -> Image.Image:
    """A grid of equally wide pictures with their captions."""
    columns = _COLUMNS[layout] if layout != "maps" or len(figures) > 8 else 5
    cell = min(_LARGEST_PX[layout], (_INNER_PX - _GAP_PX * (columns - 1)) // columns)
    pictures = [_fitted(figure, cell, layout) for figure in figures]
    caption_px = 22
    line = max(picture.height for picture in pictures) + caption_px + 8
    rows = -(-len(figures) // columns)
    grid = Image.new("RGB", (_INNER_PX, rows * line - 8), _CARD)
    draw = ImageDraw.Draw(grid)
    for i, (figure, picture) in enumerate(zip(figures, pictures, strict=True)):
        left, top = i % columns * (cell + _GAP_PX), i // columns * line
        grid.paste(picture, (left, top))
        draw.text((left, top + picture.height + 4), _cut(figure.caption, 15, cell), _SOFT, _font(15))
    return grid


def _fitted(figure: Figure, cell: int, layout: Layout) -> Image.Image:
    """The picture at the width of its cell; single numbers stay visible as squares where it is enlarged."""
    picture = Image.fromarray(np.ascontiguousarray(figure.pixels))
    height = max(1, round(cell * picture.height / picture.width))
    if layout == "strip":
        height = max(height, _SMALLEST_STRIP_PX)
    if layout == "photos" and height > cell:
        cell, height = max(1, round(cell * picture.width / picture.height)), cell
    enlarged = cell > picture.width and not figure.photo
    return picture.resize((cell, height), Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS)


def _legend(legend: Legend) -> Image.Image:
    font = _font(16)
    low, high = _plain(legend.low), _plain(legend.high)
    left = round(font.getlength(low)) + 12
    block = Image.new("RGB", (left + _LEGEND_PX + 12 + round(font.getlength(high)) + 2, 22), _CARD)
    draw = ImageDraw.Draw(block)
    draw.text((0, 2), low, _SOFT, font)
    block.paste(Image.fromarray(legend.ramp).resize((_LEGEND_PX, 14), Image.Resampling.BILINEAR), (left, 4))
    draw.rectangle((left, 4, left + _LEGEND_PX - 1, 17), outline=_LINE)
    draw.text((left + _LEGEND_PX + 12, 2), high, _SOFT, font)
    return block


def _bars(bars: Sequence[Bar]) -> Image.Image:
    block = Image.new("RGB", (_TEXT_WIDTH_PX, _BAR_LINE_PX * len(bars)), _CARD)
    draw = ImageDraw.Draw(block)
    track = _TEXT_WIDTH_PX - _BAR_LABEL_PX - _BAR_VALUE_PX
    for i, bar in enumerate(bars):
        top = i * _BAR_LINE_PX
        draw.text((0, top + 4), _cut(bar.label, 18, _BAR_LABEL_PX - 16), _INK, _font(18))
        bottom, left = top + _BAR_LINE_PX - 8, _BAR_LABEL_PX
        draw.rectangle((left, top + 7, left + track, bottom), fill=_LINE)
        draw.rectangle((left, top + 7, left + max(2, round(bar.share * track)), bottom), fill=_TONES[bar.tone])
        draw.text((_TEXT_WIDTH_PX, top + 4), _plain(bar.value), _INK, _font(18), anchor="ra")
    return block


def _text(text: str, size: int, color: Color, background: Color) -> Image.Image:
    """A paragraph, broken into lines."""
    font, lines = _font(size), _wrapped(_plain(text), size)
    line_px = round(1.4 * size)
    block = Image.new("RGB", (_INNER_PX, line_px * len(lines)), background)
    draw = ImageDraw.Draw(block)
    for i, line in enumerate(lines):
        draw.text((0, i * line_px), line, color, font)
    return block


def _wrapped(text: str, size: int) -> list[str]:
    font = _font(size)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= _TEXT_WIDTH_PX:
            lines[-1] = longer
        else:
            lines.append(_cut(word, size, _TEXT_WIDTH_PX))
    return lines if lines[0] else lines[1:] or lines


def _cut(text: str, size: int, width_px: int) -> str:
    """The text, shortened to fit."""
    text, font = _plain(text), _font(size)
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(text + "...") > width_px:
        text = text[:-1]
    return text + "..."


def _plain(text: str) -> str:
    """The text in letters that the font has: accents are dropped, other scripts become question marks."""
    spelled = unicodedata.normalize("NFKD", " ".join(text.translate(_SPELLED).split()))
    letters = (letter for letter in spelled if not unicodedata.combining(letter))
    return "".join(
        letter if (letter.isascii() and letter.isprintable()) or letter in "“”" else "?" for letter in letters
    )


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
