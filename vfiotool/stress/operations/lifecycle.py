"""The operations of the model: on fds of the group, of containers and of devices, and on drivers."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import ClassVar

from vfiotool.host.attributes import device_path
from vfiotool.stress.group.harness import GroupHarness
from vfiotool.stress.group.sysfs import SysfsWriter
from vfiotool.stress.model.lifecycle import Prediction, State
from vfiotool.stress.model.operation import Argument, Bound, Fd, Kind, Operation, ScriptForm
from vfiotool.stress.record import Call, Expectation, Outcome

_MOST_KNOWN = 1 << 12


def call_of(operation: Operation, process: int = 0) -> Call:
    """Return the call of an operation of the model. ``process`` is recorded if any process can execute it."""
    declaration = operation.kind.declaration
    values: dict[Argument, int | str] = {
        "container": operation.container,
        "member": operation.member,
        "to": operation.to.value,
    }
    arguments: dict[str, int | str] = {name: values[name] for name in declaration.takes}
    if process and declaration.takes_process:
        arguments["process"] = process
    return Call(operation.kind.value, arguments)


def operation_of(call: Call) -> Operation:
    """Return the model's operation of a call.

    Raises:
        ValueError: the call is not an operation of the model.
    """
    arguments = call.arguments
    return Operation(
        Kind(call.name),
        member=int(arguments.get("member", 0)),
        container=int(arguments.get("container", 0)),
        to=Bound(arguments.get("to", "none")),
    )


_Answer = tuple[Prediction, Expectation]


class LifecycleOperations:
    """The family whose rules are the model's."""

    forms: ClassVar[Mapping[str, ScriptForm]] = {kind.value: kind.declaration.script for kind in Kind}

    def __init__(self, harness: GroupHarness) -> None:
        self._harness = harness
        self._waiting: SysfsWriter | None = None
        self._pfs = {at for at, address in enumerate(harness.spec.members) if _is_pf(harness, address)}
        # Cycles repeat the same operations, and the time for an answer delays the next system call.
        self._answer = functools.lru_cache(_MOST_KNOWN)(self._computed)

    def prediction(self, call: Call) -> Prediction | None:
        """Return the model's prediction of a call, or None if the call is not possible."""
        answer = self._answer_to(call)
        return None if answer is None else answer[0]

    def expect(self, call: Call) -> Expectation | None:
        answer = self._answer_to(call)
        return None if answer is None else answer[1]

    def _answer_to(self, call: Call) -> _Answer | None:
        """Return the model's answer, or None if the call is not possible on this group now."""
        operation = operation_of(call)
        if operation.member >= len(self._harness.spec.members):
            return None
        if operation.kind in (Kind.BIND, Kind.UNBIND) and not self._can_write(operation):
            return None
        return self._answer(self._harness.state, operation)

    def _computed(self, state: State, operation: Operation) -> _Answer | None:
        """Compute the model's answer, which depends on the arguments alone."""
        model = self._harness.model
        if operation not in model.operations(state):
            return None
        prediction = model.predict(state, operation)
        expected = self.expectation(prediction)
        if operation.kind.declaration.returns_value:
            expected = expected._replace(value=int(prediction.flags))
        return prediction, expected

    def expectation(self, prediction: Prediction) -> Expectation:
        """Return a prediction as an expectation, with the addresses of the members."""
        members = self._harness.spec.members
        return Expectation(
            frozenset((prediction.errno,)),
            waits_for=prediction.waits_for,
            crash=prediction.crash,
            uevents=tuple(uevent.resolved(members) for uevent in prediction.uevents),
            probes=prediction.probes,
        )

    def do(self, call: Call, expected: Expectation) -> Outcome:
        operation, prediction = operation_of(call), self.prediction(call)
        if operation.kind.declaration.closes in (Fd.DEVICE, Fd.CDEV):
            self._harness.announce_close(operation.member)
        if expected.waits_for:
            return self._begin(operation)
        process = int(call.arguments.get("process", 0))
        outcome = Outcome(*self._harness.clients.do(operation, process))
        if prediction is not None and expected.allows(outcome):
            self._harness.state = prediction.state
        return outcome

    def releases(self, call: Call) -> Iterator[Call]:
        operation = operation_of(call)
        released = self._harness.model.released(self._harness.state, operation)
        for release, _ in released[:-1]:
            yield call_of(release)

    def finish(self, call: Call) -> Outcome:
        """Wait for the end of the write that blocked, and enter the state after it."""
        if self._waiting is None:
            return Outcome(note="nothing waits")
        outcome = self._waiting.result()
        self._waiting = None
        if outcome.errno or outcome.note:
            return outcome
        prediction = self._harness.model.predict(self._harness.state, operation_of(call))
        self._harness.state = prediction.state
        return outcome._replace(proved=self.expectation(prediction))

    def wind_down(self) -> Iterator[Call]:
        """Close all fds, device fds first, and bind every member to vfio-pci."""
        while (operation := self._next_to_rest()) is not None:
            yield call_of(operation)

    def abandon(self) -> None:
        if self._waiting is not None:
            self._waiting.abandon()
            self._waiting = None

    def _next_to_rest(self) -> Operation | None:
        state = self._harness.state
        for at, member in enumerate(state.members):
            if member.fds:
                return Operation(Kind.CLOSE_DEVICE, member=at)
            if member.cdev:
                return Operation(Kind.CLOSE_CDEV, member=at)
        if state.is_open:
            return Operation(Kind.CLOSE_GROUP)
        for at, container in enumerate(state.containers):
            if container.is_open:
                return Operation(Kind.CLOSE_CONTAINER, container=at)
        for at, member in enumerate(state.members):
            if member.bound is Bound.NONE and at not in self._harness.removed:
                return Operation(Kind.BIND, member=at, to=Bound.VFIO)
            if member.bound not in (Bound.NONE, Bound.VFIO):
                return Operation(Kind.UNBIND, member=at)
        return None

    def _begin(self, operation: Operation) -> Outcome:
        """Start an unbind in a child process; the outcome has a note if the write does not block."""
        address = self._address(operation)
        writer = SysfsWriter(f"{device_path(address)}/driver/unbind", address)
        if writer.blocks():
            self._waiting = writer
            return Outcome()
        return Outcome(note=f"did not wait: {writer.result()}")

    def _address(self, operation: Operation) -> str:
        return self._harness.spec.members[operation.member]

    def _can_write(self, operation: Operation) -> bool:
        """Return True if a member is on the bus and has the driver; a PF with VFs must keep its driver."""
        address = self._address(operation)
        if operation.member in self._harness.removed:
            return False
        if operation.to is Bound.HOST and not self._harness.spec.hosts.get(address):
            return False
        has_vfs = operation.member in self._pfs and self._harness.tree.exists(
            f"{device_path(address)}/virtfn0"
        )
        return not has_vfs


def _is_pf(harness: GroupHarness, address: str) -> bool:
    return harness.tree.exists(f"{device_path(address)}/sriov_numvfs")
