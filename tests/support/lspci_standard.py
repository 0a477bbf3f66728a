"""Where the document of ``vfiotool config --json`` has what lspci prints of standard capabilities."""

from __future__ import annotations

from tests.support.lspci_comparison import Table, flags
from tests.support.lspci_express import EXPRESS

_AGP_STATUS = {
    "Iso": "isoch", "SBA": "sba", "ITACoh": "ita_coh", "GART64": "gart64", "HTrans": "htrans",
    "64bit": "64bit",
    "FW": "fw", "AGP3": "agp3",
}  # fmt: skip
_AGP_COMMAND = {"SBA": "sba", "AGP": "agp", "GART64": "gart64", "64bit": "64bit", "FW": "fw"}
_PCI_X_STATUS = {
    "64bit": "64bit", "133MHz": "133mhz", "SCD": "spl_disc", "USC": "unx_spl", "RSCEM": "spl_err",
    "266MHz": "266mhz", "533MHz": "533mhz",
}  # fmt: skip
_PCI_X_BRIDGE_STATUS = {
    "64bit": "64bit", "133MHz": "133mhz", "SCD": "spl_disc", "USC": "unx_spl", "SCO": "spl_overrun",
    "SRD": "spl_delayed",
}  # fmt: skip
_HT_CONTROL = {
    "CFlE": "CRC flood enabled", "CST": "CRC start test", "CFE": "CRC force error", "<LkFail": "link failure",
    "Init": "initialized", "EOC": "end of chain", "TXO": "transmitter off", "IsocEn": "isochronous enabled",
    "LSEn": "LDTSTOP# tristate enabled", "ExtCTL": "extended CTL time", "64b": "64 bit addressing",
}  # fmt: skip
_HT_FLOW_CONTROL = {"DwFcIn": "in", "DwFcOut": "out", "DwFcInEn": "in enabled", "DwFcOutEn": "out enabled"}
_HT_LINK_ERRORS = {"<Prot": "protocol", "<Ovfl": "overflow", "<EOC": "end of chain", "CTLTm": "CTL timeout"}
_HT_FREQUENCIES = {
    "200MHz": "200 MHz", "300MHz": "300 MHz", "400MHz": "400 MHz", "500MHz": "500 MHz", "600MHz": "600 MHz",
    "800MHz": "800 MHz", "1.0GHz": "1.0 GHz", "1.2GHz": "1.2 GHz",
}  # fmt: skip
_HT_FEATURES = {
    "IsocFC": "isochronous flow control", "LDTSTOP": "LDTSTOP#", "CRCTM": "CRC test mode",
    "ECTLT": "extended CTL time required", "64bA": "64 bit addressing", "UIDRD": "unit id reorder disabled",
}  # fmt: skip
_HT_HOST_FEATURES = {"ExtRS": "extended register set", "UCnfE": "upstream configuration enabled"}
_HT_ERROR_HANDLING = {
    "PFlE": "protocol flood", "OFlE": "overflow flood", "PFE": "protocol fatal", "OFE": "overflow fatal",
    "EOCFE": "end of chain fatal", "RFE": "response fatal", "CRCFE": "CRC fatal",
    "SERRFE": "system error fatal", "CF": "chain fail", "RE": "response error", "PNFE": "protocol nonfatal",
    "ONFE": "overflow nonfatal", "EOCNFE": "end of chain nonfatal", "RNFE": "response nonfatal",
    "CRCNFE": "CRC nonfatal", "SERRNFE": "system error nonfatal",
}  # fmt: skip
_INTEL_A = {
    "DDR3LEn": "DDR3L enabled", "DDRWrtVrefEn": "DDR write Vref enabled", "OCEn": "overclocking enabled",
    "DDROCCAP": "DDR overclocking", "IGDis": "integrated graphics disabled", "PDCDis": "PDC disabled",
    "X2APICEn": "x2APIC enabled", "DDPCDis": "DDPC disabled", "CDDis": "CD disabled", "1NDis": "1N disabled",
    "PegG2Dis": "PEG gen 2 disabled", "DmiG2Dis": "DMI gen 2 disabled", "VTdDis": "VT-d disabled",
    "ForceEccEn": "forced ECC enabled", "EccDis": "ECC disabled", "PeLWUDis": "PEG lane width up disabled",
    "Peg10Dis": "PEG 1.0 disabled", "Peg11Dis": "PEG 1.1 disabled", "Peg12Dis": "PEG 1.2 disabled",
    "Peg60Dis": "PEG 6.0 disabled",
}  # fmt: skip
_INTEL_B = {
    "LPDDR3En": "LPDDR3 enabled", "GmmDis": "GMM disabled", "DmiG3Dis": "DMI gen 3 disabled",
    "PegX16Dis": "PEG x16 disabled", "AddGfxCap": "additive graphics capable",
    "AddGfxEn": "additive graphics enabled", "PkgTyp": "package type", "PegG3Dis": "PEG gen 3 disabled",
    "SoftBinCap": "soft binning capable", "SMTCap": "SMT capable",
    "OCbySSKUEn": "overclocking by SSKU enabled", "OCbySSKUCap": "overclocking by SSKU capable",
    "ImguDis": "IMGU disabled",
}  # fmt: skip
_INTEL_C = {
    "Pipe3Dis": "pipe 3 disabled", "IddDis": "IDD disabled", "SgxDis": "SGX disabled",
    "QClkGvDis": "QCLK GV disabled", "LPDDR4En": "LPDDR4 enabled", "LPDDREn": "LPDDR enabled",
    "PegG4Dis": "PEG gen 4 disabled",
}  # fmt: skip

