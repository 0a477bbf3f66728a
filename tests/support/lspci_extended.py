"""Where the document of ``vfiotool config --json`` has what lspci prints of extended capabilities."""

from __future__ import annotations

from tests.support.lspci_comparison import Table, flags

_UNCORRECTABLE = (
    "DLP", "SDES", "TLP", "FCP", "CmpltTO", "CmpltAbrt", "UnxCmplt", "RxOF", "MalfTLP", "ECRC", "UnsupReq",
    "ACSViol", "UncorrIntErr", "BlockedTLP", "AtomicOpBlocked", "TLPBlockedErr", "PoisonTLPBlocked",
    "DMWrReqBlocked", "IDECheck", "MisIDETLP", "PCRC_CHECK", "TLPXlatBlocked",
)  # fmt: skip
_CORRECTABLE = {name: name for name in ("RxErr", "BadTLP", "BadDLLP", "Rollover", "Timeout")} | {
    "AdvNonFatalErr": "NonFatalErr",
    "CorrIntErr": "CorrIntErr",
    "HeaderOF": "HeaderOF",
}
_ACS = {
    "SrcValid": "source validation",
    "TransBlk": "translation blocking",
    "ReqRedir": "P2P request redirect",
    "CmpltRedir": "P2P completion redirect",
    "UpstreamFwd": "upstream forwarding",
    "EgressCtrl": "P2P egress control",
    "DirectTrans": "direct translated P2P",
}
_L1 = {name: name.replace("_", " ") for name in ("PCI-PM_L1.2", "PCI-PM_L1.1", "ASPM_L1.2", "ASPM_L1.1")}
_ARBITRATIONS = {name: name for name in ("WRR32", "WRR64", "WRR128")} | {"Fixed": "fixed"}
_RESERVED = {f"??{number}": f"reserved {number}" for number in range(4, 8)}
_RESOURCE_ARBITRATIONS = _ARBITRATIONS | {
    "TWRR128": "TWRR128", "WRR256": "WRR256", "??6": "reserved 6", "??7": "reserved 7",
}  # fmt: skip
_FLEX_BUS = ("Cache", "IO", "Mem", "68BFlit", "MltLogDev", "256BFlit", "PBRFlit")
_FLEX_BUS_STATUS = (*_FLEX_BUS, "SynHdrByp", "DrftBuf")
_FLEX_BUS_CONTROL = (*_FLEX_BUS_STATUS, "RCD", "Retimer1", "Retimer2")
_INJECTIONS = {
    "TS0": "ts0", "TS1": "ts1", "TS2": "ts2", "SKP": "skp", "EIEOS": "eieos", "EIOS": "eios", "SDS": "sds",
    "Polling": "polling", "Configuration": "configuration", "L0": "l0", "non-EQ recovery": "recovery",
    "Eq01": "equalization01", "Eq2": "equalization2", "Eq3": "equalization3",
}  # fmt: skip
_ORDERED_SETS = {name: name for name in ("TS0", "TS1", "TS2", "SKP", "EIEOS", "EIOS", "SDS", "L0")} | {
    "Poll": "polling",
    "Conf": "configuration",
    "NoEq": "recovery without equalization",
    "Eq01": "equalization phase 0 or 1",
    "Eq2": "equalization phase 2",
    "Eq3": "equalization phase 3",
}
_INJECTION_SPEEDS = {
    f"{speed}GT/s": f"{speed} GT/s" for speed in ("2.5", "5.0", "8.0", "16.0", "32.0", "64.0")
}


def _states(path: str) -> str:
    return "  ".join(f"{shown}: {{{path}.{name}:injection}}" for shown, name in _INJECTIONS.items())


