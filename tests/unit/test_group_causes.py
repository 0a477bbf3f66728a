from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import pytest

from vfiotool.host.group_causes import group_causes
from vfiotool.pci.acs import PortType, weakness
from vfiotool.testing import FakeHost, config_space

PORT, UP, DOWN = "0000:00:01.0", "0000:01:00.0", "0000:02:00.0"
A, B, OTHER = "0000:03:00.0", "0000:03:00.1", "0000:03:01.0"
SV, TB, RR, CR, UF, EC, DT = (1 << bit for bit in range(7))
ALL = SV | RR | CR | UF
BRIDGE = 0x060400
BRIDGES = (
    PortType.ROOT_PORT,
    PortType.UPSTREAM,
    PortType.DOWNSTREAM,
    PortType.PCIE_TO_PCI,
    PortType.PCI_TO_PCIE,
)


def function(
    kind: int | None, *, able: int | None = None, on: int = 0, multifunction: bool = False, header: int = 0
) -> bytes:
    """Return the bytes of a PCI Express function whose ACS supports ``able`` and has enabled ``on``."""
    header_type = (0x80 if multifunction else 0) | (header or int(kind in BRIDGES))
    if kind is None:
        return config_space(header_type=header_type)
    config = bytearray(
        config_space(
            header_type=header_type,
            capabilities=[(0x10, 0x40, bytes([kind << 4]))],
            extended=[(0x01, 0x100)] if able is None else [(0x01, 0x100), (0x0D, 0x148)],
        )
    )
    if able is not None:
        struct.pack_into("<HH", config, 0x148 + 4, able, on)
    return bytes(config)


GUARDING = {kind: function(kind, able=ALL, on=ALL, multifunction=True) for kind in PortType}


@pytest.mark.parametrize(
    ("kind", "alone", "among_others"),
    [
        (None, "without ACS", "without ACS"),
        (PortType.ENDPOINT, None, "without ACS"),
        (PortType.LEGACY_ENDPOINT, None, "without ACS"),
        (PortType.ROOT_PORT, "without ACS", "without ACS"),
        (PortType.UPSTREAM, None, "without ACS"),
        (PortType.DOWNSTREAM, "without ACS", "without ACS"),
        (PortType.PCIE_TO_PCI, "without ACS", "without ACS"),
        (PortType.PCI_TO_PCIE, "without ACS", "without ACS"),
        (PortType.INTEGRATED_ENDPOINT, None, "without ACS"),
        (PortType.EVENT_COLLECTOR, "without ACS", "without ACS"),
        (0xF, None, None),
    ],
)
def test_which_functions_need_acs(kind: int | None, alone: str | None, among_others: str | None) -> None:
    assert weakness(function(kind), multifunction=False) == alone
    assert weakness(function(kind), multifunction=True) == among_others


@pytest.mark.parametrize("kind", [None, PortType.PCIE_TO_PCI, PortType.PCI_TO_PCIE, PortType.EVENT_COLLECTOR])
def test_types_without_reliable_acs(kind: int | None) -> None:
    assert weakness(function(kind, able=ALL, on=ALL), multifunction=True) == "without ACS"


@pytest.mark.parametrize(
    ("able", "on", "flaw"),
    [
        (ALL, ALL, None),
        (0, 0, None),
        (SV, SV, None),
        (ALL | TB | EC | DT, ALL, None),
        (ALL, 0, "source validation, P2P request redirect, P2P completion redirect, upstream forwarding"),
        (ALL, ALL & ~SV, "source validation"),
        (ALL | DT, ALL & ~(RR | CR) | DT, "P2P request redirect, P2P completion redirect"),
        (ALL, TB | EC | DT | SV | RR | CR, "upstream forwarding"),
    ],
)
def test_which_acs_services_count(able: int, on: int, flaw: str | None) -> None:
    expected = None if flaw is None else f"whose ACS has {flaw} disabled"
    assert weakness(function(PortType.ROOT_PORT, able=able, on=on), multifunction=False) == expected


