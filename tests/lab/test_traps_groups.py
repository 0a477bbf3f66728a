"""Which groups VFIO takes, and what becomes of their numbers and nodes, on the kernel that runs."""

from __future__ import annotations

import errno
import os
import pwd

import pytest

from tests.support.guest import (
    BUS,
    E1000_PAIR,
    EDU,
    GROUPS,
    NVME,
    OTHER_E1000E,
    SUBSYSTEM_NVME,
    VFIO_BIND,
    as_before,
    await_,
    done,
    driver,
    group,
    listing,
    needs_iommu,
    output,
    override,
    path,
    refused,
    remove,
    rescan,
    settle,
    to_vfio,
    vfiotool,
    write,
)
from vfiotool.host.era import detect_era
from vfiotool.host.tree import Tree
from vfiotool.vfio.container import Container
from vfiotool.vfio.group import Group
from vfiotool.vfio.uapi import GroupFlags

pytestmark = [pytest.mark.needs_guest, pytest.mark.full, needs_iommu, pytest.mark.usefixtures("vfio_pci")]


# Trap 7: who makes a group not viable.


def viable(number: int) -> bool:
    """Return the kernel's answer about a group, which vfiotool must repeat."""
    with Group(number) as opened:
        is_viable = GroupFlags.VIABLE in opened.status()
    (described,) = done("groups", str(number))["groups"]
    assert described["viable"] == is_viable
    assert bool(described["blockers"]) != is_viable
    return is_viable


def test_a_host_driver_beside_blocks_the_group_and_no_driver_or_a_stub_does_not() -> None:
    first, second = E1000_PAIR
    number = group(first)
    assert number is not None
    output("modprobe", "pci-stub")
    with as_before(*E1000_PAIR):
        to_vfio(first)
        assert not viable(number)
        write(path(second, "driver/unbind"), second)
        assert viable(number)
        write(override(second), "pci-stub")
        write(f"{BUS}/drivers/pci-stub/bind", second)
        assert viable(number)


def test_a_port_beside_does_not_block_the_group() -> None:
    number = group(OTHER_E1000E)
    assert number is not None
    drivers = {driver(address) for address in os.listdir(f"{GROUPS}/{number}/devices")}
    assert drivers == {"pcieport", "e1000e"}
    with as_before(OTHER_E1000E):
        to_vfio(OTHER_E1000E)
        assert viable(number)


def test_a_live_group_refuses_a_host_driver() -> None:
    if not detect_era(Tree()).has_dma_owner:
        pytest.skip("up to 5.18 this is a BUG, and the machine is lost")
    first, second = E1000_PAIR
    number = group(first)
    assert number is not None
    with as_before(*E1000_PAIR):
        write(path(second, "driver/unbind"), second)
        to_vfio(first)
        with Container() as container, Group(number) as opened:
            opened.set_container(container)
            with refused(errno.EBUSY):
                write(f"{BUS}/drivers/e1000/bind", second)
        assert driver(second) is None


# Traps 10 and 13: the numbers of groups, and who owns their nodes.


def test_group_numbers_go_to_other_devices_after_a_rescan() -> None:
    """The kernel gives the lowest number that is free: here two devices swap theirs."""
    edu, nvme = group(EDU), group(SUBSYSTEM_NVME)
    try:
        remove(EDU)
        remove(SUBSYSTEM_NVME)
        write("/sys/class/pci_bus/0000:01/rescan", "1")  # the NVMe's bus first
        rescan(EDU, SUBSYSTEM_NVME)
        assert (group(EDU), group(SUBSYSTEM_NVME)) == (nvme, edu)
        assert listing()[EDU]["iommu_group"] == nvme
    finally:
        remove(EDU)
        remove(SUBSYSTEM_NVME)
        rescan(EDU, SUBSYSTEM_NVME)
        await_("the NVMe has its driver", lambda: driver(SUBSYSTEM_NVME) == "nvme")


def test_group_numbers_can_have_gaps() -> None:
    """Domains longer than four digits need hardware that QEMU lacks (VMD); the unit tests have them."""
    number = group(EDU)
    before = [one["id"] for one in done("groups")["groups"]]
    remove(EDU)
    try:
        after = [one["id"] for one in done("groups")["groups"]]
        missing = vfiotool("groups", str(number))
    finally:
        rescan(EDU)
    assert after == [one for one in before if one != number]
    assert max(after) >= len(after)
    assert missing.status == 1
    assert missing.stderr.startswith(f"error: there is no IOMMU group {number}\nhint: ")
    assert group(EDU) == number


def test_a_node_made_anew_is_roots_alone() -> None:
    node, nobody = f"/dev/vfio/{group(NVME)}", pwd.getpwnam("nobody")
    with as_before(NVME):
        to_vfio(NVME)
        settle()
        os.chown(node, nobody.pw_uid, nobody.pw_gid)
        write(path(NVME, "driver/unbind"), NVME)
        write(VFIO_BIND, NVME)
        settle()
        status = os.stat(node)
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (0, 0, 0o600)


def test_who_has_but_a_nodes_path_does_not_hold_the_group() -> None:
    """As udevd has, for a moment, while it gives a new node its owner."""
    number = group(EDU)
    assert number is not None
    with as_before(EDU):
        to_vfio(EDU)
        settle()
        fd = os.open(f"/dev/vfio/{number}", os.O_PATH)
        try:
            (described,) = done("groups", str(number))["groups"]
            assert described["holders"] == []
            with Group(number):
                (described,) = done("groups", str(number))["groups"]
                assert [one["pid"] for one in described["holders"]] == [os.getpid()]
            write(path(EDU, "driver/unbind"), EDU)
        finally:
            os.close(fd)
