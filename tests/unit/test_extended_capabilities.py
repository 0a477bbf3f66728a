"""Extended capabilities, compared with what lspci 3.15 prints of the same bytes.

``lspci-3.15-extended.json`` has an entry for each function: the id of its capability, its device/port type,
the version of the capability, the bytes after its header, and the text of lspci. In entry ``k`` of a
capability, bit ``n`` is bit ``k`` of the number ``n``, so that no two bits can be mistaken for each other.
Counts and lengths are set to what the space has room for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiotool.pci.acs import PortType
from vfiotool.pci.capabilities import (
    cxl,
    encryption,
    errors,
    flit,
    identity,
    physical_layer,
    power,
    sriov,
    topology,
    transactions,
    translation,
    vendor,
    virtual_channel,
)
from vfiotool.pci.capabilities.decoding import Undecoded, decode
from vfiotool.render.documents import to_json
from vfiotool.testing import config_space

RECORDED = json.loads((Path(__file__).parents[1] / "data/lspci-3.15-extended.json").read_text())
AT = 0x100


def function(number: int, body: bytes, *, kind: int = 0, version: int = 1, width: int = 0) -> bytes:
    """Return a function with a single extended capability, of a device/port type and a link width."""
    express = bytes([2 | kind << 4, 0, *bytes(8), *(width << 4).to_bytes(2, "little"), *bytes(6)])
    config = bytearray(config_space(capabilities=[(0x10, 0x40, express)], extended=[(number, AT)]))
    config[AT + 2] = version
    config[AT + 4 : AT + 4 + len(body)] = body
    return bytes(config[:4096])


def only(number: int, body: str | bytes, **options: int) -> Any:
    raw = bytes.fromhex(body) if isinstance(body, str) else body
    return decode(function(number, raw, **options))[-1].content


def sign(value: bool) -> str:
    return "+" if value else "-"


def flags(**values: bool) -> str:
    return " ".join(f"{name}{sign(value)}" for name, value in values.items())


def named(names: Iterable[str], *every: str, **shown: str) -> str:
    """Return lspci's flags of a set of names; ``shown`` has the names that lspci spells in another way."""
    have = set(names)
    return " ".join(f"{name}{sign(shown.get(name, name) in have)}" for name in (*every, *shown))


def reserved(text: str, form: str = "??{}") -> str:
    return form.format(text.removeprefix("reserved ")) if text.startswith("reserved ") else text


UNCORRECTABLE = (
    "DLP", "SDES", "TLP", "FCP", "CmpltTO", "CmpltAbrt", "UnxCmplt", "RxOF", "MalfTLP", "ECRC", "UnsupReq",
    "ACSViol", "UncorrIntErr", "BlockedTLP", "AtomicOpBlocked", "TLPBlockedErr", "PoisonTLPBlocked",
    "DMWrReqBlocked", "IDECheck", "MisIDETLP", "PCRC_CHECK", "TLPXlatBlocked",
)  # fmt: skip


def correctable(names: Iterable[str]) -> str:
    first = named(names, "RxErr", "BadTLP", "BadDLLP", "Rollover", "Timeout", AdvNonFatalErr="NonFatalErr")
    return f"{first} {named(names, 'CorrIntErr', 'HeaderOF')}"


def advanced_errors(it: errors.AdvancedErrors, kind: int) -> Iterator[str]:
    yield f"UESta: {named(it.uncorrectable, *UNCORRECTABLE)} UEMsk:"
    yield f"UEMsk: {named(it.uncorrectable_masked, *UNCORRECTABLE)} UESvrt:"
    yield f"UESvrt: {named(it.fatal, *UNCORRECTABLE)} CESta:"
    yield f"CESta: {correctable(it.correctable)} CEMsk: {correctable(it.correctable_masked)}"
    yield f"First Error Pointer: {it.first_error:02x}, " + flags(
        ECRCGenCap=it.ecrc_generation_capable,
        ECRCGenEn=it.ecrc_generation_enabled,
        ECRCChkCap=it.ecrc_check_capable,
        ECRCChkEn=it.ecrc_check_enabled,
        MultHdrRecCap=it.multiple_headers_capable,
        MultHdrRecEn=it.multiple_headers_enabled,
        TLPPfxPres=it.prefix_log_present,
        HdrLogCap=it.completion_timeout_log_capable,
    )
    yield f"HeaderLog: {it.header_log}"
    assert (it.root is not None) == (kind in (PortType.ROOT_PORT, PortType.EVENT_COLLECTOR))
    assert (it.prefix_log is not None) == it.prefix_log_present
    if it.root is not None:
        yield from root_errors(it.root)


def root_errors(it: errors.RootErrors) -> Iterator[str]:
    yield f"RootCmd: {flags(CERptEn=it.cor_enabled, NFERptEn=it.nonfatal_enabled, FERptEn=it.fatal_enabled)}"
    yield "RootSta: " + flags(
        CERcvd=it.cor_received,
        MultCERcvd=it.multi_cor_received,
        UERcvd=it.uncor_received,
        MultUERcvd=it.multi_uncor_received,
        FirstFatal=it.first_uncor_fatal,
        NonFatalMsg=it.nonfatal_received,
        FatalMsg=it.fatal_received,
    )
    yield f"IntMsgNum {it.interrupt_message} ErrorSrc: ERR_COR: {it.cor_source_id:04x}"
    yield f"ERR_FATAL/NONFATAL: {it.uncor_source_id:04x}"


