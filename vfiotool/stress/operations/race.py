"""Races: two operations at once must give what they give one after the other, in either order."""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from vfiotool.host.attributes import device_path
from vfiotool.stress.group.harness import GroupHarness
from vfiotool.stress.group.sysfs import SysfsWriter
from vfiotool.stress.model.lifecycle import Prediction, State
from vfiotool.stress.model.operation import Bound, Kind, Operation, ScriptForm
from vfiotool.stress.operations.dma import DmaOperations
from vfiotool.stress.operations.hotplug import HotplugOperations
from vfiotool.stress.operations.lifecycle import LifecycleOperations, call_of
from vfiotool.stress.operations.reset import reset
from vfiotool.stress.record import Call, Expectation, Outcome, errno_name

RACE = "race"

_LONGEST_HEAD_START_US = 3000
_MAPS = 16
_MOMENT_SECONDS = 2.0

GONE = frozenset((errno.ENODEV, errno.ENOENT, errno.ENXIO, errno.EAGAIN))
"""The errnos of an operation on a device or node that went away during the operation.

EAGAIN comes from a device that an unbind has locked: the kernel resets a device before its first use, and
does not wait for its lock (pci_try_reset_function() in vfio_pci_core_enable()).
"""

_BOTH_UNBIND = "0 and 0"
"""Two unbinds may both succeed: unbind_store(), drivers/base/bus.c, checks the driver without a lock."""

Result = tuple[int, bool]
"""An errno, and True if the operation waits."""


@dataclass(frozen=True, slots=True)
class Rivals:
    """Two operations of a member's index. Another process executes ``other``, this process ``ours``."""

    other: Callable[[int], Operation]
    ours: Callable[[int], Operation]


@dataclass(frozen=True, slots=True)
class Order:
    """The predictions of two operations in one order, and the state after them."""

    other: Prediction
    ours: Prediction
    state: State

    @property
    def pair(self) -> str:
        """Return the results of both as a text."""
        return _pair(*((one.errno, bool(one.waits_for)) for one in (self.other, self.ours)))


_UNBIND_AND_OPEN = "unbind, open group"
_UNBIND_AND_DEVICE = "unbind, device fd"
_TWO_UNBINDS = "unbind, unbind"
_SIBLING_AND_OPEN = "bind sibling, open group"
_SIBLING_AND_CONTAINER = "bind sibling, set container"
REMOVE_AND_MAP = "remove, map"
CLOSE_AND_RESET = "close, reset"

RIVALS = {
    _UNBIND_AND_OPEN: Rivals(
        lambda at: Operation(Kind.UNBIND, member=at), lambda _: Operation(Kind.OPEN_GROUP)
    ),
    _UNBIND_AND_DEVICE: Rivals(
        lambda at: Operation(Kind.UNBIND, member=at), lambda at: Operation(Kind.GET_DEVICE_FD, member=at)
    ),
    _TWO_UNBINDS: Rivals(
        lambda at: Operation(Kind.UNBIND, member=at), lambda at: Operation(Kind.UNBIND, member=at)
    ),
    _SIBLING_AND_OPEN: Rivals(
        lambda at: Operation(Kind.BIND, member=at, to=Bound.HOST), lambda _: Operation(Kind.OPEN_GROUP)
    ),
    _SIBLING_AND_CONTAINER: Rivals(
        lambda at: Operation(Kind.BIND, member=at, to=Bound.HOST), lambda _: Operation(Kind.SET_CONTAINER)
    ),
}


AT_ONCE = ScriptForm("at_once", raises_note=True)
"""The form of two operations of the model: its arguments are their forms."""

_FORMS = {
    REMOVE_AND_MAP: ScriptForm("remove_while_mapping", ("member", "container"), raises_note=True),
    CLOSE_AND_RESET: ScriptForm("close_while_resetting", ("member", "head_start_us"), raises_note=True),
}


def race_form(of: str) -> ScriptForm:
    """Return the form in a script of a race, by its name."""
    return _FORMS.get(of, AT_ONCE)


