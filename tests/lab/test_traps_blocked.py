"""The system calls that block while a process holds a device that must leave vfio-pci."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import time
from collections.abc import Iterator
from ctypes import sizeof

import pytest

from tests.support.blocked_programs import (
    UNBIND,
    Program,
    await_sleep,
    comes_to_wait,
    pending_signals,
    reading,
    sleeps_in,
    state,
    those_that_wait,
    writing,
)
from tests.support.group_device import GroupDevice
from tests.support.guest import (
    BUS,
    EDU,
    RELEASE,
    as_before,
    await_,
    driver,
    group,
    needs_iommu,
    output,
    path,
    prompt_looks,
    to_vfio,
)
from vfiotool.host.holders import find_device_holders
from vfiotool.host.tree import Tree
from vfiotool.vfio import Container, Group, IommuType, KernelDeviceFile
from vfiotool.vfio.uapi import DeviceIoctl, IrqSetFlags, PciIrq, vfio_irq_set

pytestmark = [pytest.mark.needs_guest, needs_iommu, pytest.mark.usefixtures("vfio_pci")]

READERS_WAIT = RELEASE <= (6, 1)
AN_IDLE_CONTAINER_HOLDS = RELEASE <= (5, 10)


def number_of(address: str) -> int:
    number = group(address)
    assert number is not None
    return number


@pytest.fixture
def bound() -> Iterator[int]:
    """The number of edu's group, with edu on vfio-pci."""
    with as_before(EDU):
        to_vfio(EDU)
        yield number_of(EDU)


@pytest.fixture
def edu(bound: int) -> Iterator[GroupDevice]:
    """edu, open."""
    with GroupDevice(EDU, bound) as opened:
        yield opened


def unbinding() -> Program:
    """Start to unbind edu, which comes to wait."""
    writer = writing(path(EDU, "driver/unbind"), EDU)
    await_sleep(writer, UNBIND)
    return writer


@pytest.fixture
def blocked(edu: GroupDevice) -> Iterator[Program]:
    """An unbind of edu that waits."""
    writer = unbinding()
    yield writer
    edu.close()
    writer.wait(30)


def test_a_descriptor_without_its_group_names_its_device_since_6_18(edu: GroupDevice, bound: int) -> None:
    """Before, its process may hold any device: vfiotool must not say that it holds this one."""
    edu.group.close()
    found = find_device_holders(Tree(), [EDU], [f"/dev/vfio/{bound}"])
    certain, possible = ({(holder.pid, holder.fd) for holder in holders} for holders in found)
    own = (os.getpid(), edu.file.fileno())
    assert (own in certain, own in possible) == (RELEASE >= (6, 18), RELEASE < (6, 18))


# Trap 4: the unbind waits, whatever it is sent, and does not look as if it did.


@pytest.mark.full
def test_a_signal_makes_a_blocked_unbind_deaf_and_ends_it_only_after(
    edu: GroupDevice, blocked: Program
) -> None:
    assert state(blocked) == "S"
    blocked.terminate()
    await_("it cannot be woken", lambda: state(blocked) == "D")
    blocked.kill()
    assert pending_signals(blocked) >> (signal.SIGKILL - 1) & 1
    assert reading(path(EDU, "vendor")).wait(30) == 0, "some time has passed"
    assert blocked.poll() is None
    assert sleeps_in(blocked, UNBIND)
    edu.close()
    assert blocked.wait(30) == -signal.SIGTERM
    assert driver(EDU) is None


@pytest.mark.full
def test_the_driver_is_gone_while_an_unbind_waits_and_the_node_is_not(
    edu: GroupDevice, blocked: Program
) -> None:
    """So one who looks at the driver takes it for done."""
    node = f"/dev/vfio/{edu.group.id}"
    assert (driver(EDU), os.path.exists(node)) == (None, True)
    edu.close()
    assert blocked.wait(30) == 0
    await_("the node is gone", lambda: not os.path.exists(node))  # up to 5.15 a worker removes it


