"""Writes that do not return: who holds the device, where in the kernel they wait, and for how long."""

from __future__ import annotations

import os

import pytest

from tests.unit.conftest import Run
from vfiotool.host.holders import DEVICE_DESCRIPTOR, find_device_holders
from vfiotool.host.pending_unbinds import pending_dir, waiting_functions, waiting_seconds
from vfiotool.testing import FakeHost

EDU, OTHER, NIC, UIO = "0000:00:10.0", "0000:00:11.0", "0000:00:12.0", "0000:00:13.0"
SND_STACK = """\
[<0>] wait_for_completion+0xab/0x140
[<0>] snd_card_free+0x6e/0xa0 [snd]
[<0>] azx_remove+0x25/0x30 [snd_hda_intel]
[<0>] pci_device_remove+0x3e/0xb0
[<0>] device_release_driver_internal+0x19e/0x200
[<0>] unbind_store+0xa1/0xb0
"""
WRITER = 100_000  # the first process that waits on a FakeHost


@pytest.fixture(autouse=True)
def machine(host: FakeHost) -> FakeHost:
    for driver in ("vfio-pci", "e1000e", "uio_pci_generic"):
        host.add_driver(driver)
    host.add_device(EDU, driver="vfio-pci", group=5)
    host.add_device(OTHER, driver="vfio-pci", group=6)
    host.add_device(NIC, vendor=0x8086, device=0x10D3, driver="e1000e", group=7)
    host.add_device(UIO, driver="uio_pci_generic", group=8)
    host.add_class("uio", "uio0", f"{host.devices[UIO].folder}/uio/uio0")
    return host


def describe_writer(host: FakeHost, stack: str, *, started: int = 0, uptime: str = "") -> None:
    """Give the process that waits a stack, and the machine an uptime."""
    folder = f"/proc/{WRITER}"
    stat = f"{WRITER} (vfiotool) D 1{' 0' * 17} {started} 0"
    for path in (folder, f"{folder}/task/{WRITER}"):
        host.put(f"{path}/stat", stat)
    host.put(f"{folder}/task/{WRITER}/status", "Name:\tvfiotool\nState:\tD (disk sleep)\n")
    host.put(f"{folder}/task/{WRITER}/wchan", "wait_for_completion")
    host.put(f"{folder}/task/{WRITER}/stack", stack)
    host.put(f"{pending_dir(host.state_dir)}/{NIC}", f"{WRITER} {started}")
    if uptime:
        host.put("/proc/uptime", uptime)


# Where it waits, and for how long


@pytest.mark.parametrize(
    ("stack", "functions"),
    [
        (SND_STACK, ("wait_for_completion", "snd_card_free", "azx_remove")),
        ("", ("wait_for_completion",)),
        ("[<0>] pci_device_remove+0x3e/0xb0\n", ()),
        ("[<0>] \x1b[2J+0x1/0x2\n", ()),
        ("not a stack", ("wait_for_completion",)),
        (
            "".join(f"[<0>] f{at}.isra.0+0x1/0x2 [m]\n" for at in range(30)),
            tuple(f"f{at}.isra.0" for at in range(6)),
        ),
    ],
    ids=["a driver's", "not readable", "none of a driver", "escapes", "garbage", "deep"],
)
def test_the_functions_are_those_of_the_driver(
    host: FakeHost, state_dir: str, stack: str, functions: tuple[str, ...]
) -> None:
    describe_writer(host, stack)
    assert waiting_functions(host.tree, state_dir, NIC) == functions


def test_without_a_pending_write_there_is_nothing_to_say(host: FakeHost, state_dir: str) -> None:
    assert waiting_functions(host.tree, state_dir, NIC) == ()
    assert waiting_seconds(host.tree, state_dir, NIC) is None


@pytest.mark.parametrize(
    ("uptime", "seconds"),
    [
        ("200.50 13.37", 150.5),
        ("10.00 0.00", 0.0),
        ("", None),
        ("soon", None),
        ("1.2.3 4", None),
        ("-5 1", None),
    ],
)
def test_the_time_counts_from_the_start_of_the_writer(
    host: FakeHost, state_dir: str, uptime: str, seconds: float | None
) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    describe_writer(host, SND_STACK, started=50 * ticks, uptime=uptime)
    assert waiting_seconds(host.tree, state_dir, NIC) == seconds


# Who holds it


def test_a_descriptor_is_of_the_device_that_the_kernel_names(host: FakeHost) -> None:
    for pid, name in ((70, EDU), (71, OTHER), (72, None)):
        host.add_process(pid, "qemu", {4: DEVICE_DESCRIPTOR})
        if name is not None:
            known = f"flags:\t02000002\nvfio-device-syspath: /sys/devices/pci0000:00/{name}"
            host.put(f"/proc/{pid}/fdinfo/4", known)
    certain, possible = find_device_holders(host.tree, [EDU], ["/dev/vfio/5"])
    assert [holder.pid for holder in certain] == [70]
    assert [holder.pid for holder in possible] == [72]


@pytest.mark.parametrize("verb", ["unbind", "peek"])
def test_another_vms_device_is_not_said_to_be_this_one(vfiotool: Run, host: FakeHost, verb: str) -> None:
    """Before 6.18 nothing names the device behind a descriptor: it may be of this device, or of another."""
    host.block(EDU, pid=77, comm="vm1")
    host.remove("/proc/77/fd/3")  # the group is closed, its device is open
    host.add_process(78, "vm2", {4: DEVICE_DESCRIPTOR})
    result = vfiotool("unbind", EDU, "--timeout", "1", "--allow-held")
    if verb == "peek":
        result = vfiotool("peek", EDU, "bar0", "0")
    assert result.status == 5
    assert "held by" not in result.stderr
    assert "a VFIO device, which may be this one, is open in pid 77 (vm1), fd 4" in result.stderr
    assert "pid 78 (vm2), fd 4" in result.stderr
    assert "end the process that holds it" in result.stderr


def test_a_host_driver_that_waits_has_who_had_its_nodes_open(vfiotool: Run, host: FakeHost) -> None:
    host.block(UIO, pid=77, comm="vm1")
    host.add_process(80, "dpdk", {5: "/dev/uio0"})
    result = vfiotool("unbind", UIO, "--timeout", "1", "--allow-held", "--allow-opened")
    assert result.status == 5
    assert "uio_pci_generic has not finished its removal; uio0 was open in pid 80 (dpdk) when it began" in (
        result.stderr
    )
    assert "hint: end what has the device open, then run 'vfiotool recover'" in result.stderr
    assert "vm1" not in result.stderr


def test_a_later_verb_says_how_long_and_where_the_write_waits(vfiotool: Run, host: FakeHost) -> None:
    host.block(NIC, pid=77, comm="vm1")
    first = vfiotool("unbind", NIC, "--timeout", "1", "--allow-held")
    assert "has not finished its removal" in first.stderr
    host.end_process(77)
    describe_writer(host, SND_STACK, started=0, uptime="300.00 1.00")
    for verb in ("bind", "restore", "recover"):
        result = vfiotool(verb, *([] if verb == "recover" else [NIC]))
        assert result.status == 5
        assert (
            f"error: a change of {NIC} is pending: the kernel has not finished it; the write waits for 5 min "
            "in wait_for_completion(), called by snd_card_free(), azx_remove()"
        ) in result.stderr
        assert "hint: stop what uses the device, or wait, then run 'vfiotool recover'" in result.stderr
