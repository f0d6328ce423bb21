"""From numbers to sentences that somebody understands who knows the images, not the statistics. No HTML here."""

from collections.abc import Mapping
from typing import Any

from tellapart.records import ModelCard

Numbers = Mapping[str, Any]
"""A part of ``report.json``."""

CERTAIN = 0.9
"""A wrong answer with this probability or more is worth a look at the label."""

_WIDE = 0.1  # an interval wider than this says little
_FEW = 10  # test images of a class below which what is said of it may be chance
_BEHIND = 0.05  # a class this far below all is worth more images
_MANY_UNFAMILIAR = 0.15
_UNEVEN = 5  # largest class against the smallest
_OFF = 0.05  # expected calibration error
_LONG = 60
_NOTHING = "–"  # noqa: RUF001  a dash for what was not measured


def answer(test: Numbers) -> str:
    """How good, on what and how sure: the first sentence of the report."""
    if not test["n"]:
        return "Nothing was measured: there are no test images."
    if "accuracy" in test:
        return f"Of {_of(test['accuracy'], test['n'], 'to be right')}"
    if "map" in test and _known(test["map"]):
        said = (
            "For each label, the images that have it are ranked before the others with a mean"
            f" average precision of {percent(test['map'])}."
        )
        if _known(test.get("exact_match", {})):
            said += f" Of {_of(test['exact_match'], test['n'], 'to get exactly the right labels')}"
        return said
    name = next((name for name in test["headline"] if _known(test.get(name, {}))), None)
    return f"{words(name).capitalize()}: {percent(test[name])}." if name else "Nothing could be measured."


def grade(test: Numbers) -> str:
    """The same in one word, judged by the lower end of the interval, or why there is none."""
    interval = test.get("accuracy") or test.get("map") or {}
    if not _known(interval):
        return "not measured"
    low, high = interval["low"], interval["high"]
    if high - low > 2 * _WIDE:
        return "too few test images to say"
    guess = _most_frequent(test)
    if guess and low <= guess[1]:
        return "no better than a guess"
    steps = ((0.98, "excellent"), (0.95, "very good"), (0.9, "good"), (0.75, "usable with care"))
    return next((word for least, word in steps if low >= least), "poor")


def basis(report: Numbers) -> list[str]:
    """What the answer rests on. That the images are new to the model is said only where copies were looked for."""
    test, leaks = report["test"], report.get("leaks") or {}
    n = test["n"]
    if not n:
        return []
    measured = f"Measured on {counted(n, 'test image')}"
    if not leaks:
        measured += (
            ", with the model file itself. Whether the model learned from some of them was not looked for here:"
            " images that are new to it are the only fair test."
        )
    elif leaks["n"]:
        measured += f", {leaks['n']:,} of them not new to the model, with the model file itself."
    else:
        measured += " that neither trained nor chose the model, with the model file itself."
    said = [
        f"{measured} The numbers in brackets are 95% confidence intervals: with other test images of the same"
        " kind, expect a value in there."
    ]
    guess = _most_frequent(test)
    if guess:
        said.append(f"Always answering {name_of(guess[0])} would be right on {guess[1]:.0%} of these images.")
    return said


def when_unsure(report: Numbers) -> str:
    """What the model does when it does not know."""
    verdicts = report["test"].get("verdicts", {})
    sure, unfamiliar = verdicts.get("sure"), verdicts.get("unfamiliar", {})
    if not sure or not _known(sure["share"]):
        return (
            "When it does not know, it says so: the verdict is unsure, and the classes that it cannot rule out are listed."
            " Have a person look at those images."
        )
    said = f"It is sure of {per(sure['share'])} images"
    if _known(sure["accuracy"]):
        said += f", and {per(sure['accuracy'])} of those answers are right ({span(sure['accuracy'])})"
    said += ". For the others it says unsure and lists what they may be"
    if unfamiliar.get("n"):
        said += ", or unfamiliar when they are unlike anything it has learned from"
    return f"{said}: have a person look at those."


def warnings(report: Numbers) -> list[str]:
    """What makes the numbers less than they seem."""
    test, found = report["test"], []
    if report.get("fit", {}).get("interrupted"):
        found.append("Training was stopped before its end.")
    leaks = report.get("leaks", {})
    if leaks.get("n"):
        found.append(_leaks(leaks, test))
    return found + [sentence(text) for text in test.get("warnings", ())]


