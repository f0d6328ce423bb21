"""A budget under a clock that only the steps move: what is tried, what is left out, and that the end is never late."""

from dataclasses import replace

import pytest

from tellapart.errors import TrainingError
from tellapart.records import no_progress
from tellapart.training.budget import Budget, Outcome, Step, spend


class FakeClock:
    """Time that passes when somebody works."""

    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now


def step(
    clock,
    name,
    estimated,
    takes=None,
    *,
    then=0.0,
    kept=False,
    progress_every=1.0,
    raises=None,
    finish=None,
    budget=None,
):
    """Work for so many seconds, telling of it every second."""

    def run(progress):
        left = estimated if takes is None else takes
        while left > 0:
            clock.now += min(progress_every, left)
            left -= progress_every
            progress("features", 1, 2)
        if raises:
            raise raises
        if finish is not None:
            budget.finish_seconds = finish
        return Outcome(before=1.0, after=0.5 if kept else 1.5, n=10, kept=kept)

    return Step(name=name, seconds=estimated, then_seconds=then, run=run)


def names(entries):
    return [entry.name for entry in entries]


@pytest.mark.parametrize(
    ("seconds", "finish", "plan", "tried", "left_out"),
    [
        (100, 10, [("a", 20, 0), ("b", 30, 0)], ["a", "b"], []),
        (100, 10, [("a", 95, 0)], [], ["a"]),  # it fits, but the end would be late
        (100, 10, [("a", 20, 75)], [], ["a"]),  # what must follow does not fit
        (100, 10, [("a", 20, 50)], ["a"], []),
        (100, 10, [("a", 90, 0), ("b", 5, 0)], ["b"], ["a"]),  # a smaller one may follow
        (100, 10, [("a", 40, 0), ("b", 45, 0), ("c", 2, 0)], ["a", "c"], ["b"]),
        (10, 10, [("a", 1, 0)], [], ["a"]),
        (5, 10, [("a", 1, 0)], [], ["a"]),
        (100, 10, [], [], []),
    ],
)
def test_what_fits_is_tried(seconds, finish, plan, tried, left_out):
    clock = FakeClock()
    budget = Budget(seconds, clock)
    budget.finish_seconds = finish
    search = spend(budget, [step(clock, name, s, then=then) for name, s, then in plan], no_progress)
    assert names(search.tried) == tried
    assert names(search.left_out) == left_out
    assert budget.left() >= 0 or not tried
    assert not search.interrupted
    assert [t.seconds for t in search.tried] == pytest.approx([{n: s for n, s, _ in plan}[n] for n in tried])


@pytest.mark.parametrize("takes", [30, 100, 1000])
def test_a_step_that_takes_too_long_is_stopped_in_time(takes):
    clock = FakeClock()
    budget = Budget(60, clock)
    budget.finish_seconds = 20
    search = spend(budget, [step(clock, "slow", 10, takes)], no_progress)
    (tried,) = search.tried
    stopped = takes > 37
    assert (tried.outcome is None) == stopped
    assert bool(tried.note) == stopped
    assert 60 - budget.spent() >= 20  # the rest of the run still fits


@pytest.mark.parametrize(
    ("winds_up", "seconds", "takes", "ends"),
    [
        (False, 60, 41, False),
        (True, 60, 41, True),
        (True, 60, 44, True),
        (True, 60, 46, False),  # not by more than half of what a budget may be missed by
        (True, 1000, 1004, True),
        (True, 1000, 1006, False),
    ],
)
def test_what_has_something_to_show_may_end_a_little_late(winds_up, seconds, takes, ends):
    clock = FakeClock()
    budget = Budget(seconds, clock)
    budget.finish_seconds = 20 / 1.15  # with caution, 20

    def run(progress):
        if winds_up:
            budget.wind_up()
        for _ in range(takes):
            clock.now += 1
            progress("features", 1, 2)
        return Outcome(before=1.0, after=0.5, n=10, kept=True)

    late = Step(name="loop", seconds=1, then_seconds=0, run=run)
    search = spend(budget, [late, step(clock, "next", 1)], no_progress)
    assert (search.tried[0].outcome is not None) == ends
    assert names(search.tried) == ["loop"]  # what follows has no such grace


def test_a_machine_that_turns_out_slow_is_planned_for():
    clock = FakeClock()
    budget = Budget(100, clock)
    budget.finish_seconds = 10
    search = spend(budget, [step(clock, "first", 10, 30), step(clock, "second", 25)], no_progress)
    assert names(search.tried) == ["first"]  # at twice the estimate the second no longer fits
    assert names(search.left_out) == ["second"]
    assert budget.slowness == pytest.approx(2.0)
    assert search.left_out[0].seconds > 25
    assert search.left_out[0].left_seconds < 70