def containment(it: errors.DownstreamPortContainment, kind: int) -> Iterator[str]:
    yield f"DpcCap: IntMsgNum {it.interrupt_message}, " + flags(
        RPExt=it.rp_extensions, PoisonedTLP=it.poisoned_tlp_blocking, SwTrigger=it.software_trigger
    )
    yield f"RP PIO Log {it.rp_pio_log_size}, DL_ActiveErr{sign(it.dl_active_signal)}"
    triggers = {"disabled": 0, "fatal": 1, "fatal and non-fatal": 2, "reserved 3": 3}
    yield f"DpcCtl: Trigger:{triggers[it.trigger]} " + flags(
        Cmpl=it.completion_unsupported_request,
        INT=it.interrupt_enabled,
        ErrCor=it.err_cor_enabled,
        PoisonedTLP=it.poisoned_tlp_blocking_enabled,
        SwTrigger=it.software_triggered,
        DL_ActiveErr=it.dl_active_signal_enabled,
    )
    reasons = {"uncorrectable error": 0, "ERR_NONFATAL": 1, "ERR_FATAL": 2, "extension": 3}
    extensions = {"RP PIO error": 0, "software trigger": 1, "reserved 2": 2, "reserved 3": 3}
    yield f"DpcSta: Trigger{sign(it.triggered)} Reason:{reasons[it.trigger_reason]:02x} "
    yield flags(INT=it.interrupt_status, RPBusy=it.rp_busy)
    yield f"TriggerExt:{extensions[it.trigger_reason_extension]:02x} "
    yield f"RP PIO ErrPtr:{it.rp_pio_first_error:02x} Source: {it.source_id:04x}"


def arbitration(text: str) -> str:
    return reserved(text).replace("fixed", "Fixed")


def arbitrations(names: tuple[str, ...], *every: str) -> str:
    spelled = [arbitration(name) for name in names]
    return f"Arb: {named(spelled, *every, *(name for name in spelled if name.startswith('??')))}"


def channels(it: virtual_channel.VirtualChannel, kind: int) -> Iterator[str]:
    clock = {"100 ns": "100ns"}.get(it.reference_clock, reserved(it.reference_clock))
    bits = it.arbitration_table_entry_bits
    yield f"Caps: LPEVC={it.low_priority_extended_vcs} RefClk={clock} PATEntryBits={bits}"
    every = ("Fixed", "WRR32", "WRR64", "WRR128")
    yield f"{arbitrations(it.arbitrations, *every)} Ctrl: ArbSelect={arbitration(it.arbitration)} Status:"
    yield f"Status: InProgress{sign(it.table_load_pending)}"
    if it.arbitration_table:
        yield f"Port Arbitration Table [{AT + it.arbitration_table:x}]"
    assert len(it.resources) == it.extended_vcs + 1
    for number, one in enumerate(it.resources):
        slots, offset = one.max_time_slots, one.arbitration_table // 16
        reject = sign(one.reject_snoop)
        yield f"VC{number}: Caps: PATOffset={offset:02x} MaxTimeSlots={slots} RejSnoopTrans{reject}"
        yield arbitrations(one.arbitrations, *every, "TWRR128", "WRR256")
        chosen = arbitration(one.arbitration)
        yield f"Enable{sign(one.enabled)} ID={one.id} ArbSelect={chosen} TC/VC={one.tc_map:02x}"
        yield f"Status: {flags(NegoPending=one.negotiation_pending, InProgress=one.table_load_pending)}"


def root_complex_links(it: topology.RootComplexLinks, kind: int) -> Iterator[str]:
    # lspci takes four reserved bits for a part of the type.
    yield f"Desc: PortNumber={it.port_number:02x} ComponentID={it.component:02x} EltType="
    if it.type in ("configuration", "egress", "internal"):
        assert it.type == {4: "configuration", 2: "internal"}[len(it.links)]
    for number, one in enumerate(it.links):
        target = f"TargetPort={one.target_port:02x} TargetComponent={one.target_component:02x}"
        yield f"Link{number}: Desc: {target} AssocRCRB"
        kind_text = {"configuration": "Config", "memory": "MemMapped"}[one.type]
        rcrb, valid = sign(one.associates_rcrb), sign(one.valid)
        yield f"AssocRCRB{rcrb} LinkType={kind_text} LinkValid{valid} Addr: "
        if one.bus is None:
            yield f"LinkValid{valid} Addr: {one.address:016x}"
        else:
            yield f"Addr: {one.bus:02x}:{one.device:02x}.{one.function} CfgSpace={one.address:016x}"


def event_collector(it: topology.EventCollector, kind: int) -> Iterator[str]:
    yield "RCiEPBitmap: "
    if it.first_bus is not None:
        yield f"AssociatedBusNumbers: {it.first_bus:02x}-{it.last_bus:02x}"


def alternative_routing(it: topology.AlternativeRouting, kind: int) -> Iterator[str]:
    yield f"ARICap: {flags(MFVC=it.mfvc_groups, ACS=it.acs_groups)}, Next Function: {it.next_function}"
    enabled = flags(MFVC=it.mfvc_groups_enabled, ACS=it.acs_groups_enabled)
    yield f"ARICtl: {enabled}, Function Group: {it.function_group}"


def address_translation(it: translation.AddressTranslation, kind: int) -> Iterator[str]:
    yield f"Invalidate Queue Depth: {it.queue_depth % 32:02x} ATSCtl: Enable{sign(it.enabled)}"
    yield f"Smallest Translation Unit: {it.smallest_translation.bit_length() - 13:02x}"


def page_requests(it: translation.PageRequests, kind: int) -> Iterator[str]:
    yield f"PRICtl: {flags(Enable=it.enabled, Reset=it.reset)} PRISta: " + flags(
        RF=it.response_failure, UPRGI=it.unexpected_group, Stopped=it.stopped, PASID=it.pasid_required
    )
    yield f"Page Request Capacity: {it.capacity:08x}, Page Request Allocation: {it.allocation:08x}"


def address_spaces(it: translation.ProcessAddressSpace, kind: int) -> Iterator[str]:
    yield f"PASIDCap: {flags(Exec=it.execute, Priv=it.privileged)}, Max PASID Width: {it.width:02x}"
    yield f"PASIDCtl: {flags(Enable=it.enabled, Exec=it.execute_enabled, Priv=it.privileged_enabled)}"