def advice(report: Numbers, contradicted: int = 0) -> list[str]:
    """What would help most, from the numbers, the most useful first.

    Args:
        report: as in ``report.json``.
        contradicted: number of test images whose label the model contradicts with ``CERTAIN`` or more.
    """
    test = report["test"]
    found = [
        _labels_to_check(contradicted),
        _weakest_class(report),
        _too_few(test),
        _unfamiliar(test),
        _uneven(report),
        _off(test),
    ]
    verdict = report.get("fit", {}).get("verdict", "")
    if verdict.startswith(("Overfitting", "Still learning", "Learning by heart", "Underfitting")):
        found.append(verdict)
    return [said for said in found if said] or [
        "Nothing stands out: no class lags behind, and there are enough test images. New photos, from the place where the"
        " model will be used, are the best test of it."
    ]


def limits(card: ModelCard) -> list[str]:
    """What the model is not for."""
    several = card.task == "multilabel"
    return [
        "The numbers hold for images like the test images: the same kind of subject, camera, light and framing. For anything"
        " else, measure again.",
        f"The model knows {len(card.class_names):,} classes and no other. "
        + (
            "An image may get several labels, or none."
            if several
            else "It answers with one of them even where the right answer is none; the verdict is what warns you."
        ),
        "Have a person check every answer that is not sure, and all answers on which somebody's health, safety or rights"
        " depend.",
        "A model repeats what is in its labels, mistakes and habits included.",
    ]


def tried(search: Numbers) -> list[tuple[str, str, str, str]]:
    """What a search tried: what it was, how long it took, what it gained, and what became of it."""
    rows = []
    for step in search.get("tried", ()):
        outcome = step["outcome"]
        if outcome is None:
            gained, became = _NOTHING, step["note"]
        else:
            gained = f"{outcome['before']:.3f} to {outcome['after']:.3f} on {counted(outcome['n'], 'image')}"
            became = "kept" if outcome["kept"] else "not better"
        rows.append((step["name"], duration(step["seconds"]), gained, became))
    return rows


def more_time(search: Numbers) -> str:
    """What a larger budget would likely buy."""
    left_out, untrained = search.get("left_out", ()), search.get("untrained", "")
    if search.get("interrupted"):
        return "The search was stopped before its end; more may be found."
    said = f"Training the network itself was not tried: {untrained}." if untrained else ""
    if left_out:
        least = min(left_out, key=lambda left: left["seconds"] - left["left_seconds"])
        others = len(left_out) - 1
        also = f", and {others:,} other thing{'s' if others > 1 else ''} with more" if others else ""
        more = duration(least["seconds"] - least["left_seconds"])
        said = f"With about {more} more it could also try: {least['name']}{also}. {said}"
    return said.strip() or "Everything there is to try was tried: more images would help, more time would not."


def duration(seconds: float) -> str:
    """A time to two digits, such as ``4.2 s``, ``45 s`` or ``3 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def confusions(test: Numbers, limit: int = 15) -> list[tuple[str, str, int, int]]:
    """The most frequent mistakes: true class, answer, how often, of how many."""
    names = test["class_names"]
    rows = test.get("confusion_matrix", ())
    found = [
        (names[i], names[j], count, sum(row))
        for i, row in enumerate(rows)
        for j, count in enumerate(row)
        if count and i != j
    ]
    return sorted(found, key=lambda mistake: (-mistake[2], mistake[0], mistake[1]))[:limit]


def percent(interval: Numbers) -> str:
    """An interval between 0 and 1, such as ``98.9% (98.0% to 99.4%)``; a dash where nothing was measured."""
    if not _known(interval):
        return _NOTHING
    return f"{interval['value']:.1%} ({span(interval)})"


def amount(measured: Numbers | float | None) -> str:
    """A loss or a score with its interval, if it has one."""
    if measured is None:
        return _NOTHING
    if isinstance(measured, Mapping):
        if not _known(measured):
            return _NOTHING
        return f"{measured['value']:.3f} ({measured['low']:.3f} to {measured['high']:.3f})"
    return f"{measured:.3f}"


def span(interval: Numbers) -> str:
    """The ends of an interval."""
    return f"{interval['low']:.1%} to {interval['high']:.1%}"


def per(interval: Numbers) -> str:
    """A share as a count, such as ``94 of 100``; of 1,000 where 100 would say all or none and it is neither."""
    value = interval["value"]
    whole = next((whole for whole in (100, 1000) if 0 < round(whole * value) < whole), 100)
    return f"{round(whole * value):,} of {whole:,}"


def counted(n: int, noun: str) -> str:
    """A number of things, such as ``1 test image`` or ``1,000 test images``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def name_of(name: str) -> str:
    """A class or file name within a sentence; a long one keeps both ends."""
    return f"“{name if len(name) <= _LONG else f'{name[: _LONG // 2]} … {name[-_LONG // 3 :]}'}”"


