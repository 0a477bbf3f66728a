"""What show adds to a listing: the place of a device, its modules, interrupts, BARs and link."""

from __future__ import annotations

import struct

import pytest

from vfiotool.host.attributes import addresses
from vfiotool.host.bars import Bar, read_bars
from vfiotool.host.device_details import Details, read_details
from vfiotool.host.devices import find_device, read_devices
from vfiotool.host.link import downgraded, link_of
from vfiotool.host.placement import Parent
from vfiotool.pci.acs import PortType
from vfiotool.pci.names import PciNames
from vfiotool.render.formats import ranges_text, size_text
from vfiotool.testing import FakeHost, config_space

PORT, NIC = "0000:00:1c.0", "0000:02:00.0"
NAMES = PciNames(
    b"8086  Intel\n\t10d3  82574L\n\t\t8086 a01f  A card\n\nC 00  Old\nC 02  Network\n\t00  Ethernet\n"
)
SPEEDS = {"current_link_speed": "2.5 GT/s PCIe", "max_link_speed": "8.0 GT/s PCIe"}
WIDTHS = {"current_link_width": "4", "max_link_width": "4"}


def show(host: FakeHost, address: str) -> Details:
    devices = read_devices(host.tree, addresses(host.tree), NAMES)
    return read_details(host.tree, find_device(devices, address), devices)


def of_kind(kind: PortType) -> bytes:
    """Return the configuration space of a PCI Express function."""
    return config_space(capabilities=[(0x10, 0x40, struct.pack("<H", 2 | kind << 4) + bytes(58))])


def test_the_place_of_a_device(host: FakeHost) -> None:
    host.add_device(PORT, vendor=0x8086, device=0x10D3, class_code=0x060400)
    host.add_device(NIC, bridge=PORT, label="Onboard LAN", index="3", acpi_index="7")
    host.put("/sys/bus/pci/slots/4-1/address", "0000:02:00")
    host.put("/sys/bus/pci/slots/5/address", "0000:00:1c")
    place = show(host, NIC).placement
    assert place.parent == Parent(PORT, "Class 0604", "Intel", "82574L")
    assert (place.slot, place.label, place.firmware_index, place.acpi_index) == ("4-1", "Onboard LAN", 3, 7)
    above = show(host, PORT).placement
    assert (above.parent, above.slot, above.label, above.unavailable) == (None, "5", None, ())


def test_a_slot_for_any_device_of_a_bus(host: FakeHost) -> None:
    """drivers/pci/slot.c writes no device number of a slot whose number is not known."""
    host.add_device(NIC)
    host.put("/sys/bus/pci/slots/U78/address", "0000:02")
    assert show(host, NIC).placement.slot == "U78"


def test_the_interrupts_of_a_device(host: FakeHost) -> None:
    host.add_device(NIC, irq="16")
    for number in (24, 25, 26, 40):
        host.put(f"{host.devices[NIC].folder}/msi_irqs/{number}", "msix")
    host.add_device(PORT, irq="0")
    details = show(host, NIC)
    assert (details.irq, details.msi_irqs) == (16, (24, 25, 26, 40))
    assert ranges_text(details.msi_irqs or ()) == "24-26 40"
    details = show(host, PORT)
    assert (details.irq, details.msi_irqs) == (None, ())
    assert {"irq", "msi_irqs"}.isdisjoint(details.unavailable)


def test_modules_that_could_drive_a_device(host: FakeHost) -> None:
    """By modules.alias and modules.builtin.modinfo; modprobe --resolve-alias names the same."""
    host.add_device(NIC, vendor=0x8086, device=0x10D3, class_code=0x020000)
    assert show(host, NIC).modules is None
    assert "modules" in show(host, NIC).unavailable
    host.put(
        f"/lib/modules/{host.kernel}/modules.alias",
        "alias pci:v00008086d000010D3sv*sd*bc*sc*i* e1000e\n"
        "alias pci:v00008086d000010D4sv*sd*bc*sc*i* other\n"
        "alias vfio_pci:v00008086d000010D3sv*sd*bc*sc*i* e1000e-vfio-pci\n"
        "alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci\n"
        "alias usb:v8086p10D3d*dc*dsc*dp*ic*isc*ip*in* usb_one\n",
    )
    host.put(
        f"/lib/modules/{host.kernel}/modules.builtin.modinfo", b"net_class.alias=pci:v*d*sv*sd*bc02sc*i*\0"
    )
    assert show(host, NIC).modules == ("e1000e", "e1000e_vfio_pci", "net_class")


RESOURCE = """0x00000000f7000000 0x00000000f7ffffff 0x0000000000040200
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x000000000000e000 0x000000000000e07f 0x0000000000040101
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000000000000 0x0000000001ffffff 0x000000002014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x00000000f6000000 0x00000000f607ffff 0x0000000000046200
"""


