"""What a replay takes from a trace, and what it does on a stage."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from vfiotool.errors import VfioToolError
from vfiotool.stress.action import Action, Expectation, Outcome, Record
from vfiotool.stress.replay import Finding, Seen, actions_of, failing_prefix, find, replay, shrunk
from vfiotool.stress.trace import Line, Trace

UNBIND = Action("unbind", {"member": 0})


def line(name: str, cycle: int, unit: int = 0, *, bad: bool = False, released: str = "") -> Line:
    action = UNBIND if name == "unbind" else Action(name)
    return Line(unit, "group", cycle, action, "0", "EIO" if bad else "0", bad, released, 0.0, 1.0)


def trace(*lines: Line) -> Trace:
    return Trace({}, list(lines), False)


def names(actions: list[Action]) -> list[str]:
    return [one.name for one in actions]


MIXED = trace(
    line("open group", 0),
    line("open group", 0, unit=1),
    line("close group", 0),
    line("open group", 1),
    line("close group", 1, released=str(UNBIND)),
    line("unbind", 1),
    line("bind", 1, bad=True),
    line("open group", 1),
    line("GET_STATUS", 0, unit=1),
)


def test_each_units_actions_without_what_released_others() -> None:
    chosen = actions_of(MIXED)
    assert names(chosen[0]) == ["open group", "close group", "open group", "unbind", "bind", "open group"]
    assert names(chosen[1]) == ["open group", "GET_STATUS"]


def test_the_cycle_that_fails_up_to_there() -> None:
    assert names(failing_prefix(MIXED, 0)) == ["open group", "unbind", "bind"]
    assert failing_prefix(MIXED, 1) == []


def test_where_a_release_fails_what_waited_for_it_is_done() -> None:
    failed = line("close group", 1, bad=True, released=str(UNBIND))
    cycle = [line("open group", 1), failed, line("close device", 1, released=str(UNBIND)), line("unbind", 1)]
    assert names(failing_prefix(trace(line("bind", 0), *cycle, line("bind", 1)), 0)) == [
        "open group",
        "unbind",
    ]


def test_another_workloads_cycle_of_the_same_number_is_another() -> None:
    other = replace(line("open group", 1), workload="bind")
    assert names(failing_prefix(trace(other, line("bind", 1, bad=True)), 0)) == ["bind"]


class FakeStage:
    """A counter: ``up`` and ``down`` change it, and ``up`` fails from ``limit`` on, with this note."""

    number = 7

    def __init__(self, limit: int = 99, note: str = "", *, stuck: bool = False) -> None:
        self.height = 0
        self.limit = limit
        self.note = note
        self.stuck = stuck
        self.abandoned = 0
        self.tries = 0
        self.unit = type("Unit", (), {"members": ("0000:00:10.0",)})

    def expect(self, action: Action) -> Expectation | None:
        if action.name == "down" and not self.height:
            return None
        int(action.arguments.get("by", 1))
        return Expectation(crash="BUG" if action.name == "crash" else "")

    def perform(self, action: Action, template: Record) -> Iterator[Record]:
        self.tries += 1
        fails = self.stuck if action.name == "down" else action.name == "up" and self.height >= self.limit
        self.height += 0 if fails else {"up": 1, "down": -1}.get(action.name, 0)
        note = f"{self.note} (pid {self.tries})" if self.note and fails else ""
        outcome = Outcome(errno.EIO if fails and not note else 0, note=note)
        yield template._replace(action=action, expected=Expectation(), outcome=outcome)

    def wind_down(self) -> Iterator[Action]:
        while self.height:
            yield Action("down")

    @property
    def is_at_rest(self) -> bool:
        return not self.height

    def abandon(self) -> None:
        self.abandoned += 1


UP, DOWN, CRASH = Action("up"), Action("down"), Action("crash")


def done(stage: Any, *actions: Action, allow_crash: bool = False) -> list[str]:
    return [one.action.name for one in replay(stage, actions, allow_crash=allow_crash)]


def test_it_winds_down_and_leaves_out_what_cannot_be_done() -> None:
    stage = FakeStage()
    assert done(stage, DOWN, UP, CRASH, UP) == ["up", "up", "down", "down"]
    assert stage.abandoned == 0


def test_a_crash_is_done_if_it_is_meant() -> None:
    assert done(FakeStage(), CRASH, allow_crash=True) == ["crash"]


def test_after_something_went_otherwise_all_is_closed_and_brought_to_rest() -> None:
    stage = FakeStage(limit=2)
    assert done(stage, UP, UP, UP, UP) == ["up", "up", "up"]
    assert (stage.abandoned, stage.height) == (1, 0)


def test_who_looks_no_further_leaves_it_at_rest_too() -> None:
    stage: Any = FakeStage()
    records = replay(stage, [UP, UP])
    next(records)
    del records
    assert (stage.abandoned, stage.height) == (1, 0)


def test_a_stage_that_does_not_come_to_rest_is_told_of() -> None:
    with pytest.raises(VfioToolError, match="group 7 does not come to rest") as raised:
        done(FakeStage(stuck=True), UP)
    assert raised.value.hint


def test_an_action_that_cannot_be_understood_is_named() -> None:
    with pytest.raises(VfioToolError, match="'up by=much' cannot be understood"):
        done(FakeStage(), Action("up", {"by": "much"}))


def test_what_goes_as_told_is_no_finding() -> None:
    stage: Any = FakeStage()
    assert find(stage, [UP]) is None
    assert shrunk(stage, [UP, DOWN]) is None


@pytest.mark.parametrize("note", ["", "still waits"])
def test_a_finding_shrinks_to_the_fewest_that_show_it(note: str) -> None:
    """A note's numbers are others each time."""
    stage: Any = FakeStage(limit=2, note=note)
    found = shrunk(stage, [UP, DOWN, UP, DOWN, UP, CRASH, UP, DOWN, UP, UP, UP], unit=3)
    assert found is not None
    assert found.record is not None
    assert found.actions == (UP, UP, UP)
    assert [one.action for one in found.records] == [UP, UP, UP]
    assert found.record.unit == 3
    assert found.record.outcome.errno == (0 if note else errno.EIO)


