"""Decision rules: named bands of one class's probability, from a text, fitted on held-out images, measured on test."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tellapart.evaluation.metrics import FloatArray, IntArray, wilson_interval
from tellapart.grammar import Clause, Word, parse_clauses
from tellapart.records import Band, DecisionRule, ModelCard

SETTING = "decision_rules"

GoalKind = Literal["precision", "recall", "above", "cost"]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """What a band's probability is chosen for.

    Attributes:
        kind: ``precision``, ``recall``, ``above``, or ``cost``.
        value: the share or probability wanted, 0-1; of ``cost`` what a miss costs, in false alarms.
        text: as it was typed.
    """

    kind: GoalKind
    value: float
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedBand:
    """A band without its probability; the last of a rule has no goal."""

    name: str
    goal: Goal | None


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedRule:
    """A rule as it was typed, for one of the model's classes."""

    class_name: str
    bands: tuple[WantedBand, ...]


def parse_rules(text: str, class_names: Sequence[str]) -> tuple[WantedRule, ...]:
    """Read rules such as ``dog: high precision 0.95, medium recall 0.99, low``, with ``;`` between them.

    Goals are ``precision P``, ``recall R``, ``above P`` and ``cost M:F``. The last band has none. Names of classes may hold
    spaces, commas, colons and semicolons: the longest known name that a colon follows is meant.

    Args:
        text: empty for no rules.
        class_names: the model's.

    Raises:
        RecipeError: bad-setting, with what is wrong underlined.
    """
    source = " ".join(text.split())
    rules: list[WantedRule] = []
    position = 0
    while position < len(source):
        name, start = _class_at(source, position, class_names)
        if name in (rule.class_name for rule in rules):
            wrong = _at(source, position, len(name))
            raise wrong.error("another class: a rule before has this one", wrong.words[0])
        end = source.find(";", start)
        end = len(source) if end < 0 else end
        rules.append(WantedRule(class_name=name, bands=_bands(source, start, end)))
        position = end + 1
        position += source[position : position + 1] == " "
    return tuple(rules)


def _class_at(source: str, position: int, class_names: Sequence[str]) -> tuple[str, int]:
    """The class a rule begins with, and where what follows its colon begins."""
    for name in sorted(class_names, key=len, reverse=True):
        after = position + len(" ".join(name.split()))
        if source[position:after] == " ".join(name.split()):
            colon = after + (source[after : after + 1] == " ")
            if source[colon : colon + 1] == ":":
                return name, colon + 1
    ends = [end for mark in ":;," if (end := source.find(mark, position)) > position]
    wrong = _at(source, position, min(ends, default=len(source)) - position)
    raise wrong.error(f"a class and a colon; classes are {', '.join(class_names)}", wrong.words[0])


def _at(source: str, start: int, length: int) -> Clause:
    """A stretch of the text as one word, to be underlined."""
    return Clause(SETTING, source, (Word(source[start : start + length], start),))


def _bands(source: str, start: int, end: int) -> tuple[WantedBand, ...]:
    if not source[start:end].strip():
        raise _at(source, end - 1, 1).error("bands, such as: high precision 0.95, low")
    clauses = list(parse_clauses(SETTING, source, start=start, end=end))
    last = clauses[-1]
    bands: list[WantedBand] = []
    for clause in clauses:
        if clause.name in (band.name for band in bands):
            raise clause.error("another name: a band above has this one", clause.words[0])
        if clause is last and clause.arguments:
            raise _at(source, end - 1, 1).error("a comma and a last band without a goal, for the rest")
        goal = None if clause is last else _goal(clause)
        for above in (band.goal for band in bands if band.goal):
            if goal and goal.kind == above.kind and not _goes_down(above, goal):
                direction = "less" if goal.kind in ("precision", "above") else "more"
                raise clause.error(
                    f"{direction} than {above.text}: bands go from the top down", clause.arguments[1]
                )
        bands.append(WantedBand(name=clause.name, goal=goal))
    if len(bands) < 2:
        raise last.error("a goal for this band, and another band for the rest")
    return tuple(bands)