def registers(command: int, *, rom: int = 0xF6000001, fourth: int = 0) -> bytes:
    raw = bytearray(config_space())
    struct.pack_into("<H", raw, 4, command)
    struct.pack_into("<IIIIQ", raw, 0x10, 0xF7000000, 0, 0xE001, 0, fourth | 0xC)
    struct.pack_into("<I", raw, 0x30, rom)
    return bytes(raw)


@pytest.mark.parametrize(
    ("raw", "disabled"),
    [
        (registers(3), {0: False, 2: False, 4: True, 6: False}),
        (registers(3, fourth=0x38_0000_0000), {0: False, 2: False, 4: False, 6: False}),
        (registers(2, rom=0xF6000000), {0: False, 2: True, 4: True, 6: True}),
        (registers(0), {0: True, 2: True, 4: True, 6: True}),
        (registers(3)[:64], {0: False, 2: False, 4: None, 6: False}),
        (b"", {0: None, 2: None, 4: None, 6: None}),
    ],
)
def test_a_bar_is_disabled_by_the_command_register_or_without_an_address(
    host: FakeHost, raw: bytes, disabled: dict[int, bool | None]
) -> None:
    host.add_device(NIC, resource=RESOURCE.rstrip())
    bars = read_bars(host.tree, NIC, raw)
    assert {bar.index: bar.disabled for bar in bars} == disabled
    assert bars[2] == Bar(4, 0, 32 << 20, "memory64", True, disabled[4])


def test_a_dead_device_says_nothing_of_its_bars(host: FakeHost) -> None:
    host.add_device(NIC, resource=RESOURCE.rstrip(), config=b"\xff" * 4096)
    assert {bar.disabled for bar in show(host, NIC).bars} == {None}


@pytest.mark.parametrize(
    ("size", "text"),
    [(0x80, "[size=128]"), (0x1000, "[size=4K]"), (32 << 20, "[size=32M]"), (1 << 40, "[size=1T]"),
     (6 << 30, "[size=6G]"), (0x1800, "[size=6K]"), (1 << 60, "[size=1048576T]"), (1025, "[size=1025]")],
)  # fmt: skip
def test_sizes_are_those_of_lspci(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("link", "config", "expected"),
    [
        (SPEEDS | WIDTHS, of_kind(PortType.ENDPOINT), ("speed",)),
        (SPEEDS | WIDTHS | {"current_link_width": "1"}, of_kind(PortType.ENDPOINT), ("speed", "width")),
        (SPEEDS | WIDTHS, of_kind(PortType.ROOT_PORT), ()),
        (SPEEDS | WIDTHS, of_kind(PortType.ENDPOINT)[:64], ("speed",)),
        (SPEEDS | WIDTHS, b"", None),
        (SPEEDS | WIDTHS | {"current_link_speed": "Unknown"}, of_kind(PortType.ENDPOINT), None),
        (SPEEDS | WIDTHS | {"current_link_width": "0"}, of_kind(PortType.ENDPOINT), None),
        (SPEEDS | WIDTHS | {"max_link_width": "255"}, of_kind(PortType.ENDPOINT), None),
        ({}, of_kind(PortType.ENDPOINT), ()),
    ],
)
def test_a_link_is_downgraded_only_if_both_ends_of_the_comparison_are_known(
    link: dict[str, str], config: bytes, expected: tuple[str, ...] | None
) -> None:
    assert downgraded(link_of(link, config), config) == expected


def test_a_part_of_the_root_complex_has_no_link(host: FakeHost) -> None:
    """Its link registers are noise. Without root the kernel's 'Unknown' says as much."""
    noise = {"current_link_speed": "2.5 GT/s PCIe", "current_link_width": "63", "max_link_speed": "8.0 GT/s",
             "max_link_width": "0"}  # fmt: skip
    host.add_device(NIC, config=of_kind(PortType.INTEGRATED_ENDPOINT))
    for name, text in noise.items():
        host.put(f"{host.devices[NIC].folder}/{name}", text)
    details = show(host, NIC)
    assert (details.link, details.link_downgraded) == ({}, ())
    assert {"link", "link_downgraded"}.isdisjoint(details.unavailable)
    unknown = dict.fromkeys(("current_link_speed", "max_link_speed"), "Unknown")
    assert link_of(unknown | {"current_link_width": "0", "max_link_width": "255"}, b"") == {}


def test_names_in_a_listing(host: FakeHost) -> None:
    host.add_device(NIC, vendor=0x8086, device=0x10D3, class_code=0x020000, subsystem_vendor="0x8086",
                    subsystem_device="0xa01f")  # fmt: skip
    host.add_device(PORT, class_code=0x060400)
    device = show(host, NIC).device
    assert (device.class_name, device.subsystem_vendor, device.subsystem_device) == (
        "Ethernet",
        "Intel",
        "A card",
    )
    bridge = show(host, PORT).device
    assert (bridge.subsystem_vendor, bridge.subsystem_device) == (None, None)
    assert {"subsystem_vendor", "subsystem_device"}.isdisjoint(bridge.unavailable)