_ERRORS = f"""
    Advanced Error Reporting
UESta:
    {flags("uncorrectable", _UNCORRECTABLE)}
UEMsk:
    {flags("uncorrectable_masked", _UNCORRECTABLE)}
UESvrt:
    {flags("fatal", _UNCORRECTABLE)}
CESta:
    {flags("correctable", _CORRECTABLE)}
CEMsk:
    {flags("correctable_masked", _CORRECTABLE)}
AERCap:
    First Error Pointer: {{first_error#}}
    ECRCGenCap{{ecrc_generation_capable+}}  ECRCGenEn{{ecrc_generation_enabled+}}
    ECRCChkCap{{ecrc_check_capable+}}  ECRCChkEn{{ecrc_check_enabled+}}
    MultHdrRecCap{{multiple_headers_capable+}}  MultHdrRecEn{{multiple_headers_enabled+}}
    TLPPfxPres{{prefix_log_present+}}  HdrLogCap{{completion_timeout_log_capable+}}
HeaderLog:
    {{header_log:words}}
RootCmd:
    CERptEn{{root.cor_enabled+}}  NFERptEn{{root.nonfatal_enabled+}}  FERptEn{{root.fatal_enabled+}}
RootSta:
    CERcvd{{root.cor_received+}}  MultCERcvd{{root.multi_cor_received+}}
    UERcvd{{root.uncor_received+}}  MultUERcvd{{root.multi_uncor_received+}}
    FirstFatal{{root.first_uncor_fatal+}}  NonFatalMsg{{root.nonfatal_received+}}
    FatalMsg{{root.fatal_received+}}  IntMsgNum {{root.interrupt_message}}
ErrorSrc:
    ERR_COR: {{root.cor_source_id#}}
    ERR_FATAL/NONFATAL: {{root.uncor_source_id#}}
"""

_VIRTUAL_CHANNEL = f"""
    Virtual Channel
Caps:
    LPEVC={{low_priority_extended_vcs}}
    RefClk={{reference_clock:clock}}
    PATEntryBits={{arbitration_table_entry_bits}}
Arb:
    {flags("arbitrations", _ARBITRATIONS | _RESERVED)}
Ctrl:
    ArbSelect={{arbitration:arbitration}}
Status:
    InProgress{{table_load_pending+}}
    - Port Arbitration Table [{{#}}] <?> -- the place of a table that lspci does not read
VC{{n@}}:
  Caps:
    PATOffset={{resources[$n].arbitration_table:16 bytes}}
    MaxTimeSlots={{resources[$n].max_time_slots}}
    RejSnoopTrans{{resources[$n].reject_snoop+}}
  Arb:
    {flags("resources[$n].arbitrations", _RESOURCE_ARBITRATIONS)}
  Ctrl:
    Enable{{resources[$n].enabled+}}
    ID={{resources[$n].id}}
    ArbSelect={{resources[$n].arbitration:arbitration}}
    TC/VC={{resources[$n].tc_map#}}
  Status:
    NegoPending{{resources[$n].negotiation_pending+}}
    InProgress{{resources[$n].table_load_pending+}}
    - Port Arbitration Table <?> -- a table that lspci does not read
    - <unreadable> -- no register
"""

_LINKS = """
    Root Complex Link
Desc:
    PortNumber={port_number#}  ComponentID={component#}  EltType={type:element}
Link{n@}:
  Desc:
    TargetPort={links[$n].target_port#}
    TargetComponent={links[$n].target_component#}
    AssocRCRB{links[$n].associates_rcrb+}
    LinkType={links[$n].type:link type}
    LinkValid{links[$n].valid+}
  Addr:
    {links[$n].bus#}:{links[$n].device#}.{links[$n].function}
    CfgSpace={links[$n].address#}
    {links[$n].address#}
"""

_SRIOV = """
    Single Root I/O Virtualization (SR-IOV)
IOVCap:
    Migration{vf_migration+}  10BitTagReq{vf_tag_requester_10bit+}  IntMsgNum {interrupt_message}
IOVCtl:
    Enable{enabled+}  Migration{vf_migration_enabled+}  Interrupt{vf_migration_interrupt_enabled+}
    MSE{memory_enabled+}  ARIHierarchy{ari_hierarchy+}  10BitTagReq{vf_tag_requester_10bit_enabled+}
IOVSta:
    Migration{vf_migration_status+}
    Initial VFs: {initial_vfs}  Total VFs: {total_vfs}  Number of VFs: {num_vfs}
    Function Dependency Link: {dependency_link#}
    VF offset: {first_vf_offset}  stride: {vf_stride}  Device ID: {vf_device_id#}
    Supported Page Size: {page_sizes:page sizes}  System Page Size: {page_size:pages}
    VF Migration: offset: {migration_offset#}  BIR: {migration_bar#}
Region {n@}:
    Memory at {bars[index=$n].address#}
    ({bars[index=$n].type:64-bit}, {bars[index=$n].prefetchable:prefetchable})
    VF Migration: offset: {migration_offset#}  BIR: {migration_bar#}
"""