_AGP = f"""
    AGP version {{version:text}}
Status:
    RQ={{status.requests}}  ArqSz={{status.async_request_size}}  Cal={{status.calibration}}
    {flags("status.flags", _AGP_STATUS)}
    Rate={{status.rates:rates}}
Command:
    RQ={{command.requests}}  ArqSz={{command.async_request_size}}  Cal={{command.calibration}}
    {flags("command.flags", _AGP_COMMAND)}
    Rate={{command.rates:rates}}
"""

_PCI_X = f"""
    PCI-X non-bridge device  PCI-X bridge device
Command:
    DPERE{{device.dperr_enabled+}}  ERO{{device.relaxed_ordering+}}
    RBC={{device.max_read}}  OST={{device.max_split}}
Secondary Status:
    {flags("bridge.secondary_status_bits", _PCI_X_BRIDGE_STATUS)}
    Freq={{bridge.secondary_frequency:frequency}}
Status:
    Dev={{device.address:text}}
    {flags("device.status_bits", _PCI_X_STATUS)}
    DC={{device.status_bits:complexity}}
    DMMRBC={{device.designed_max_read}}  DMOST={{device.designed_max_split}}
    DMCRS={{device.designed_max_cumulative_read:units of 128 bytes}}
Bridge Status:
    Dev={{bridge.address:text}}
    {flags("bridge.status_bits", _PCI_X_BRIDGE_STATUS)}
Upstream:
    Capacity={{bridge.upstream_capacity}}  CommitmentLimit={{bridge.upstream_commitment_limit}}
Downstream:
    Capacity={{bridge.downstream_capacity}}  CommitmentLimit={{bridge.downstream_commitment_limit}}
"""

_ENHANCED_ALLOCATION = """
    Enhanced Allocation (EA): NumEntries={count}  secondary={secondary_bus}  subordinate={subordinate_bus}
Entry {n@}:
    Enable{entries[$n].enabled+}  Writable{entries[$n].writable+}  EntrySize={entries[$n].size}
    BAR Equivalent Indicator: {entries[$n].equivalent:place}
    PrimaryProperties: {entries[$n].primary_properties:property}
    SecondaryProperties: {entries[$n].secondary_properties:property}
    Base: {entries[$n].base_address#}  MaxOffset: {entries[$n].max_offset#}
"""