def virtual_functions(it: sriov.Sriov, kind: int) -> Iterator[str]:
    tags = flags(Migration=it.vf_migration) + f" 10BitTagReq{sign(it.vf_tag_requester_10bit)}"
    yield f"IOVCap: {tags} IntMsgNum {it.interrupt_message} IOVCtl: " + flags(
        Enable=it.enabled,
        Migration=it.vf_migration_enabled,
        Interrupt=it.vf_migration_interrupt_enabled,
        MSE=it.memory_enabled,
        ARIHierarchy=it.ari_hierarchy,
    )
    status = sign(it.vf_migration_status)
    yield f" 10BitTagReq{sign(it.vf_tag_requester_10bit_enabled)} IOVSta: Migration{status}"
    yield f"Initial VFs: {it.initial_vfs}, Total VFs: {it.total_vfs}, Number of VFs: {it.num_vfs}"
    yield f"Function Dependency Link: {it.dependency_link:02x} VF offset: {it.first_vf_offset}, "
    yield f"stride: {it.vf_stride}, Device ID: {it.vf_device_id:04x}"
    for bar in it.bars:
        if bar.index == 5:  # lspci takes the next register for the upper half of a 64-bit BAR 5
            continue
        if bar.type == "memory64":
            yield f"Region {bar.index}: Memory at {bar.address:016x} (64-bit, "
        else:
            yield f"Region {bar.index}: Memory at {bar.address:08x} ("
        yield f"bit, {'' if bar.prefetchable else 'non-'}prefetchable)"
    yield f"VF Migration: offset: {it.migration_offset:08x}, BIR: {it.migration_bar:x}"


def multicast(it: topology.Multicast, kind: int) -> Iterator[str]:
    yield f"McastCap: MaxGroups {it.max_groups}"
    if it.window_size is not None:
        assert kind == PortType.ENDPOINT
        yield f", WindowSz {it.window_size.bit_length() - 1} ({it.window_size} bytes)"
    if it.ecrc_regeneration is not None:
        yield f", ECRCRegen{sign(it.ecrc_regeneration)}"
    yield f"McastCtl: NumGroups {it.groups}, Enable{sign(it.enabled)}"
    yield f"McastBAR: IndexPos {it.index_position}, BaseAddr {it.base_address:016x}"
    yield f"McastReceiveVec: {it.receive_mask:016x} McastBlockAllVec: {it.block_all_mask:016x}"
    yield f"McastBlockUntransVec: {it.block_untranslated_mask:016x}"
    if it.overlay is not None:
        size = it.overlay.size
        shown = "(disabled)" if size is None else f"{size.bit_length() - 1} ({size} bytes)"
        yield f"{shown}, BaseAddr {it.overlay.address:016x}"


def hints(it: transactions.TphRequester, kind: int) -> Iterator[str]:
    text = "Transaction Processing Hints"
    text += " Interrupt vector mode supported" if it.interrupt_vector_mode else ""
    text += " Device specific mode supported" if it.device_specific_mode else ""
    text += " Extended requester support" if it.extended_tph else ""
    yield (
        f"{text} "
        + {
            "none": "No steering table available",
            "capability": "Steering table in TPH capability structure",
            "MSI-X table": "Steering table in MSI-X table",
            "reserved 3": "Reserved steering table location",
        }[it.st_table_location]
    )


def secondary(it: physical_layer.SecondaryExpress, kind: int) -> Iterator[str]:
    requested = flags(LnkEquIntrruptEn=it.equalization_interrupt_enabled, PerformEqu=it.perform_equalization)
    lanes = " ".join(map(str, it.lane_errors))
    yield f"LnkCtl3: {requested} LaneErrStat: {f'LaneErr at lane: {lanes}' if lanes else 0}"


def substates(it: power.L1Substates, kind: int) -> Iterator[str]:
    every = {"PCI-PM_L1.2": "PCI-PM L1.2", "PCI-PM_L1.1": "PCI-PM L1.1"}
    every |= {"ASPM_L1.2": "ASPM L1.2", "ASPM_L1.1": "ASPM L1.1"}
    yield f"L1SubCap: {named(it.supported, **every)} L1_PM_Substates{sign(it.l1_pm_substates)}"
    yield f"L1SubCtl1: {named(it.enabled, **every)}"
    if it.port_cm_restore_time_us is None:
        yield "L1SubCtl2:"
        return
    on = "<error>" if it.port_power_on_time_us is None else f"{it.port_power_on_time_us}us"
    yield f"PortCommonModeRestoreTime={it.port_cm_restore_time_us}us PortTPowerOnTime={on}"
    yield f"T_CommonMode={it.cm_restore_time_us}us"
    if it.ltr_l12_threshold_ns is not None:
        yield f"LTR1.2_Threshold={it.ltr_l12_threshold_ns}ns"
    yield f"T_PwrOn={'<error>' if it.power_on_time_us is None else f'{it.power_on_time_us}us'}"


def granularity(nanoseconds: int, unknown: str) -> str:
    return {0: unknown, 255: "Greater than 254ns"}.get(nanoseconds, f"{nanoseconds}ns")


def time_measurement(it: transactions.PrecisionTimeMeasurement, kind: int) -> Iterator[str]:
    yield f"PTMCap: {flags(Requester=it.requester, Responder=it.responder, Root=it.root)} PTMClock"
    yield f"PTMClockGranularity: {granularity(it.clock_granularity_ns, 'Unimplemented')} PTMControl: "
    yield f"PTMControl: {flags(Enabled=it.enabled, RootSelected=it.root_selected)}"
    yield f"PTMEffectiveGranularity: {granularity(it.effective_granularity_ns, 'Unknown')}"


def equalized(it: physical_layer.EqualizationStatus) -> str:
    return flags(
        EquComplete=it.complete,
        EquPhase1=it.phase1,
        EquPhase2=it.phase2,
        EquPhase3=it.phase3,
        LinkEquRequest=it.requested,
    )


def physical_layer_16(it: physical_layer.PhysicalLayer16, kind: int) -> Iterator[str]:
    yield f"Phy16Sta: {equalized(it.equalization)}"


