"""The small language of settings such as ``layers`` and ``augment``: clauses of words, between commas."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tellapart.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Word:
    """One word and where it stands."""

    text: str
    start: int


@dataclass(frozen=True, slots=True)
class Clause:
    """What stands between two commas: a word that says what, and what it takes.

    Attributes:
        setting: name of the setting, for messages.
        source: the whole text.
        words: at least one.
    """

    setting: str
    source: str
    words: tuple[Word, ...]

    @property
    def name(self) -> str:
        """The first word."""
        return self.words[0].text

    @property
    def arguments(self) -> tuple[Word, ...]:
        """The other words."""
        return self.words[1:]

    def error(self, expected: str, word: Word | None = None) -> RecipeError:
        """The error to raise: what was expected, with the wrong word underlined.

        Args:
            expected: what should stand there.
            word: the wrong word; None when the clause ends too early.
        """
        last = self.words[-1]
        start, length = (last.start + len(last.text), 1) if word is None else (word.start, len(word.text))
        found = "nothing" if word is None else repr(word.text)
        message = (
            f"{self.setting}: expected {expected}, got {found}\n  {self.source}\n  {' ' * start}{'^' * length}"
        )
        return RecipeError("bad-setting", message)

    def number(self, index: int, expected: str, *, low: float, high: float) -> float:
        """Argument ``index`` as a number from ``low`` to ``high``.

        Raises:
            RecipeError: bad-setting, also when there is no such argument.
        """
        if index >= len(self.arguments):
            raise self.error(expected)
        word = self.arguments[index]
        try:
            value = float(word.text)
        except ValueError:
            raise self.error(expected, word) from None
        if not low <= value <= high:
            raise self.error(f"{expected} from {low:g} to {high:g}", word)
        return value

    def no_more(self, after: int) -> None:
        """Raise unless there are at most ``after`` arguments."""
        if len(self.arguments) > after:
            raise self.error("a comma", self.arguments[after])


def parse_clauses(setting: str, text: str, *, start: int = 0, end: int | None = None) -> Iterator[Clause]:
    """Cut a setting's text into clauses; an empty text has none.

    Args:
        setting: its name, for messages.
        text: all of it.
        start: where in the text, its runs of white space made one space each, the clauses begin.
        end: where they end; None for the end of the text.

    Raises:
        RecipeError: bad-setting, when nothing stands between two commas.
    """
    source = " ".join(text.split())  # a text of several lines is shown as one
    for part in source[start:end].split(",") if source else []:
        words = tuple(Word(match.group(), start + match.start()) for match in re.finditer(r"\S+", part))
        if not words:
            message = f"{setting}: nothing stands between two commas\n  {source}\n  {' ' * start}^"
            raise RecipeError("bad-setting", message)
        yield Clause(setting, source, words)
        start += len(part) + 1