def _goal(clause: Clause) -> Goal:
    expected = f"one of {', '.join(get_args(GoalKind))}"
    if not clause.arguments:
        raise clause.error(expected)
    word = clause.arguments[0]
    for kind in get_args(GoalKind):
        if word.text == kind:
            clause.no_more(2)
            value = _cost(clause) if kind == "cost" else clause.number(1, "a number", low=0.0001, high=1)
            return Goal(kind=kind, value=value, text=f"{kind} {clause.arguments[1].text}")
    raise clause.error(expected, word)


def _cost(clause: Clause) -> float:
    """What a miss costs, in false alarms."""
    expected = "what a miss costs and what a false alarm costs, such as 10:1"
    if len(clause.arguments) < 2:
        raise clause.error(expected)
    word = clause.arguments[1]
    miss, _, false_alarm = word.text.partition(":")
    try:
        costs = float(miss), float(false_alarm)
    except ValueError:
        raise clause.error(expected, word) from None
    if not all(0.0001 <= cost <= 1e9 for cost in costs):
        raise clause.error(f"{expected}; each from 0.0001 to 1e9", word)
    return costs[0] / costs[1]


def _goes_down(above: Goal, goal: Goal) -> bool:
    """Whether the second of two goals of one kind asks for a lower probability."""
    return goal.value < above.value if goal.kind in ("precision", "above") else goal.value > above.value


def fit_rules(
    wanted: Sequence[WantedRule], labels: IntArray, probs: FloatArray, class_names: Sequence[str]
) -> tuple[DecisionRule, ...]:
    """Find the probabilities of all bands.

    ``precision P``: the lowest at which the images at or above it have precision P; ``recall R``: the highest at which a
    new image of the class is among them with probability R, or, where the images are too few to promise that, at which they hold
    all of the class; ``cost M:F``: where misses and false alarms cost least; ``above P``: P. Between two
    images it lies halfway. A goal that these images cannot reach, or that asks for no less than a band above,
    leaves its band empty, and its note says so.

    Args:
        wanted: what ``parse_rules`` gave.
        labels: (N,) class indices, or (N, K) of 0 and 1, of images that neither trained nor chose the model.
        probs: (N, K) calibrated.
        class_names: K names.
    """
    return tuple(_fit_rule(rule, *_of_class(rule.class_name, labels, probs, class_names)) for rule in wanted)


def _of_class(
    class_name: str, labels: IntArray, probs: FloatArray, class_names: Sequence[str]
) -> tuple[BoolArray, NDArray[np.float64]]:
    """(N,) whether each image is of the class, or has the label; and (N,) its probability."""
    k = list(class_names).index(class_name)
    return (labels == k if labels.ndim == 1 else labels[:, k] == 1), probs[:, k].astype(np.float64)


def _fit_rule(rule: WantedRule, positive: BoolArray, probs: NDArray[np.float64]) -> DecisionRule:
    bands: list[Band] = []
    limit, above = np.inf, ""
    for wanted in rule.bands:
        if wanted.goal is None:
            bands.append(Band(name=wanted.name, min_prob=0.0))
            break
        min_prob = _min_prob(wanted.goal, positive, probs)
        if min_prob is None:
            note = f"{len(positive)} held-out images, {int(positive.sum())} of the class, cannot reach it"
            if wanted.goal.kind == "cost" and len(positive):
                note = f"on {len(positive)} held-out images, no alarm at all costs least"
        elif min_prob >= limit:
            note = f"it asks for {min_prob:.4f} or more, and {above} begins at {limit:.4f}"
            min_prob = None
        else:
            note, limit, above = "", min_prob, wanted.name
        bands.append(Band(name=wanted.name, min_prob=min_prob, goal=wanted.goal.text, note=note))
    return DecisionRule(class_name=rule.class_name, bands=tuple(bands))


