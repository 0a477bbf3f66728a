"""Where the document of ``vfiotool config --json`` has what lspci prints of PCI Express."""

from __future__ import annotations

from tests.support.lspci_comparison import Table, flags

_EXPRESS_ERRORS = {
    "CorrErr": "correctable", "NonFatalErr": "non-fatal", "FatalErr": "fatal",
    "UnsupReq": "unsupported request",
}  # fmt: skip
_SLOT_FEATURES = {
    "AttnBtn": "attention button", "PwrCtrl": "power controller", "MRL": "MRL sensor",
    "AttnInd": "attention indicator", "PwrInd": "power indicator", "HotPlug": "hot-plug",
    "Surprise": "surprise removal",
}  # fmt: skip
_SLOT_NOTIFICATIONS = {
    "AttnBtn": "attention button", "PwrFlt": "power fault", "MRL": "MRL sensor", "PresDet": "presence",
    "CmdCplt": "command completed", "HPIrq": "hot-plug interrupt", "LinkChg": "link state",
}  # fmt: skip
_SLOT_STATUS = {
    "AttnBtn": "attention button pressed", "PowerFlt": "power fault", "MRL": "MRL open",
    "CmdCplt": "command completed", "PresDet": "card present", "Interlock": "interlock engaged",
}  # fmt: skip
_SLOT_CHANGES = {
    "MRL": "MRL sensor changed", "PresDet": "presence changed", "LinkState": "link state changed",
}  # fmt: skip
_CARD_FEATURES = {
    "AttnBtn": "attention button", "AttnInd": "attention indicator", "PwrInd": "power indicator",
}  # fmt: skip
_SYSTEM_ERRORS = {"ErrCorrectable": "correctable", "ErrNon-Fatal": "non-fatal", "ErrFatal": "fatal"}
_ATOMICS = {"Routing": "routing", "32bit": "32 bits", "64bit": "64 bits", "128bitCAS": "128 bits CAS"}

