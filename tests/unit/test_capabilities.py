"""Decoded capabilities, compared with the output of lspci for the same bytes."""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.strategies import config_spaces
from vfiotool.pci.acs import AccessControl, PortType
from vfiotool.pci.capabilities import (
    errors,
    identity,
    power,
    resizable,
    sriov,
    standard,
    topology,
    translation,
    vendor,
)
from vfiotool.pci.capabilities.decoding import Undecoded, decode, find
from vfiotool.pci.capabilities.express import Express
from vfiotool.pci.capabilities.vendor_specific import VendorSpecific
from vfiotool.pci.config_space import EXTENDED_SIZE, STANDARD_SIZE, Capability, capabilities
from vfiotool.render.documents import to_json
from vfiotool.testing import config_space

# id: (offset, number of bytes after the two of the header; the other two of an extended header count, too).
STANDARD = {
    0x01: (0x40, 6),
    0x05: (0x48, 22),
    0x09: (0x60, 14),
    0x0D: (0x70, 6),
    0x10: (0x78, 58),
    0x11: (0xB4, 10),
    0x13: (0xC0, 4),
}
EXTENDED = {
    0x01: (0x100, 0x2C),
    0x03: (0x150, 0x0C),
    0x0B: (0x160, 0x08),
    0x0D: (0x170, 0x08),
    0x0E: (0x180, 0x08),
    0x0F: (0x190, 0x08),
    0x10: (0x1A0, 0x40),
    0x13: (0x1F0, 0x10),
    0x15: (0x200, 0x34),
    0x18: (0x240, 0x08),
    0x1B: (0x250, 0x08),
    0x1E: (0x260, 0x10),
    0x23: (0x280, 0x0C),
    0x24: (0x2A0, 0x34),
}
LAST_EXTENDED = 0x37  # the last with a name, and one without
FUNCTIONS = 240


def function(contents: random.Random) -> bytes:
    """Return the bytes of a function with every capability, filled with random bits."""
    standard_ones = [(number, at, contents.randbytes(size)) for number, (at, size) in STANDARD.items()]
    extended_ones = [(number, at) for number, (at, _) in EXTENDED.items()]
    config = bytearray(config_space(capabilities=standard_ones, extended=extended_ones))
    for at, size in EXTENDED.values():
        config[at + 4 : at + size] = contents.randbytes(size - 4)
    for number in (0x15, 0x24):  # lspci decodes only the numbers of BARs that there can be
        at = EXTENDED[number][0] + 8
        config[at] = config[at] & 0x1F | contents.randint(1, 6) << 5
    return bytes(config)


def only(number: int, body: bytes, *, at: int = 0x40) -> Any:
    """Return the fields of the only capability of a function."""
    (found,) = decode(config_space(capabilities=[(number, at, body)]))
    return found.content


def only_extended(number: int, body: bytes, *, at: int = 0x100) -> Any:
    config = bytearray(
        config_space(extended=[(0xFFFF, 0x100), (number, at)] if at > 0x100 else [(number, at)])
    )
    config[at + 4 : at + 4 + len(body)] = body
    return decode(bytes(config))[-1].content


def lspci(configs: Iterable[bytes], folder: Path) -> list[dict[int, str]]:
    """Return lspci's text of each capability of each function, by its offset."""
    dump = ""
    for number, config in enumerate(configs):
        dump += f"{number >> 3:02x}:00.{number & 7} function\n"
        for at in range(0, len(config), 16):
            dump += f"{at:02x}: {config[at : at + 16].hex(' ')}\n"
        dump += "\n"
    path = folder / "dump"
    path.write_text(dump)
    shown = subprocess.run(["lspci", "-nvvF", path], capture_output=True, text=True, check=True)
    functions = re.split(r"^[0-9a-f]{2}:00\.\d ", shown.stdout, flags=re.MULTILINE)[1:]
    return [
        {
            int(section.group(1), 16): " ".join(section.group(2).split())
            for section in re.finditer(
                r"\tCapabilities: \[([0-9a-f]+).*?\] (.*?)(?=\tCapab|\Z)", text, re.DOTALL
            )
        }
        for text in functions
    ]


Shown = list[tuple[bytes, dict[int, str]]]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    contents = random.Random(20)  # noqa: S311 - the same each time is what is wanted
    configs = [function(contents) for _ in range(FUNCTIONS)]
    return list(zip(configs, lspci(configs, tmp_path_factory.mktemp("lspci")), strict=True))