class FakeWatch:
    """Finds something once it has been up to this height, however often."""

    def __init__(self, height: int) -> None:
        self.height = height
        self.announced = 0

    def begin(self) -> None:
        self.announced = 0

    def announce(self, expected: Expectation) -> None:
        self.announced += 1

    def end(self, records: Sequence[Record]) -> Seen:
        assert self.announced == len(records)
        most = height = count = 0
        for one in records:
            height += {"up": 1, "down": -1}[one.action.name]
            most, count = max(most, height), count + (height == self.height)
        times = "once" if count == 1 else f"{count} times"
        return Seen((f"it creaks at {height}, {times}: up",) if most >= self.height else ())


def test_what_monitors_find_shrinks_too() -> None:
    stage: Any = FakeStage()
    whole = [UP, DOWN, UP, UP, DOWN, UP, DOWN, DOWN, UP]
    found = shrunk(stage, whole, watch=FakeWatch(2))
    assert found is not None
    assert found.actions == (UP, UP)
    assert [one.action for one in found.records] == [UP, UP, DOWN, DOWN]
    assert found.record is None
    assert found.seen.found == ("it creaks at 0, once: up",)
    assert shrunk(stage, whole, watch=FakeWatch(3)) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "alike"),
    [
        ("a uevent of X did not come, once: bind", "a uevent of X did not come, 12 times: add, bind", True),
        ("a uevent of X did not come, once: bind", "a uevent of Y did not come, once: bind", False),
        ("put ran once, and must have run 3 times", "put ran 2 times, and must have run once", True),
        ("put ran once, and must have run 3 times", "get ran once, and must have run 3 times", False),
        ("2 file descriptors", "13 file descriptors", True),
        ("2 file descriptors", "2 kB of locked memory", False),
    ],
)
def test_findings_are_alike_however_often_they_came(ours: str, theirs: str, alike: bool) -> None:
    assert Finding((), (), Seen((ours,))).is_like(Finding((), (), Seen((theirs,)))) is alike
    assert Finding((), (), Seen((ours, "more"))).is_like(Finding((), (), Seen((theirs,)))) is alike
