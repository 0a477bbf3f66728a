from __future__ import annotations

import pytest

from vfiotool.errors import DeviceNotFoundError, SelectorError
from vfiotool.host.selectors import select, select_meant
from vfiotool.host.usage.device_usage import read_usage
from vfiotool.testing import FakeHost

NIC, NVME, SHARED, VMD = "0000:00:12.0", "0000:00:13.0", "0000:01:00.0", "10000:e1:00.0"


@pytest.fixture
def machine(host: FakeHost) -> FakeHost:
    host.add_device(NIC, vendor=0x8086, device=0x10D3, class_code=0x020000, group=7)
    for address in (NVME, SHARED, VMD):
        host.add_device(address, vendor=0x1B36, device=0x0010, class_code=0x010802, group=100)
    nic, nvme, shared = (host.devices[address].folder for address in (NIC, NVME, SHARED))
    host.add_class("net", "eth0", f"{nic}/net/eth0", operstate="up")
    host.add_class("nvme", "nvme0", f"{nvme}/nvme/nvme0", state="live")
    host.add_class("block", "nvme0n1", f"{nvme}/nvme/nvme0/nvme0n1")
    host.add_class("block", "nvme0n1p1", f"{nvme}/nvme/nvme0/nvme0n1/nvme0n1p1")
    host.add_class("nvme", "nvme1", f"{shared}/nvme/nvme1", state="live")
    subsystem = "/sys/devices/virtual/nvme-subsystem/nvme-subsys1"
    host.add_class("block", "nvme1n1", f"{subsystem}/nvme1n1")
    host.link(f"{subsystem}/nvme1", f"{shared}/nvme/nvme1")
    host.add_class("net", "lo", "/sys/devices/virtual/net/lo")
    return host


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("0000:00:12.0", [NIC]),
        ("0:12.0", [NIC]),
        ("10000:E1:00.0", [VMD]),
        ("0000:00:*", [NIC, NVME]),
        ("*:E1:*", [VMD]),
        ("????:0[01]:00.0", [SHARED]),
        ("8086:10d3", [NIC]),
        ("1B36:0010", [NVME, SHARED, VMD]),
        ("group:7", [NIC]),
        ("group:100", [NVME, SHARED, VMD]),
        ("eth0", [NIC]),
        ("nvme0", [NVME]),
        ("nvme0n1", [NVME]),
        ("nvme0n1p1", [NVME]),
        ("nvme1n1", [SHARED]),
        ("ethernet controller", [NIC]),
        ("Ethernet Controller", [NIC]),
        ("/dev/nvme0n1p1", [NVME]),
        ("class:02", [NIC]),
        ("class:0108", [NVME, SHARED, VMD]),
        ("class:010802", [NVME, SHARED, VMD]),
    ],
)
def test_forms_of_a_selector(machine: FakeHost, selector: str, found: list[str]) -> None:
    assert select(machine.tree, [selector]) == found


@pytest.mark.parametrize(
    "selector",
    [
        *("", "a/b", "a\0b", "group:", "group:x", "group:-1", "/dev/", "/dev/disk/by-id/x", "/dev//dev/sda"),
        *("class:", "class:1", "class:00g0", "class:0x02", "class:01080200"),
        *("00:12", "00:12.9", "zz:00.0", "80_6:10d3", "0x86:10d3", "+086:10d3", "8086:10d3:1"),
    ],
)
def test_malformed_selectors(machine: FakeHost, selector: str) -> None:
    with pytest.raises(SelectorError) as error:
        select(machine.tree, [selector])
    assert error.value.hint


@pytest.mark.parametrize(
    "selector",
    [
        "0000:00:1f.0",
        "ffff:*",
        "8086:ffff",
        "group:1",
        "eth1",
        "lo",
        "..",
        ".",
        "no such class",
        "x" * 300,
        "group:" + "9" * 5000,
        "class:ff",
        "/dev/sda",
    ],
)
def test_selectors_that_match_nothing(machine: FakeHost, selector: str) -> None:
    with pytest.raises(DeviceNotFoundError, match="no PCI device matches"):
        select(machine.tree, [selector])


def test_a_class_skips_devices_without_a_class_number(machine: FakeHost) -> None:
    machine.put(f"{machine.devices[NIC].folder}/class", "nonsense")
    assert select(machine.tree, ["class:01"]) == [NVME, SHARED, VMD]
    with pytest.raises(DeviceNotFoundError):
        select(machine.tree, ["Ethernet controller"])


def test_each_device_once_in_the_order_of_the_selectors(machine: FakeHost) -> None:
    assert select(machine.tree, ["nvme0", "0000:*", "eth0"]) == [NVME, NIC, SHARED]


def test_several_matches_need_all(machine: FakeHost) -> None:
    with pytest.raises(SelectorError, match=f"matches 2 devices: {NIC}, {NVME}") as error:
        select_meant(machine.tree, [VMD, "0000:00:*"], several=False)
    assert "--all" in error.value.hint
    assert select_meant(machine.tree, [VMD, "0000:00:*"], several=True) == [VMD, NIC, NVME]
    assert select_meant(machine.tree, [VMD, NIC], several=False) == [VMD, NIC]


def test_names_of_class_devices_select_their_pci_parents(machine: FakeHost) -> None:
    found = read_usage(machine.tree, [NIC, NVME, SHARED, VMD], ())
    assert {address: [(one.kind, one.name) for one in usage] for address, usage in found.items()} == {
        NIC: [("net", "eth0")],
        NVME: [("block", "nvme0n1"), ("block", "nvme0n1p1"), ("nvme", "nvme0")],
        SHARED: [("block", "nvme1n1"), ("nvme", "nvme1")],
        VMD: [],
    }