@pytest.mark.full
@pytest.mark.parametrize("with_container", [True, False], ids=["container", "no-container"])
def test_an_open_group_alone_blocks_up_to_5_10_where_it_has_a_container(
    bound: int, with_container: bool
) -> None:
    with Container() as container, Group(bound) as opened:
        if with_container:
            opened.set_container(container)
            container.set_iommu(IommuType.TYPE1v2)
        writer = writing(path(EDU, "driver/unbind"), EDU)
        waited = comes_to_wait(writer, UNBIND)
    assert writer.wait(30) == 0
    assert waited == (with_container and AN_IDLE_CONTAINER_HOLDS)


# Trap 5: looking waits too.


@pytest.mark.full
def test_up_to_6_1_who_reads_the_override_or_the_uevent_waits_with_the_unbind(
    edu: GroupDevice, blocked: Program
) -> None:
    readers = {name: reading(path(EDU, name)) for name in ("driver_override", "uevent", "resource")}
    waiting = those_that_wait(readers)
    states = {state(readers[name]) for name in waiting}
    edu.close()
    assert {reader.wait(30) for reader in readers.values()} == {0}
    assert waiting == ({"driver_override", "uevent"} if READERS_WAIT else set())
    assert states == ({"D"} if READERS_WAIT else set())


@pytest.mark.usefixtures("blocked")
def test_vfiotool_does_not_wait_with_an_unbind_of_someone_elses() -> None:
    every, shown = prompt_looks(("list",), ("show", EDU))
    (device,) = (one for one in every.document["devices"] if one["address"] == EDU)
    assert device["driver"] is None
    assert ("driver_override" in device["unavailable"]) == READERS_WAIT
    assert shown.document["device"] == device


@pytest.mark.full
def test_a_rescan_waits_with_a_removal_and_not_with_an_unbind(edu: GroupDevice) -> None:
    writer = unbinding()
    assert not comes_to_wait(writing(f"{BUS}/rescan", "1"), "rescan_store")
    edu.close()
    assert writer.wait(30) == 0
    to_vfio(EDU)
    with GroupDevice(EDU, edu.group.id):
        remover = writing(path(EDU, "remove"), "1")
        await_sleep(remover, UNBIND)
        rescan = writing(f"{BUS}/rescan", "1")
        waited = comes_to_wait(rescan, "rescan_store")
    assert (remover.wait(30), rescan.wait(30)) == (0, 0)
    assert waited
    assert os.path.exists(path(EDU)), "the rescan came after"


# Trap 6: the holder can be asked.


def said(after: int) -> list[str]:
    """Return what vfio-pci has logged of edu, from a line on."""
    lines = output("dmesg", "--notime").splitlines()
    return [line for line in lines if line.startswith(f"vfio-pci {EDU}: ")][after:]


def test_a_holder_that_cannot_be_asked_is_waited_for(edu: GroupDevice) -> None:
    before = len(said(0))
    writer = unbinding()
    assert said(before)[0].endswith("No device request channel registered, blocked until released by user")
    edu.close()
    assert writer.wait(30) == 0


def armed(file: KernelDeviceFile) -> int:
    """Have the kernel ask for the device by an eventfd, and return that."""
    event = os.eventfd(0)
    flags = IrqSetFlags.DATA_EVENTFD | IrqSetFlags.ACTION_TRIGGER
    data = event.to_bytes(4, "little")
    question = vfio_irq_set(sizeof(vfio_irq_set) + len(data), flags, PciIrq.REQ, 0, 1)
    fcntl.ioctl(file.fileno(), int(DeviceIoctl.VFIO_DEVICE_SET_IRQS), bytes(question) + data)
    return event


def test_a_holder_that_can_be_asked_is_and_the_unbind_ends_when_it_lets_go(edu: GroupDevice) -> None:
    before = len(said(0))
    event = armed(edu.file)
    try:
        writer = unbinding()
        assert select.select([event], [], [], 30)[0] == [event]
        assert os.eventfd_read(event) == 1
    finally:
        os.close(event)
    edu.close()
    begun = time.monotonic()
    assert writer.wait(30) == 0
    assert time.monotonic() - begun < 5, "the kernel asks every ten seconds, and this is not the next time"
    assert said(before)[0].endswith("Relaying device request to user (#0)")
