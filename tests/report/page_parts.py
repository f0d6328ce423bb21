"""A page in parts that can be compared: sentences, table cells and plots, each once, with the section it stands in."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

import numpy as np
import pytest

BLOCKS = frozenset(
    "h1 h2 h3 p li dt dd td th caption figcaption summary pre footer".split()
)  # what holds text of its own
_VOID = frozenset("meta link img br hr input".split())
_NUMBER = r"(\d[\d,]*(?:\.\d+)?)"


@dataclass
class Node:
    """An element of the page."""

    tag: str
    attrs: dict = field(default_factory=dict)
    children: list = field(default_factory=list)

    def find(self, *tags):
        """Every element below with one of these tags, in order."""
        for child in self.children:
            if isinstance(child, Node):
                if child.tag in tags:
                    yield child
                yield from child.find(*tags)

    def text(self):
        """What is written in it, plots aside."""
        return re.sub(r"\s+", " ", self._written()).strip()

    def _written(self):
        if self.tag == "br":
            return " "
        return "".join(
            part if isinstance(part, str) else "" if part.tag == "svg" else part._written()
            for part in self.children
        )


class _Tree(HTMLParser):
    def __init__(self):
        super().__init__()
        self.root = Node("page")
        self._open = [self.root]

    def handle_starttag(self, tag, attrs):
        node = Node(tag, dict(attrs))
        self._open[-1].children.append(node)
        if tag not in _VOID:
            self._open.append(node)

    def handle_startendtag(self, tag, attrs):
        self._open[-1].children.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag):
        while self._open.pop().tag != tag:
            pass

    def handle_data(self, data):
        self._open[-1].children.append(data)


def parse(page):
    """The page as a tree."""
    tree = _Tree()
    tree.feed(page)
    return tree.root


def section(root, name):
    """The header, or the section with this id."""
    return next(
        node for node in root.find("header", "section", "footer") if name in (node.tag, node.attrs.get("id"))
    )


def blocks(node):
    """Text of every block that holds no other."""
    return [block.text() for block in node.find(*BLOCKS) if not any(True for _ in block.find(*BLOCKS))]


def rows(table):
    """Text of every cell, row by row."""
    return [[cell.text() for cell in row.find("td", "th")] for row in table.find("tr")]


def table(node, heading):
    """The rows below the head of the table whose head begins so."""
    found = [rows(each) for each in node.find("table")]
    return next(each[1:] for each in found if each[0][: len(heading)] == list(heading))


def says(text, pattern, *numbers):
    """Whether a text reads like the pattern, with these numbers in place of #, as exact as they are written."""
    shape = _NUMBER.join(re.escape(part) for part in pattern.split("#"))
    found = re.fullmatch(shape, text)
    assert found, (text, pattern)
    assert len(found.groups()) == len(numbers), (text, numbers)
    for written, number in zip(found.groups(), numbers, strict=True):
        decimals = len(written.partition(".")[2])
        assert abs(float(written.replace(",", "")) - number) <= 0.5000001 * 10**-decimals, (text, numbers)
    return True


class Read:
    """A plot, read as a person does: by the ticks of its axes."""

    def __init__(self, svg):
        self.svg = svg
        ticks = [(text.attrs, text.text()) for text in svg.find("text")]
        self.y = [(float(a["y"]) - 4, self._value(said)) for a, said in ticks if a["text-anchor"] == "end"]
        self.x = [
            (float(a["x"]), self._value(said))
            for a, said in ticks
            if a["text-anchor"] == "middle" and self._value(said) is not None
        ]

    @staticmethod
    def _value(said):
        if not re.fullmatch(r"[\d.]+%?", said):
            return None
        return float(said.strip("%")) / (100 if said.endswith("%") else 1)

    @staticmethod
    def at(pixel, ticks):
        (first, low), (last, high) = ticks[0], ticks[-1]
        return low + (high - low) * (pixel - first) / (last - first)

    def ticks_are_even(self):
        for ticks in (self.x, self.y):
            for pixel, value in ticks:
                assert self.at(pixel, ticks) == pytest.approx(value, abs=0.006)

    def points(self, tone="first"):
        (line,) = [line for line in self.svg.find("polyline") if line.attrs["class"] == tone]
        pairs = [pair.split(",") for pair in line.attrs["points"].split()]
        circles = [(c.attrs["cx"], c.attrs["cy"]) for c in self.svg.find("circle") if c.attrs["class"] == tone]
        assert circles == [tuple(pair) for pair in pairs]
        return np.array([(self.at(float(x), self.x), self.at(float(y), self.y)) for x, y in pairs])

    def whiskers(self):
        lines = [line.attrs for line in self.svg.find("line") if line.attrs["class"].startswith("whisker")]
        return np.array([[self.at(float(line[end]), self.y) for end in ("y1", "y2")] for line in lines])
