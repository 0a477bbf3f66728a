"""Interrupts: enable them, trigger them by software, and count the signals of their eventfds."""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Iterator, Mapping
from ctypes import sizeof
from dataclasses import dataclass
from typing import ClassVar, cast

from vfiotool.stress.group.harness import GroupHarness
from vfiotool.stress.group.sysfs import ioctl
from vfiotool.stress.model.operation import ScriptForm
from vfiotool.stress.operations.base import NonBlockingFamily, usable_fd, usable_members
from vfiotool.stress.record import Call, Expectation, Outcome
from vfiotool.vfio.uapi import DeviceIoctl, IrqSetFlags, PciIrq, vfio_irq_info, vfio_irq_set

KINDS = {"intx": PciIrq.INTX, "msi": PciIrq.MSI, "msix": PciIrq.MSIX}

_STEPS = 20
_RARELY = 0.15
_MOST_VECTORS = 16
_MOST_TIMES = 20
_NO_EVENTFD = -1
_TRIGGER = IrqSetFlags.DATA_NONE | IrqSetFlags.ACTION_TRIGGER
_MASKS = {"mask irq": IrqSetFlags.ACTION_MASK, "unmask irq": IrqSetFlags.ACTION_UNMASK}


@dataclass(frozen=True, slots=True)
class _Enabled:
    """The kind of a member's enabled vectors, and the eventfd of each vector."""

    kind: str
    eventfds: tuple[int, ...]