def physical_layer_32(it: physical_layer.PhysicalLayer32, kind: int) -> Iterator[str]:
    modes = flags(**{f"ModTsMode{number}": number in it.modified_ts_modes for number in range(3)})
    skipped = flags(EqualizationBypass=it.equalization_bypass, NoEqualizationNeeded=it.no_equalization_needed)
    yield f"Phy32Cap: {skipped} {modes}"
    disabled = flags(
        EqualizationBypassDis=it.equalization_bypass_disabled,
        NoEqualizationNeededDis=it.no_equalization_needed_disabled,
    )
    mode = {
        "training set messages": "Training Set Messages",
        "alternate protocol negotiation": "Alternate Protocol Negotiation",
    }.get(it.modified_ts_mode, reserved(it.modified_ts_mode))
    yield f"Phy32Ctl: {disabled} Modified TS Usage Mode: {mode} Phy32Sta: {equalized(it.equalization)}"
    behavior = {
        "full equalization": "Full Equalization required",
        "equalization bypass to highest rate": "Equalization bypass to highest rate support",
        "no equalization needed": "No Equalization Needed",
        "modified TS1/TS2 ordered sets": "Modified TS1/TS2 Ordered Sets supported",
    }[it.link_behavior]
    yield f"Received Enhanced Link Behavior Control: {behavior} " + flags(
        ModTsRecv=it.modified_ts_received,
        TxPrecodeOn=it.tx_precoding_on,
        TxPrecodeReq=it.tx_precoding_requested,
        NoEqualizationNeededRecv=it.no_equalization_needed_received,
    )


def physical_layer_64(it: physical_layer.PhysicalLayer64, kind: int) -> Iterator[str]:
    yield f"Phy64Sta: {equalized(it.equalization)} " + flags(
        TxPrecodeOn=it.tx_precoding_on,
        TxPrecodeReq=it.tx_precoding_requested,
        NoEqualizationNeededRecv=it.no_equalization_needed_received,
    )


def margining(it: physical_layer.LaneMargining, kind: int) -> Iterator[str]:
    ready = flags(MargReady=it.ready, MargSoftReady=it.software_ready)
    yield f"PortCap: Uses Driver{sign(it.uses_driver)} PortSta: {ready}"


def data_objects(it: transactions.DataObjectExchange, kind: int) -> Iterator[str]:
    message = "" if it.interrupt_message is None else f" IntMsgNum {it.interrupt_message}"
    yield f"DOECap: IntSup{sign(it.interrupt_supported)}{message} DOECtl: IntEn{sign(it.interrupt_enabled)}"
    yield "DOESta: " + flags(
        Busy=it.busy, IntSta=it.interrupt_status, Error=it.error, ObjectReady=it.data_object_ready
    )


def width(text: str) -> str:
    return text.replace("dynamic", "Dynamic") if "reserved" not in text else reserved(text, "Unknown ({})")


LATENCIES = {
    "less than 1 us": "Less than 1us", "1 us to 2 us": "1us to less than 2us",
    "2 us to 4 us": "2us to less than 4us", "4 us to 8 us": "4us to less than 8us",
    "8 us to 16 us": "8us to less than 16us", "16 us to 32 us": "16us to less than 32us",
    "32 us to 64 us": "32us-64us", "more than 64 us": "More than 64us",
}  # fmt: skip


def device_3(it: flit.Device3, kind: int) -> Iterator[str]:
    yield f"DevCap3: DMWr Request Routing{sign(it.dmwr_routing)}, "
    yield f"14-Bit Tag Completer{sign(it.tag_completer_14bit)}, "
    yield f"14-Bit Tag Requester{sign(it.tag_requester_14bit)} L0p{sign(it.l0p)}"
    assert (it.port_l0p_exit_latency is None) == (it.retimer_l0p_exit_latency is None) == (not it.l0p)
    if it.port_l0p_exit_latency is not None and it.retimer_l0p_exit_latency is not None:
        yield f"Port L0p Exit Latency: {LATENCIES[it.port_l0p_exit_latency]}, Retimer L0p"
        yield f"Retimer L0p Exit Latency: {LATENCIES[it.retimer_l0p_exit_latency]} UIO"
    requester = sign(it.uio_requester)
    yield f"UIO Mem RdWr Completer{sign(it.uio_completer)}, UIO Mem RdWr Requester{requester} DevCtl3"
    yield f"DevCtl3: DMWr Requester{sign(it.dmwr_requester_enabled)}, DMWr Egress"
    yield f"DMWr Egress Blocking{sign(it.dmwr_egress_blocking)}, 14-Bit"
    l0p = f"L0p{sign(it.l0p_enabled)}, Target Link Width: {width(it.target_link_width)} UIO"
    yield f"14-Bit Tag Requester{sign(it.tag_requester_14bit_enabled)} {l0p}"
    yield f"UIO Mem RdWr Requester{sign(it.uio_requester_enabled)}, UIO Request 256B"
    yield f"UIO Request 256B Boundary{sign(not it.uio_256b_boundary_disabled)} DevSta3"
    yield f"DevSta3: Initial Link Width: {width(it.initial_link_width)}, Segment"
    yield f"Segment Captured{sign(it.segment_captured)}, Remote L0p{sign(it.remote_l0p)}"


ALGORITHM = "AES-GCM-256-96b"


def algorithm(text: str) -> str:
    return f"Alg='{text if text == ALGORITHM else 'reserved'}'"


def stream(it: encryption.IdeControl, *, is_link: bool) -> str:
    """Return lspci's text up to the PCRC bit, which it reads from the wrong bit for the streams of a link."""
    sizes = (it.tx_aggregation_npr, it.tx_aggregation_pr, it.tx_aggregation_cpl)
    npr, pr, cpl = ("-" if size == 1 else f"={size}" for size in sizes)
    pcrc = it.enabled if is_link else it.pcrc_enabled
    return f"Ctl: {flags(En=it.enabled, XT=it.xt)} NPR{npr} PR{pr} CPL{cpl} PCRC{sign(pcrc)}"


def header_encryption(it: encryption.IdeControl) -> str:
    mode = it.partial_header_encryption.replace("none", "no")
    return f"HdrEnc={reserved(mode)} {algorithm(it.algorithm)} TC{it.traffic_class}"


def stream_state(it: encryption.IdeControl) -> str:
    state = it.state if it.state != "reserved 1" else "reserved"
    return f"{state if state == 'reserved' else reserved(state)} RecvChkFail{sign(it.ide_fail)}"


