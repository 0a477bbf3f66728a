"""Standard capabilities, compared with what lspci 3.15 prints of the same bytes.

``lspci-3.15-standard.json`` has, for each capability: its id, the type of the header, the vendor, the device,
the bytes after the first two, and the text of ``lspci -vvv``. Most are patterns: in pattern ``k``, bit ``n``
is bit ``k`` of the number ``n``, so that no two bits can be mistaken for each other. Types, counts and
lengths are set to what there is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiotool.pci.capabilities.agp import Agp, AgpRegister
from vfiotool.pci.capabilities.board import (
    DebugPort,
    HotPlugController,
    HotSwap,
    SataRegisters,
    SlotIdentification,
    VitalProductData,
)
from vfiotool.pci.capabilities.decoding import Undecoded, decode
from vfiotool.pci.capabilities.enhanced_allocation import AllocatedRange, EnhancedAllocation
from vfiotool.pci.capabilities.hypertransport import (
    HyperTransport,
    HyperTransportExtras,
    HyperTransportHost,
    HyperTransportLink,
    HyperTransportSlave,
)
from vfiotool.pci.capabilities.intel_capabilities import IntelCapabilities
from vfiotool.pci.capabilities.pci_x import PciX, PciXBridge, PciXDevice
from vfiotool.pci.capabilities.standard import AdvancedFeatures, BridgeSubsystem, Msi, MsiX, PowerManagement
from vfiotool.pci.capabilities.vendor_specific import VendorSpecific, VirtioStructure
from vfiotool.render.documents import to_json
from vfiotool.testing import config_space

RECORDED = json.loads((Path(__file__).parents[1] / "data/lspci-3.15-standard.json").read_text())


def decoded(number: int, header_type: int, vendor: int, device: int, body: bytes, *, at: int = 0x40) -> Any:
    config = config_space(
        vendor=vendor, device=device, header_type=header_type, capabilities=[(number, at, body)]
    )
    (found,) = decode(config)
    return found.content


def only(number: int, body: str, *, header_type: int = 0, vendor: int = 0x1234, device: int = 0x11E8) -> Any:
    return decoded(number, header_type, vendor, device, bytes.fromhex(body))


def recorded(number: int) -> tuple[Any, str]:
    """Return the fields of a recorded capability, and the text of lspci."""
    kind, header_type, vendor, device, body, text = RECORDED[number]
    return decoded(kind, header_type, vendor, device, bytes.fromhex(body)), text


def sign(value: bool | None) -> str:
    assert value is not None
    return "+" if value else "-"


def flags(names: Iterable[str], **shown: str) -> str:
    have = set(names)
    return " ".join(f"{flag}{sign(name in have)}" for flag, name in shown.items())


def power_management(it: PowerManagement) -> Iterator[str]:
    yield f"Power Management version {it.version}"
    yield f"Flags: PMEClk{sign(it.pme_clock)} DSI{sign(it.dsi)} D1{sign(it.has_d1)} D2{sign(it.has_d2)}"
    wakes = (f"{name}{sign(name in it.pme_from)}" for name in ("D0", "D1", "D2", "D3hot", "D3cold"))
    yield f"AuxCurrent={it.aux_current_ma}mA PME({','.join(wakes)})"
    yield f"Status: {it.state.removesuffix('hot')} NoSoftRst{sign(it.no_soft_reset)}"
    yield f"PME-Enable{sign(it.pme_enabled)} DSel={it.data_select} DScale={it.data_scale}"
    yield f"PME{sign(it.pme_status)}"
    if it.bus_power_managed or it.b2_b3:
        yield f"Bridge: PM{sign(it.bus_power_managed)} B3{sign(not it.b2_b3)}"


def msi(it: Msi) -> Iterator[str]:
    yield f"MSI: Enable{sign(it.enabled)} Count={it.count}/{it.max_count} Maskable{sign(it.maskable)}"
    address = f"{it.address:0{16 if it.is_64bit else 8}x}"
    yield f"64bit{sign(it.is_64bit)} Address: {address} Data: {it.data:04x}"
    if it.maskable:
        yield f"Masking: {it.mask:08x} Pending: {it.pending:08x}"


def msi_x(it: MsiX) -> Iterator[str]:
    yield f"MSI-X: Enable{sign(it.enabled)} Count={it.count} Masked{sign(it.masked)}"
    yield f"Vector table: BAR={it.table_bar} offset={it.table_offset:08x}"
    yield f"PBA: BAR={it.pba_bar} offset={it.pba_offset:08x}"


def bridge_subsystem(it: BridgeSubsystem) -> Iterator[str]:
    if it.vendor_id == it.device_id == 0xFFFF:
        yield "Subsystem: ffff:ffff"
    else:
        yield f"Subsystem: {it.vendor_id:04x}:{it.device_id:04x}"


def advanced_features(it: AdvancedFeatures) -> Iterator[str]:
    yield f"PCI Advanced Features AFCap: TP{sign(it.transactions_pending_capable)} FLR{sign(it.flr)}"
    yield f"AFCtrl: FLR{sign(it.initiate_flr)} AFStatus: TP{sign(it.transactions_pending)}"


def agp(it: Agp) -> Iterator[str]:
    yield f"AGP version {it.version} Status: {agp_queue(it.status, Iso='isoch')}"
    named = {"SBA": "sba", "ITACoh": "ita_coh", "GART64": "gart64", "HTrans": "htrans", "64bit": "64bit"}
    yield f"{flags(it.status.flags, **named, FW='fw', AGP3='agp3')} Rate={rates(it.status)}"
    named = {"SBA": "sba", "AGP": "agp", "GART64": "gart64", "64bit": "64bit", "FW": "fw"}
    yield f"Command: {agp_queue(it.command)} {flags(it.command.flags, **named)} Rate={rates(it.command)}"


def agp_queue(it: AgpRegister, **shown: str) -> str:
    isochronous = f"{flags(it.flags, **shown)} " if shown else ""
    return f"RQ={it.requests} {isochronous}ArqSz={it.async_request_size} Cal={it.calibration}"


def rates(it: AgpRegister) -> str:
    return ",".join(it.rates) or "<none>"


def slot_identification(it: SlotIdentification) -> Iterator[str]:
    yield f"Slot ID: {it.slots} slots, First{sign(it.first_in_chassis)}, chassis {it.chassis:02x}"


def debug_port(it: DebugPort) -> Iterator[str]:
    yield f"Debug port: BAR={it.bar} offset={it.offset:04x}"


def hot_swap(_: HotSwap) -> Iterator[str]:
    yield "CompactPCI hot-swap <?>"


def hot_plug(_: HotPlugController) -> Iterator[str]:
    yield "Hot-plug capable"


def sata(it: SataRegisters) -> Iterator[str]:
    """lspci shows the offset in words, and other places as an unknown BAR."""
    yield f"SATA HBA v{it.revision}"
    if it.bar is not None:
        assert it.offset is not None
        yield f"BAR{it.bar} Offset={it.offset // 4:08x}"
    else:
        yield "InCfgSpace" if it.in_configuration_space else "BAR??"


def pci_x(it: PciX) -> Iterator[str]:
    assert (it.device is None) != (it.bridge is None)
    if it.device is not None:
        yield from pci_x_device(it.device)
    if it.bridge is not None:
        yield from pci_x_bridge(it.bridge)


def pci_x_device(it: PciXDevice) -> Iterator[str]:
    yield f"PCI-X non-bridge device Command: DPERE{sign(it.dperr_enabled)} ERO{sign(it.relaxed_ordering)}"
    yield f"RBC={it.max_read} OST={it.max_split} Status: Dev={it.address}"
    named = {"64bit": "64bit", "133MHz": "133mhz", "SCD": "spl_disc", "USC": "unx_spl"}
    yield f"{flags(it.status_bits, **named)} DC={'bridge' if 'complex' in it.status_bits else 'simple'}"
    cumulative = it.designed_max_cumulative_read // 128
    yield f"DMMRBC={it.designed_max_read} DMOST={it.designed_max_split} DMCRS={cumulative}"
    yield flags(it.status_bits, RSCEM="spl_err", **{"266MHz": "266mhz", "533MHz": "533mhz"})


def pci_x_bridge(it: PciXBridge) -> Iterator[str]:
    named = {"64bit": "64bit", "133MHz": "133mhz", "SCD": "spl_disc", "USC": "unx_spl"}
    named |= {"SCO": "spl_overrun", "SRD": "spl_delayed"}
    yield f"PCI-X bridge device Secondary Status: {flags(it.secondary_status_bits, **named)}"
    yield f"Freq={pci_x_frequency(it.secondary_frequency)} Status: Dev={it.address}"
    yield flags(it.status_bits, **named)
    yield f"Upstream: Capacity={it.upstream_capacity} CommitmentLimit={it.upstream_commitment_limit}"
    yield f"Downstream: Capacity={it.downstream_capacity} CommitmentLimit={it.downstream_commitment_limit}"


def pci_x_frequency(name: str) -> str:
    """lspci leaves out the highest of the four bits, and the names of modes with ECC."""
    clock = {"66": 1, "100": 2, "133": 3}.get(name.split()[0], 0)
    if "ECC" in name or "533" in name:
        return f"?{clock + 4}"
    if name.startswith("reserved"):
        return "conv" if name == "reserved 8" else "?4"
    return name.removesuffix(" PCI-X 266").replace(" ", "").replace("conventional", "conv")


HT_TYPES = {
    "switch": "Switch",
    "interrupt discovery and configuration": "Interrupt Discovery and Configuration",
    "unit id clumping": "UnitID Clumping",
    "extended configuration space access": "Extended Configuration Space Access",
    "address mapping": "Address Mapping",
    "direct route": "DirectRoute",
    "VCSet": "VCSet",
    "retry mode": "Retry Mode",
    "X86": "X86 (reserved)",
}
HT_WIDTHS = {"not connected": "N/C", "reserved 2": "[2]", "reserved 6": "[6]"}
HT_NEWER = {"1.8 GHz": "[a]", "2.0 GHz": "[b]", "2.2 GHz": "[c]", "2.4 GHz": "[d]", "2.6 GHz": "[e]"}
HT_OLD = "HyperTransport: {} Interface !!! Possibly incomplete decoding"


def hypertransport(it: HyperTransport) -> Iterator[str]:
    if it.slave is not None:
        yield from ht_slave(it.slave, it.revision)
    elif it.host is not None:
        yield from ht_host(it.host, it.revision)
    elif it.mapping_enabled is not None:
        yield f"HyperTransport: MSI Mapping Enable{sign(it.mapping_enabled)} Fixed{sign(it.mapping_fixed)}"
        if not it.mapping_fixed:
            yield f"Mapping Address Base: {it.mapped_address:016x}"
    elif it.revision is not None:
        yield f"HyperTransport: Revision ID: {it.revision}"
    elif it.type in HT_TYPES:
        yield f"HyperTransport: {HT_TYPES[it.type]}"
    else:
        yield f"HyperTransport: #{int(it.type.removeprefix('type '), 0):02x}"


def ht_slave(it: HyperTransportSlave, revision: str | None) -> Iterator[str]:
    yield "HyperTransport: Slave or Primary Interface"
    yield f"Command: BaseUnitID={it.base_unit_id} UnitCnt={it.unit_count} MastHost{sign(it.master_host)}"
    yield f"DefDir{sign(it.default_direction)}"
    if it.extras is not None:
        yield f"DUL{sign(it.drop_on_uninitialized_link)}"
    for number, link in enumerate(it.links):
        yield from ht_state(link, f" {number}")
    yield f"Revision ID: {revision}"
    if it.extras is not None:
        yield from ht_frequency(it.links[0], " 0")
        yield ht_features(it.extras)
        yield from ht_frequency(it.links[1], " 1")
        yield from ht_errors(it.extras)
        yield f"Bus Number: {it.bus_number:02x}"


def ht_host(it: HyperTransportHost, revision: str | None) -> Iterator[str]:
    yield "HyperTransport: Host or Secondary Interface"
    yield f"Command: WarmRst{sign(it.warm_reset)} DblEnd{sign(it.double_ended)}"
    if it.device_number is not None:
        yield f"DevNum={it.device_number} ChainSide{sign(it.chain_side)} HostHide{sign(it.host_hide)}"
        yield f"Slave{sign(it.act_as_slave)} <EOCErr{sign(it.inbound_end_of_chain_error)}"
        yield f"DUL{sign(it.drop_on_uninitialized_link)}"
    yield from ht_state(it.links[0], "")
    yield f"Revision ID: {revision}"
    if it.extras is not None:
        yield from ht_frequency(it.links[0], "")
        yield ht_features(it.extras)
        named = {"ExtRS": "extended register set", "UCnfE": "upstream configuration enabled"}
        yield flags(it.extras.features, **named)
        yield from ht_errors(it.extras)


def ht_state(it: HyperTransportLink, number: str) -> Iterator[str]:
    named = {"CFlE": "CRC flood enabled", "CST": "CRC start test", "CFE": "CRC force error"}
    named |= {
        "<LkFail": "link failure",
        "Init": "initialized",
        "EOC": "end of chain",
        "TXO": "transmitter off",
    }
    yield f"Link Control{number}: {flags(it.control, **named)} <CRCErr={it.crc_errors:x}"
    if it.frequency is not None:
        named = {"IsocEn": "isochronous enabled", "LSEn": "LDTSTOP# tristate enabled"}
        named |= {"ExtCTL": "extended CTL time", "64b": "64 bit addressing"}
        yield flags(it.control, **named)
    yield f"Link Config{number}:"
    for width, flow, way in (
        (it.max_width_in, "in", "MLWI DwFcIn"),
        (it.max_width_out, "out", "MLWO DwFcOut"),
        (it.width_in, "in enabled", "LWI DwFcInEn"),
        (it.width_out, "out enabled", "LWO DwFcOutEn"),
    ):
        name, flag = way.split()
        yield f"{name}={HT_WIDTHS.get(width, width.replace(' bits', 'bit'))}"
        if it.frequency is not None:
            yield f"{flag}{sign(flow in it.flow_control)}"


def ht_frequency(it: HyperTransportLink, number: str) -> Iterator[str]:
    """lspci reads half of the register: the frequencies of its upper byte are never there."""
    assert it.frequency is not None
    frequency = HT_NEWER.get(it.frequency, it.frequency.replace(" ", "").replace("vendorspecific", "Vend"))
    yield f"Link Frequency{number}: {frequency}"
    named = {"<Prot": "protocol", "<Ovfl": "overflow", "<EOC": "end of chain", "CTLTm": "CTL timeout"}
    yield f"Link Error{number}: {flags(it.errors, **named)}"
    lower = ("200 MHz", "300 MHz", "400 MHz", "500 MHz", "600 MHz", "800 MHz", "1.0 GHz", "1.2 GHz")
    shown = " ".join(f"{name.replace(' ', '')}{sign(name in it.frequencies)}" for name in lower)
    yield f"Link Frequency Capability{number}: {shown} 1.4GHz- 1.6GHz- Vend-"


def ht_features(it: HyperTransportExtras) -> str:
    named = {"IsocFC": "isochronous flow control", "LDTSTOP": "LDTSTOP#", "CRCTM": "CRC test mode"}
    named |= {"ECTLT": "extended CTL time required", "64bA": "64 bit addressing"}
    return f"Feature Capability: {flags(it.features, **named, UIDRD='unit id reorder disabled')}"


def ht_errors(it: HyperTransportExtras) -> Iterator[str]:
    if it.error_handling is not None:
        names = (
            "PFlE protocol flood", "OFlE overflow flood", "PFE protocol fatal", "OFE overflow fatal",
            "EOCFE end of chain fatal", "RFE response fatal", "CRCFE CRC fatal", "SERRFE system error fatal",
            "CF chain fail", "RE response error", "PNFE protocol nonfatal", "ONFE overflow nonfatal",
            "EOCNFE end of chain nonfatal", "RNFE response nonfatal", "CRCNFE CRC nonfatal",
            "SERRNFE system error nonfatal",
        )  # fmt: skip
        yield f"Error Handling: {flags(it.error_handling, **dict(name.split(' ', 1) for name in names))}"
        upper = f"{it.memory_base_upper:02x}-{it.memory_limit_upper:02x}"
        yield f"Prefetchable memory behind bridge Upper: {upper}"


VIRTIO = {
    "common configuration": "CommonCfg",
    "notifications": "Notify",
    "ISR status": "ISR",
    "device configuration": "DeviceCfg",
    "shared memory": "SharedMemory",
}


def vendor_specific(it: VendorSpecific) -> Iterator[str]:
    yield "Vendor Specific Information:"
    assert it.virtio is None or it.intel is None
    if it.virtio is not None:
        yield from virtio(it.virtio)
    elif it.intel is not None:
        yield from intel(it.intel)
    else:
        yield f"Len={it.length:02x} <?>"


def virtio(it: VirtioStructure) -> Iterator[str]:
    yield f"VirtIO: {VIRTIO.get(it.type, '<unknown>')} BAR={it.bar}"
    digits = 16 if it.type == "shared memory" else 8
    yield f"offset={it.offset:0{digits}x} size={it.length:0{digits}x}"
    if it.type == "shared memory":
        yield f"id={it.id}"
    if it.notify_off_multiplier is not None:
        yield f"multiplier={it.notify_off_multiplier:08x}"


INTEL_A = (
    {"Peg60Dis": "PEG 6.0 disabled", "Peg12Dis": "PEG 1.2 disabled", "Peg11Dis": "PEG 1.1 disabled",
     "Peg10Dis": "PEG 1.0 disabled", "PeLWUDis": "PEG lane width up disabled"},
    {"EccDis": "ECC disabled", "ForceEccEn": "forced ECC enabled", "VTdDis": "VT-d disabled",
     "DmiG2Dis": "DMI gen 2 disabled", "PegG2Dis": "PEG gen 2 disabled"},
    {"1NDis": "1N disabled", "CDDis": "CD disabled", "DDPCDis": "DDPC disabled", "X2APICEn": "x2APIC enabled",
     "PDCDis": "PDC disabled", "IGDis": "integrated graphics disabled"},
    {"DDROCCAP": "DDR overclocking", "OCEn": "overclocking enabled",
     "DDRWrtVrefEn": "DDR write Vref enabled", "DDR3LEn": "DDR3L enabled"},
)  # fmt: skip
INTEL_B = (
    {"ImguDis": "IMGU disabled", "OCbySSKUCap": "overclocking by SSKU capable",
     "OCbySSKUEn": "overclocking by SSKU enabled", "SMTCap": "SMT capable"},
    {"PegG3Dis": "PEG gen 3 disabled", "PkgTyp": "package type", "AddGfxEn": "additive graphics enabled",
     "AddGfxCap": "additive graphics capable", "PegX16Dis": "PEG x16 disabled",
     "DmiG3Dis": "DMI gen 3 disabled", "GmmDis": "GMM disabled"},
)  # fmt: skip


def intel(it: IntelCapabilities) -> Iterator[str]:
    if it.type == "capabilities":
        yield f"Intel Capabilities v{it.version}"
    else:
        yield "Intel Feature Detection" if it.type == "feature detection" else "Intel <unknown>"
    if it.a is not None:
        yield f"CapA: {flags(it.a.flags, **INTEL_A[0])} DmiWidth=x{it.a.dmi_width}"
        size = "Unlimited" if it.a.ddr_max_gb is None else f"{it.a.ddr_max_gb:g}GB/chan"
        yield f"{flags(it.a.flags, **INTEL_A[1])} DDRMaxSize={size} {flags(it.a.flags, **INTEL_A[2])}"
        yield f"CDID={it.a.compatibility_device_id} CRID={it.a.compatibility_revision_id}"
        yield flags(it.a.flags, **INTEL_A[3])
    if it.b is not None:
        yield f"CapB: {flags(it.b.flags, **INTEL_B[0])} CacheSzCap {it.b.cache_size:#x}"
        limit = {0: "Disabled", None: "Unlimited"}.get(
            it.b.ddr3_max_mhz_ref100, f"{it.b.ddr3_max_mhz_ref100}MHz"
        )
        yield f"SoftBinCap{sign('soft binning capable' in it.b.flags)} DDR3MaxFreqWithRef100={limit}"
        yield f"{flags(it.b.flags, **INTEL_B[1])} DDR3MaxFreq={it.b.ddr3_max_mhz}MHz"
        yield f"LPDDR3En{sign('LPDDR3 enabled' in it.b.flags)}"
    if it.c is not None:
        yield f"CapC: PegG4Dis{sign('PEG gen 4 disabled' in it.c.flags)} DDR4MaxFreq="
        yield f"LPDDREn{sign('LPDDR enabled' in it.c.flags)} LPDDR4MaxFreq="
        yield f"LPDDR4En{sign('LPDDR4 enabled' in it.c.flags)}"
        named = {"QClkGvDis": "QCLK GV disabled", "SgxDis": "SGX disabled"}
        clock = it.c.bclk_overclocking.replace(" ", "")
        yield f"{flags(it.c.flags, **named)} BClkOC={clock if clock[0].isdigit() else clock.title()}"
        gear = "Unlimited" if it.c.gear1_max_mhz is None else f"{it.c.gear1_max_mhz}MHz"
        yield f"{flags(it.c.flags, IddDis='IDD disabled', Pipe3Dis='pipe 3 disabled')} Gear1MaxFreq={gear}"


PROPERTIES = {
    "memory": "memory space, non-prefetchable",
    "prefetchable memory": "memory space, prefetchable",
    "I/O": "I/O space",
    "prefetchable memory of VFs": "VF memory space, prefetchable",
    "memory of VFs": "VF memory space, non-prefetchable",
    "memory behind the bridge": "allocation behind bridge, non-prefetchable memory",
    "prefetchable memory behind the bridge": "allocation behind bridge, prefetchable memory",
    "I/O behind the bridge": "allocation behind bridge, I/O space",
    "unavailable memory": "memory space resource unavailable for use",
    "unavailable I/O": "I/O space resource unavailable for use",
    "unavailable": "entry unavailable for use",
}


def enhanced_allocation(it: EnhancedAllocation) -> Iterator[str]:
    buses = f", secondary={it.secondary_bus}, subordinate={it.subordinate_bus}" if it.secondary_bus else ""
    yield f"Enhanced Allocation (EA): NumEntries={it.count}{buses}"
    for number, entry in enumerate(it.entries):
        yield f"Entry {number}: Enable{sign(entry.enabled)} Writable{sign(entry.writable)}"
        yield f"EntrySize={entry.size} BAR Equivalent Indicator: {place(entry)}"
        yield f"PrimaryProperties: {properties(entry.primary_properties)}"
        more = ", PrimaryProperties should be used" if entry.secondary_properties == "unavailable" else ""
        yield f"SecondaryProperties: {properties(entry.secondary_properties)}{more}"
        yield f"Base: {entry.base_address:08x} MaxOffset: {entry.max_offset:08x}"


def place(it: AllocatedRange) -> str:
    return it.equivalent.replace("VF BAR", "VF-BAR").replace("behind the bridge", "resource behind function")


def properties(name: str) -> str:
    return PROPERTIES.get(name) or f"[{int(name.removeprefix('reserved '), 0):02x}]"


AS_LSPCI: dict[type, Callable[[Any], Iterator[str]]] = {
    AdvancedFeatures: advanced_features,
    Agp: agp,
    BridgeSubsystem: bridge_subsystem,
    DebugPort: debug_port,
    EnhancedAllocation: enhanced_allocation,
    HotPlugController: hot_plug,
    HotSwap: hot_swap,
    HyperTransport: hypertransport,
    Msi: msi,
    MsiX: msi_x,
    PciX: pci_x,
    PowerManagement: power_management,
    SataRegisters: sata,
    SlotIdentification: slot_identification,
    VendorSpecific: vendor_specific,
}


def comparable(text: str) -> str:
    """Return lspci's text without what it takes from the wrong bits, or writes in more than one way.

    It shows the frequency of Gear 1 as that of DDR4 and LPDDR4, too.
    """
    text = re.sub(r"(DDR4MaxFreq=)\w+", r"\1", text)
    text = text.replace(" !!! Possibly incomplete decoding", "")
    return re.sub(r"BAR\?\?\d+", "BAR??", text)


@pytest.mark.parametrize("number", range(len(RECORDED)))
def test_it_reads_as_lspci_reads_it(number: int) -> None:
    it, text = recorded(number)
    assert " ".join(line for line in AS_LSPCI[type(it)](it) if line) == comparable(text)


def test_every_capability_is_compared() -> None:
    assert {type(recorded(number)[0]) for number in range(len(RECORDED))} == set(AS_LSPCI)


def test_vital_product_data_and_what_lspci_does_not_decode() -> None:
    assert only(0x03, "3412 78563412") == VitalProductData(0x1234, address_flag=False, data=0x12345678)
    assert only(0x03, "0080 00000000") == VitalProductData(0, address_flag=True, data=0)
    assert only(0x06, "9b00") == HotSwap(("dha", "eim", "loo", "ins"), 1)
    assert only(0x0C, "0500 01020304") == HotPlugController(5, 0x04030201)


def test_the_frequencies_of_a_link_have_16_bits() -> None:
    body = bytearray(26)
    body[10], body[11], body[12:14] = 0x60, 0x3F, (0xC300).to_bytes(2, "little")
    link = decoded(0x08, 0, 0x1234, 0x11E8, bytes(body)).slave.links[0]
    assert link.frequency == "vendor specific"
    assert link.errors == ("protocol", "overflow")
    assert link.frequencies == ("1.4 GHz", "1.6 GHz", "2.6 GHz", "vendor specific")


def test_a_fixed_mapping_is_that_of_x86() -> None:
    assert only(0x08, "03a8 00000080 01000000").mapped_address == 0xFEE0_0000


def test_the_memory_of_an_intel_host_bridge() -> None:
    """DDR4 and LPDDR4 have limits of their own, in steps of 266.6 MHz."""
    registers = only(0x09, "1001 00001800 00000000 00000606", vendor=0x8086).intel
    assert registers.a.ddr_max_gb == 0.5
    assert (registers.c.ddr4_max_mhz, registers.c.lpddr4_max_mhz) == (3199, 799)
    assert registers.c.gear1_max_mhz is None


def test_a_virtio_structure_that_is_too_short_for_its_type() -> None:
    it = only(0x09, "1008 0000 0000 44332211 88776655", vendor=0x1AF4, device=0x1041).virtio
    assert (it.type, it.offset, it.length) == ("shared memory", 0x11223344, 0x55667788)
    assert only(0x09, "1002" + "00" * 12, vendor=0x1AF4, device=0x1041).virtio.notify_off_multiplier is None


def test_an_allocation_that_is_too_short_for_its_address() -> None:
    short = (1 << 31 | 1).to_bytes(4, "little") + bytes(4)
    without_upper = (1 << 31 | 2).to_bytes(4, "little") + bytes.fromhex("020000f0 02000000")
    it = decoded(0x14, 0, 0x1234, 0x11E8, b"\x02\x00" + short + without_upper)
    assert [(one.size, one.base_address, one.max_offset) for one in it.entries] == [
        (1, None, None),
        (2, None, None),
    ]


def test_allocations_end_with_the_space() -> None:
    it = decoded(0x14, 0, 0x1234, 0x11E8, b"\x3f\x00" + bytes(12), at=0xF0)
    assert (it.count, len(it.entries)) == (63, 3)


@given(
    number=st.sampled_from([2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 17, 18, 19, 20]),
    header_type=st.sampled_from([0, 1, 2]),
    vendor=st.sampled_from([0x1234, 0x8086, 0x1AF4]),
    at=st.sampled_from([0x48, 0xC0, 0xE0, 0xF0, 0xF4, 0xF8, 0xFC]),
    contents=st.binary(min_size=48, max_size=48),
)
def test_any_bytes_are_decoded(number: int, header_type: int, vendor: int, at: int, contents: bytes) -> None:
    config = bytearray(config_space(vendor=vendor, device=0x1041, header_type=header_type))
    config[0x06], config[0x14 if header_type == 2 else 0x34] = 0x10, at
    config[at:] = (bytes((number, 0)) + contents + bytes(256))[: 256 - at]
    (found,) = decode(bytes(config))
    assert (found.id, found.offset) == (number, at)
    assert json.loads(json.dumps(to_json(found.content))) == to_json(found.content)
    assert not isinstance(found.content, Undecoded) or at >= 0xE0
