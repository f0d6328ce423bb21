"""Fill a page's template: every text escaped, every name that is missing an error, the same page for the same input."""

import importlib.resources
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

_NO_FILTERS: Mapping[str, Callable[..., Any]] = MappingProxyType({})


def fill_template(
    package: str, name: str, *, filters: Mapping[str, Callable[..., Any]] = _NO_FILTERS, **values: object
) -> bytes:
    """A page as UTF-8.

    Args:
        package: where the template lies.
        name: of its file.
        filters: what the template may apply to values, beside jinja's own.
        values: what it names; ``base_css`` is always there, for its ``style``.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters |= filters
    css = Markup(_read("tellapart.pages", "base.css"))  # noqa: S704  our own file
    page = environment.from_string(_read(package, name)).render(base_css=css, **values)
    # Names of files need not be Unicode; what cannot be encoded becomes a question mark.
    return page.encode("utf-8", errors="replace")


def _read(package: str, name: str) -> str:
    return importlib.resources.files(package).joinpath(name).read_text(encoding="utf-8")