_TEXT = f"""
    Express (v{{version}}) {{type_name:port type}}  (Slot{{slot_implemented+}})
    IntMsgNum {{interrupt_message}}  FLIT Mode Supported{{flit_mode_supported:true}}
DevCap:
    MaxPayload {{device.max_payload_supported}} bytes  PhantFunc {{device.phantom_functions}}
    Latency L0s {{device.l0s_latency:spaced}}  L1 {{device.l1_latency:spaced}}
    ExtTag{{device.extended_tags_supported+}}
    {flags("device.card_features", _CARD_FEATURES)}
    RBE{{device.role_based_errors+}}  FLReset{{device.flr+}}  TEE-IO{{device.tee_io+}}
    SlotPowerLimit {{device.slot_power_limit_mw:watts}}
DevCtl:
    {flags("device.error_reporting", _EXPRESS_ERRORS)}
    RlxdOrd{{device.relaxed_ordering+}}  ExtTag{{device.extended_tags+}}
    PhantFunc{{device.phantom_functions_enabled+}}  AuxPwr{{device.aux_power_enabled+}}
    NoSnoop{{device.no_snoop+}}  BrConfRtry{{device.bridge_config_retry+}}  FLReset{{device.initiate_flr+}}
    MaxPayload {{device.max_payload}} bytes  MaxReadReq {{device.max_read_request}} bytes
DevSta:
    {flags("device.errors", _EXPRESS_ERRORS)}
    AuxPwr{{device.aux_power_detected+}}  TransPend{{device.transactions_pending+}}
LnkCap:
    Port #{{link.port}}  Speed {{link.max_speed:speed}}  Width x{{link.max_width}}
    ASPM {{link.aspm_supported:ASPM}}
    Exit Latency L0s {{link.l0s_exit_latency:exit latency}}
    Exit Latency L1 {{link.l1_exit_latency:exit latency}}  L1 {{link.l1_exit_latency:exit latency}}
    ClockPM{{link.clock_pm+}}  Surprise{{link.surprise_down+}}  LLActRep{{link.active_reporting+}}
    BwNot{{link.bandwidth_notification+}}  ASPMOptComp{{link.aspm_optionality+}}
LnkCtl:
    ASPM {{link.aspm:ASPM}}  Enabled  RCB {{link.read_completion_boundary}} bytes
    LnkDisable{{link.disabled+}}  Disabled{{link.disabled+}}  CommClk{{link.common_clock+}}
    ExtSynch{{link.extended_synch+}}  ClockPM{{link.clock_pm_enabled+}}
    AutWidDis{{link.autonomous_width_disabled+}}  BWInt{{link.bandwidth_interrupt_enabled+}}
    AutBWInt{{link.autonomous_bandwidth_interrupt_enabled+}}  FltModeDis{{link.flit_mode_disabled+}}
LnkSta:
    Speed {{link.speed:speed}}  Width x{{link.width}}
    - (downgraded) -- the maximum tells it
    - (overdriven) -- the maximum tells it
    TrErr{{link.training_error+}}  Train{{link.training+}}  SlotClk{{link.slot_clock+}}
    DLActive{{link.active:if reported}}
    BWMgmt{{link.bandwidth_management+}}  ABWMgmt{{link.autonomous_bandwidth+}}
SltCap:
    {flags("slot.features", _SLOT_FEATURES)}
    Slot #{{slot.number}}  PowerLimit {{slot.power_limit_mw:watts}}
    Interlock{{slot.interlock+}}  NoCompl{{slot.no_command_completed+}}
SltCtl:
  Enable:
    {flags("slot.notifications_enabled", _SLOT_NOTIFICATIONS)}
  Control:
    AttnInd {{slot.attention_indicator:indicator}}  PwrInd {{slot.power_indicator:indicator}}
    Power{{slot.power_off+}}  Interlock{{slot.interlock_control+}}
SltSta:
  Status:
    {flags("slot.status", _SLOT_STATUS)}
  Changed:
    {flags("slot.status", _SLOT_CHANGES)}
RootCap:
    CRSVisible{{root.crs_visible+}}
RootCtl:
    {flags("root.system_errors_enabled", _SYSTEM_ERRORS)}
    PMEIntEna{{root.pme_interrupt_enabled+}}  CRSVisible{{root.crs_visible_enabled+}}
RootSta:
    PME ReqID {{root.pme_requester_id#}}  PMEStatus{{root.pme_status+}}  PMEPending{{root.pme_pending+}}
DevCap2:
    Completion Timeout: {{device2.completion_timeout_ranges:timeout ranges}}
    TimeoutDis{{device2.completion_timeout_disable+}}  NROPrPrP{{device2.no_ro_enabled_pr_pr+}}
    LTR{{device2.ltr+}}  10BitTagComp{{device2.ten_bit_tag_completer+}}
    10BitTagReq{{device2.ten_bit_tag_requester+}}  OBFF {{device2.obff:OBFF}}
    ExtFmt{{device2.extended_format+}}  EETLPPrefix{{device2.end_end_prefixes+}}
    MaxEETLPPrefixes {{device2.max_end_end_prefixes}}
    EmergencyPowerReduction {{device2.emergency_power_reduction:emergency}}
    EmergencyPowerReductionInit{{device2.emergency_power_reduction_init+}}
    FRS{{device2.frs+}}  LN System CLS {{device2.ln_cache_line:cache lines}}
    TPHComp{{device2.tph_completer:TPH}}  ExtTPHComp{{device2.tph_completer:extended TPH}}
    ARIFwd{{device2.ari_forwarding+}}  AtomicOpsCap:  {flags("device2.atomics", _ATOMICS)}
DevCtl2:
    Completion Timeout: {{device2.completion_timeout:timeout}}
    TimeoutDis{{device2.completion_timeout_disable_enabled+}}  ARIFwd{{device2.ari_forwarding_enabled+}}
    AtomicOpsCtl:  ReqEn{{device2.atomics_enabled+}}  EgressBlck{{device2.atomic_egress_blocking_enabled+}}
    IDOReq{{device2.ido_request_enabled+}}  IDOCompl{{device2.ido_completion_enabled+}}
    LTR{{device2.ltr_enabled+}}
    EmergencyPowerReductionReq{{device2.emergency_power_reduction_request_enabled+}}
    10BitTagReq{{device2.ten_bit_tag_requester_enabled+}}  OBFF {{device2.obff_enabled:enabled OBFF}}
    EETLPPrefixBlk{{device2.end_end_prefix_blocking_enabled+}}
LnkCap2:
    Supported Link Speeds: {{link2.speeds:speeds}}
    Crosslink{{link2.crosslink+}}  Retimer{{link2.retimer+}}  2Retimers{{link2.two_retimers+}}
    DRS{{link2.drs+}}
LnkCtl2:
    Target Link Speed: {{link2.target_speed:speed}}
    EnterCompliance{{link2.enter_compliance+}}  SpeedDis{{link2.autonomous_speed_disabled+}}
    Selectable De-emphasis: {{link2.selectable_deemphasis:spaced}}
    Transmit Margin: {{link2.transmit_margin:margin}}
    EnterModifiedCompliance{{link2.enter_modified_compliance+}}  ComplianceSOS{{link2.compliance_sos+}}
    Compliance Preset/De-emphasis: {{link2.compliance_preset:preset}}
LnkSta2:
    Current De-emphasis Level: {{link2.deemphasis:spaced}}
    EqualizationComplete{{link2.equalization_complete+}}  EqualizationPhase1{{link2.equalization_phase1+}}
    EqualizationPhase2{{link2.equalization_phase2+}}  EqualizationPhase3{{link2.equalization_phase3+}}
    LinkEqualizationRequest{{link2.equalization_request+}}
    Retimer{{link2.retimer_detected+}}  2Retimers{{link2.two_retimers_detected+}}
    CrosslinkRes: {{link2.crosslink_resolution:crosslink}}
    FltMode{{link2.flit_mode+}}  DRS{{link2.drs_received+}}
    DownstreamComp: {{link2.downstream_component:component}}
"""

EXPRESS = Table("standard 10", _TEXT)
