"""The walk as one HTML file: no script, nothing fetched, readable on a phone."""

from tellapart.explain.story import Figure, Story
from tellapart.pages.pictures import jpeg_uri, png_uri
from tellapart.pages.template import PageTemplate

_JPEG_QUALITY = 88


def render_page(story: Story) -> bytes:
    """The page as UTF-8; all text of the story is escaped."""
    return _PAGE.fill(story=story)


def _data_uri(figure: Figure) -> str:
    return jpeg_uri(figure.pixels, quality=_JPEG_QUALITY) if figure.photo else png_uri(figure.pixels)


_PAGE = PageTemplate("tellapart.explain", "page.html", {"data_uri": _data_uri, "png_uri": png_uri})