class IrqOperations(NonBlockingFamily):
    """The family of interrupts, of members that this process can use. A device has interrupts, not its fd.

    A mask does not stop a trigger by software: the kernel only holds back interrupts that the device raises.
    """

    forms: ClassVar[Mapping[str, ScriptForm]] = {
        "enable irqs": ScriptForm("enable_irqs", ("member", "kind", "count", "eventfds")),
        "trigger irq": ScriptForm("trigger_irq", ("member", "vector", "times"), returns_value=True),
        "mask irq": ScriptForm("mask_irq", ("member",)),
        "unmask irq": ScriptForm("unmask_irq", ("member",)),
        "disable irqs": ScriptForm("disable_irqs", ("member",), returns_value=True),
    }

    def __init__(self, harness: GroupHarness) -> None:
        self._harness = harness
        self._enabled: dict[int, _Enabled] = {}
        self._counts: dict[tuple[int, str], int] = {}
        harness.before_close.append(self._before_close)

    def count(self, member: int, kind: str) -> int:
        """Return the number of a member's usable vectors of a kind; read once while the member is open."""
        fd = cast("int", usable_fd(self._harness, member))
        if (member, kind) not in self._counts:
            argument = bytearray(vfio_irq_info(argsz=sizeof(vfio_irq_info), index=KINDS[kind]))
            result = ioctl(fd, DeviceIoctl.VFIO_DEVICE_GET_IRQ_INFO, argument)
            found = 0 if result < 0 else vfio_irq_info.from_buffer(argument).count
            self._counts[member, kind] = found
        return self._counts[member, kind]

    def choose(self, rng: random.Random) -> Iterator[Call]:
        """Yield the calls of a cycle, while a member can be used; execute each before taking the next."""
        for _ in range(_STEPS):
            members = usable_members(self._harness)
            if not members:
                return
            yield self._chosen(rng, rng.choice(members))

    def expect(self, call: Call) -> Expectation | None:
        member = int(call.arguments["member"])
        if usable_fd(self._harness, member) is None:
            return None
        enabled = self._enabled.get(member)
        if call.name == "enable irqs":
            return self._expect_enable(call, enabled)
        if call.name in _MASKS:
            is_line = enabled is not None and enabled.kind == "intx"
            return Expectation(frozenset((0 if is_line else errno.EINVAL,)))
        if enabled is None:
            return None
        if call.name == "disable irqs":
            return Expectation(value=0)
        vector, times = int(call.arguments["vector"]), int(call.arguments["times"])
        return Expectation(value=times) if 0 <= vector < len(enabled.eventfds) and times > 0 else None

    def do(self, call: Call, expected: Expectation) -> Outcome:
        member = int(call.arguments["member"])
        fd = cast("int", usable_fd(self._harness, member))  # as ``expect`` checked
        if call.name == "enable irqs":
            return self._enable(fd, call, expected)
        if call.name in _MASKS:
            return _outcome(_set(fd, PciIrq.INTX, IrqSetFlags.DATA_NONE | _MASKS[call.name], 0, 1))
        enabled = self._enabled[member]
        if call.name == "disable irqs":
            return self._disable(fd, member, enabled)
        vector, index = int(call.arguments["vector"]), KINDS[enabled.kind]
        for _ in range(int(call.arguments["times"])):
            result = _set(fd, index, _TRIGGER, vector, 1)
            if result:
                return _outcome(result)
        return Outcome(value=_taken(enabled.eventfds[vector]))

    def wind_down(self) -> Iterator[Call]:
        """Yield the calls that disable all interrupts."""
        for member in sorted(self._enabled):
            yield Call("disable irqs", {"member": member})

    def abandon(self) -> None:
        """Close the eventfds: the kernel releases its references with the devices."""
        for member in tuple(self._enabled):
            self._forget(member)

    def _expect_enable(self, call: Call, enabled: _Enabled | None) -> Expectation | None:
        """An enabled kind excludes the others. This family does not enable the same kind again."""
        kind, count = str(call.arguments["kind"]), int(call.arguments["count"])
        if kind not in KINDS or count < 1 or (enabled is not None and enabled.kind == kind):
            return None
        has_them = count <= self.count(int(call.arguments["member"]), kind)
        return Expectation(frozenset((0 if has_them and enabled is None else errno.EINVAL,)))

    def _enable(self, fd: int, call: Call, expected: Expectation) -> Outcome:
        kind, count = str(call.arguments["kind"]), int(call.arguments["count"])
        wanted = count if 0 in expected.errnos else 0
        eventfds = tuple(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(wanted))
        flags = IrqSetFlags.DATA_EVENTFD | IrqSetFlags.ACTION_TRIGGER
        data = struct.pack(f"={count}i", *(eventfds or [_NO_EVENTFD] * count))
        outcome = _outcome(_set(fd, KINDS[kind], flags, 0, count, data))
        if expected.allows(outcome) and not outcome.errno:
            self._enabled[int(call.arguments["member"])] = _Enabled(kind, eventfds)
        else:
            _close(eventfds)
        return outcome

    def _disable(self, fd: int, member: int, enabled: _Enabled) -> Outcome:
        """The outcome's value is the number of interrupts that no call triggered."""
        result = _set(fd, KINDS[enabled.kind], _TRIGGER, 0, 0)
        if result:
            return _outcome(result)
        left = sum(_taken(fd) for fd in enabled.eventfds)
        self._forget(member)
        return Outcome(value=left)

    def _chosen(self, rng: random.Random, member: int) -> Call:
        """Choose a call; sometimes one that the kernel must refuse."""
        enabled = self._enabled.get(member)
        if enabled is None or rng.random() < _RARELY:
            return self._any_to_enable(rng, member)
        of_line = ("mask irq", "unmask irq") if enabled.kind == "intx" or rng.random() < _RARELY else ()
        name = rng.choice(("trigger irq", "trigger irq", "trigger irq", "disable irqs", *of_line))
        arguments: dict[str, int | str] = {"member": member}
        if name == "trigger irq":
            arguments |= {
                "vector": rng.randrange(len(enabled.eventfds)),
                "times": rng.randint(1, _MOST_TIMES),
            }
        return Call(name, arguments)

    def _any_to_enable(self, rng: random.Random, member: int) -> Call:
        """Choose any kind but the enabled one, also one that the member lacks; sometimes too many vectors."""
        present = self._enabled.get(member)
        kind = rng.choice([kind for kind in KINDS if present is None or kind != present.kind])
        has = min(self.count(member, kind), _MOST_VECTORS)
        count = rng.randint(1, has) if has and rng.random() > _RARELY else self.count(member, kind) + 1
        return Call("enable irqs", {"member": member, "kind": kind, "count": count})

    def _before_close(self, member: int) -> None:
        """With its last fd a device loses all its interrupts."""
        state = self._harness.state.members[member]
        if state.fds + state.cdev <= 1:
            self._forget(member)

    def _forget(self, member: int) -> None:
        for kind in KINDS:
            self._counts.pop((member, kind), None)
        enabled = self._enabled.pop(member, None)
        if enabled is not None:
            _close(enabled.eventfds)


def _set(fd: int, index: int, flags: IrqSetFlags, start: int, count: int, data: bytes = b"") -> int:
    argument = vfio_irq_set(sizeof(vfio_irq_set) + len(data), flags, index, start, count)
    return ioctl(fd, DeviceIoctl.VFIO_DEVICE_SET_IRQS, bytearray(bytes(argument) + data))


def _outcome(result: int) -> Outcome:
    """A positive result is the number of vectors that the kernel could enable: it enabled none."""
    return Outcome(errno.ENOSPC) if result > 0 else Outcome(-result)


def _taken(eventfd: int) -> int:
    """Return the number of an eventfd's signals since it was last read."""
    try:
        return os.eventfd_read(eventfd)
    except BlockingIOError:
        return 0


def _close(fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)