def _hypertransport_link(number: str, path: str) -> str:
    """Return the labels of a link of HyperTransport."""
    return f"""
Link Control{number}:
    {flags(f"{path}.control", _HT_CONTROL)}
    <CRCErr={{{path}.crc_errors#}}
Link Config{number}:
    MLWI={{{path}.max_width_in:HT width}}  MLWO={{{path}.max_width_out:HT width}}
    LWI={{{path}.width_in:HT width}}  LWO={{{path}.width_out:HT width}}
    {flags(f"{path}.flow_control", _HT_FLOW_CONTROL)}
Link Frequency{number}:
    {{{path}.frequency:HT frequency}}
Link Error{number}:
    {flags(f"{path}.errors", _HT_LINK_ERRORS)}
Link Frequency Capability{number}:
    {flags(f"{path}.frequencies", _HT_FREQUENCIES)}
    - 1.4GHz{{+}} -- lspci reads half of the register
    - 1.6GHz{{+}} -- lspci reads half of the register
    - Vend{{+}} -- lspci reads half of the register
"""


_HYPERTRANSPORT = f"""
    HyperTransport: Slave or Primary Interface{{type:HT slave}}
    HyperTransport: Host or Secondary Interface{{type:HT host}}
    HyperTransport: MSI Mapping Enable{{mapping_enabled+}} Fixed{{mapping_fixed+}}
    HyperTransport: Revision ID: {{revision:text}}
    HyperTransport: {{type:HT type}}
    - !!! Possibly incomplete decoding -- a remark
Command:
    BaseUnitID={{slave.base_unit_id}}  UnitCnt={{slave.unit_count}}  MastHost{{slave.master_host+}}
    DefDir{{slave.default_direction+}}  DUL{{slave.drop_on_uninitialized_link+}}
Host Command:
    WarmRst{{host.warm_reset+}}  DblEnd{{host.double_ended+}}  DevNum={{host.device_number}}
    ChainSide{{host.chain_side+}}  HostHide{{host.host_hide+}}  Slave{{host.act_as_slave+}}
    <EOCErr{{host.inbound_end_of_chain_error+}}  DUL{{host.drop_on_uninitialized_link+}}
{_hypertransport_link(" {n@}", "slave.links[$n]")}
{_hypertransport_link("", "host.links[0]")}
Revision ID:
    {{revision:text}}
Feature Capability:
    {flags("slave.extras.features", _HT_FEATURES)}
Host Feature Capability:
    {flags("host.extras.features", _HT_FEATURES | _HT_HOST_FEATURES)}
Error Handling:
    {flags("slave.extras.error_handling", _HT_ERROR_HANDLING)}
Host Error Handling:
    {flags("host.extras.error_handling", _HT_ERROR_HANDLING)}
Prefetchable memory behind bridge Upper:
    {{slave.extras.memory_base_upper#}}-{{slave.extras.memory_limit_upper#}}
Host Prefetchable memory behind bridge Upper:
    {{host.extras.memory_base_upper#}}-{{host.extras.memory_limit_upper#}}
Bus Number:
    {{slave.bus_number#}}
Mapping Address Base:
    {{mapped_address#}}
"""