class RaceOperations:
    """The operation ``race``: its argument ``of`` names the two operations, ``member`` is their member.

    ``head_start_us`` is the time between their beginnings, in microseconds.
    """

    forms: ClassVar[Mapping[str, ScriptForm]] = {RACE: AT_ONCE}

    def __init__(
        self,
        harness: GroupHarness,
        lifecycle: LifecycleOperations,
        hotplug: HotplugOperations,
        dma: DmaOperations,
    ) -> None:
        self._harness = harness
        self._lifecycle = lifecycle
        self._hotplug = hotplug
        self._dma = dma
        self._writer: SysfsWriter | None = None

    def choose(self, rng: random.Random) -> Iterator[Call]:
        """Yield the calls of a cycle: each race once, in random order, each on a group at rest."""
        names = [*RIVALS, REMOVE_AND_MAP, CLOSE_AND_RESET]
        for name in rng.sample(names, len(names)):
            at = rng.randrange(len(self._harness.spec.members))
            yield from self._before(name, at)
            arguments: dict[str, int | str] = {"of": name, "member": at}
            yield Call(RACE, arguments | {"head_start_us": rng.randrange(_LONGEST_HEAD_START_US)})
            yield from self._harness.wind_down()

    def expect(self, call: Call) -> Expectation | None:
        name, at = str(call.arguments["of"]), int(call.arguments["member"])
        if at >= len(self._harness.spec.members) or at in self._harness.removed:
            return None
        if name == REMOVE_AND_MAP:
            return self._expect_remove(at)
        if name == CLOSE_AND_RESET:
            return self._expect_close(at)
        orders = self._orders(name, at)
        if not orders:
            return None
        crash = next((one.crash for order in orders for one in (order.other, order.ours) if one.crash), "")
        both = (_BOTH_UNBIND,) if name == _TWO_UNBINDS else ()
        return Expectation(crash=crash, pairs=tuple(dict.fromkeys([order.pair for order in orders])) + both)

    def do(self, call: Call, expected: Expectation) -> Outcome:
        name, at = str(call.arguments["of"]), int(call.arguments["member"])
        head_start = int(call.arguments["head_start_us"]) / 1e6
        if name == REMOVE_AND_MAP:
            return self._remove_while_mapping(at)
        if name == CLOSE_AND_RESET:
            return self._close_while_resetting(at, head_start, expected)
        orders, rivals = self._orders(name, at), RIVALS[name]
        other, ours = self._both(rivals.other(at), rivals.ours(at), head_start)
        order = _explanation(name, orders, _pair(other, ours))
        if order is None and self._writer is not None and self._writer.has_ended(_MOMENT_SECONDS):
            # The write slept for a lock, not for a user of the device.
            writer, self._writer = self._writer, None
            other = writer.result().errno, False
            order = _explanation(name, orders, _pair(other, ours))
        if order is not None:
            return self._settled(order, _pair(other, ours))
        return Outcome(note=f"{_result(other)} and {_result(ours)}: neither order gives these results")

    def releases(self, call: Call) -> Iterator[Call]:
        at = int(call.arguments["member"])
        if str(call.arguments["of"]) == REMOVE_AND_MAP:
            yield from self._hotplug.unblocks_removal(at)
            return
        unbind = Operation(Kind.UNBIND, member=at)
        for release, _ in self._harness.model.released(self._harness.state, unbind)[:-1]:
            yield call_of(release)

    def finish(self, call: Call) -> Outcome:
        if self._writer is None:
            return Outcome(note="nothing waits")
        outcome, self._writer = self._writer.result(), None
        if outcome.errno or outcome.note:
            return outcome
        at = int(call.arguments["member"])
        if str(call.arguments["of"]) == REMOVE_AND_MAP:
            proved = self._hotplug.record_removal(at)
        else:
            prediction = self._harness.model.predict(self._harness.state, Operation(Kind.UNBIND, member=at))
            self._harness.state = prediction.state
            proved = self._lifecycle.expectation(prediction)
        return outcome._replace(proved=proved)

    def wind_down(self) -> Iterator[Call]:
        return iter(())

    def abandon(self) -> None:
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None

    # The calls before a race

    def _before(self, name: str, at: int) -> Iterator[Call]:
        opened = (Kind.OPEN_CONTAINER, Kind.OPEN_GROUP, Kind.SET_CONTAINER, Kind.SET_IOMMU)
        if name in (_UNBIND_AND_DEVICE, REMOVE_AND_MAP, CLOSE_AND_RESET):
            yield from (call_of(Operation(kind)) for kind in opened)
        if name in (REMOVE_AND_MAP, CLOSE_AND_RESET):
            yield call_of(Operation(Kind.GET_DEVICE_FD, member=at))
        if name in (_SIBLING_AND_OPEN, _SIBLING_AND_CONTAINER):
            yield call_of(Operation(Kind.UNBIND, member=at))
        if name == _SIBLING_AND_CONTAINER:
            yield from (call_of(Operation(kind)) for kind in opened[:2])

    # Two operations of the model

    def _orders(self, name: str, at: int) -> list[Order]:
        """Return the predictions of both orders, or nothing if one of the operations is not possible now."""
        rivals, model, state = RIVALS[name], self._harness.model, self._harness.state
        other, ours = rivals.other(at), rivals.ours(at)
        possible = set(model.operations(state))
        has_host = other.to is not Bound.HOST or self._harness.spec.hosts.get(self._harness.spec.members[at])
        if not {other, ours} <= possible or not has_host:
            return []
        first, then, after = self._one_after_the_other(other, ours)
        last, begun, afterwards = self._one_after_the_other(ours, other)
        return [Order(first, then, after), Order(begun, last, afterwards)]

    def _one_after_the_other(
        self, first: Operation, second: Operation
    ) -> tuple[Prediction, Prediction, State]:
        """Return both predictions, and the state after them, which a waiting operation has not changed."""
        model = self._harness.model
        one = model.predict(self._harness.state, first)
        if one.waits_for:  # only for the container (up to 5.18): the group has already lost the device
            return one, Prediction(self._harness.state, errno.ENODEV), self._harness.state
        if second not in model.operations(one.state):
            return one, Prediction(one.state, errno.ENODEV), one.state
        two = model.predict(one.state, second)
        return one, two, one.state if two.waits_for else two.state

    def _both(self, other: Operation, ours: Operation, head_start: float) -> tuple[Result, Result]:
        clients = self._harness.clients
        if other.kind is not Kind.UNBIND:
            clients.start(other)
            _spin(head_start)
            result = clients.do(ours)[0], False
            return (clients.finish(other)[0], False), result
        address = self._harness.spec.members[other.member]
        writer = SysfsWriter(f"{device_path(address)}/driver/unbind", address)
        _spin(head_start)
        result = clients.do(ours)[0], False
        if writer.blocks():
            self._writer = writer
            return (0, True), result
        return (writer.result().errno, False), result

    def _settled(self, order: Order, pair: str) -> Outcome:
        """Enter the state after both operations, or after one if the other waits."""
        self._harness.state = order.state
        expectations = [self._lifecycle.expectation(one) for one in (order.other, order.ours)]
        waits = next((one for one in expectations if one.waits_for), None)
        if waits is not None:
            return Outcome(proved=Expectation(waits_for=waits.waits_for, pairs=(pair,)))
        uevents = tuple(uevent for one in expectations for uevent in one.uevents)
        probes = tuple(probe for one in expectations for probe in one.probes)
        return Outcome(proved=Expectation(uevents=uevents, probes=probes, pairs=(pair,)))

    # A device that is removed while memory is mapped for it

    def _expect_remove(self, at: int) -> Expectation | None:
        is_usable = self._harness.state.members[at].fds and self._harness.state.has_iommu
        return Expectation(waits_for="its fds are closed") if is_usable else None

    def _remove_while_mapping(self, at: int) -> Outcome:
        """Map and unmap memory while a removal waits: both must work as before."""
        if (held := self._harness.bus.take()).note:
            return held
        writer = SysfsWriter(f"{device_path(self._harness.spec.members[at])}/remove", "1")
        for slot in range(_MAPS):
            for call in (
                Call("map", {"slot": slot, "slots": 1}),
                Call("pins"),
                Call("unmap", {"slot": slot, "slots": 1}),
            ):
                expected = self._dma.expect(call)
                if expected is None:
                    continue
                outcome = self._dma.do(call, expected)
                if not expected.allows(outcome):
                    return Outcome(note=f"{call} while it is removed: {outcome}, not {expected}")
        if writer.blocks():
            self._writer = writer
            return Outcome()
        return Outcome(note=f"did not wait: {writer.result()}")

    # An fd that is closed while it resets its device

    def _expect_close(self, at: int) -> Expectation | None:
        prediction = self._lifecycle.prediction(call_of(Operation(Kind.CLOSE_DEVICE, member=at)))
        if prediction is None or not self._harness.clients.owns_device(at):
            return None
        return self._lifecycle.expectation(prediction)

    def _close_while_resetting(self, at: int, head_start: float, expected: Expectation) -> Outcome:
        """Reset in a thread: the call goes on after the fd is closed, and ends with the device's release."""
        fd = self._harness.clients.first.device(at)
        results = list[Outcome]()
        thread = threading.Thread(target=lambda: results.append(reset(fd or -1)))
        close = call_of(Operation(Kind.CLOSE_DEVICE, member=at))
        thread.start()
        _spin(head_start)
        outcome = self._lifecycle.do(close, expected)
        thread.join()
        if results[0].errno not in (0, errno.EBADF, errno.EINVAL, errno.ENOTTY):
            return Outcome(note=f"the reset gave {results[0]}")
        return outcome


def _explanation(name: str, orders: list[Order], pair: str) -> Order | None:
    """Return the order that gives these results, or None; two unbinds may also both succeed."""
    if name == _TWO_UNBINDS and pair == _BOTH_UNBIND:
        return orders[0]
    return next((order for order in orders if order.pair == pair), None)


def _pair(*results: Result) -> str:
    """Return the results of both as a text; the errnos of ``GONE`` count as one result."""
    return " and ".join("gone" if code in GONE else _result((code, waits)) for code, waits in results)


def _result(result: Result) -> str:
    code, waits = result
    return "waits" if waits else errno_name(code)


def _spin(seconds: float) -> None:
    """Wait without a sleep, which is too coarse for microseconds."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