def sign(value: bool) -> str:
    return "+" if value else "-"


def flags(names: Iterable[str], **flags: str) -> str:
    """Return a line of lspci with its flags, each with + if its counterpart here is among ``names``."""
    return " ".join(f"{own}{sign(name in names)}" for own, name in flags.items())


def unnamed(names: Iterable[str], *flags: str) -> str:
    return " ".join(f"{name}{sign(name in names)}" for name in flags)


def power_management(it: standard.PowerManagement) -> Iterable[str]:
    yield f"Power Management version {it.version}"
    yield f"D1{sign(it.has_d1)} D2{sign(it.has_d2)}"
    wakes = (f"{name}{sign(name in it.pme_from)}" for name in ("D0", "D1", "D2", "D3hot", "D3cold"))
    yield f"PME({','.join(wakes)})"
    state = it.state.removesuffix("hot")
    yield f"Status: {state} NoSoftRst{sign(it.no_soft_reset)} PME-Enable{sign(it.pme_enabled)}"
    yield f" PME{sign(it.pme_status)}"


def msi(it: standard.Msi) -> Iterable[str]:
    yield f"MSI: Enable{sign(it.enabled)} Count={it.count}/{it.max_count}"
    yield f"Maskable{sign(it.maskable)} 64bit{sign(it.is_64bit)}"
    yield f"Address: {it.address:0{16 if it.is_64bit else 8}x} Data: {it.data:04x}"
    assert (it.mask is None) == (it.pending is None) == (not it.maskable)
    if it.mask is not None:
        yield f"Masking: {it.mask:08x} Pending: {it.pending:08x}"


def msi_x(it: standard.MsiX) -> Iterable[str]:
    yield f"MSI-X: Enable{sign(it.enabled)} Count={it.count} Masked{sign(it.masked)}"
    yield f"Vector table: BAR={it.table_bar} offset={it.table_offset:08x}"
    yield f"PBA: BAR={it.pba_bar} offset={it.pba_offset:08x}"


def vendor_specific(it: VendorSpecific) -> Iterable[str]:
    yield f"Vendor Specific Information: Len={it.length:02x}"


def bridge_subsystem(it: standard.BridgeSubsystem) -> Iterable[str]:
    yield f"Subsystem: {it.vendor_id:04x}:{it.device_id:04x}"


def advanced_features(it: standard.AdvancedFeatures) -> Iterable[str]:
    yield f"FLR{sign(it.flr)} AFCtrl:"
    yield f"AFStatus: TP{sign(it.transactions_pending)}"


LSPCI_TYPES = {
    PortType.ENDPOINT: "Endpoint",
    PortType.LEGACY_ENDPOINT: "Legacy Endpoint",
    PortType.ROOT_PORT: "Root Port",
    PortType.UPSTREAM: "Upstream Port",
    PortType.DOWNSTREAM: "Downstream Port",
    PortType.PCIE_TO_PCI: "PCI-Express to PCI/PCI-X Bridge",
    PortType.PCI_TO_PCIE: "PCI/PCI-X to PCI-Express Bridge",
    PortType.INTEGRATED_ENDPOINT: "Root Complex Integrated Endpoint",
    PortType.EVENT_COLLECTOR: "Root Complex Event Collector",
}


def express(it: Express) -> Iterable[str]:
    name = dict(LSPCI_TYPES).get(PortType(it.type)) if it.type in set(PortType) else f"Unknown type {it.type}"
    yield f"Express (v{it.version}) {name}"
    yield from express_device(it)
    if it.link is not None:
        yield from express_link(it)
    if it.slot is not None:
        yield f"{name} (Slot+)"
        yield from express_slot(it)


def express_device(it: Express) -> Iterable[str]:
    assert it.device is not None
    device = it.device
    yield f"DevCap: MaxPayload {device.max_payload_supported} bytes"
    if it.type in (PortType.ENDPOINT, PortType.LEGACY_ENDPOINT, PortType.INTEGRATED_ENDPOINT):
        yield f"FLReset{sign(device.flr)}"
    yield f"RlxdOrd{sign(device.relaxed_ordering)} ExtTag{sign(device.extended_tags)}"
    yield f"NoSnoop{sign(device.no_snoop)}"
    yield f"MaxPayload {device.max_payload} bytes, MaxReadReq {device.max_read_request} bytes DevSta:"
    named = {"CorrErr": "correctable", "NonFatalErr": "non-fatal", "FatalErr": "fatal"}
    yield f"DevSta: {flags(device.errors, **named, UnsupReq='unsupported request')}"
    yield f"TransPend{sign(device.transactions_pending)}"


