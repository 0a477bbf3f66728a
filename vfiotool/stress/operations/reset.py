"""Resets of functions that are in use, and reads of their configuration space before and after."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Iterator, Mapping
from ctypes import sizeof
from typing import ClassVar, cast

from vfiotool.host.attributes import device_path
from vfiotool.stress.group.harness import GroupHarness
from vfiotool.stress.group.sysfs import ioctl
from vfiotool.stress.model.operation import ScriptForm
from vfiotool.stress.operations.base import NonBlockingFamily, usable_fd, usable_members
from vfiotool.stress.operations.irq import KINDS
from vfiotool.stress.record import Call, Expectation, Outcome
from vfiotool.vfio.uapi import DeviceInfoFlags, DeviceIoctl, PciRegion, vfio_device_info, vfio_region_info

_PATIENCE_SECONDS = 1.0
_POLL_SECONDS = 0.001
_TIMES = 3


class ResetOperations(NonBlockingFamily):
    """The family of resets. A reset must leave enabled interrupts and DMA mappings as they are."""

    forms: ClassVar[Mapping[str, ScriptForm]] = {
        "reset": ScriptForm("reset", ("member",)),
        "read config": ScriptForm("read_config", ("member",), returns_value=True),
    }

    def __init__(self, harness: GroupHarness) -> None:
        self._harness = harness

    def choose(self, rng: random.Random) -> Iterator[Call]:
        """Yield the calls of a cycle, if a member can be used: resets, with an interrupt that must survive.

        The family of interrupts executes its part; a member without that kind of interrupt refuses it.
        """
        members = usable_members(self._harness)
        if not members:
            return
        arguments: dict[str, int | str] = {"member": rng.choice(members)}
        yield Call("read config", arguments)
        yield Call("enable irqs", arguments | {"kind": rng.choice(list(KINDS)), "count": 1})
        for _ in range(rng.randint(1, _TIMES)):
            yield Call("reset", arguments)
            yield Call("read config", arguments)
            yield Call("trigger irq", arguments | {"vector": 0, "times": 1})
        yield Call("disable irqs", arguments)

    def expect(self, call: Call) -> Expectation | None:
        member = int(call.arguments["member"])
        fd = usable_fd(self._harness, member)
        if fd is None:
            return None
        if call.name == "read config":
            first = self._first_of_config(member)
            return None if first is None else Expectation(value=first)
        return Expectation(frozenset((0 if _has_reset(fd) else errno.EINVAL,)))

    def do(self, call: Call, _expected: Expectation) -> Outcome:
        fd = cast("int", usable_fd(self._harness, int(call.arguments["member"])))  # as ``expect`` checked
        return _read_config(fd) if call.name == "read config" else reset(fd)

    def wind_down(self) -> Iterator[Call]:
        """Yield nothing: a reset has no effect to undo."""
        return iter(())

    def abandon(self) -> None:
        """Do nothing: the family has nothing open."""

    def _first_of_config(self, member: int) -> int | None:
        """Return the first 32 bits of configuration space, from the ids in sysfs."""
        path = device_path(self._harness.spec.members[member])
        vendor, device = (self._harness.tree.find(f"{path}/{name}") for name in ("vendor", "device"))
        return None if vendor is None or device is None else int(device, 16) << 16 | int(vendor, 16)


def _has_reset(fd: int) -> bool:
    argument = bytearray(vfio_device_info(argsz=sizeof(vfio_device_info)))
    if ioctl(fd, DeviceIoctl.VFIO_DEVICE_GET_INFO, argument) < 0:
        return False
    return DeviceInfoFlags.RESET in DeviceInfoFlags(vfio_device_info.from_buffer(argument).flags)


def reset(fd: int) -> Outcome:
    """Reset a function. Repeat a reset that gives EAGAIN.

    A process that reads the device's ``uevent`` file in sysfs locks the device: a reset then gives EAGAIN.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        result = ioctl(fd, DeviceIoctl.VFIO_DEVICE_RESET, bytearray())
        if result != -errno.EAGAIN or time.monotonic() > deadline:
            return Outcome(-result)
        time.sleep(_POLL_SECONDS)


def _read_config(fd: int) -> Outcome:
    argument = bytearray(vfio_region_info(argsz=sizeof(vfio_region_info), index=PciRegion.CONFIG))
    result = ioctl(fd, DeviceIoctl.VFIO_DEVICE_GET_REGION_INFO, argument)
    if result < 0:
        return Outcome(-result)
    try:
        data = os.pread(fd, 4, vfio_region_info.from_buffer(argument).offset)
    except OSError as error:
        return Outcome(error.errno or errno.EIO)
    return Outcome(value=int.from_bytes(data, "little"))