_MULTICAST = """
    Multicast
McastCap:
    MaxGroups {max_groups}
    WindowSz {window_size:power} ({*} bytes)
    ECRCRegen{ecrc_regeneration+}
McastCtl:
    NumGroups {groups}  Enable{enabled+}
McastBAR:
    IndexPos {index_position}  BaseAddr {base_address#}
McastReceiveVec:
    {receive_mask#}
McastBlockAllVec:
    {block_all_mask#}
McastBlockUntransVec:
    {block_untranslated_mask#}
McastOverlayBAR:
    OverlaySize {overlay.size:power} ({*} bytes)
    OverlaySize {overlay.size:no overlay} (disabled)
    BaseAddr {overlay.address#}
"""

_ENCRYPTION = """
    Integrity & Data Encryption
IDECap:
    Lnk={link_stream_count:streams}  Sel={selective_stream_count:streams}
    FlowThru{flow_through+}  PartHdr{partial_header_encryption+}
    Aggr{aggregation+}  PCPC{pcrc+}  IDE_KM{ide_km+}  SelCfg{selective_configuration+}
    Alg='{algorithm:algorithm}'
    TCs={traffic_classes}  TeeLim{tee_limited+}  XT{xt+}
IDECtl:
    FTEn{flow_through_enabled+}
[{at@#}]LinkIDE#{n@} Ctl:
    En{link_streams[$n].enabled+}  XT{link_streams[$n].xt+}
    NPR{link_streams[$n].tx_aggregation_npr:aggregation}
    PR{link_streams[$n].tx_aggregation_pr:aggregation}
    CPL{link_streams[$n].tx_aggregation_cpl:aggregation}
    - PCRC{+} -- lspci shows the bit that enables the stream
    HdrEnc={link_streams[$n].partial_header_encryption:header encryption}
    Alg='{link_streams[$n].algorithm:algorithm}'
    TC{link_streams[$n].traffic_class}  ID{link_streams[$n].stream_id}
[{at@#}]LinkIDE#{n@} Sta:
    Status={link_streams[$n].state:state}
    RecvChkFail{link_streams[$n].ide_fail+}
[{at@#}]SelectiveIDE#{n@} Cap:
    RID#={selective_streams[$n].address_count}
[{at@#}]SelectiveIDE#{n@} Ctl:
    En{selective_streams[$n].control.enabled+}  XT{selective_streams[$n].control.xt+}
    NPR{selective_streams[$n].control.tx_aggregation_npr:aggregation}
    PR{selective_streams[$n].control.tx_aggregation_pr:aggregation}
    CPL{selective_streams[$n].control.tx_aggregation_cpl:aggregation}
    PCRC{selective_streams[$n].control.pcrc_enabled+}
    CFG{selective_streams[$n].configuration_enabled+}
    HdrEnc={selective_streams[$n].control.partial_header_encryption:header encryption}
    Alg='{selective_streams[$n].control.algorithm:algorithm}'
    TC{selective_streams[$n].control.traffic_class}
    TeeLim{selective_streams[$n].tee_limited+}
    ID{selective_streams[$n].control.stream_id}
    {selective_streams[$n].default:Default}
[{at@#}]SelectiveIDE#{n@} Sta:
    {selective_streams[$n].control.state:state}
    RecvChkFail{selective_streams[$n].control.ide_fail+}
[{at@#}]SelectiveIDE#{n@} RID:
    Valid{selective_streams[$n].rid_valid+}
    Base={selective_streams[$n].rid_base#}
    Limit={selective_streams[$n].rid_limit#}
    SegBase={selective_streams[$n].segment#}
[{at@#}]SelectiveIDE#{n@} RID#{m@}:
    Valid{selective_streams[$n].addresses[$m].valid+}
    Base={selective_streams[$n].addresses[$m].base_address#}
    Limit={selective_streams[$n].addresses[$m].limit_address#}
"""