def test_a_failure_says_nothing_of_the_machine():
    clock = FakeClock()
    budget = Budget(100, clock)
    budget.learn(10, 50)
    slow = budget.slowness
    broken = step(clock, "broken", 5, takes=0, raises=TrainingError("loss-not-finite", "it broke"))
    spend(budget, [broken], no_progress)
    assert budget.slowness == slow


def test_a_surprise_is_forgotten_when_the_machine_is_quick_again():
    budget = Budget(100, FakeClock())
    budget.learn(10, 50)
    slow = budget.slowness
    for _ in range(6):
        budget.learn(10, 10)
    assert slow == 3.0
    assert budget.slowness < 1.05
    budget.learn(0, 5)
    budget.learn(10, 0.1)
    assert budget.slowness == 1.0


@pytest.mark.parametrize(
    ("estimate", "ends_in_time", "begun"), [(90, False, False), (90, True, True), (101, True, False)]
)
def test_what_ends_in_time_needs_no_reserve(estimate, ends_in_time, begun):
    clock = FakeClock()
    loop = replace(step(clock, "loop", estimate, takes=50), ends_in_time=ends_in_time)
    search = spend(Budget(100, clock), [loop], no_progress)
    assert names(search.tried) == (["loop"] if begun else [])


def test_a_longer_rest_of_the_run_counts_from_then_on():
    clock = FakeClock()
    budget = Budget(100, clock)
    budget.finish_seconds = 10
    large = step(clock, "large", 10, then=30, kept=True, finish=40, budget=budget)
    search = spend(budget, [large, step(clock, "more", 40)], no_progress)
    assert names(search.tried) == ["large"]
    assert names(search.left_out) == ["more"]


@pytest.mark.parametrize("kept", [False, True])
def test_ctrl_c_ends_the_search_and_keeps_what_was_found(kept):
    clock = FakeClock()
    budget = Budget(100, clock)
    plan = [step(clock, "a", 5, kept=kept), step(clock, "b", 5, raises=KeyboardInterrupt), step(clock, "c", 5)]
    search = spend(budget, plan, no_progress)
    assert search.interrupted
    assert names(search.tried) == ["a", "b"]
    assert search.tried[0].outcome.kept == kept
    assert search.tried[1].outcome is None
    assert "Ctrl-C" in search.tried[1].note


def test_ctrl_c_while_the_next_step_is_settled_ends_the_search():
    clock = FakeClock()
    budget = Budget(100, clock)

    def plan():
        yield step(clock, "a", 5)
        raise KeyboardInterrupt

    search = spend(budget, plan(), no_progress)
    assert search.interrupted
    assert [tried.name for tried in search.tried] == ["a"]


def test_a_loop_that_was_interrupted_ends_the_search_with_its_outcome():
    clock = FakeClock()
    outcome = Outcome(before=1.0, after=0.5, n=10, kept=True, interrupted=True)
    plan = [Step(name="loop", seconds=1, then_seconds=0, run=lambda _: outcome), step(clock, "c", 5)]
    search = spend(Budget(100, clock), plan, no_progress)
    assert search.interrupted
    assert names(search.tried) == ["loop"]
    assert search.tried[0].outcome == outcome


def test_the_next_step_is_asked_for_when_the_last_has_ended():
    clock = FakeClock()
    budget = Budget(100, clock)
    seen = []

    def steps():
        yield step(clock, "a", 10, kept=True)
        seen.append(clock.now)
        yield step(clock, "b", 10)
        seen.append(clock.now)

    spend(budget, steps(), no_progress)
    assert seen == [1010, 1020]


def test_progress_is_told_under_the_name_of_the_step():
    clock = FakeClock()
    told = []
    spend(Budget(100, clock), [step(clock, "images of 320 px", 2)], lambda *said: told.append(said))
    assert told == [("images of 320 px", 1, 2)] * 2


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (TrainingError("loss-not-finite", "the loss became nan"), "the loss became nan"),
        (MemoryError(), "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "can't allocate memory"),
    ],
)
def test_what_fails_is_said_and_the_search_goes_on(error, says):
    clock = FakeClock()
    plan = [step(clock, "a", 1, raises=error), step(clock, "b", 1, kept=True)]
    search = spend(Budget(100, clock), plan, no_progress)
    assert names(search.tried) == ["a", "b"]
    assert search.tried[0].outcome is None
    assert says in search.tried[0].note
    assert search.tried[1].outcome.kept


def test_a_mistake_of_ours_is_not_hidden():
    clock = FakeClock()
    with pytest.raises(ValueError, match="broken"):
        spend(Budget(100, clock), [step(clock, "a", 1, raises=ValueError("broken"))], no_progress)
