"""What sysfs does that one would not expect, on the kernel that runs.

Each is a reason for how vfiotool binds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
from collections.abc import Iterator

import pytest

from tests.lab.support import (
    BRIDGE,
    BUS,
    E1000_PAIR,
    E1000E,
    EDU,
    GROUPS,
    NVME,
    OTHER_E1000E,
    OTHER_NVME,
    RELEASE,
    SUBSYSTEM_NVME,
    TESTDEV,
    as_before,
    await_,
    done,
    driver,
    group,
    listing,
    needs_iommu,
    output,
    path,
    read,
    remove,
    rescan,
    settle,
    vfiotool,
    write,
)
from vfiotool.host.era import detect_era
from vfiotool.host.tree import Tree
from vfiotool.vfio.container import Container
from vfiotool.vfio.group import Group
from vfiotool.vfio.uapi import GroupFlags

pytestmark = pytest.mark.needs_guest

# The bind file of 5.10 has one answer for all that can go wrong.
TELLS_WHY = RELEASE > (5, 10)
VFIO_BIND = f"{BUS}/drivers/vfio-pci/bind"
PROBE = f"{BUS}/drivers_probe"


def override(address: str) -> str:
    return path(address, "driver_override")


@pytest.fixture
def vfio_pci() -> None:
    output("modprobe", "vfio-pci")


# Trap 1: the override's odd values.


@pytest.fixture
def overridden() -> Iterator[str]:
    """The override's path, of a device that has no driver; set before, cleared after."""
    write(override(TESTDEV), "pci-stub")
    yield override(TESTDEV)
    write(override(TESTDEV), "\n")


def test_an_empty_write_does_not_clear_the_override(overridden: str) -> None:
    write(overridden, "")
    assert read(overridden) == "pci-stub"


@pytest.mark.parametrize("nothing", ["\n", "\0"])
def test_a_newline_or_a_zero_clears_the_override(overridden: str, nothing: str) -> None:
    write(overridden, nothing)
    assert read(overridden) == "(null)"
    assert listing()[TESTDEV]["driver_override"] is None


def test_a_space_is_the_name_of_a_driver(overridden: str) -> None:
    write(overridden, " ")
    assert read(overridden) == " "
    assert listing()[TESTDEV]["driver_override"] == " "


# Trap 2: how long an override lives.


def test_an_override_outlives_the_drivers_module_but_not_the_device() -> None:
    write(override(E1000E), "no-such-driver")
    output("modprobe", "-r", "e1000e")
    output("modprobe", "e1000e")
    await_("the other e1000e has its driver", lambda: driver(OTHER_E1000E) == "e1000e")
    settle()
    assert (read(override(E1000E)), driver(E1000E)) == ("no-such-driver", None)
    remove(E1000E)
    rescan(E1000E)
    assert read(override(E1000E)) == "(null)"
    await_("it has its driver again", lambda: driver(E1000E) == "e1000e")


# Trap 3: drivers_probe lies, bind does not.


@contextlib.contextmanager
def refused(code: int) -> Iterator[None]:
    """The bind in the block fails with this errno, on kernels that tell one from another."""
    with pytest.raises(OSError, match=rf"Errno {code if TELLS_WHY else errno.ENODEV}\]"):
        yield


def test_a_probe_for_an_unknown_driver_succeeds_without_a_driver() -> None:
    with as_before(TESTDEV):
        write(override(TESTDEV), "no-such-driver")
        write(PROBE, TESTDEV)
        assert driver(TESTDEV) is None


@pytest.mark.usefixtures("vfio_pci")
def test_a_probe_that_fails_succeeds_without_a_driver() -> None:
    """vfio-pci refuses bridges."""
    with as_before(BRIDGE):
        write(override(BRIDGE), "vfio-pci")
        write(PROBE, BRIDGE)
        assert driver(BRIDGE) is None


@pytest.mark.usefixtures("vfio_pci")
def test_the_bind_file_tells_that_a_bridge_is_refused() -> None:
    with as_before(BRIDGE):
        write(override(BRIDGE), "vfio-pci")
        with refused(errno.EINVAL):
            write(VFIO_BIND, BRIDGE)


@pytest.mark.usefixtures("vfio_pci")
@pytest.mark.skipif("os.path.exists('/sys/kernel/iommu_groups/0')", reason="this machine has an IOMMU")
def test_the_bind_file_tells_that_there_is_no_iommu() -> None:
    with as_before(EDU):
        write(override(EDU), "vfio-pci")
        with refused(errno.EINVAL):
            write(VFIO_BIND, EDU)
        assert driver(EDU) is None


def test_the_bind_file_tells_that_the_driver_does_not_match() -> None:
    with refused(errno.ENODEV):
        write(f"{BUS}/drivers/e1000e/bind", EDU)


def test_the_bind_file_tells_that_the_device_is_bound() -> None:
    with refused(errno.EBUSY):
        write(f"{BUS}/drivers/e1000e/bind", E1000E)
    assert driver(E1000E) == "e1000e"


# Trap 7: who makes a group not viable.


def viable(number: int) -> bool:
    """What the kernel says of a group; vfiotool must say the same."""
    with Group(number) as opened:
        is_viable = GroupFlags.VIABLE in opened.status()
    (described,) = done("groups", str(number))["groups"]
    assert described["viable"] == is_viable
    assert bool(described["blockers"]) != is_viable
    return is_viable


def to_vfio(address: str) -> None:
    write(override(address), "vfio-pci")
    if driver(address) is not None:
        write(path(address, "driver/unbind"), address)
    write(VFIO_BIND, address)


@needs_iommu
@pytest.mark.usefixtures("vfio_pci")
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


@needs_iommu
@pytest.mark.usefixtures("vfio_pci")
def test_a_port_beside_does_not_block_the_group() -> None:
    number = group(OTHER_E1000E)
    assert number is not None
    drivers = {driver(address) for address in os.listdir(f"{GROUPS}/{number}/devices")}
    assert drivers == {"pcieport", "e1000e"}
    with as_before(OTHER_E1000E):
        to_vfio(OTHER_E1000E)
        assert viable(number)


@needs_iommu
@pytest.mark.usefixtures("vfio_pci")
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


# Trap 8: new_id takes all, remove_id gives nothing back.


@needs_iommu
@pytest.mark.usefixtures("vfio_pci")
def test_new_id_grabs_all_unbound_devices_and_remove_id_leaves_them() -> None:
    """On 5.10 an id can be added any number of times."""
    again = pytest.raises(FileExistsError) if RELEASE > (5, 10) else contextlib.nullcontext()
    free, ids = (NVME, SUBSYSTEM_NVME), "1b36 0010"
    with as_before(*free):
        for address in free:
            write(path(address, "driver/unbind"), address)
        write(f"{BUS}/drivers/vfio-pci/new_id", ids)
        try:
            with again:
                write(f"{BUS}/drivers/vfio-pci/new_id", ids)
            assert driver(OTHER_NVME) == "nvme"
        finally:
            with contextlib.suppress(OSError):
                while True:
                    write(f"{BUS}/drivers/vfio-pci/remove_id", ids)
        assert [driver(address) for address in free] == ["vfio-pci", "vfio-pci"]


# Traps 10 and 13: the numbers of groups, and who owns their nodes.


@needs_iommu
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


@needs_iommu
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


@needs_iommu
@pytest.mark.usefixtures("vfio_pci")
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