def sentence(text: str) -> str:
    """A note as a sentence of its own."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def words(key: str) -> str:
    """The name of a metric as one reads it."""
    known = {"map": "mean average precision", "auroc": "AUROC", "auprc": "AUPRC", "ece": "expected calibration error",
             "brier": "Brier score", "macro_f1": "macro F1", "micro_f1": "micro F1", "f1": "F1", "aurc": "AURC"}  # fmt: skip
    return known.get(key, key.replace("_", " "))


def _of(interval: Numbers, n: int, what: str) -> str:
    scale = 1000 if n >= 1000 and interval["low"] >= 0.99 else 100
    value, low, high = (round(scale * interval[key]) for key in ("value", "low", "high"))
    return f"{scale:,} new photos like these, expect about {value:,} {what} ({low:,} to {high:,})."


def _known(interval: Numbers | float | None) -> bool:
    return isinstance(interval, Mapping) and interval.get("value") is not None


def _most_frequent(test: Numbers) -> tuple[str, float] | None:
    """The class that most test images are of, and their share."""
    if "accuracy" not in test or not test["n"]:
        return None
    name, row = max(test["per_class"].items(), key=lambda entry: entry[1]["n"])
    return name, row["n"] / test["n"]


def _leaks(leaks: Numbers, test: Numbers) -> str:
    said = (
        f"{counted(leaks['n'], 'test image')} also stand{'s' if leaks['n'] == 1 else ''} among the"
        " images it learned from, so the score is too high."
    )
    without = leaks.get("test_without") or {}
    for name in test["headline"][:1]:
        if _known(without.get(name, {})) and _known(test.get(name, {})):
            said += f" {words(name).capitalize()} with them: {percent(test[name])}; without them: {percent(without[name])}."
    return said


def _labels_to_check(contradicted: int) -> str:
    if not contradicted:
        return ""
    one = contradicted == 1
    return (
        f"Look at the labels of {counted(contradicted, 'test image')} first: the model contradicts"
        f" {'its label' if one else 'their labels'}"
        f" with {CERTAIN:.0%} certainty or more. {'It comes' if one else 'They come'} first under “Most"
        " wrong”. A wrong label there makes the"
        " score too low, and tellapart check finds those among the training images, too."
    )


def _weakest_class(report: Numbers) -> str:
    test = report["test"]
    measured = {
        name: row["recall"]
        for name, row in test["per_class"].items()
        if row["n"] >= _FEW and _known(row["recall"])
    }
    if len(measured) < 2:
        return ""
    mean = sum(row["value"] for row in measured.values()) / len(measured)
    name, recall = min(measured.items(), key=lambda entry: entry[1]["value"])
    if recall["value"] > mean - _BEHIND:
        return ""
    said = (
        f"More images of {name_of(name)}: {per(recall)} are recognised ({span(recall)}), fewer than of the others."
    )
    taken = [mistake for mistake in confusions(test, 10_000) if mistake[0] == name]
    if taken:
        said += (
            f" It is mostly taken for {name_of(taken[0][1])} ({taken[0][2]} of {taken[0][3]}):"
            " add images that show the difference."
        )
    learned = report.get("dataset", {}).get("splits", {}).get("train", {}).get(name)
    return said + (f" It has {counted(learned, 'training image')}." if learned is not None else "")


def _too_few(test: Numbers) -> str:
    main = test.get("accuracy") or test.get("map") or {}
    if not _known(main) or main["high"] - main["low"] <= _WIDE:
        return ""
    return (
        f"More test images: with {test['n']:,}, the score is known to within"
        f" {(main['high'] - main['low']) * 100:.0f} points only."
        " Four times as many would halve that."
    )


def _unfamiliar(test: Numbers) -> str:
    found = test.get("verdicts", {}).get("unfamiliar")
    if not found or not _known(found["share"]) or found["share"]["value"] < _MANY_UNFAMILIAR:
        return ""
    return (
        f"Training images more like those it will meet: {per(found['share'])} test images were unlike any it learned from"
        f" ({span(found['share'])})."
    )


def _uneven(report: Numbers) -> str:
    counts = report.get("dataset", {}).get("splits", {}).get("train") or report.get("dataset", {}).get(
        "classes", {}
    )
    counts = {name: n for name, n in counts.items() if n}
    if len(counts) < 2:
        return ""
    small, large = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
    if counts[large] < _UNEVEN * counts[small]:
        return ""
    return (
        f"A better balance: {counted(counts[large], 'image')} of {name_of(large)}, {counts[small]:,} of {name_of(small)}."
        f" What is rare is learned and measured poorly; add images of {name_of(small)}."
    )


def _off(test: Numbers) -> str:
    ece = test.get("ece")
    if not _known(ece) or ece is None or ece["low"] < _OFF:
        return ""
    return (
        f"Take the probabilities with care: they are off by {ece['value']:.1%} on average ({span(ece)})."
        " More images to calibrate on would help."
    )
