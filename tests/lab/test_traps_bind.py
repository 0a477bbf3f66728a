"""The surprises of sysfs when a device gets a driver, on the running kernel.

Each is a reason for how vfiotool binds. That the boot VGA takes the console along needs a machine with one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator

import pytest

from tests.support.group_device import GroupDevice
from tests.support.guest import (
    BRIDGE,
    BUS,
    E1000E,
    EDU,
    MACHINE,
    NVME,
    OTHER_E1000E,
    OTHER_NVME,
    RELEASE,
    SUBSYSTEM_NVME,
    TESTDEV,
    VFIO_BIND,
    as_before,
    await_,
    driver,
    group,
    listing,
    needs_iommu,
    output,
    override,
    path,
    read,
    refused,
    remove,
    rescan,
    settle,
    to_vfio,
    write,
)

pytestmark = [pytest.mark.needs_guest, pytest.mark.full]

PROBE = f"{BUS}/drivers_probe"


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
@pytest.mark.skipif(MACHINE != "none", reason="this machine has an IOMMU")
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


# Trap 11: devices sleep, and nodes come late.

IDLE_D3 = "/sys/module/vfio_pci/parameters/disable_idle_d3"
PM_CAPABILITY, D_STATE = 0x01, 0x03


def power(address: str) -> int:
    """Return the D state that the device itself tells, in the power management capability's PMCSR."""
    with open(path(address, "config"), "rb") as file:
        config = file.read(256)
    position = config[0x34]
    while config[position] != PM_CAPABILITY:
        position = config[position + 1]
    return config[position + 4] & D_STATE


@needs_iommu
@pytest.mark.usefixtures("vfio_pci")
def test_a_device_on_vfio_pci_sleeps_until_it_is_opened() -> None:
    """On 5.10 it sleeps when the bind returns, later a moment after."""
    number = group(E1000E)
    assert number is not None
    with as_before(E1000E):
        assert power(E1000E) == 0
        to_vfio(E1000E)
        assert RELEASE > (5, 10) or power(E1000E) == 3
        await_("it sleeps", lambda: power(E1000E) == 3)
        assert read(path(E1000E, "power_state")) == "D3hot"
        with GroupDevice(E1000E, number):
            assert (power(E1000E), read(path(E1000E, "power_state"))) == (0, "D0")
        await_("it sleeps again", lambda: power(E1000E) == 3)
        write(path(E1000E, "driver/unbind"), E1000E)
        assert power(E1000E) == 0


def stays_awake(address: str) -> bool:
    """Say whether a device on vfio-pci is awake still when udevd has long seen it bound."""
    with as_before(address):
        to_vfio(address)
        settle()
        return power(address) == 0


@pytest.fixture
def awake_by_parameter() -> Iterator[None]:
    """vfio-pci loaded with ``disable_idle_d3``, and without it after."""
    output("modprobe", "-r", "vfio-pci")
    output("modprobe", "vfio-pci", "disable_idle_d3=1")
    yield
    output("modprobe", "-r", "vfio-pci")
    output("modprobe", "vfio-pci")


@needs_iommu
@pytest.mark.usefixtures("vfio_pci", "awake_by_parameter")
def test_disable_idle_d3_keeps_devices_awake() -> None:
    assert stays_awake(E1000E)


@needs_iommu
@pytest.mark.usefixtures("vfio_pci")
def test_disable_idle_d3_written_later_is_not_heeded_by_all_kernels() -> None:
    """6.1 and 6.12 copy it when the module is loaded; 5.10 and 7 look at each bind."""
    write(IDLE_D3, "Y")
    try:
        assert stays_awake(E1000E) == (RELEASE <= (5, 10) or RELEASE >= (7, 0))
    finally:
        write(IDLE_D3, "N")


def disks() -> set[str]:
    return {name for name in os.listdir("/dev") if re.fullmatch(r"nvme\d+n\d+", name)}


def test_a_bind_can_return_before_the_disk_is_there() -> None:
    """From 6.12 on nvme waits for its namespaces, before it does not."""
    before = disks()
    write(path(NVME, "driver/unbind"), NVME)
    await_("its disk is gone", lambda: len(disks()) == len(before) - 1)
    write(f"{BUS}/drivers/nvme/bind", NVME)
    at_once = disks()
    await_("its disk is back", lambda: disks() == before)
    assert at_once == before or RELEASE < (6, 12)
    settle()


def test_a_bind_returns_before_the_interface_has_its_name() -> None:
    """udevd renames it; until then it has the kernel's."""
    (before,) = os.listdir(path(E1000E, "net"))
    write(path(E1000E, "driver/unbind"), E1000E)
    write(f"{BUS}/drivers/e1000e/bind", E1000E)
    await_("its interface has its name", lambda: os.listdir(path(E1000E, "net")) == [before])
    assert not re.fullmatch(r"eth\d+", before)
    settle()
