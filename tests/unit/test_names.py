from __future__ import annotations

import os
import re
import subprocess

import pytest

from vfiotool.pci.names import LISTS, PciNames
from vfiotool.testing import config_space

TEXT = b"""#\tA list of five lines
0e11  Compaq
\t00c0  Not ours
8086  Intel Corporation
\t10d3  82574L Gigabit Network Connection
\t\t8086 a01f  A subsystem
\t1234  Caf\xe9
\t8086  Named like its vendor
c0c0  A vendor that looks like a class

C 00  Unclassified device
C 02  Network controller
\t00  Ethernet controller
\t\t01  An interface
C 03  Display controller
"""


@pytest.fixture
def names() -> PciNames:
    return PciNames(TEXT)


def test_listed_names_are_found(names: PciNames) -> None:
    assert names.vendor(0x8086) == "Intel Corporation"
    assert names.device(0x8086, 0x10D3) == "82574L Gigabit Network Connection"
    assert names.device(0x8086, 0x8086) == "Named like its vendor"
    assert names.vendor(0xC0C0) == "A vendor that looks like a class"
    assert names.pci_class(0x020001) == "Ethernet controller"


def test_subsystems_and_interfaces_are_searched_below_their_entry(names: PciNames) -> None:
    nic = (0x8086, 0x10D3)
    assert names.subsystem(nic, (0x8086, 0xA01F)) == "A subsystem"
    assert names.subsystem((0x8086, 0x1234), (0x8086, 0xA01F)) == "Device a01f"
    assert names.subsystem(nic, nic) == "82574L Gigabit Network Connection"
    assert names.subsystem((0x1AF4, 0x1000), (0x1AF4, 0x0001)) == "Device 0001"
    assert names.interface(0x020001) == "An interface"
    assert names.interface(0x020000) is None
    assert names.interface(0x030001) is None
    assert names.interface(0xFF0000) is None


def test_unlisted_names_are_numbers(names: PciNames) -> None:
    assert names.vendor(0x1AF4) == "Vendor 1af4"
    assert names.device(0x8086, 0xA01F) == "Device a01f"
    assert names.device(0x1AF4, 0x10D3) == "Device 10d3"
    assert names.pci_class(0x028000) == "Network controller"
    assert names.pci_class(0xFF0000) == "Class ff00"


def test_a_device_is_searched_only_below_its_vendor(names: PciNames) -> None:
    assert names.device(0x0E11, 0x10D3) == "Device 10d3"
    assert names.device(0xC0C0, 0x00) == "Device 0000"


def test_a_name_that_is_not_utf8(names: PciNames) -> None:
    assert names.device(0x8086, 0x1234) == "Caf\N{REPLACEMENT CHARACTER}"


def test_an_empty_list() -> None:
    names = PciNames(b"")
    assert (names.vendor(1), names.device(1, 2), names.pci_class(0x020000)) == (
        "Vendor 0001",
        "Device 0002",
        "Class 0200",
    )


@pytest.mark.skipif(not any(map(os.path.exists, LISTS)), reason="this machine has no pci.ids")
@pytest.mark.parametrize(
    ("vendor", "device", "code"), [(0x8086, 0x10D3, 0x020000), (0x1B36, 0x0010, 0x010802)]
)
def test_names_equal_those_of_lspci(vendor: int, device: int, code: int) -> None:
    """lspci reads a dump, so this machine need not have the device."""
    rows = config_space(vendor=vendor, device=device, class_code=code)[:64]
    lines = [f"{at:02x}: {rows[at : at + 16].hex(' ')}" for at in range(0, 64, 16)]
    dump = "\n".join(["00:00.0 a device", *lines, ""])
    command = ["lspci", "-vmm", "-F", "/dev/stdin"]
    shown = subprocess.run(command, input=dump, capture_output=True, text=True, check=True).stdout
    fields = dict(re.findall(r"^(\w+):\t(.*)$", shown, re.MULTILINE))
    names = PciNames.of_this_machine()
    assert (names.vendor(vendor), names.device(vendor, device)) == (fields["Vendor"], fields["Device"])
    assert names.pci_class(code) == fields["Class"]