def express_link(it: Express) -> Iterable[str]:
    assert it.link is not None
    link = it.link
    yield f"LnkCap: Port #{link.port}, Speed {lspci_speed(link.max_speed)}, Width x{link.max_width},"
    yield f"ASPM {' '.join(link.aspm_supported) or 'not supported'}"
    yield f"LnkCtl: ASPM {' '.join(link.aspm) + ' Enabled' if link.aspm else 'Disabled'};"
    yield f"Disabled{sign(link.disabled)} CommClk"
    yield f"LnkSta: Speed {lspci_speed(link.speed)}"
    yield f", Width x{link.width}"
    yield f"Train{sign(link.training)}"
    if link.active is not None:
        yield "LLActRep+"
        yield f"DLActive{sign(link.active)}"


def express_slot(it: Express) -> Iterable[str]:
    assert it.slot is not None
    slot = it.slot
    named = {"AttnBtn": "attention button", "PwrCtrl": "power controller", "MRL": "MRL sensor"}
    named |= {"AttnInd": "attention indicator", "PwrInd": "power indicator"}
    named |= {"HotPlug": "hot-plug", "Surprise": "surprise removal"}
    yield f"SltCap: {flags(slot.features, **named)} Slot #{slot.number},"
    yield f"PresDet{sign(slot.card_present)}"


def lspci_speed(speed: str) -> str:
    return "unknown" if speed == "128.0 GT/s" else speed.replace(".0", "").replace(" ", "")


UNCORRECTABLE = (
    "DLP", "SDES", "TLP", "FCP", "CmpltTO", "CmpltAbrt", "UnxCmplt", "RxOF", "MalfTLP", "ECRC", "UnsupReq",
    "ACSViol",
)  # fmt: skip
CORRECTABLE = {
    "RxErr": "RxErr",
    "BadTLP": "BadTLP",
    "BadDLLP": "BadDLLP",
    "Rollover": "Rollover",
    "Timeout": "Timeout",
    "AdvNonFatalErr": "NonFatalErr",
}


def advanced_errors(it: errors.AdvancedErrors) -> Iterable[str]:
    yield f"UESta: {unnamed(it.uncorrectable, *UNCORRECTABLE)}"
    yield f"UEMsk: {unnamed(it.uncorrectable_masked, *UNCORRECTABLE)}"
    yield f"UESvrt: {unnamed(it.fatal, *UNCORRECTABLE)}"
    yield f"CESta: {flags(it.correctable, **CORRECTABLE)}"
    yield f"CEMsk: {flags(it.correctable_masked, **CORRECTABLE)}"
    yield f"First Error Pointer: {it.first_error:02x}"
    yield f"HeaderLog: {it.header_log}"


def serial_number(it: identity.SerialNumber) -> Iterable[str]:
    yield f"Device Serial Number {it.serial}"


def extended_vendor_specific(it: vendor.ExtendedVendorSpecific) -> Iterable[str]:
    yield f"ID={it.vsec_id:04x} Rev={it.revision} Len={it.length:03x}"


def designated_vendor_specific(it: vendor.DesignatedVendorSpecific) -> Iterable[str]:
    yield f"Vendor={it.vendor_id:04x} ID={it.dvsec_id:04x} Rev={it.revision} Len={it.length}"


def access_control(it: AccessControl) -> Iterable[str]:
    named = {
        "SrcValid": "source validation",
        "TransBlk": "translation blocking",
        "ReqRedir": "P2P request redirect",
        "CmpltRedir": "P2P completion redirect",
        "UpstreamFwd": "upstream forwarding",
        "EgressCtrl": "P2P egress control",
        "DirectTrans": "direct translated P2P",
    }
    yield f"ACSCap: {flags(it.supported, **named)}"
    yield f"ACSCtl: {flags(it.enabled, **named)}"


def alternative_routing(it: topology.AlternativeRouting) -> Iterable[str]:
    yield f"Next Function: {it.next_function}"


def address_translation(it: translation.AddressTranslation) -> Iterable[str]:
    yield f"Invalidate Queue Depth: {it.queue_depth % 32:02x}"
    yield f"Enable{sign(it.enabled)}, Smallest Translation Unit: "
    assert it.smallest_translation.bit_count() == 1
    yield f"Unit: {it.smallest_translation.bit_length() - 13:02x}"