def data_encryption(it: encryption.IntegrityDataEncryption, kind: int) -> Iterator[str]:
    yield f"IDECap: Lnk={it.link_stream_count} Sel={it.selective_stream_count} " + flags(
        FlowThru=it.flow_through,
        PartHdr=it.partial_header_encryption,
        Aggr=it.aggregation,
        PCPC=it.pcrc,
        IDE_KM=it.ide_km,
        SelCfg=it.selective_configuration,
    )
    yield f"{algorithm(it.algorithm)} TCs={it.traffic_classes} {flags(TeeLim=it.tee_limited, XT=it.xt)}"
    yield f"IDECtl: FTEn{sign(it.flow_through_enabled)}"
    assert len(it.link_streams) == it.link_stream_count
    for number, link in enumerate(it.link_streams):
        yield f"LinkIDE#{number} {stream(link, is_link=True)} {header_encryption(link)} ID{link.stream_id}"
        yield f"LinkIDE#{number} Sta: Status={stream_state(link)}"
    assert len(it.selective_streams) == it.selective_stream_count
    for number, one in enumerate(it.selective_streams):
        name, control = f"SelectiveIDE#{number}", one.control
        yield f"{name} Cap: RID#={one.address_count} {name} {stream(control, is_link=False)} "
        yield f"CFG{sign(one.configuration_enabled)} {header_encryption(control)} TeeLim"
        yield (
            f" TeeLim{sign(one.tee_limited)} "
            f"ID{control.stream_id}{' Default' if one.default else ''} {name} Sta: {stream_state(control)}"
        )
        ids = f"Base={one.rid_base:x} Limit={one.rid_limit:x} SegBase={one.segment:x}"
        yield f"{name} RID: Valid{sign(one.rid_valid)} {ids}"
        assert len(one.addresses) == one.address_count
        for index, address in enumerate(one.addresses):
            ends = f"Base={address.base_address:x} Limit={address.limit_address:x}"
            yield f"{name} RID#{index}: Valid{sign(address.valid)} {ends}"


def flit_log(it: flit.FlitLogging, kind: int) -> Iterator[str]:
    parity, check = it.parity_syndromes, it.check_syndromes
    yield f"Log1: Valid{sign(it.valid)}, Link Width: {width(it.link_width)} More"
    yield f"More entries{sign(it.more_entries)} Unrecognized"
    yield f"Unrecognized flit{sign(it.unrecognized)} FEC uncorrectable{sign(it.fec_uncorrectable)}"
    for group in range(3):
        yield f"SyndParityGrp{group}: {parity[group]:02x}, SyndCheckGrp{group}: {check[group]:02x}"
    interrupt = sign(it.counter_interrupt_enabled)
    yield f"CntCtl: Flit Error Counter En{sign(it.counter_enabled)} "
    yield f"Flit Error Counter Interrupt En{interrupt}"
    yield f"Events to count: {it.counted_events}, Trigger Event on Error Count: {it.trigger_count:02x}"
    yield f"Link Width when Error Counter Started {width(it.counter_link_width)} Interrupt"
    # lspci takes the highest bit of the width for the interrupt.
    yield f", FlitErr: {it.counter} MeasCtl"
    lanes = it.measurement_granularity.removesuffix(" lanes")
    yield f"MeasCtl: En{sign(it.measurement_enabled)} Granularity: {lanes} MeasSts1"
    yield f"Flit Counter: {it.flit_counter} MeasSts2: Invalid Flit Counter: {it.invalid_flit_counter} "
    yield from (f"Lane{lane}: {count}" for lane, count in enumerate(it.lane_errors))


def injections(it: flit.OrderedSetInjections) -> str:
    return (
        f"TS0: {it.ts0}, TS1: {it.ts1}, TS2: {it.ts2} SKP: {it.skp}, EIEOS: {it.eieos}, EIOS: {it.eios} "
        f"SDS: {it.sds}, Polling: {it.polling}, Configuration: {it.configuration} "
        f"L0: {it.l0}, non-EQ recovery: {it.recovery}, Eq01: {it.equalization01} "
        f"Eq2: {it.equalization2}, Eq3: {it.equalization3}"
    )


def flit_injection(it: flit.FlitErrorInjection, kind: int) -> Iterator[str]:
    speeds = {f"{name}GT/s": f"{name} GT/s" for name in ("2.5", "5.0", "8.0", "16.0", "32.0", "64.0")}
    yield f"FlitEiCtl1: {flags(En=it.enabled, Tx=it.transmit, Rx=it.receive)} {named(it.speeds, **speeds)}"
    yield f"Number of errors: {it.error_count}, Spacing between errors: {it.error_spacing}, Flit Type: "
    kinds = {"any but idle": "any non-IDLE", "payload": "only payload", "NOP": "only NOP"}
    if it.flit_type in {"any", *kinds}:  # lspci reads two of the three bits
        yield f"Flit Type: {kinds.get(it.flit_type, it.flit_type)} FlitEiCtl2"
    consecutive = {0: "none", 4: "Unknown (4)", 7: "pseudo-random"}.get(it.consecutive, str(it.consecutive))
    types = {"correctable, one group": "correctable single group"}
    types |= {"correctable, three groups": "correctable three groups"}
    yield f"FlitEiCtl2: Consecutive: {consecutive}, Type: {types.get(it.error_type, it.error_type)}, Offset"
    yield f"Offset: {it.error_offset}, Magnitude: {it.error_magnitude} FlitEiSts: Tx: {it.transmit_state}, Rx"
    yield f"Rx: {it.receive_state} FlitEiOsCtl1: " + flags(
        En=it.ordered_set_enabled, Tx=it.ordered_set_transmit, Rx=it.ordered_set_receive
    )
    yield named(it.ordered_sets, "TS0", "TS1", "TS2", "SKP", "EIEOS", "EIOS", "SDS") + " Poll"
    yield named(
        it.ordered_sets,
        Poll="polling",
        Conf="configuration",
        L0="L0",
        NoEq="recovery without equalization",
        Eq01="equalization phase 0 or 1",
        Eq2="equalization phase 2",
        Eq3="equalization phase 3",
    )
    yield f"FlitEiOsCtl2: Bytes: {it.ordered_set_byte_mask:04x}, Lanes: {it.ordered_set_lane_mask:04x}"
    yield f"FlitEiOsTx: {injections(it.ordered_set_transmit_states)} FlitEiOsRx"
    yield f"FlitEiOsRx: {injections(it.ordered_set_receive_states)}"


def locators(it: identity.RegisterLocators, kind: int) -> Iterator[str]:
    assert len(it.locators) == 3
    for number, one in enumerate(it.locators):
        block = one.block.capitalize() if one.block == "empty" else reserved(one.block, "Reserved ({})")
        yield f"Locator{number}: BIR: BAR{one.bar}, ID: {block}, offset: {one.offset:016x}"