_FLIT_INJECTION = f"""
    Flit Error Injection
FlitEiCtl1:
    En{{enabled+}}  Tx{{transmit+}}  Rx{{receive+}}
    {flags("speeds", _INJECTION_SPEEDS)}
    Number of errors: {{error_count}}  Spacing between errors: {{error_spacing}}
    Flit Type: {{flit_type:flit type}}
FlitEiCtl2:
    Consecutive: {{consecutive:consecutive}}
    Type: {{error_type:flit error}}
    Offset: {{error_offset}}  Magnitude: {{error_magnitude}}
FlitEiSts:
    Tx: {{transmit_state:injection}}  Rx: {{receive_state:injection}}
FlitEiOsCtl1:
    En{{ordered_set_enabled+}}  Tx{{ordered_set_transmit+}}  Rx{{ordered_set_receive+}}
    {flags("ordered_sets", _ORDERED_SETS)}
FlitEiOsCtl2:
    Bytes: {{ordered_set_byte_mask#}}  Lanes: {{ordered_set_lane_mask#}}
FlitEiOsTx:
    {_states("ordered_set_transmit_states")}
FlitEiOsRx:
    {_states("ordered_set_receive_states")}
"""

_FLIT_LOGGING = """
    Flit Logging
Log1:
    Valid{valid+}  Link Width: {link_width:width}
    More entries{more_entries+}  Unrecognized flit{unrecognized+}  FEC uncorrectable{fec_uncorrectable+}
    SyndParityGrp0: {parity_syndromes[0]#}  SyndCheckGrp0: {check_syndromes[0]#}
Log2:
    SyndParityGrp1: {parity_syndromes[1]#}  SyndCheckGrp1: {check_syndromes[1]#}
    SyndParityGrp2: {parity_syndromes[2]#}  SyndCheckGrp2: {check_syndromes[2]#}
CntCtl:
    Flit Error Counter En{counter_enabled+}
    Flit Error Counter Interrupt En{counter_interrupt_enabled+}
    Events to count: {counted_events}
    Trigger Event on Error Count: {trigger_count#}
CntSts:
    Link Width when Error Counter Started {counter_link_width:width}
    - Interrupt Generated based on Trigger Event Count{+} -- lspci reads another bit
    FlitErr: {counter}
MeasCtl:
    En{measurement_enabled+}  Granularity: {measurement_granularity:granted lanes}
MeasSts{register@}:
    Flit Counter: {flit_counter}
    Invalid Flit Counter: {invalid_flit_counter}
Lane{n@}:
    {lane_errors[$n]}
"""

