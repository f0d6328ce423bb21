"""A wall-clock budget: what is left of it, and a search that goes on while it lasts."""

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tellapart.errors import RecipeError, TellapartError
from tellapart.records import Progress

Clock = Callable[[], float]
"""Seconds since any moment, never going back."""

MAX_BUDGET_SECONDS = 7 * 86_400

_CAUTION = 1.15
"""What an estimate is multiplied by: a step that ends early costs nothing, one that ends late is thrown away."""

_GRACE_SECONDS, _GRACE_SHARE = 5.0, 0.025
"""Half of what a budget may be missed by, in seconds and of it."""


def parse_budget(text: str) -> float:
    """Seconds of a time as people write it: ``90``, ``30s``, ``10m``, ``1h30m``.

    Raises:
        RecipeError: bad-setting.
    """
    found = re.fullmatch(r"(?:([0-9]{1,4})h)?(?:([0-9]{1,5})m)?(?:([0-9]{1,6})s?)?", text.strip().casefold())
    if not found or not any(found.groups()):
        hint = "such as 30s, 10m or 1h30m"
        raise RecipeError("bad-setting", f"a budget is a time, got {text!r}", hint=hint)
    hours, minutes, seconds = (int(number or 0) for number in found.groups())
    return float(3600 * hours + 60 * minutes + seconds)


class OutOfTime(Exception):  # noqa: N818  not an error: how a step that takes longer than was thought ends
    """The rest of the run must begin now."""


class Budget:
    """A stretch of time, some of which belongs to what must come at the end.

    Args:
        seconds: all of it.
        clock: what is asked for the time.
        began: when it began, by the clock; now when None.

    Attributes:
        grace_seconds: how much later the step under way may end than it should, as it has something to show.
        finish_seconds: what the rest of the run takes after the search, as estimated for the best model so far.
        slowness: how many times longer than estimated the slowest recent work took, at least 1: another program may be busy.
    """

    def __init__(self, seconds: float, clock: Clock = time.monotonic, began: float | None = None) -> None:
        self.seconds = seconds
        self.grace_seconds = 0.0
        self.finish_seconds = 0.0
        self.slowness = 1.0
        self._clock = clock
        self._begun = clock() if began is None else began

    def spent(self) -> float:
        """Seconds since the budget began."""
        return self._clock() - self._begun

    def left(self) -> float:
        """Seconds that may be searched on; below 0 when the rest of the run is late."""
        return self.seconds - self.spent() - self.expected(self.finish_seconds)

    def expected(self, seconds: float) -> float:
        """What an estimate comes to on this machine, at this moment."""
        return _CAUTION * self.slowness * seconds

    def fits(self, seconds: float) -> bool:
        """Whether an estimate is sure enough to end in time."""
        return self.expected(seconds) <= self.left()

    def learn(self, estimated: float, took: float) -> None:
        """Compare an estimate with what came of it; half of a surprise is believed at once, in both directions."""
        if estimated > 0:
            self.slowness = max(1.0, (self.slowness + took / estimated) / 2)

    def wind_up(self) -> None:
        """Let the step under way come to its end, a little late if need be, rather than lose what it has."""
        self.grace_seconds = max(_GRACE_SECONDS, _GRACE_SHARE * self.seconds)

    def ended(self) -> bool:
        """Whether the rest of the run must begin now."""
        return self.left() <= -self.grace_seconds

    def limited(self, progress: Progress, name: str) -> Progress:
        """``progress`` under another name, that raises ``OutOfTime`` when the rest of the run must begin."""

        def limited(_stage: str, done: int, total: int | None) -> None:
            progress(name, done, total)
            if self.ended():
                raise OutOfTime

        return limited


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a step found.

    Attributes:
        before: log loss of the best so far, in nats, on images that neither of the two learned from.
        after: that of what was tried, on the same images.
        n: how many those were.
        kept: whether it is the best now.
        interrupted: whether it was asked to stop before its end.
    """

    before: float
    after: float
    n: int
    kept: bool
    interrupted: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Something to try.

    Attributes:
        name: what it is, for people.
        seconds: how long it takes, as estimated.
        then_seconds: what must still fit after it: making a model of its result, and the longer rest of the run with that.
        run: try it, and keep it if it is better; called with what to tell of its progress.
        ends_in_time: whether it ends by itself when time is short, with something to show; it then needs no reserve to begin.
    """

    name: str
    seconds: float
    then_seconds: float
    run: Callable[[Progress], Outcome] = field(repr=False)
    ends_in_time: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """A step that was begun; ``outcome`` is None where it did not come to its end, and ``note`` says why."""

    name: str
    seconds: float
    outcome: Outcome | None
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """A step that there was no time for: ``seconds`` would have been needed where ``left_seconds`` were left."""

    name: str
    seconds: float
    left_seconds: float


@dataclass(kw_only=True, slots=True)
class Search:
    """How a search went."""

    tried: list[Tried] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    interrupted: bool = False


def spend(budget: Budget, steps: Iterable[Step], progress: Progress) -> Search:
    """Try one step after the other while there is time; what does not fit is left out, and a smaller one may follow.

    Ctrl-C ends the search, not the run: what is the best by then is kept.

    Args:
        budget: of which the steps' time is taken.
        steps: asked for the next one only when the last has ended, so that it can depend on what was found.
        progress: called under the step's name.
    """
    search, remaining = Search(), iter(steps)
    while not search.interrupted:
        try:
            step = next(remaining, None)
        except KeyboardInterrupt:  # while it was settled what comes next
            search.interrupted = True
            break
        if step is None:
            break
        estimate = step.seconds + step.then_seconds
        needed = estimate if step.ends_in_time else budget.expected(estimate)
        if needed > budget.left():
            search.left_out.append(LeftOut(name=step.name, seconds=needed, left_seconds=max(0.0, budget.left())))
            continue
        begun, budget.grace_seconds = budget.spent(), 0.0
        outcome, note = None, ""
        try:
            outcome = step.run(budget.limited(progress, step.name))
            search.interrupted = outcome.interrupted
        except OutOfTime:
            note = "it took longer than estimated, and the time was up"
        except (TellapartError, MemoryError, RuntimeError) as error:
            # What is tried may fail, as by a loss that is not finite or by PyTorch's allocator; the model there is stays.
            note = f"it failed: {str(error) or 'out of memory'}"
        except KeyboardInterrupt:
            note, search.interrupted = "stopped by Ctrl-C", True
        took = budget.spent() - begun
        if outcome is not None and not search.interrupted:
            budget.learn(step.seconds, took)
        search.tried.append(Tried(name=step.name, seconds=took, outcome=outcome, note=note))
    return search
