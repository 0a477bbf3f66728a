"""PCI Express, compared with what lspci 3.15 prints of the same bytes.

``lspci-3.15-express.json`` has, for each capability: its id, the type of the header, the vendor, the device,
the bytes after the first two, and the text of ``lspci -vvv``. Of three types of functions there are patterns:
in pattern ``k``, bit ``n`` is bit ``k`` of the number ``n``, so that no two bits can be mistaken for each
other. Of all types there are random bytes. Each function has a memory BAR.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfiotool.pci.acs import PortType
from vfiotool.pci.capabilities.decoding import decode
from vfiotool.pci.capabilities.express import Express
from vfiotool.pci.capabilities.express_device import ExpressDevice, ExpressDevice2
from vfiotool.pci.capabilities.express_link import ExpressLink, ExpressLink2
from vfiotool.pci.capabilities.express_port import ExpressRoot, ExpressSlot
from vfiotool.testing import config_space

RECORDED = json.loads((Path(__file__).parents[1] / "data/lspci-3.15-express.json").read_text())
NAMES: dict[int, str] = {
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
ENDPOINTS = (PortType.ENDPOINT, PortType.LEGACY_ENDPOINT)
DOWNSTREAM = (PortType.ROOT_PORT, PortType.DOWNSTREAM)
SWITCHING = (*DOWNSTREAM, PortType.UPSTREAM)
REQUESTERS = (*ENDPOINTS, PortType.ROOT_PORT, PortType.INTEGRATED_ENDPOINT)


def express(body: str | bytes) -> Express:
    raw = bytes.fromhex(body) if isinstance(body, str) else body
    (found,) = decode(config_space(capabilities=[(0x10, 0x40, raw)]))
    assert isinstance(found.content, Express)
    return found.content


def sign(value: bool | None) -> str:
    assert value is not None
    return "+" if value else "-"


def flags(names: tuple[str, ...], **shown: str) -> str:
    return " ".join(f"{flag}{sign(name in names)}" for flag, name in shown.items())


def close(text: str | None) -> str:
    """Return a text with units as lspci writes them: ``<64 ns`` is ``<64ns``."""
    assert text is not None
    return re.sub(r"(?<=\d) (?=ns|us|ms|s\b|GT|dB|mV)", "", text)


def exit_latency(text: str | None) -> str:
    return "unlimited" if text is not None and text.startswith(">") else close(text)


def speed(text: str) -> str:
    return close(text.replace(".0 ", " "))


def power(milliwatts: int | None) -> str:
    return ">600W" if milliwatts is None else f"{milliwatts / 1000:g}W"


def as_lspci(it: Express) -> Iterator[str]:
    """Yield the lines of lspci."""
    slot = "" if it.slot_implemented is None else f" (Slot{sign(it.slot_implemented)})"
    flit = ", FLIT Mode Supported" if it.flit_mode_supported else ""
    name = NAMES.get(it.type, f"Unknown type {it.type}")
    yield f"Express (v{it.version}) {name}{slot}, IntMsgNum {it.interrupt_message}{flit}"
    assert it.device is not None
    yield from device(it.device, it.type)
    if it.link is not None:
        yield from link(it.link, it.type)
    if it.slot is not None:
        yield from slot_lines(it.slot)
    if it.root is not None:
        yield from root(it.root)
    if it.device2 is not None:
        yield from device2(it.device2, it.type)
    if it.link2 is not None:
        yield from link2(it.link2)


def device(it: ExpressDevice, kind: int) -> Iterator[str]:
    latency = ""
    if kind in ENDPOINTS:
        latency = f", Latency L0s {close(it.l0s_latency)}, L1 {close(it.l1_latency)}"
    yield f"DevCap: MaxPayload {it.max_payload_supported} bytes, PhantFunc {it.phantom_functions}{latency}"
    yield f"ExtTag{sign(it.extended_tags_supported)}"
    if kind in (*ENDPOINTS, PortType.UPSTREAM, PortType.PCIE_TO_PCI):
        named = {"AttnBtn": "attention button", "AttnInd": "attention indicator", "PwrInd": "power indicator"}
        yield flags(it.card_features, **named)
    yield f"RBE{sign(it.role_based_errors)}"
    if kind in (*ENDPOINTS, PortType.INTEGRATED_ENDPOINT):
        yield f"FLReset{sign(it.flr)}"
    if kind in (PortType.ENDPOINT, PortType.UPSTREAM, PortType.PCIE_TO_PCI):
        yield f"SlotPowerLimit {power(it.slot_power_limit_mw)}"
    else:
        assert it.slot_power_limit_mw is None
    yield f"TEE-IO{sign(it.tee_io)}"
    errors = {"CorrErr": "correctable", "NonFatalErr": "non-fatal", "FatalErr": "fatal"}
    yield f"DevCtl: {flags(it.error_reporting, **errors, UnsupReq='unsupported request')}"
    yield f"RlxdOrd{sign(it.relaxed_ordering)} ExtTag{sign(it.extended_tags)}"
    yield f"PhantFunc{sign(it.phantom_functions_enabled)} AuxPwr{sign(it.aux_power_enabled)}"
    yield f"NoSnoop{sign(it.no_snoop)}"
    if it.bridge_config_retry is not None:
        yield f"BrConfRtry{sign(it.bridge_config_retry)}"
    if it.initiate_flr is not None:
        yield f"FLReset{sign(it.initiate_flr)}"
    yield f"MaxPayload {it.max_payload} bytes, MaxReadReq {it.max_read_request} bytes"
    yield f"DevSta: {flags(it.errors, **errors, UnsupReq='unsupported request')}"
    yield f"AuxPwr{sign(it.aux_power_detected)} TransPend{sign(it.transactions_pending)}"


def link(it: ExpressLink, kind: int) -> Iterator[str]:
    exits = [f"L0s {exit_latency(it.l0s_exit_latency)}"] if "L0s" in it.aspm_supported else []
    exits += [f"L1 {exit_latency(it.l1_exit_latency)}"] if "L1" in it.aspm_supported else []
    able = f"{' '.join(it.aspm_supported)}, Exit Latency {', '.join(exits)}" if exits else "not supported"
    yield f"LnkCap: Port #{it.port}, Speed {speed(it.max_speed)}, Width x{it.max_width}, ASPM {able}"
    yield f"ClockPM{sign(it.clock_pm)} Surprise{sign(it.surprise_down)} LLActRep{sign(it.active_reporting)}"
    yield f"BwNot{sign(it.bandwidth_notification)} ASPMOptComp{sign(it.aspm_optionality)}"
    yield f"LnkCtl: ASPM {' '.join(it.aspm) + ' Enabled' if it.aspm else 'Disabled'};"
    if it.read_completion_boundary is not None:
        yield f"RCB {it.read_completion_boundary} bytes,"
    yield f"LnkDisable{sign(it.disabled)} CommClk{sign(it.common_clock)}"
    yield f"ExtSynch{sign(it.extended_synch)} ClockPM{sign(it.clock_pm_enabled)}"
    yield f"AutWidDis{sign(it.autonomous_width_disabled)} BWInt{sign(it.bandwidth_interrupt_enabled)}"
    yield f"AutBWInt{sign(it.autonomous_bandwidth_interrupt_enabled)} FltModeDis{sign(it.flit_mode_disabled)}"
    yield f"LnkSta: Speed {speed(it.speed)}, Width x{it.width}"
    yield f"TrErr{sign(it.training_error)} Train{sign(it.training)} SlotClk{sign(it.slot_clock)}"
    yield f"DLActive{'?' if it.active is None else sign(it.active)}"
    yield f"BWMgmt{sign(it.bandwidth_management)} ABWMgmt{sign(it.autonomous_bandwidth)}"


def slot_lines(it: ExpressSlot) -> Iterator[str]:
    named = {"AttnBtn": "attention button", "PwrCtrl": "power controller", "MRL": "MRL sensor"}
    named |= {"AttnInd": "attention indicator", "PwrInd": "power indicator"}
    yield f"SltCap: {flags(it.features, **named, HotPlug='hot-plug', Surprise='surprise removal')}"
    yield f"Slot #{it.number}, PowerLimit {power(it.power_limit_mw)}; Interlock{sign(it.interlock)}"
    yield f"NoCompl{sign(it.no_command_completed)}"
    named = {"AttnBtn": "attention button", "PwrFlt": "power fault", "MRL": "MRL sensor"}
    named |= {"PresDet": "presence", "CmdCplt": "command completed", "HPIrq": "hot-plug interrupt"}
    yield f"SltCtl: Enable: {flags(it.notifications_enabled, **named, LinkChg='link state')}"
    yield f"Control: AttnInd {indicator(it.attention_indicator)}, PwrInd {indicator(it.power_indicator)},"
    yield f"Power{sign(it.power_off)} Interlock{sign(it.interlock_control)}"
    named = {"AttnBtn": "attention button pressed", "PowerFlt": "power fault", "MRL": "MRL open"}
    named |= {"CmdCplt": "command completed", "PresDet": "card present", "Interlock": "interlock engaged"}
    yield f"SltSta: Status: {flags(it.status, **named)}"
    named = {"MRL": "MRL sensor changed", "PresDet": "presence changed", "LinkState": "link state changed"}
    yield f"Changed: {flags(it.status, **named)}"
    assert it.card_present == ("card present" in it.status)


def indicator(name: str) -> str:
    return "Unknown" if name.startswith("reserved") else name.title()


def root(it: ExpressRoot) -> Iterator[str]:
    yield f"RootCap: CRSVisible{sign(it.crs_visible)}"
    named = {"ErrCorrectable": "correctable", "ErrNon-Fatal": "non-fatal", "ErrFatal": "fatal"}
    yield f"RootCtl: {flags(it.system_errors_enabled, **named)} PMEIntEna{sign(it.pme_interrupt_enabled)}"
    yield f"CRSVisible{sign(it.crs_visible_enabled)} RootSta: PME ReqID {it.pme_requester_id:04x},"
    yield f"PMEStatus{sign(it.pme_status)} PMEPending{sign(it.pme_pending)}"


TIMEOUT_RANGES = {
    (): "Not Supported",
    **{tuple(one): f"Range {one}" for one in ("A", "B", "AB", "BC", "ABC", "BCD", "ABCD")},
}
OBFF = {(): "Not Supported", ("message",): "Via message", ("WAKE#",): "Via WAKE#"}
OBFF_ENABLED = {"disabled": "Disabled", "message A": "Via message A", "message B": "Via message B"}
EMERGENCY = {
    "not supported": "Not Supported",
    "device specific": "Dev Specific",
    "form factor or device specific": "Form Factor Dev Specific",
    "reserved 3": "Reserved",
}
CACHE_LINES = {
    "not supported": "Not Supported",
    "64 bytes": "64byte cachelines",
    "128 bytes": "128byte cachelines",
}
TPH = {
    "not supported": "TPHComp- ExtTPHComp-",
    "TPH": "TPHComp+ ExtTPHComp-",
    "TPH and extended TPH": "TPHComp+ ExtTPHComp+",
    "reserved 2": "",
}


def device2(it: ExpressDevice2, kind: int) -> Iterator[str]:
    ranges = TIMEOUT_RANGES.get(it.completion_timeout_ranges, "Unknown")
    yield f"DevCap2: Completion Timeout: {ranges}, TimeoutDis{sign(it.completion_timeout_disable)}"
    yield f"NROPrPrP{sign(it.no_ro_enabled_pr_pr)} LTR{sign(it.ltr)}"
    yield f"10BitTagComp{sign(it.ten_bit_tag_completer)} 10BitTagReq{sign(it.ten_bit_tag_requester)}"
    yield f"OBFF {OBFF.get(it.obff, 'Via message/WAKE#')}, ExtFmt{sign(it.extended_format)}"
    prefixes = f", MaxEETLPPrefixes {it.max_end_end_prefixes}" if it.end_end_prefixes else ""
    yield f"EETLPPrefix{sign(it.end_end_prefixes)}{prefixes}"
    yield f"EmergencyPowerReduction {EMERGENCY[it.emergency_power_reduction]},"
    yield f"EmergencyPowerReductionInit{sign(it.emergency_power_reduction_init)} FRS{sign(it.frs)}"
    if it.ln_cache_line is not None:
        yield f"LN System CLS {CACHE_LINES.get(it.ln_cache_line, 'Reserved')},"
    if kind in (PortType.ROOT_PORT, PortType.ENDPOINT):
        yield TPH[it.tph_completer]
    if kind in DOWNSTREAM:
        yield f"ARIFwd{sign(it.ari_forwarding)}"
    yield "AtomicOpsCap:"
    if kind in SWITCHING:
        yield f"Routing{sign('routing' in it.atomics)}"
    yield flags(it.atomics, **{"32bit": "32 bits", "64bit": "64 bits", "128bitCAS": "128 bits CAS"})
    timeout = close(it.completion_timeout)
    timeout = "Unknown" if timeout.startswith("reserved") else timeout
    yield f"DevCtl2: Completion Timeout: {timeout}, TimeoutDis{sign(it.completion_timeout_disable_enabled)}"
    if kind in DOWNSTREAM:
        yield f"ARIFwd{sign(it.ari_forwarding_enabled)}"
    if kind in (*REQUESTERS, *SWITCHING):
        yield "AtomicOpsCtl:"
    if kind in REQUESTERS:
        yield f"ReqEn{sign(it.atomics_enabled)}"
    if kind in SWITCHING:
        yield f"EgressBlck{sign(it.atomic_egress_blocking_enabled)}"
    yield f"IDOReq{sign(it.ido_request_enabled)} IDOCompl{sign(it.ido_completion_enabled)}"
    yield f"LTR{sign(it.ltr_enabled)}"
    yield f"EmergencyPowerReductionReq{sign(it.emergency_power_reduction_request_enabled)}"
    yield f"10BitTagReq{sign(it.ten_bit_tag_requester_enabled)}"
    yield f"OBFF {OBFF_ENABLED.get(it.obff_enabled, 'Via WAKE#')},"
    yield f"EETLPPrefixBlk{sign(it.end_end_prefix_blocking_enabled)}"


def link2(it: ExpressLink2) -> Iterator[str]:
    if it.speeds or it.crosslink or it.retimer or it.two_retimers or it.drs:
        yield f"LnkCap2: Supported Link Speeds: {speeds(it.speeds)}, Crosslink{sign(it.crosslink)}"
        yield f"Retimer{sign(it.retimer)} 2Retimers{sign(it.two_retimers)} DRS{sign(it.drs)}"
    target = speed(it.target_speed).replace("unknown", "Unknown")
    yield f"LnkCtl2: Target Link Speed: {target}, EnterCompliance{sign(it.enter_compliance)}"
    deemphasis = it.selectable_deemphasis
    selectable = "" if deemphasis is None else f", Selectable De-emphasis: {close(deemphasis)}"
    yield f"SpeedDis{sign(it.autonomous_speed_disabled)}{selectable}"
    yield f"Transmit Margin: {margin(it.transmit_margin)},"
    yield f"EnterModifiedCompliance{sign(it.enter_modified_compliance)}"
    yield f"ComplianceSOS{sign(it.compliance_sos)}"
    preset = re.sub("^reserved.*", "Unknown", close(it.compliance_preset))
    yield f"Compliance Preset/De-emphasis: {preset}"
    yield f"LnkSta2: Current De-emphasis Level: {close(it.deemphasis)},"
    yield f"EqualizationComplete{sign(it.equalization_complete)}"
    yield f"EqualizationPhase1{sign(it.equalization_phase1)} EqualizationPhase2{sign(it.equalization_phase2)}"
    yield f"EqualizationPhase3{sign(it.equalization_phase3)}"
    yield f"LinkEqualizationRequest{sign(it.equalization_request)}"
    yield f"Retimer{sign(it.retimer_detected)} 2Retimers{sign(it.two_retimers_detected)}"
    crosslinks = {"not supported": "unsupported", "not complete": "incomplete"}
    crosslink = crosslinks.get(it.crosslink_resolution, it.crosslink_resolution.title())
    assert (it.drs_received is None) == (it.downstream_component is None)
    readiness = "" if it.drs_received is None else f", DRS{sign(it.drs_received)}"
    yield f"CrosslinkRes: {crosslink}, FltMode{sign(it.flit_mode)}{readiness}"
    if it.downstream_component is not None:
        yield f"DownstreamComp: {COMPONENTS.get(it.downstream_component, 'Reserved')}"


def speeds(names: tuple[str, ...]) -> str:
    """Return the range of lspci, which takes the lower speeds for granted."""
    if not names:
        return "Unknown"
    highest = speed(names[-1])
    return highest if highest == "2.5GT/s" else f"2.5-{highest}"


def margin(text: str) -> str:
    if text.startswith("reserved"):
        return "Unknown"
    compact = close(text).replace(" (full swing), ", "(full-swing)/").replace(" (half swing)", "(half-swing)")
    return compact.replace("normal operating range", "Normal Operating Range")


COMPONENTS = {
    "link down, not determined": "Link Down - Not Determined",
    "link down, not present": "Link Down - Not Present",
    "link down, present": "Link Down - Present",
    "link up, present": "Link Up - Present",
    "link up, present, DRS received": "Link Up - Present and DRS Received",
}


def test_every_type_of_function_is_compared() -> None:
    assert {bytes.fromhex(one[4])[0] >> 4 for one in RECORDED} == set(range(12))


def comparable(text: str, *, is_active_unknown: bool) -> str:
    """Return lspci's text without what it derives or takes for granted.

    lspci shows the bit of a port that does not report whether its link is active, and takes speed 8 for
    128 GT/s. Speed 7 is the one of bit 6 in the vector of speeds (PCI Express Base section 7.5.3.6).
    """
    text = re.sub(r" \((downgraded|overdriven)\)", "", text).replace("-6.0dB", "-6dB")
    text = re.sub(
        r"(Speed:?) 128GT/s", lambda found: f"{found[1]} {'Un' if ':' in found[1] else 'un'}known", text
    )
    return re.sub(r"DLActive[+-]", "DLActive?", text) if is_active_unknown else text


@pytest.mark.parametrize("number", range(len(RECORDED)))
def test_it_reads_as_lspci_reads_it(number: int) -> None:
    _, _, _, _, body, text = RECORDED[number]
    it = express(body)
    is_active_unknown = it.link is not None and it.link.active is None
    ours = " ".join(line for line in as_lspci(it) if line)
    assert comparable(ours, is_active_unknown=False) == comparable(text, is_active_unknown=is_active_unknown)


def test_integrated_endpoints_and_event_collectors_have_no_link() -> None:
    """The link registers of a real integrated endpoint read as noise: a speed of 15, a width of 63."""
    for kind in (PortType.INTEGRATED_ENDPOINT, PortType.EVENT_COLLECTOR):
        it = express(bytes([kind << 4 | 2, 0]) + b"\xff" * 56)
        assert (it.link, it.link2, it.slot, it.slot_implemented) == (None, None, None, None)
        assert (it.root is not None) == (kind == PortType.EVENT_COLLECTOR)


def test_an_undefined_type_is_no_port() -> None:
    it = express(bytes([0xF2, 1]) + bytes(56))
    assert (it.type, it.type_name) == (15, "type 15")
    assert (it.slot, it.slot_implemented, it.root) == (None, None, None)


def test_the_speed_of_128_gigatransfers() -> None:
    body = bytearray(58)
    body[0], body[10], body[16], body[42], body[46] = 0x02, 0x17, 0x17, 0xFE, 0x07
    it = express(bytes(body))
    assert it.link is not None
    assert (it.link.speed, it.link.max_speed) == ("128.0 GT/s", "128.0 GT/s")
    assert it.link2 is not None
    assert it.link2.target_speed == it.link2.speeds[-1] == "128.0 GT/s"


@pytest.mark.parametrize(
    ("value", "scale", "milliwatts"),
    [
        (25, 0, 25_000),
        (75, 1, 7_500),
        (0xEF, 0, 239_000),
        (0xF0, 0, 250_000),
        (0xFE, 0, 600_000),
        (0xFF, 0, None),
        (0xFF, 3, 255),
    ],
)
def test_slot_power_limits(value: int, scale: int, milliwatts: int | None) -> None:
    body = bytearray(58)
    body[0] = 0x02
    body[2:6] = (value << 18 | scale << 26).to_bytes(4, "little")
    it = express(bytes(body))
    assert it.device is not None
    assert it.device.slot_power_limit_mw == milliwatts


def test_before_version_2_there_are_no_second_registers() -> None:
    it = express(b"\x01" + b"\xff" * 57)
    assert (it.device2, it.link2) == (None, None)
    assert it.link is not None