_DESIGNATED = f"""
    Designated Vendor-Specific: Vendor={{vendor_id#}} ID={{dvsec_id#}} Rev={{revision}} Len={{length}}
    Designated Vendor-Specific: Vendor={{vendor_id#}} ID={{dvsec_id#}} Rev={{revision}} Len={{length}}: CXL
    - <?> -- lspci does not decode what follows
    - <Wrong length for Revision {{}}> -- lspci does not decode it
    - Unknown ID {{#}} -- lspci does not decode it
    - PCIe DVSEC for CXL Devices -- the name of the id
    - Non-CXL Function Map DVSEC -- the name of the id
    - CXL Extensions DVSEC for Ports -- the name of the id
    - GPF DVSEC for CXL Ports -- the name of the id
    - GPF DVSEC for CXL Devices -- the name of the id
    - PCIe DVSEC for Flex Bus Port -- the name of the id
    - Register Locator DVSEC -- the name of the id
    - MLD DVSEC -- the name of the id
    - PCIe DVSEC for Test Capability -- the name of the id
    - Reserved time scale encoding {{#}} -- vfiotool has null
    - GPF Phase {{}} Timeout: {{}}<?> -- a reserved time scale
    - GPF Phase {{}} Duration: {{}}<?> -- a reserved time scale
    GPF Phase 1 Timeout: {{cxl.phase1_timeout_us:microseconds}}
    GPF Phase 2 Timeout: {{cxl.phase2_timeout_us:microseconds}}
    GPF Phase 2 Duration: {{cxl.phase2_duration_us:microseconds}}
    GPF Phase 2 Power: {{cxl.phase2_power_mw}}mW
    FuncMap {{n@}}: {{cxl.non_cxl_function_mask[$n]:lower half}}
    NumLogDevs: {{cxl.logical_devices}}
CXLCap:
    Cache{{cxl.cache+}}  IO{{cxl.io+}}  Mem{{cxl.mem+}}  MemHWInit{{cxl.mem_hwinit+}}
    HDMCount {{cxl.hdm_count}}  Viral{{cxl.viral+}}
CXLCtl:
    Cache{{cxl.cache_enabled+}}  IO{{cxl.io_enabled+}}  Mem{{cxl.mem_enabled+}}
    CacheSFCov {{cxl.snoop_filter_coverage}}  CacheSFGran {{cxl.snoop_filter_granularity}}
    CacheClean{{cxl.cache_clean_evict+}}  Viral{{cxl.viral_enabled+}}
CXLSta:
    Viral{{cxl.viral_status+}}
CXLCtl2:
    DisableCaching{{cxl.caching_disabled+}}  InitCacheWB&Inval{{cxl.cache_writeback_initiated+}}
    - InitRst{{+}} -- lspci reads two bits
    - RstMemClrEn{{+}} -- lspci reads two bits
    - DesiredVolatileHDMStateAfterHotReset{{+}} -- lspci reads other bits
CXLSta2:
    ResetComplete{{cxl.reset_complete+}}  ResetError{{cxl.reset_error+}}  PMComplete{{cxl.pm_init_complete+}}
CXLCap2:
    Cache Size: {{cxl.cache_size#}}
    Cache Size {{cxl.cache_size:not reported}}
    - Cache Size: {{}} of unknown unit size ({{}}) -- vfiotool has null
CXLCap3:
    - DefaultVolatile HDM State After: -- a heading
    ColdReset{{cxl.reset_state.cold_reset+}}  WarmReset{{cxl.reset_state.warm_reset+}}
    - HotReset{{+}} -- lspci reads two bits
    - HotResetConfigurability{{+}} -- lspci reads another bit
    - <?> -- lspci does not decode what follows
Range1:
    {{cxl.ranges[0].base_address:256 MiB}}-{{*}}
    [size={{cxl.ranges[0].size:hex size}}]
    Valid{{cxl.ranges[0].valid+}}  Active{{cxl.ranges[0].active+}}
    Type={{cxl.ranges[0].media:media}}  Class={{cxl.ranges[0].memory_class:memory class}}
    interleave={{cxl.ranges[0].interleave}}  timeout={{cxl.ranges[0].timeout_s}}s
Range2:
    {{cxl.ranges[1].base_address:256 MiB}}-{{*}}
    [size={{cxl.ranges[1].size:hex size}}]
    Valid{{cxl.ranges[1].valid+}}  Active{{cxl.ranges[1].active+}}
    Type={{cxl.ranges[1].media:media}}  Class={{cxl.ranges[1].memory_class:memory class}}
    interleave={{cxl.ranges[1].interleave}}  timeout={{cxl.ranges[1].timeout_s}}s
    - <?> -- lspci does not decode what follows
CXLPortSta:
    - PMComplete{{+}} -- lspci takes the offset of the register for its mask
CXLPortCtl:
    UnmaskSBR{{cxl.unmask_sbr+}}  UnmaskLinkDisable{{cxl.unmask_link_disable+}}
    AltMem{{cxl.alternate_memory+}}  AltBME{{cxl.alternate_bus_master+}}  ViralEnable{{cxl.viral_enabled+}}
AlternateBus:
    {{cxl.alternate_bus_base:byte}}-{{cxl.alternate_bus_limit:byte}}
    {{cxl.alternate_memory_base_address:MiB base}}-{{cxl.alternate_memory_limit_address:MiB limit}}
FBCap:
    {flags("cxl.capable", _FLEX_BUS)}
FBCtl:
    {flags("cxl.enabled", _FLEX_BUS_CONTROL)}
FBSta:
    {flags("cxl.status", _FLEX_BUS_STATUS)}
    - <?> -- lspci does not decode what follows
FBModTS:
    Received FB Data: {{cxl.modified_ts_data#}}
    - <?> -- lspci does not decode what follows
FBCap2:
    NOPHint{{cxl.nop_hint_capable+}}
FBCtl2:
    NOPHint{{cxl.nop_hint_enabled+}}
FBSta2:
    NOPHintInfo: {{cxl.nop_hint_info#}}
    - <?> -- lspci does not decode what follows
Block{{n@}}:
    BIR: bar{{cxl.blocks[$n-1].bar}}  ID: {{cxl.blocks[$n-1].block:CXL block}}
    - ID: <?> -- lspci has no name
    offset: {{cxl.blocks[$n-1].offset#}}
"""

