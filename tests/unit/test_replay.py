"""A replay: the records that it takes from a trace, and its operations on a group."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from vfiotool.errors import VfioToolError
from vfiotool.stress.record import Call, Expectation, Outcome, Record, TraceLine
from vfiotool.stress.reproduce.replay import (
    Finding,
    MonitorFindings,
    calls_of,
    failing_prefix,
    find,
    replay,
    shrunk,
)
from vfiotool.stress.results.trace import Trace

UNBIND = Call("unbind", {"member": 0})


def line(name: str, cycle: int, unit: int = 0, *, bad: bool = False, released: str = "") -> TraceLine:
    call = UNBIND if name == "unbind" else Call(name)
    return TraceLine(unit, "group", cycle, call, "0", "EIO" if bad else "0", bad, released, 0.0, 1.0)


def trace(*lines: TraceLine) -> Trace:
    return Trace({}, list(lines), False)


def names(calls: list[Call]) -> list[str]:
    return [one.name for one in calls]


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
    chosen = calls_of(MIXED)
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


class FakeHarness:
    """A counter: ``up`` and ``down`` change it, and ``up`` fails from ``limit`` on, with this note."""

    number = 7

    def __init__(self, limit: int = 99, note: str = "", *, stuck: bool = False) -> None:
        self.height = 0
        self.limit = limit
        self.note = note
        self.stuck = stuck
        self.abandoned = 0
        self.tries = 0
        self.spec = type("Unit", (), {"members": ("0000:00:10.0",)})

    def expect(self, call: Call) -> Expectation | None:
        if call.name == "down" and not self.height:
            return None
        int(call.arguments.get("by", 1))
        return Expectation(crash="BUG" if call.name == "crash" else "")

    def perform(self, call: Call, template: Record) -> Iterator[Record]:
        self.tries += 1
        fails = self.stuck if call.name == "down" else call.name == "up" and self.height >= self.limit
        self.height += 0 if fails else {"up": 1, "down": -1}.get(call.name, 0)
        note = f"{self.note} (pid {self.tries})" if self.note and fails else ""
        outcome = Outcome(errno.EIO if fails and not note else 0, note=note)
        yield template._replace(call=call, expected=Expectation(), outcome=outcome)

    def wind_down(self) -> Iterator[Call]:
        while self.height:
            yield Call("down")

    @property
    def is_at_rest(self) -> bool:
        return not self.height

    def abandon(self) -> None:
        self.abandoned += 1


UP, DOWN, CRASH = Call("up"), Call("down"), Call("crash")


def done(harness: Any, *calls: Call, allow_crash: bool = False) -> list[str]:
    return [one.call.name for one in replay(harness, calls, allow_crash=allow_crash)]


def test_it_winds_down_and_leaves_out_what_cannot_be_done() -> None:
    harness = FakeHarness()
    assert done(harness, DOWN, UP, CRASH, UP) == ["up", "up", "down", "down"]
    assert harness.abandoned == 0


def test_a_crash_is_done_if_it_is_meant() -> None:
    assert done(FakeHarness(), CRASH, allow_crash=True) == ["crash"]


def test_after_something_went_otherwise_all_is_closed_and_brought_to_rest() -> None:
    harness = FakeHarness(limit=2)
    assert done(harness, UP, UP, UP, UP) == ["up", "up", "up"]
    assert (harness.abandoned, harness.height) == (1, 0)


def test_who_looks_no_further_leaves_it_at_rest_too() -> None:
    harness: Any = FakeHarness()
    records = replay(harness, [UP, UP])
    next(records)
    del records
    assert (harness.abandoned, harness.height) == (1, 0)


def test_a_group_that_does_not_come_to_rest_is_told_of() -> None:
    with pytest.raises(VfioToolError, match="group 7 does not return to rest") as raised:
        done(FakeHarness(stuck=True), UP)
    assert raised.value.hint


def test_an_action_that_cannot_be_understood_is_named() -> None:
    with pytest.raises(VfioToolError, match="the call 'up by=much' is invalid"):
        done(FakeHarness(), Call("up", {"by": "much"}))


def test_what_goes_as_told_is_no_finding() -> None:
    harness: Any = FakeHarness()
    assert find(harness, [UP]) is None
    assert shrunk(harness, [UP, DOWN]) is None


@pytest.mark.parametrize("note", ["", "still waits"])
def test_a_finding_shrinks_to_the_fewest_that_show_it(note: str) -> None:
    """A note's numbers are others each time."""
    harness: Any = FakeHarness(limit=2, note=note)
    found = shrunk(harness, [UP, DOWN, UP, DOWN, UP, CRASH, UP, DOWN, UP, UP, UP], unit=3)
    assert found is not None
    assert found.record is not None
    assert found.calls == (UP, UP, UP)
    assert [one.call for one in found.records] == [UP, UP, UP]
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

    def end(self, records: Sequence[Record]) -> MonitorFindings:
        assert self.announced == len(records)
        most = height = count = 0
        for one in records:
            height += {"up": 1, "down": -1}[one.call.name]
            most, count = max(most, height), count + (height == self.height)
        times = "once" if count == 1 else f"{count} times"
        return MonitorFindings((f"it creaks at {height}, {times}: up",) if most >= self.height else ())


def test_what_monitors_find_shrinks_too() -> None:
    harness: Any = FakeHarness()
    whole = [UP, DOWN, UP, UP, DOWN, UP, DOWN, DOWN, UP]
    found = shrunk(harness, whole, watch=FakeWatch(2))
    assert found is not None
    assert found.calls == (UP, UP)
    assert [one.call for one in found.records] == [UP, UP, DOWN, DOWN]
    assert found.record is None
    assert found.seen.found == ("it creaks at 0, once: up",)
    assert shrunk(harness, whole, watch=FakeWatch(3)) is None


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
    assert (
        Finding((), (), MonitorFindings((ours,))).is_like(Finding((), (), MonitorFindings((theirs,))))
        is alike
    )
    assert (
        Finding((), (), MonitorFindings((ours, "more"))).is_like(Finding((), (), MonitorFindings((theirs,))))
        is alike
    )