def designated(it: vendor.DesignatedVendorSpecific, kind: int) -> Iterator[str]:
    yield f"Vendor={it.vendor_id:04x} ID={it.dvsec_id:04x} Rev={it.revision} Len={it.length}: CXL "
    if it.cxl is None:
        yield "Unknown ID 0055"
    else:
        yield from CXL[type(it.cxl)](it.cxl)


def cxl_device(it: cxl.CxlDevice) -> Iterator[str]:
    yield "CXLCap: " + flags(Cache=it.cache, IO=it.io, Mem=it.mem, MemHWInit=it.mem_hwinit)
    yield f"HDMCount {it.hdm_count} Viral{sign(it.viral)} CXLCtl:"
    yield "CXLCtl: " + flags(Cache=it.cache_enabled, IO=it.io_enabled, Mem=it.mem_enabled)
    coverage = f"CacheSFCov {it.snoop_filter_coverage} CacheSFGran {it.snoop_filter_granularity} "
    yield coverage + flags(CacheClean=it.cache_clean_evict, Viral=it.viral_enabled)
    yield f"CXLSta: Viral{sign(it.viral_status)} CXLCtl2: DisableCaching{sign(it.caching_disabled)}"
    yield f"InitCacheWB&Inval{sign(it.cache_writeback_initiated)}"  # lspci has wrong masks for the next bits
    yield "CXLSta2: " + flags(
        ResetComplete=it.reset_complete, ResetError=it.reset_error, PMComplete=it.pm_init_complete
    )
    yield "CXLCap2: Cache Size" + ("" if it.cache_size is None else f": {it.cache_size:08x}")
    assert len(it.ranges) == 2
    for number, one in enumerate(it.ranges, 1):
        end = (one.base_address + one.size - 1) % (1 << 64)
        yield f"Range{number}: {one.base_address:016x}-{end:016x} [size=0x{one.size:x}]"
        media = {"volatile": "Volatile", "non-volatile": "Non-volatile", "CDAT": "CDAT"}[one.media]
        memory_class = one.memory_class.replace("storage", "Storage")
        active = flags(Valid=one.valid, Active=one.active)
        rest = f"interleave={one.interleave} timeout={one.timeout_s}s"
        yield f"{active} Type={media} Class={memory_class} {rest}"
    if it.reset_state is not None:
        yield f"After: ColdReset{sign(it.reset_state.cold_reset)} WarmReset{sign(it.reset_state.warm_reset)} "


def cxl_port(it: cxl.CxlPort) -> Iterator[str]:
    yield "CXLPortCtl: " + flags(
        UnmaskSBR=it.unmask_sbr,
        UnmaskLinkDisable=it.unmask_link_disable,
        AltMem=it.alternate_memory,
        AltBME=it.alternate_bus_master,
        ViralEnable=it.viral_enabled,
    )
    yield f"AlternateBus: {it.alternate_bus_base:02x}-{it.alternate_bus_limit:02x}"
    base, limit = it.alternate_memory_base_address >> 20, it.alternate_memory_limit_address >> 20
    yield f"AlternateBus: {base:03x}"  # the lowest of four digits is reserved
    yield f"-{limit:03x}"


def cxl_port_flush(it: cxl.CxlPortFlush) -> Iterator[str]:
    yield f"GPF Phase 1 Timeout: {cxl_time(it.phase1_timeout_us)}"
    yield f"GPF Phase 2 Timeout: {cxl_time(it.phase2_timeout_us)}"


def cxl_time(microseconds: int | None) -> str:
    """Return a time of less than ten units as lspci prints it: the unit is that of the scale."""
    if not microseconds:
        return ""
    return next(
        f"{microseconds // size}{unit}"
        for unit, size in (("s", 10**6), ("ms", 1000), ("us", 1))
        if microseconds % size == 0
    )


def cxl_device_flush(it: cxl.CxlDeviceFlush) -> Iterator[str]:
    yield f"GPF Phase 2 Power: {it.phase2_power_mw}mW"
    yield f"GPF Phase 2 Duration: {cxl_time(it.phase2_duration_us)}"


FLEX_BUS = ("Cache", "IO", "Mem")


def cxl_flex_bus(it: cxl.CxlFlexBusPort) -> Iterator[str]:
    every = {
        "FBCap": (it.capable, (*FLEX_BUS, "68BFlit", "MltLogDev")),
        "FBCtl": (
            it.enabled,
            (*FLEX_BUS, "SynHdrByp", "DrftBuf", "68BFlit", "MltLogDev", "RCD", "Retimer1", "Retimer2"),
        ),
        "FBSta": (it.status, (*FLEX_BUS, "SynHdrByp", "DrftBuf", "68BFlit", "MltLogDev")),
    }
    new = ("256BFlit", "PBRFlit") if it.nop_hint_info is not None else ()
    for register, (names, possible) in every.items():
        yield f"{register}: {named(names, *possible, *new)}"
        assert set(names) <= {*possible, *new}
    if it.modified_ts_data is not None:
        yield f"FBModTS: Received FB Data: {it.modified_ts_data:06x}"
    if it.nop_hint_info is not None:
        hints_shown = (
            f"NOPHint{sign(bool(it.nop_hint_capable))} FBCtl2: NOPHint{sign(bool(it.nop_hint_enabled))}"
        )
        yield f"FBCap2: {hints_shown} FBSta2: NOPHintInfo: {it.nop_hint_info:x}"


def cxl_blocks(it: cxl.CxlRegisterLocator) -> Iterator[str]:
    assert len(it.blocks) == 3
    for number, one in enumerate(it.blocks, 1):
        block = {"vendor specific": "vendor-specific"}.get(one.block, reserved(one.block, "<?>"))
        if block != "empty":
            yield f"Block{number}: BIR: bar{one.bar}, ID: {block}, offset: {one.offset:016x}"


def cxl_logical(it: cxl.CxlMultiLogicalDevice) -> Iterator[str]:
    yield "MLD DVSEC" + ("" if it.logical_devices is None else f" NumLogDevs: {it.logical_devices}")


