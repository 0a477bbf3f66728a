"""Input and machines that vfiotool cannot use give an error and a hint, and nothing is changed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.cli_result import Result
from tests.support.guest import (
    BRIDGE,
    BUS,
    E1000E,
    EDU,
    MACHINE,
    NVME,
    TESTDEV,
    done,
    kernel_complaints,
    listing,
    needs_iommu,
    output,
    rescan,
    vfiotool,
    vfiotool_as_nobody,
    write,
)

pytestmark = pytest.mark.needs_guest

FAILED, USAGE, REFUSED, UNSUPPORTED = 1, 2, 3, 4
_LISTINGS = 12
_HOTPLUG = """
import sys, time
while True:
    for file in sys.argv[1:]:
        with open(file, "w") as attribute:
            attribute.write("1")
        time.sleep(0.05)
"""


@pytest.fixture
def unchanged() -> Iterator[dict[str, dict[str, Any]]]:
    """Check that a test changes no device and records none."""
    before = listing()
    yield before
    assert listing() == before
    assert vfiotool("restore", "--all", "--json").document["changed"] == []


def assert_error(result: Result, status: int, *words: str) -> None:
    """Check that a failure is one ``error:`` and one ``hint:`` line, with these words in them."""
    assert (result.status, result.stdout) == (status, ""), result
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert [word for word in words if word not in result.stderr] == []


@pytest.mark.usefixtures("unchanged")
def test_names_that_cannot_be_understood_or_match_nothing_or_too_much() -> None:
    for verb in ("list", "show", "bind", "unbind", "restore"):
        assert_error(vfiotool(verb, "0000:00:1g.0"), USAGE, "'0000:00:1g.0' is not a PCI address")
        assert_error(vfiotool(verb, "00:20.0"), USAGE, "'00:20.0' is not a PCI address")
        assert_error(vfiotool(verb, "0000:7f:00.0"), FAILED, "no PCI device matches '0000:7f:00.0'")
        assert_error(vfiotool(verb, "8086:ffff"), FAILED, "no PCI device matches '8086:ffff'")
        assert_error(vfiotool(verb, "no-such-name"), FAILED, "no PCI device matches 'no-such-name'")
    for verb in ("show", "bind", "unbind", "restore"):
        assert_error(vfiotool(verb, "8086:100e"), USAGE, "matches 2 devices: 0000:03:01.0, 0000:03:02.0")
    assert_error(vfiotool("groups", "many"), USAGE, "'many' is not a group")
    assert_error(vfiotool("groups", "9999"), FAILED, "there is no IOMMU group 9999")
    assert_error(vfiotool("bind", EDU, "0000:7f:00.0"), FAILED, "no PCI device matches '0000:7f:00.0'")


@pytest.mark.usefixtures("unchanged")
def test_a_driver_that_does_not_exist() -> None:
    result = vfiotool("bind", "--driver", "no-such-driver", EDU, E1000E)
    assert_error(result, FAILED, "the module of driver no-such-driver cannot be loaded")


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("driver", "address"), [("e1000e", TESTDEV), ("nvme", EDU), ("e1000e", NVME)])
def test_a_driver_of_other_devices_is_refused_before_anything_changes(driver: str, address: str) -> None:
    complaints = kernel_complaints()
    result = vfiotool("bind", "--driver", driver, address)
    assert_error(result, REFUSED, address, f"{driver} does not serve this device", "--allow-ids")
    assert kernel_complaints() == complaints


@needs_iommu
@pytest.mark.usefixtures("unchanged")
def test_the_kernel_refuses_a_driver_of_other_devices() -> None:
    """Without an override the kernel compares ids. The first device has left its driver by then."""
    complaints = kernel_complaints()
    result = vfiotool("bind", "--driver", "e1000e", "--allow-ids", NVME, TESTDEV)
    assert_error(result, FAILED, NVME, "ENODEV", "e1000e does not serve this device")
    assert kernel_complaints() == complaints


@pytest.mark.usefixtures("unchanged")
def test_nothing_was_recorded() -> None:
    assert_error(vfiotool("restore", EDU), FAILED, f"nothing is recorded of {EDU}")


@needs_iommu
@pytest.mark.usefixtures("unchanged")
def test_a_bridge_is_refused_and_with_it_all() -> None:
    assert_error(vfiotool("bind", EDU, BRIDGE), REFUSED, BRIDGE, "it is a bridge")


@pytest.mark.skipif(MACHINE != "none", reason="this machine has an IOMMU")
@pytest.mark.usefixtures("unchanged")
def test_a_device_without_a_group() -> None:
    assert_error(vfiotool("bind", EDU), UNSUPPORTED, f"{EDU} is in no IOMMU group", "intel-iommu")
    groups = vfiotool("groups")
    assert (groups.status, groups.stdout) == (0, "")
    assert "no IOMMU groups" in groups.stderr


@needs_iommu
@pytest.mark.usefixtures("unchanged")
def test_a_user_without_rights() -> None:
    assert_error(vfiotool_as_nobody("bind", EDU), FAILED, "run it as root")


@needs_iommu
@pytest.mark.usefixtures("unchanged")
def test_a_kernel_without_vfio() -> None:
    """modprobe has no module to load: its configuration says so, in the guest's own copy of /etc."""
    file = "/etc/modprobe.d/vfiotool-test.conf"
    output("modprobe", "-r", "vfio-pci")
    os.makedirs(os.path.dirname(file), exist_ok=True)
    with open(file, "w", encoding="ascii") as config:
        config.write("install vfio-pci /bin/false\ninstall vfio_pci /bin/false\n")
    try:
        assert not os.path.exists(f"{BUS}/drivers/vfio-pci")
        assert_error(
            vfiotool("bind", E1000E, EDU), UNSUPPORTED, "the module of driver vfio-pci cannot be loaded"
        )
    finally:
        os.unlink(file)


@pytest.fixture
def fresh() -> None:
    """Have pci-testdev as it comes each time: in the first group that is free, and never used before."""
    write(f"{BUS}/devices/{TESTDEV}/remove", "1")
    rescan(TESTDEV)


@pytest.mark.full
@pytest.mark.usefixtures("fresh")
def test_devices_that_go_while_they_are_listed(unchanged: dict[str, dict[str, Any]]) -> None:
    """Each listing has a device that comes and goes as it is, or not at all; the others always."""
    files = [f"{BUS}/devices/{TESTDEV}/remove", f"{BUS}/rescan"]
    seen = set()
    with subprocess.Popen([sys.executable, "-c", _HOTPLUG, *files]) as hotplug:
        try:
            for _ in range(_LISTINGS):
                devices = listing()
                seen.add(TESTDEV in devices)
                assert devices | {TESTDEV: unchanged[TESTDEV]} == unchanged
            assert done("groups")["schema"] == "vfiotool.groups/1"
            assert vfiotool("show", TESTDEV, "--json").status in (0, FAILED)
        finally:
            hotplug.terminate()
    rescan(TESTDEV)
    assert seen == {True, False}
