"""Fill a page's template: every text escaped, every name that is missing an error, the same page for the same input."""

import importlib.resources
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import jinja2
from markupsafe import Markup


class PageTemplate:
    """A template beside the code that fills it, read and compiled when the first page is made.

    Args:
        package: where the template lies.
        name: of its file.
        filters: what the template may apply to values, beside jinja's own.
    """

    def __init__(self, package: str, name: str, filters: Mapping[str, Callable[..., Any]] | None = None) -> None:
        self._package = package
        self._name = name
        self._filters = filters or {}

    def fill(self, **values: object) -> bytes:
        """A page as UTF-8, of all the values that the template names; ``base_css`` is always there."""
        page = self._compiled.render(**values)
        # Names of files need not be Unicode; what cannot be encoded becomes a question mark.
        return page.encode("utf-8", errors="replace")

    @cached_property
    def _compiled(self) -> jinja2.Template:
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        environment.filters |= self._filters
        css = Markup(_read("tellapart.pages", "base.css"))  # noqa: S704  our own file
        return environment.from_string(_read(self._package, self._name), globals={"base_css": css})


def _read(package: str, name: str) -> str:
    return importlib.resources.files(package).joinpath(name).read_text(encoding="utf-8")