def cxl_functions(it: cxl.CxlFunctionMap) -> Iterator[str]:
    """lspci shows the lower half of each register."""
    for number, bits in enumerate(it.non_cxl_function_mask):
        yield f"FuncMap {number}: {bits & 0xFFFF:08x}"


CXL: dict[type, Callable[[Any], Iterator[str]]] = {
    cxl.CxlDevice: cxl_device,
    cxl.CxlDeviceFlush: cxl_device_flush,
    cxl.CxlFlexBusPort: cxl_flex_bus,
    cxl.CxlFunctionMap: cxl_functions,
    cxl.CxlMultiLogicalDevice: cxl_logical,
    cxl.CxlPort: cxl_port,
    cxl.CxlPortFlush: cxl_port_flush,
    cxl.CxlRegisterLocator: cxl_blocks,
}
AS_LSPCI: dict[type, Callable[[Any, int], Iterator[str]]] = {
    encryption.IntegrityDataEncryption: data_encryption,
    errors.AdvancedErrors: advanced_errors,
    errors.DownstreamPortContainment: containment,
    flit.Device3: device_3,
    flit.FlitErrorInjection: flit_injection,
    flit.FlitLogging: flit_log,
    identity.RegisterLocators: locators,
    physical_layer.LaneMargining: margining,
    physical_layer.PhysicalLayer16: physical_layer_16,
    physical_layer.PhysicalLayer32: physical_layer_32,
    physical_layer.PhysicalLayer64: physical_layer_64,
    physical_layer.SecondaryExpress: secondary,
    power.L1Substates: substates,
    sriov.Sriov: virtual_functions,
    topology.AlternativeRouting: alternative_routing,
    topology.EventCollector: event_collector,
    topology.Multicast: multicast,
    topology.RootComplexLinks: root_complex_links,
    transactions.DataObjectExchange: data_objects,
    transactions.PrecisionTimeMeasurement: time_measurement,
    transactions.TphRequester: hints,
    translation.AddressTranslation: address_translation,
    translation.PageRequests: page_requests,
    translation.ProcessAddressSpace: address_spaces,
    vendor.DesignatedVendorSpecific: designated,
    virtual_channel.VirtualChannel: channels,
}


@pytest.mark.parametrize("kind", AS_LSPCI, ids=lambda kind: kind.__name__)
def test_each_bit_reads_as_lspci_reads_it(kind: type) -> None:
    seen = 0
    for number, port, version, body, text in RECORDED:
        it = only(number, body, kind=port, version=version)
        assert not isinstance(it, Undecoded), (number, body)
        if isinstance(it, kind):
            seen += 1
            for fragment in AS_LSPCI[kind](it, port):
                assert fragment in text
    assert seen >= 3


def test_all_that_was_recorded_of_cxl_is_compared() -> None:
    seen = {type(only(number, body).cxl) for number, _, _, body, _ in RECORDED if number == 0x23}
    assert seen == {*CXL, type(None)}


AER = "00000000 00000000 30604710 00200000 00200000 00000000 00000000 00000000 00000000 00000000"


def test_the_errors_of_bits_27_to_31_have_names() -> None:
    """The severity of a network card: bits 22 and 28 are UncorrIntErr and IDECheck in lspci."""
    it = only(0x01, AER)
    assert it.fatal == (
        "DLP", "SDES", "FCP", "CmpltTO", "UnxCmplt", "RxOF", "MalfTLP", "UncorrIntErr", "IDECheck",
    )  # fmt: skip
    assert (it.correctable, it.correctable_masked) == (("NonFatalErr",), ("NonFatalErr",))
    assert (it.root, it.prefix_log) == (None, None)
    assert only(0x01, "000000f8" + AER[8:]).uncorrectable[-5:] == (
        "DMWrReqBlocked", "IDECheck", "MisIDETLP", "PCRC_CHECK", "TLPXlatBlocked",
    )  # fmt: skip


def test_the_prefixes_of_a_logged_request() -> None:
    body = bytes(20) + (1 << 11).to_bytes(4, "little") + bytes(28) + bytes(range(1, 17))
    assert only(0x01, body).prefix_log == "04030201 08070605 0c0b0a09 100f0e0d"


LANES = "21 43 65 07 ff ff 00 00"


def test_the_presets_of_each_lane_of_the_link() -> None:
    """The link has four lanes: the presets of others do not count."""
    eight = only(0x19, "01000000 00000080" + LANES, width=4)
    assert eight.lane_errors == (31,)
    assert eight.lanes == (
        physical_layer.LaneEqualization(1, 2, 3, 4),
        physical_layer.LaneEqualization(5, 6, 7, 0),
        physical_layer.LaneEqualization(15, 7, 15, 7),
        physical_layer.LaneEqualization(0, 0, 0, 0),
    )
    sixteen = only(0x26, "00000000 00000000 01000000 01000000 02000000 04000080 00000000" + LANES, width=4)
    assert sixteen.equalization.complete
    assert sixteen.local_parity_mismatches == (0,)
    assert sixteen.first_retimer_parity_mismatches == (1,)
    assert sixteen.second_retimer_parity_mismatches == (2, 31)
    presets = tuple(physical_layer.LanePresets(*pair) for pair in ((1, 2), (3, 4), (5, 6), (7, 0)))
    assert sixteen.lanes == presets
    assert only(0x2A, bytes(28) + bytes.fromhex(LANES), width=4).lanes == presets


@pytest.mark.parametrize(("width", "lanes"), [(0, 0), (1, 1), (32, 32), (63, 32)])
def test_a_link_has_32_lanes_at_most(width: int, lanes: int) -> None:
    assert len(only(0x19, bytes(72), width=width).lanes) == lanes


def test_an_integrated_endpoint_has_no_lanes() -> None:
    assert only(0x19, bytes(72), kind=PortType.INTEGRATED_ENDPOINT, width=16).lanes == ()


def test_an_entry_of_the_power_budget() -> None:
    """25 W from 12 V at the most: 250 tenths of a watt, not a range."""
    it = only(0x04, bytes.fromhex("03000000 fa810300 01000000"))
    assert it == power.PowerBudgeting(3, 25_000, 0, "D0", "maximum", "12 V", system_allocated=True)
    assert only(0x04, bytes.fromhex("00000000 f0000000 00000000")).power_mw is None
    assert only(0x04, bytes.fromhex("00000000 ef000000 00000000")).power_mw == 239_000


