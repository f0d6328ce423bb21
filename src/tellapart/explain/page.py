"""The walk as one HTML file: no script, nothing fetched, readable on a phone."""

import base64
import importlib.resources
import io

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from tellapart.explain.story import Figure, Story
from tellapart.imaging.decode import Pixels

_JPEG_QUALITY = 88


def render_page(story: Story) -> bytes:
    """The page as UTF-8; all text of the story is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"data_uri": _data_uri, "png_uri": _png_uri}
    template = importlib.resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    # Names of files need not be Unicode; what cannot be encoded becomes a question mark.
    return environment.from_string(template).render(story=story).encode("utf-8", errors="replace")


def _data_uri(figure: Figure) -> str:
    if not figure.photo:
        return _png_uri(figure.pixels)
    file = io.BytesIO()
    Image.fromarray(figure.pixels).save(file, "JPEG", quality=_JPEG_QUALITY)
    return _uri("image/jpeg", file.getvalue())


def _png_uri(pixels: Pixels) -> str:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", optimize=True)
    return _uri("image/png", file.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