def virtual_functions(it: sriov.Sriov) -> Iterable[str]:
    yield f"IOVCtl: Enable{sign(it.enabled)}"
    yield f"MSE{sign(it.memory_enabled)} ARIHierarchy{sign(it.ari_hierarchy)}"
    yield f"Initial VFs: {it.initial_vfs}, Total VFs: {it.total_vfs}, Number of VFs: {it.num_vfs}"
    yield f"Function Dependency Link: {it.dependency_link:02x}"
    yield f"VF offset: {it.first_vf_offset}, stride: {it.vf_stride}, Device ID: {it.vf_device_id:04x}"
    sizes = sum(it.page_sizes) // 4096
    yield f"Supported Page Size: {sizes:08x}, System Page Size: {it.page_size // 4096:08x}"
    low, high = it.vf_bars[:2]
    yield f"Region 0: Memory at {f'{high:08x}' if low & 6 == 4 else ''}{low & ~0xF:08x} ("


def page_requests(it: translation.PageRequests) -> Iterable[str]:
    yield f"PRICtl: Enable{sign(it.enabled)}"
    yield f"RF{sign(it.response_failure)} UPRGI{sign(it.unexpected_group)} Stopped{sign(it.stopped)}"
    yield f"Page Request Capacity: {it.capacity:08x}, Page Request Allocation: {it.allocation:08x}"


def resizable_bar(it: resizable.ResizableBar | resizable.VfResizableBar) -> Iterable[str]:
    bars = []
    for one in it.bars:
        size = "<unknown>" if one.size is None else lspci_size(one.size)
        sizes = "".join(f" {lspci_size(size)}" for size in one.sizes)
        bars.append(f"BAR {one.bar}: current size: {size}, supported:{sizes}")
    yield f"Resizable BAR {' '.join(bars)}"


def lspci_size(size: int) -> str:
    steps = (size.bit_length() - 1) // 10
    return f"{size >> 10 * steps}{' KMGTPE'[steps]}B"


def latency_tolerance(it: power.LatencyTolerance) -> Iterable[str]:
    if it.max_snoop_ns is not None:
        yield f"Max snoop latency: {it.max_snoop_ns}ns"
    if it.max_no_snoop_ns is not None:
        yield f"Max no snoop latency: {it.max_no_snoop_ns}ns"


def process_address_space(it: translation.ProcessAddressSpace) -> Iterable[str]:
    yield f"PASIDCap: Exec{sign(it.execute)} Priv{sign(it.privileged)}, Max PASID Width: {it.width:02x}"
    yield f"Enable{sign(it.enabled)} Exec{sign(it.execute_enabled)} Priv{sign(it.privileged_enabled)}"


def l1_substates(it: power.L1Substates) -> Iterable[str]:
    names = ("PCI-PM L1.2", "PCI-PM L1.1", "ASPM L1.2", "ASPM L1.1")
    for word, found in (("Cap", it.supported), ("Ctl1", it.enabled)):
        shown = " ".join(f"{name.replace(' ', '_')}{sign(name in found)}" for name in names)
        yield f"L1Sub{word}: {shown}"


AS_LSPCI: dict[type, Callable[[Any], Iterable[str]]] = {
    AccessControl: access_control,
    Express: express,
    translation.AddressTranslation: address_translation,
    errors.AdvancedErrors: advanced_errors,
    topology.AlternativeRouting: alternative_routing,
    vendor.DesignatedVendorSpecific: designated_vendor_specific,
    vendor.ExtendedVendorSpecific: extended_vendor_specific,
    power.L1Substates: l1_substates,
    power.LatencyTolerance: latency_tolerance,
    translation.PageRequests: page_requests,
    translation.ProcessAddressSpace: process_address_space,
    resizable.ResizableBar: resizable_bar,
    identity.SerialNumber: serial_number,
    sriov.Sriov: virtual_functions,
    resizable.VfResizableBar: resizable_bar,
    standard.AdvancedFeatures: advanced_features,
    standard.BridgeSubsystem: bridge_subsystem,
    standard.Msi: msi,
    standard.MsiX: msi_x,
    standard.PowerManagement: power_management,
    VendorSpecific: vendor_specific,
}