def test_the_substates_of_dynamic_power_allocation() -> None:
    """Three substates, in units of a watt; transitions take 10 ms times 1 and 2."""
    it = only(0x16, bytes.fromhex("02110102 04000000 0101 0200 190a05ff"))
    assert it == power.DynamicPowerAllocation(
        substate=1,
        control_enabled=True,
        substate_control=2,
        latencies_ms=(10, 20),
        latency_mask=4,
        substates_mw=(25_000, 10_000, 5_000),
    )
    assert only(0x16, bytes.fromhex("00030102") + bytes(12)).latencies_ms == (None, None)


def test_the_features_of_the_data_link() -> None:
    it = only(0x25, "01000080 03000080")
    assert it == physical_layer.DataLinkFeature(
        local_features=("scaled flow control",),
        exchange_enabled=True,
        remote_features=("scaled flow control", "immediate readiness"),
        remote_valid=True,
    )


def test_the_lights_of_an_enclosure() -> None:
    it = only(0x29, "ff0f0081 09000000 01000000")
    assert it.capable
    assert it.indications == (
        "reset", "ok", "locate", "fail", "rebuild", "predicted failure", "hot spare", "in critical array",
        "in failed array", "invalid device type", "disabled", "enclosure specific 0", "enclosure specific 7",
    )  # fmt: skip
    assert (it.enabled, it.indicated, it.command_completed) == (True, ("locate",), True)


def test_the_devices_of_an_event_collector() -> None:
    """lspci shows "RCiEP at Device(s): 0-1, 31" and "AssociatedBusNumbers: 10-1f"."""
    it = only(0x07, "03000080 00101f00", kind=PortType.EVENT_COLLECTOR, version=2)
    assert it == topology.EventCollector((0, 1, 31), 0x10, 0x1F)
    assert only(0x07, "00000000 00ff0000", version=2) == topology.EventCollector((), None, None)
    assert only(0x07, "00000000 00101f00", version=1) == topology.EventCollector((), None, None)


def test_the_multi_function_channels_have_the_fields_of_the_channels() -> None:
    it = only(0x08, "01000000 00000000 00000000 00000000 ff000080" + bytes(16).hex())
    assert [(one.enabled, one.tc_map) for one in it.resources] == [(True, 0xFF), (False, 0)]


def test_the_resets_of_a_cxl_device() -> None:
    """Each bit has its own meaning (CXL 3.1 section 8.1.3.4); lspci has masks of several bits."""
    for number, field in enumerate((
        "caching_disabled", "cache_writeback_initiated", "reset_initiated", "reset_mem_clear_enabled",
        "volatile_after_hot_reset",
    )):  # fmt: skip
        body = bytearray(bytes.fromhex("981ec203 0000") + bytes(50))
        body[0x10 - 4] = 1 << number
        it = only(0x23, bytes(body)).cxl
        assert getattr(it, field)
        others = ("caching_disabled", "cache_writeback_initiated", "reset_initiated")
        assert [other for other in others if getattr(it, other)] == [one for one in others if one == field]
    for number, field in enumerate(("cold_reset", "warm_reset", "hot_reset", "hot_reset_configurable")):
        body[0x38 - 4] = 1 << number
        state = only(0x23, bytes(body)).cxl.reset_state
        assert state == cxl.CxlResetState(*(one == field for one in cxl.CxlResetState.__dataclass_fields__))


@pytest.mark.parametrize(
    "header",
    ["981e0703 0000", "981e8003 0000", "981e4102 0300", "981ef000 0400", "86808103 0000"],
    ids=["device too short", "revision 0", "port too short", "shorter than any", "other vendor"],
)
def test_what_is_no_known_capability_of_cxl_has_no_fields(header: str) -> None:
    assert only(0x23, bytes.fromhex(header) + bytes(60)).cxl is None


@pytest.mark.parametrize(
    ("number", "body", "field", "at", "count"),
    [
        (0x02, "07000000", "resources", 0xFC8, 3),
        (0x05, "00ff0000", "links", 0xFD0, 2),
        (0x15, "00000000 e0000000", "bars", 0xFE0, 3),
        (0x16, "1f000000", "substates_mw", 0xFE8, 8),
        (0x30, "01e00000", "link_streams", 0xFE0, 2),
        (0x30, "0200ff00", "selective_streams", 0xFC0, 2),
        (0x36, "ffffffff", "locators", 0xFE0, 3),
    ],
)
def test_counts_of_a_device_are_limited_by_the_space(
    number: int, body: str, field: str, at: int, count: int
) -> None:
    """What lies at the end of the space is decoded as far as it is there."""
    config = bytearray(config_space(extended=[(0xFFFF, AT), (number, at)]))
    config[at + 4 : at + 4 + len(bytes.fromhex(body))] = bytes.fromhex(body)
    assert len(getattr(decode(bytes(config))[-1].content, field)) == count


@given(
    number=st.integers(0, 10),
    revision=st.integers(0, 15),
    length=st.integers(0, 0xFFF) | st.sampled_from([0x10, 0x28, 0x38, 0x3C]),
    at=st.sampled_from([0x104, 0xF80, 0xFC0, 0xFE0, 0xFF0, 0xFF4]),
    contents=st.binary(min_size=64, max_size=64),
)
def test_any_capability_of_cxl_is_decoded(
    number: int, revision: int, length: int, at: int, contents: bytes
) -> None:
    config = bytearray(config_space(extended=[(0xFFFF, AT), (0x23, at)]))
    header = (length << 20 | revision << 16 | 0x1E98).to_bytes(4, "little") + number.to_bytes(2, "little")
    config[at + 4 :] = (header + contents + bytes(0x1000))[: 0x1000 - at - 4]
    it = decode(bytes(config))[-1].content
    assert isinstance(it, vendor.DesignatedVendorSpecific)
    assert (it.vendor_id, it.dvsec_id, it.revision, it.length) == (0x1E98, number, revision, length)
    assert json.loads(json.dumps(to_json(it)))["cxl"] == to_json(it.cxl)
