"""What the paths of sysfs say: the functions and host bridges above a device."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiotool.host.checks.architecture import cpu_fields, detect_architecture
from vfiotool.host.pci_domains import (
    bridges_above,
    devices_by_maker,
    domain_makers,
    domains_text,
    functions,
    is_host_bridge,
)
from vfiotool.host.tree import Tree
from vfiotool.pci.address import is_full_address
from vfiotool.testing import FakeHost

VMD, PORT, DISK = "0000:00:0e.0", "10000:e0:06.0", "10000:e1:00.0"
BELOW_VMD = f"/sys/devices/pci0000:00/{VMD}/pci10000:e0/{PORT}/{DISK}"
CARD = "/sys/devices/pci0000:00/0000:00:1c.0/0000:02:00.0"
HYPER_V = "/sys/devices/LNXSYSTM:00/ACPI0004:00/VMBUS:00/47505500-0001/pci0001:00/0001:00:00.0"

PARTS = st.one_of(
    st.sampled_from(
        ["pci0000:00", "pci10000:e0", "pci", "pcixx:00", "0000:00:0e.0", "10000:e0:06.0", "usb1", ""]
    ),
    st.text(st.characters(blacklist_characters="/"), max_size=12),
)


@pytest.mark.parametrize(
    ("path", "found", "above", "makers"),
    [
        (BELOW_VMD, [VMD, PORT, DISK], (PORT,), [VMD]),
        (f"{BELOW_VMD}/nvme/nvme0", [VMD, PORT, DISK], (DISK, PORT), [VMD]),
        (CARD, ["0000:00:1c.0", "0000:02:00.0"], ("0000:00:1c.0",), []),
        (HYPER_V, ["0001:00:00.0"], (), []),
        ("/sys/bus/pci/devices/0000:00:02.0", ["0000:00:02.0"], (), []),
        ("/sys/devices/pci0000:00", [], (), []),
        ("", [], (), []),
    ],
)
def test_what_a_path_names(path: str, found: list[str], above: tuple[str, ...], makers: list[str]) -> None:
    assert (functions(path), bridges_above(path), domain_makers(path)) == (found, above, makers)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("pci0000:00", True),
        ("pci10000:e0", True),
        ("pci:00", False),
        ("pci0000:00:0", False),
        ("pci000g:00", False),
    ],
)
def test_what_a_host_bridge_is(name: str, is_one: bool) -> None:
    assert is_host_bridge(name) is is_one


@given(st.lists(PARTS, max_size=8))
def test_any_path_has_addresses_only_and_no_bridge_of_another_domain(parts: list[str]) -> None:
    path = "/".join(parts)
    known = functions(path)
    assert all(map(is_full_address, known))
    assert set(domain_makers(path)) <= set(known)
    assert set(bridges_above(path)) <= set(known)
    last = max((at for at, part in enumerate(parts) if is_host_bridge(part)), default=-1)
    assert set(bridges_above(path)) <= set(parts[last + 1 : -1]) or last == len(parts) - 1


def test_the_devices_of_a_domain(host: FakeHost) -> None:
    host.add_device(VMD, class_code=0x010400)
    host.add_device(PORT, class_code=0x060400, domain_of=VMD)
    host.add_device(DISK, bridge=PORT)
    host.add_device("0000:02:00.0")
    assert devices_by_maker(host.tree, [VMD, "0000:02:00.0", DISK, "0000:09:00.0"]) == {VMD: (PORT, DISK)}
    assert devices_by_maker(host.tree, [DISK, "0000:02:00.0"]) == {}
    assert domains_text([PORT, DISK]) == "PCI domain 10000"
    assert domains_text([PORT, "10001:00:00.0"]) == "PCI domains 10000, 10001"


@given(st.text(max_size=300), st.text(max_size=60), st.text(max_size=200))
def test_no_text_breaks_the_detection_of_the_architecture(cpuinfo: str, machine: str, version: str) -> None:
    class Texts(Tree):
        def find(self, path: str) -> str | None:
            return {"/proc/sys/kernel/arch": machine, "/proc/version": version}[path]

    detect_architecture(Texts(), cpu_fields(cpuinfo))