@pytest.mark.parametrize("kind", AS_LSPCI, ids=lambda kind: kind.__name__)
def test_random_bits_read_as_lspci_reads_them(shown: Shown, kind: type) -> None:
    texts = []
    for config, sections in shown:
        for one in decode(config):
            if isinstance(one.content, kind):
                texts.append(sections[one.offset])
                for fragment in AS_LSPCI[kind](one.content):
                    assert fragment in texts[-1]
    assert len(texts) == FUNCTIONS


def test_lspci_agrees_on_which_functions_have_a_link_and_a_slot(shown: Shown) -> None:
    seen = set()
    for config, sections in shown:
        it = find(config, Express)
        assert it is not None
        if it.type in set(PortType):
            text = sections[STANDARD[0x10][0]]
            assert (it.link is not None) == ("LnkCap:" in text)
            assert (it.slot is not None) == ("SltCap:" in text)
            assert (it.device2 is not None) == ("DevCap2:" in text)
            seen.add(it.type)
    assert seen == set(PortType)


def test_device_registers_2_read_as_lspci_reads_them(shown: Shown) -> None:
    """lspci shows only the fields that the type of function has, with the same names in both lines."""
    seen = set()
    for config, sections in shown:
        it = find(config, Express)
        assert it is not None
        if it.device2 is None:
            continue
        able, _, control = sections[STANDARD[0x10][0]].partition("DevCap2:")[2].partition("DevCtl2:")
        atomics = it.device2.atomics
        for half, name, ours in (
            (able, "LTR", it.device2.ltr),
            (able, "ARIFwd", it.device2.ari_forwarding),
            (able, "Routing", "routing" in atomics),
            (able, "32bit", "32 bits" in atomics),
            (able, "64bit", "64 bits" in atomics),
            (able, "128bitCAS", "128 bits CAS" in atomics),
            (control, "LTR", it.device2.ltr_enabled),
            (control, "ARIFwd", it.device2.ari_forwarding_enabled),
            (control, "ReqEn", it.device2.atomics_enabled),
        ):
            if theirs := re.search(rf"\b{name}([+-])", half):
                assert theirs.group(1) == sign(ours)
                seen.add((half is able, name, ours))
    assert len(seen) == 18


def test_a_capability_of_zeros() -> None:
    assert only(0x01, bytes(6)) == standard.PowerManagement(
        version=0,
        state="D0",
        has_d1=False,
        has_d2=False,
        no_soft_reset=False,
        pme_from=(),
        pme_enabled=False,
        pme_status=False,
        pme_clock=False,
        dsi=False,
        aux_current_ma=0,
        data_select=0,
        data_scale=0,
        data=0,
        bus_power_managed=False,
        b2_b3=False,
    )
    assert only_extended(0x0F, bytes(8)).queue_depth == 32  # as the specification has it


def test_the_tables_of_msi_x() -> None:
    """65 vectors: 16 bytes for each, and a bit for each in whole 64-bit words."""
    it = only(0x11, bytes.fromhex("40c0 03100000 04200000"))
    assert (it.enabled, it.masked, it.count) == (True, True, 65)
    assert (it.table_bar, it.table_offset, it.table_size) == (3, 0x1000, 1040)
    assert (it.pba_bar, it.pba_offset, it.pba_size) == (4, 0x2000, 16)


def test_vendor_data_has_the_length_in_its_header() -> None:
    assert only(0x09, b"\x06abcdef") == VendorSpecific(6, b"abc".hex(), None, None)
    assert only(0x09, b"\x01abc") == VendorSpecific(1, "", None, None)
    assert only(0x09, b"\xffab", at=0xF8) == VendorSpecific(0xFF, b"ab".hex() + "000000", None, None)


def test_undefined_sizes_and_latencies_are_none() -> None:
    entry = (1 << 4).to_bytes(4, "little") + (44 << 8 | 1 << 5).to_bytes(4, "little")
    assert only_extended(0x15, entry) == resizable.ResizableBar(
        (resizable.ResizableSize(0, None, (1 << 20,)),)
    )
    assert only_extended(0x18, bytes.fromhex("0114 0118")) == power.LatencyTolerance(1 << 25, None)


def test_a_count_of_bars_above_six_is_limited() -> None:
    entry = bytes(4) + (7 << 5).to_bytes(4, "little")
    assert len(only_extended(0x15, entry).bars) == 6