def _min_prob(goal: Goal, positive: BoolArray, probs: NDArray[np.float64]) -> float | None:
    """The probability a goal asks for; None where the images cannot reach it."""
    if goal.kind == "above":
        return goal.value
    if not len(probs):
        return None
    order = np.argsort(-probs, kind="stable")
    ranked, hits = probs[order], np.cumsum(positive[order])
    taken, total = np.arange(1, len(ranked) + 1), hits[-1]
    ends = np.append(ranked[1:] != ranked[:-1], True)  # equal probabilities are in one band
    if goal.kind == "cost":
        costs = np.where(ends, goal.value * (total - hits) + (taken - hits), np.inf)
        cut = int(np.argmin(costs))
        return _below(ranked, cut) if costs[cut] < goal.value * total else None
    if goal.kind == "precision":
        good = np.flatnonzero(ends & (hits / taken >= goal.value))
        return _below(ranked, int(good[-1])) if len(good) else None
    if not total:
        return None
    # One image more than the share asks for, so that it holds for the next image, too: a conformal rank.
    caught = min(int(total), math.ceil(round(goal.value * (int(total) + 1), 9)))
    return _below(ranked, int(np.flatnonzero(ends & (hits >= caught))[0]))


def _below(ranked: NDArray[np.float64], cut: int) -> float:
    """Halfway from the last image that is taken to the next."""
    following = float(ranked[cut + 1]) if cut + 1 < len(ranked) else 0.0
    middle = (float(ranked[cut]) + following) / 2
    return middle if middle > following else float(ranked[cut])


def band_of(rule: DecisionRule, probs: FloatArray) -> NDArray[np.int64]:
    """(N,) place in ``rule.bands`` of images whose probabilities of the rule's class are (N,)."""
    bands = np.full(len(probs), len(rule.bands) - 1)
    for i, band in reversed(list(enumerate(rule.bands))):
        if band.min_prob is not None:
            bands[probs.astype(np.float64) >= band.min_prob] = i
    return bands


def bands_of(card: ModelCard, probs: FloatArray) -> tuple[tuple[str, str], ...]:
    """Class and band of one image, for each rule of a model.

    Args:
        card: the model's.
        probs: (K,) of the image.
    """
    return tuple(
        (rule.class_name, rule.bands[band_of(rule, probs[[card.class_names.index(rule.class_name)]])[0]].name)
        for rule in card.decision_rules
    )


def measure_rules(
    labels: IntArray, probs: FloatArray, rules: Sequence[DecisionRule], class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """What each band holds, as ``bands`` of ``report.json``; shares come with their 95 % intervals.

    Args:
        labels: (N,) class indices, or (N, K) of 0 and 1.
        probs: (N, K).
        rules: of the model.
        class_names: K names.

    Returns:
        For each rule ``class_name`` and ``bands``: ``n`` images, ``rate`` (their share of all), ``precision`` (the share of them
        that are of the class), ``recall`` (the share of the class that is in them); and the last two over this band and those
        above it.
    """
    return [
        {
            "class_name": rule.class_name,
            "bands": list(_measure_bands(rule, *_of_class(rule.class_name, labels, probs, class_names))),
        }
        for rule in rules
    ]


def _measure_bands(
    rule: DecisionRule, positive: BoolArray, probs: NDArray[np.float64]
) -> Iterator[dict[str, Any]]:
    places = band_of(rule, probs)
    total = int(positive.sum())
    for i, band in enumerate(rule.bands):
        n, hits = int((places == i).sum()), int(positive[places == i].sum())
        reached, reached_hits = int((places <= i).sum()), int(positive[places <= i].sum())
        yield {
            **asdict(band),
            "n": n,
            "rate": asdict(wilson_interval(n, len(positive))),
            "precision": asdict(wilson_interval(hits, n)),
            "recall": asdict(wilson_interval(hits, total)),
            "precision_at_or_above": asdict(wilson_interval(reached_hits, reached)),
            "recall_at_or_above": asdict(wilson_interval(reached_hits, total)),
        }