def test_truncated_acs_counts_as_missing() -> None:
    config = bytearray(function(PortType.ROOT_PORT, able=ALL, on=ALL))
    assert weakness(bytes(config[: 0x148 + 8]), multifunction=False) is None
    assert weakness(bytes(config[: 0x148 + 7]), multifunction=False) == "without ACS"


def why(host: FakeHost, group: Sequence[str]) -> tuple[str, ...] | None:
    return group_causes(host.tree, {1: group})[1]


def add_path(host: FakeHost, configs: Mapping[str, bytes], groups: Mapping[str, int]) -> None:
    """Add a root port, a switch and two cards below it, with full ACS unless their bytes are given."""
    above = None
    for address, kind in {PORT: PortType.ROOT_PORT, UP: PortType.UPSTREAM, DOWN: PortType.DOWNSTREAM}.items():
        config = configs.get(address, GUARDING[kind])
        host.add_device(
            address, class_code=BRIDGE, bridge=above, config=config, group=groups.get(address, 100)
        )
        above = address
    for address in (A, OTHER):
        config = configs.get(address, GUARDING[PortType.ENDPOINT])
        host.add_device(address, bridge=DOWN, config=config, group=groups.get(address, 200))


@pytest.mark.parametrize(
    ("port", "cause"),
    [
        (function(PortType.DOWNSTREAM), "a switch's downstream port without ACS"),
        (
            function(PortType.DOWNSTREAM, able=ALL, on=SV | UF),
            "a switch's downstream port whose ACS has P2P request redirect, P2P completion redirect disabled",
        ),
        (function(PortType.PCIE_TO_PCI), "a PCIe-to-PCI bridge"),
        (function(PortType.PCI_TO_PCIE), "a PCI bridge"),
        (function(None, header=1), "a PCI bridge"),
        (function(None, header=2), "a PCI bridge"),
        (
            function(PortType.ENDPOINT, header=1, multifunction=True),
            "a port of the unknown type 0x0 without ACS",
        ),
    ],
)
def test_a_bridge_ties_the_devices_below_it(host: FakeHost, port: bytes, cause: str) -> None:
    add_path(host, {DOWN: port}, {DOWN: 1, A: 1, OTHER: 1})
    (line,) = why(host, [DOWN, A, OTHER]) or ()
    assert line.startswith(f"{A}, {OTHER}: behind {DOWN}, {cause}, ")


@pytest.mark.parametrize(("kind", "header"), [(None, 0), (None, 1), (None, 2), (0xB, 1), (0xF, 1), (0xF, 0)])
def test_an_unknown_port_type_or_another_header_is_no_pci_bridge(
    host: FakeHost, kind: int | None, header: int
) -> None:
    add_path(host, {DOWN: function(kind, header=header)}, {DOWN: 1, A: 1, OTHER: 1})
    line, *_ = why(host, [DOWN, A, OTHER]) or ()
    assert ("PCI bridge" in line) == (kind is None and header > 0)


@pytest.mark.parametrize("in_group", [True, False])
def test_a_function_that_makes_a_domain_is_no_bridge(host: FakeHost, in_group: bool) -> None:
    """No configuration space is needed to see it: the path says it."""
    maker, port, disk = "0000:00:0e.0", "10000:e0:06.0", "10000:e1:00.0"
    host.add_device(maker, class_code=0x010400, driver="vmd", group=1, config=bytes(64))
    host.add_device(port, class_code=BRIDGE, domain_of=maker, group=1, config=bytes(64))
    host.add_device(disk, bridge=port, group=1, config=bytes(64))
    found = why(host, [maker, port, disk] if in_group else [port, disk])
    text = f"{port}, {disk}: in PCI domain 10000, which {maker} (vmd) makes and whose DMA it issues"
    assert found == ((f"{text} under its own requester id",) if in_group else None)


def test_a_device_without_a_place_is_not_judged(host: FakeHost) -> None:
    """A folder that others made may have the devices in ``/sys/bus/pci/devices`` themselves."""
    for address in (A, OTHER):
        host.put(f"/sys/bus/pci/devices/{address}/config", GUARDING[PortType.ENDPOINT])
    assert why(host, [A, OTHER]) is None