_PHYSICAL_32 = """
    Physical Layer 32.0 GT/s
Phy32Cap:
    EqualizationBypass{equalization_bypass+}  NoEqualizationNeeded{no_equalization_needed+}
    ModTsMode0{modified_ts_modes:mode 0}  ModTsMode1{modified_ts_modes:mode 1}
    ModTsMode2{modified_ts_modes:mode 2}
Phy32Ctl:
    EqualizationBypassDis{equalization_bypass_disabled+}
    NoEqualizationNeededDis{no_equalization_needed_disabled+}
    Modified TS Usage Mode: {modified_ts_mode:TS mode}
Phy32Sta:
    EquComplete{equalization.complete+}  EquPhase1{equalization.phase1+}  EquPhase2{equalization.phase2+}
    EquPhase3{equalization.phase3+}  LinkEquRequest{equalization.requested+}
    Received Enhanced Link Behavior Control: {link_behavior:behavior}
    ModTsRecv{modified_ts_received+}  TxPrecodeOn{tx_precoding_on+}  TxPrecodeReq{tx_precoding_requested+}
    NoEqualizationNeededRecv{no_equalization_needed_received+}
"""

_DEVICE_3 = """
    Device 3
DevCap3:
    DMWr Request Routing{dmwr_routing+}
    14-Bit Tag Completer{tag_completer_14bit+}  14-Bit Tag Requester{tag_requester_14bit+}
    L0p{l0p+}  Port L0p Exit Latency: {port_l0p_exit_latency:L0p latency}
    Retimer L0p Exit Latency: {retimer_l0p_exit_latency:L0p latency}
    UIO Mem RdWr Completer{uio_completer+}  UIO Mem RdWr Requester{uio_requester+}
DevCtl3:
    DMWr Requester{dmwr_requester_enabled+}  DMWr Egress Blocking{dmwr_egress_blocking+}
    14-Bit Tag Requester{tag_requester_14bit_enabled+}
    L0p{l0p_enabled+}  Target Link Width: {target_link_width:width}
    UIO Mem RdWr Requester{uio_requester_enabled+}
    UIO Request 256B Boundary{uio_256b_boundary_disabled:inverted}
DevSta3:
    Initial Link Width: {initial_link_width:width}
    Segment Captured{segment_captured+}  Remote L0p{remote_l0p+}
"""