_VENDOR = f"""
    Vendor Specific Information: Len={{length#}} <?>
Vendor Specific Information: VirtIO:
    {{virtio.type:virtio type}}
    - <unknown> -- lspci does not know the type
    BAR={{virtio.bar}} offset={{virtio.offset#}} size={{virtio.length#}}
    BAR={{virtio.bar}} offset={{virtio.offset#}} size={{virtio.length#}} id={{virtio.id}}
    multiplier={{virtio.notify_off_multiplier#}}
Vendor Specific Information: Intel Capabilities v{{intel.version}}
  CapA:
    {flags("intel.a.flags", _INTEL_A)}
    DmiWidth=x{{intel.a.dmi_width}}  DDRMaxSize={{intel.a.ddr_max_gb:GB per channel}}
    CDID={{intel.a.compatibility_device_id}}  CRID={{intel.a.compatibility_revision_id}}
  CapB:
    {flags("intel.b.flags", _INTEL_B)}
    CacheSzCap {{intel.b.cache_size:hex size}}
    DDR3MaxFreqWithRef100={{intel.b.ddr3_max_mhz_ref100:MHz}}  DDR3MaxFreq={{intel.b.ddr3_max_mhz}}MHz
  CapC:
    {flags("intel.c.flags", _INTEL_C)}
    DDR4MaxFreq={{intel.c.ddr4_max_mhz:limit}}  LPDDR4MaxFreq={{intel.c.lpddr4_max_mhz:limit}}
    Gear1MaxFreq={{intel.c.gear1_max_mhz:MHz}}  BClkOC={{intel.c.bclk_overclocking:BCLK}}
Vendor Specific Information: Intel Feature Detection
    - {{*}} -- lspci says no more
Vendor Specific Information: Intel <unknown>
    - {{*}} -- lspci says no more
"""

STANDARD: dict[int, Table] = {
    number: Table(f"standard {number:02x}", text)
    for number, text in {
        0x01: """
    Power Management version {version}
Flags:
    PMEClk{pme_clock+}  DSI{dsi+}  D1{has_d1+}  D2{has_d2+}  AuxCurrent={aux_current_ma}mA
    PME(D0{pme_from=D0},D1{pme_from=D1},D2{pme_from=D2},D3hot{pme_from=D3hot},D3cold{pme_from=D3cold})
Status:
    D{state:power state}  NoSoftRst{no_soft_reset+}  PME-Enable{pme_enabled+}
    DSel={data_select}  DScale={data_scale}  PME{pme_status+}
Bridge:
    PM{bus_power_managed+}  B3{b2_b3:inverted}
""",
        0x02: _AGP,
        0x03: """
    Vital Product Data
    - {...} -- what the file vpd has
""",
        0x04: "    Slot ID: {slots} slots, First{first_in_chassis+}, chassis {chassis#}",
        0x05: """
    MSI: Enable{enabled+} Count={count}/{max_count} Maskable{maskable+} 64bit{is_64bit+}
    Address: {address#}  Data: {data#}  Masking: {mask#}  Pending: {pending#}
""",
        0x06: "    - CompactPCI hot-swap <?> -- lspci does not decode it",
        0x07: _PCI_X,
        0x08: _HYPERTRANSPORT,
        0x09: _VENDOR,
        0x0A: "    Debug port: BAR={bar} offset={offset#}",
        0x0B: "    - CompactPCI central resource control <?> -- lspci does not decode it",
        0x0C: "    - Hot-plug capable -- lspci does not decode it",
        0x0D: "    Subsystem: {vendor_id#}:{device_id#}",
        0x0E: "    - AGP3 <?> -- lspci does not decode it",
        0x0F: "    - Secure device <?> -- lspci does not decode it",
        0x11: """
    MSI-X: Enable{enabled+} Count={count} Masked{masked+}
    Vector table: BAR={table_bar} offset={table_offset#}
    PBA: BAR={pba_bar} offset={pba_offset#}
""",
        0x12: """
    SATA HBA v{revision:SATA revision}
    BAR{bar} Offset={offset:words of 4 bytes}  InCfgSpace{in_configuration_space:true}
    BAR??{*}{bar:no value}
""",
        0x13: """
    PCI Advanced Features
AFCap:
    TP{transactions_pending_capable+}  FLR{flr+}
AFCtrl:
    FLR{initiate_flr+}
AFStatus:
    TP{transactions_pending+}
""",
        0x14: _ENHANCED_ALLOCATION,
    }.items()
} | {0x10: EXPRESS}
