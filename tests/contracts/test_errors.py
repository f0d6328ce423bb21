"""Codes: each is raised somewhere, and documented."""

import ast
import importlib.util
from pathlib import Path

import pytest

from tellapart.errors import CODES, TellapartError

ROOT = Path(__file__).parents[2]


def strings_in_source():
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        if path.name != "errors.py":
            tree = ast.parse(path.read_text())
            found |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return found


def test_every_code_is_used():
    assert not set(CODES) - strings_in_source()


def test_an_unknown_code_is_refused():
    with pytest.raises(ValueError, match="unknown error code"):
        TellapartError("no-such-code", "message")


def test_page_of_codes_is_up_to_date():
    spec = importlib.util.spec_from_file_location("make_errors", ROOT / "docs/make_errors.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs/errors.md").read_text() == module.page(), "run: make docs"