def test_an_unknown_capability_has_its_bytes_up_to_the_next() -> None:
    config = config_space(capabilities=[(0x0B, 0x50, b"abcdef"), (0x01, 0x40, bytes(6)), (0x7F, 0x5C, b"")])
    assert [one.content for one in decode(config) if isinstance(one.content, Undecoded)] == [
        Undecoded((b"\x0b\x40abcdef" + bytes(4)).hex()),
        Undecoded("7f" + bytes(0x100 - 0x5D).hex()),
    ]


@pytest.mark.parametrize("number", [number for number in STANDARD if number not in (0x09, 0x10)])
def test_a_truncated_standard_capability(number: int) -> None:
    """The bytes after the standard 256 bytes belong to another capability."""
    config = config_space(
        capabilities=[(0x10, 0x40, bytes(58)), (number, 0xFC, b"ab")], extended=[(0x0D, 0x100)]
    )
    assert [one.content for one in decode(config)][1:] == [
        Undecoded(bytes([number, 0]).hex() + b"ab".hex()),
        AccessControl((), ()),
    ]


@pytest.mark.parametrize("number", range(1, LAST_EXTENDED + 1))
def test_a_truncated_extended_capability(number: int) -> None:
    content = only_extended(number, b"", at=0xFFC)
    assert content == Undecoded((1 << 16 | number).to_bytes(4, "little").hex())


def test_truncated_pci_express_has_its_complete_parts() -> None:
    it = only(0x10, bytes.fromhex("4201 20800010 3028"), at=0xF0)
    assert (it.version, it.type, it.type_name) == (2, PortType.ROOT_PORT, "root port")
    assert it.device is not None
    assert it.device.flr
    assert it.link is None
    assert it.slot is None
    assert it.device2 is None
    assert only(0x10, bytes([PortType.ENDPOINT << 4, 0]), at=0xFC).device is None


def test_find_returns_the_first_complete_capability() -> None:
    first, second = bytes.fromhex("0200 0100 0080"), bytes.fromhex("0300 0000 0000")
    config = config_space(capabilities=[(0x01, 0xFC, b""), (0x01, 0x40, first), (0x01, 0x50, second)])
    it = find(config, standard.PowerManagement)
    assert it is not None
    assert (it.version, it.state) == (2, "D1")
    assert find(config, standard.MsiX) is None
    assert find(b"", standard.MsiX) is None


def test_resizable_bars_of_the_function_and_of_vfs_are_distinct() -> None:
    config = config_space(extended=[(0x24, 0x100)])
    assert find(config, resizable.ResizableBar) is None
    assert find(config, resizable.VfResizableBar) == resizable.VfResizableBar(())


def is_whole(config: bytes) -> None:
    """Check that each capability of the list is decoded once, in order, to fields that JSON can represent."""
    found = decode(config)
    assert [Capability(one.id, one.offset, one.extended, one.name, one.version) for one in found] == list(
        capabilities(config)
    )
    written = json.loads(json.dumps(to_json(found)))
    assert [one["content"] for one in written] == [to_json(one.content) for one in found]


@given(st.binary(min_size=EXTENDED_SIZE // 8, max_size=EXTENDED_SIZE // 8), st.integers(0, EXTENDED_SIZE))
def test_random_bytes_of_any_length(contents: bytes, length: int) -> None:
    is_whole(function(random.Random(contents))[:length])  # noqa: S311 - a seed that hypothesis draws


@given(config_spaces())
def test_lists_with_loops_and_random_pointers(config: bytes) -> None:
    is_whole(config)


@given(st.data())
def test_any_capability_at_any_offset(data: st.DataObject) -> None:
    """Capabilities may overlap, and lie at the ends of their spaces."""
    config = bytearray(data.draw(st.binary(min_size=64, max_size=64)) * 64)
    config[0x06], config[0x0E] = 0x10, 0
    places = st.sampled_from([0x40, 0x44, 0x80, 0xEC, 0xF0, 0xF4, 0xF8, 0xFC])
    at = config[0x34] = data.draw(places)
    for _ in range(6):
        config[at], config[at + 1] = data.draw(st.sampled_from(sorted(STANDARD))), data.draw(places)
        at = config[at + 1]
    places = st.sampled_from([0x104, 0x108, 0x200, 0xF00, 0xFC0, 0xFF0, 0xFF4, 0xFF8, 0xFFC])
    at = STANDARD_SIZE
    for _ in range(8):
        number, following = data.draw(st.integers(1, LAST_EXTENDED)), data.draw(places)
        config[at : at + 4] = (following << 20 | 1 << 16 | number).to_bytes(4, "little")
        at = following
    is_whole(bytes(config))