_CONTAINMENT = """
    Downstream Port Containment
DpcCap:
    IntMsgNum {interrupt_message}  RPExt{rp_extensions+}  PoisonedTLP{poisoned_tlp_blocking+}
    SwTrigger{software_trigger+}  RP PIO Log {rp_pio_log_size:low 4 bits}  DL_ActiveErr{dl_active_signal+}
DpcCtl:
    Trigger:{trigger:trigger}  Cmpl{completion_unsupported_request+}  INT{interrupt_enabled+}
    ErrCor{err_cor_enabled+}  PoisonedTLP{poisoned_tlp_blocking_enabled+}
    SwTrigger{software_triggered+}  DL_ActiveErr{dl_active_signal_enabled+}
DpcSta:
    Trigger{triggered+}  Reason:{trigger_reason:reason}  INT{interrupt_status+}  RPBusy{rp_busy+}
    TriggerExt:{trigger_reason_extension:extension}  RP PIO ErrPtr:{rp_pio_first_error#}
Source:
    {source_id#}
"""

_RESIZABLE = """
    Physical Resizable BAR
    Virtual Resizable BAR
    - <error in resizable BAR: num_bars={} is out of specification> -- vfiotool shows the BARs that it has
BAR {bars[$index].bar}:
    current size: {bars[$index].size:size}
    supported: {bars[$index].sizes:sizes}
"""