def test_a_bridge_further_up_ties_all_below_it(host: FakeHost) -> None:
    add_path(host, {PORT: function(PortType.ROOT_PORT)}, dict.fromkeys([PORT, UP, DOWN, A, OTHER], 1))
    (line,) = why(host, [PORT, UP, DOWN, A, OTHER]) or ()
    assert line.startswith(f"{UP}, {DOWN}, {A}, {OTHER}: behind {PORT}, a root port without ACS, ")


def test_a_port_of_another_group_ties_nothing(host: FakeHost) -> None:
    """The kernel knows of some models that they isolate requests without ACS."""
    add_path(host, {PORT: function(PortType.ROOT_PORT), DOWN: function(PortType.DOWNSTREAM)}, {DOWN: 1, A: 1})
    (line,) = why(host, [DOWN, A]) or ()
    assert line.startswith(f"{A}: behind {DOWN}, ")


def test_an_upstream_port_alone_in_its_device_needs_no_acs(host: FakeHost) -> None:
    add_path(
        host,
        {UP: function(PortType.UPSTREAM), DOWN: function(PortType.DOWNSTREAM)},
        {UP: 1, DOWN: 1, A: 1, OTHER: 1},
    )
    (below, rest) = why(host, [UP, DOWN, A, OTHER]) or ()
    assert below.startswith(f"{A}, {OTHER}: behind {DOWN}, ")
    assert rest == f"{UP}, {DOWN}: a rule of the IOMMU driver, for no bridge and no missing ACS joins them"


@pytest.mark.parametrize(
    ("configs", "tied"),
    [
        ([function(PortType.ENDPOINT)] * 3, 3),
        ([function(None)] * 3, 3),
        ([function(PortType.ENDPOINT, able=ALL, multifunction=True)] * 3, 3),
        ([GUARDING[PortType.ENDPOINT], *[function(PortType.ENDPOINT)] * 2], 2),
    ],
    ids=["without", "conventional", "disabled", "one guards"],
)
def test_functions_of_one_device(host: FakeHost, configs: list[bytes], tied: int) -> None:
    addresses = [f"0000:03:00.{number}" for number in range(3)]
    for address, config in zip(addresses, configs, strict=True):
        first = bytearray(config)
        first[0x0E] |= 0x80
        host.add_device(address, group=1, config=bytes(first))
    line, *others = why(host, addresses) or ()
    assert line.startswith(f"{', '.join(addresses[3 - tied :])}: functions of the same device ")
    assert len(others) == (tied < 3)


def test_a_vf_is_not_a_function_of_the_device_of_its_pf(host: FakeHost) -> None:
    host.add_device(A, group=1, totalvfs=1, config=function(PortType.ENDPOINT, multifunction=True))
    host.add_device(B, group=1, physfn=A, config=function(PortType.ENDPOINT))
    (line,) = why(host, [A, B]) or ()
    assert "DMA alias" in line


@pytest.mark.parametrize(
    ("others", "expected"),
    [([], "their IOMMU, dmar0, puts all its devices in one group"), ([DOWN], "a quirk")],
)
def test_an_iommu_with_a_single_group(host: FakeHost, others: list[str], expected: str) -> None:
    unit = "/sys/devices/virtual/iommu/dmar0"
    host.link("/sys/class/iommu/dmar0", unit)
    for address in (A, OTHER, *others):
        host.add_device(address, group=1 if address != DOWN else 2, config=GUARDING[PortType.ENDPOINT])
        host.link(f"{host.devices[address].folder}/iommu", unit)
        host.link(f"{unit}/devices/{address}", host.devices[address].folder)
    (line,) = why(host, [A, OTHER]) or ()
    assert line.startswith(f"{A}, {OTHER}: {expected}")


def test_without_root_it_cannot_be_told(host: FakeHost) -> None:
    for address in (A, B):
        host.add_device(address, group=1, config=function(PortType.ENDPOINT)[:64])
    assert why(host, [A, B]) is None
    assert why(host, [A]) == ()