EXTENDED: dict[int, Table] = {
    number: Table(f"extended {number:02x}", text)
    for number, text in {
        0x00: "    - Null -- it has no fields",
        0x01: _ERRORS,
        0x02: _VIRTUAL_CHANNEL,
        0x03: "    Device Serial Number {serial:serial}",
        0x04: "    - Power Budgeting <?> -- lspci does not decode it",
        0x05: _LINKS,
        0x06: "    - Root Complex Internal Link <?> -- lspci does not decode it",
        0x07: """
    Root Complex Event Collector Endpoint Association
RCiEPBitmap:
    RCiEP at Device(s): {devices:devices}
    {devices:no devices}
AssociatedBusNumbers:
    {first_bus#}-{last_bus#}
    {first_bus:none}
""",
        0x08: "    - Multi-Function Virtual Channel <?> -- lspci does not decode it",
        0x09: _VIRTUAL_CHANNEL,
        0x0A: "    - Root Complex Register Block <?> -- lspci does not decode it",
        0x0B: "    Vendor Specific Information: ID={vsec_id#} Rev={revision} Len={length#} <?>",
        0x0D: f"""
    Access Control Services
ACSCap:
    {flags("supported", _ACS)}
ACSCtl:
    {flags("enabled", _ACS)}
""",
        0x0E: """
    Alternative Routing-ID Interpretation (ARI)
ARICap:
    MFVC{mfvc_groups+}  ACS{acs_groups+}  Next Function: {next_function}
ARICtl:
    MFVC{mfvc_groups_enabled+}  ACS{acs_groups_enabled+}  Function Group: {function_group}
""",
        0x0F: """
    Address Translation Service (ATS)
ATSCap:
    Invalidate Queue Depth: {queue_depth:depth}
ATSCtl:
    Enable{enabled+}  Smallest Translation Unit: {smallest_translation:page shift}
""",
        0x10: _SRIOV,
        0x11: "    - Multi-Root I/O Virtualization <?> -- lspci does not decode it",
        0x12: _MULTICAST,
        0x13: """
    Page Request Interface (PRI)
PRICtl:
    Enable{enabled+}  Reset{reset+}
PRISta:
    RF{response_failure+}  UPRGI{unexpected_group+}  Stopped{stopped+}  PASID{pasid_required+}
    Page Request Capacity: {capacity#}  Page Request Allocation: {allocation#}
""",
        0x15: _RESIZABLE,
        0x16: "    - Dynamic Power Allocation <?> -- lspci does not decode it",
        0x17: """
    Transaction Processing Hints
    Interrupt vector mode {interrupt_vector_mode:supported}
    Device specific mode {device_specific_mode:supported}
    Extended requester {extended_tph:support}
    {st_table_location:steering}
""",
        0x18: """
    Latency Tolerance Reporting
    Max snoop latency: {max_snoop_ns:latency}ns
    Max no snoop latency: {max_no_snoop_ns:latency}ns
""",
        0x19: """
    Secondary PCI Express
LnkCtl3:
    LnkEquIntrruptEn{equalization_interrupt_enabled+}  PerformEqu{perform_equalization+}
LaneErrStat:
    LaneErr at lane: {lane_errors:lanes}
    {lane_errors:no lanes}
""",
        0x1A: "    - Protocol Multiplexing <?> -- lspci does not decode it",
        0x1B: """
    Process Address Space ID (PASID)
PASIDCap:
    Exec{execute+}  Priv{privileged+}  Max PASID Width: {width#}
PASIDCtl:
    Enable{enabled+}  Exec{execute_enabled+}  Priv{privileged_enabled+}
""",
        0x1C: "    - LN Requester <?> -- lspci does not decode it",
        0x1D: _CONTAINMENT,
        0x1E: f"""
    L1 PM Substates
L1SubCap:
    {flags("supported", _L1)}
    L1_PM_Substates{{l1_pm_substates+}}
    PortCommonModeRestoreTime={{port_cm_restore_time_us}}us
    PortTPowerOnTime={{port_power_on_time_us}}us  PortTPowerOnTime={{port_power_on_time_us:error}}
L1SubCtl1:
    {flags("enabled", _L1)}
    T_CommonMode={{cm_restore_time_us}}us
    LTR1.2_Threshold={{ltr_l12_threshold_ns}}ns  LTR1.2_Threshold={{ltr_l12_threshold_ns:error}}
L1SubCtl2:
    T_PwrOn={{power_on_time_us}}us  T_PwrOn={{power_on_time_us:error}}
""",
        0x1F: """
    Precision Time Measurement
PTMCap:
    Requester{requester+}  Responder{responder+}  Root{root+}
PTMClockGranularity:
    {clock_granularity_ns:granularity}
PTMControl:
    Enabled{enabled+}  RootSelected{root_selected+}
PTMEffectiveGranularity:
    {effective_granularity_ns:granularity}
""",
        0x20: "    - PCI Express over M_PHY <?> -- lspci does not decode it",
        0x21: "    - FRS Queueing <?> -- lspci does not decode it",
        0x22: "    - Readiness Time Reporting <?> -- lspci does not decode it",
        0x23: _DESIGNATED,
        0x24: _RESIZABLE,
        0x25: "    - Data Link Feature <?> -- lspci does not decode it",
        0x26: """
    Physical Layer 16.0 GT/s
Phy16Sta:
    EquComplete{equalization.complete+}  EquPhase1{equalization.phase1+}  EquPhase2{equalization.phase2+}
    EquPhase3{equalization.phase3+}  LinkEquRequest{equalization.requested+}
""",
        0x27: """
    Lane Margining at the Receiver
PortCap:
    Uses Driver{uses_driver+}
PortSta:
    MargReady{ready+}  MargSoftReady{software_ready+}
""",
        0x28: "    - Hierarchy ID <?> -- lspci does not decode it",
        0x29: "    - Native PCIe Enclosure Management <?> -- lspci does not decode it",
        0x2A: _PHYSICAL_32,
        0x2E: """
    Data Object Exchange
DOECap:
    IntSup{interrupt_supported+}  IntMsgNum {interrupt_message}
DOECtl:
    IntEn{interrupt_enabled+}
DOESta:
    Busy{busy+}  IntSta{interrupt_status+}  Error{error+}  ObjectReady{data_object_ready+}
""",
        0x2F: _DEVICE_3,
        0x30: _ENCRYPTION,
        0x31: """
    Physical Layer 64.0 GT/s
Phy64Sta:
    EquComplete{equalization.complete+}  EquPhase1{equalization.phase1+}  EquPhase2{equalization.phase2+}
    EquPhase3{equalization.phase3+}  LinkEquRequest{equalization.requested+}
    TxPrecodeOn{tx_precoding_on+}  TxPrecodeReq{tx_precoding_requested+}
    NoEqualizationNeededRecv{no_equalization_needed_received+}
""",
        0x32: _FLIT_LOGGING,
        0x34: _FLIT_INJECTION,
        0x36: """
    MMIO Register Block Locator
Locator{n@}:
    BIR: BAR{locators[$n].bar}  ID: {locators[$n].block:block}  offset: {locators[$n].offset#}
""",
    }.items()
}
