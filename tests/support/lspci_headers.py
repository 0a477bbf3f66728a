"""Where the document of ``vfiotool config --json`` has what lspci prints of headers."""

from __future__ import annotations

from tests.support.lspci_comparison import Table, flags

COMMAND = {
    "I/O": "io", "Mem": "memory", "BusMaster": "master", "SpecCycle": "special", "MemWINV": "invalidate",
    "VGASnoop": "vga_palette", "ParErr": "parity", "Stepping": "wait", "SERR": "serr", "FastB2B": "fast_back",
    "DisINTx": "intx_disable",
}  # fmt: skip
STATUS = {
    "Cap": "cap_list", "66MHz": "66mhz", "UDF": "udf", "FastB2B": "fast_back", "ParErr": "parity",
    ">TAbort": "sig_target_abort", "<TAbort": "rec_target_abort", "<MAbort": "rec_master_abort",
    ">SERR": "sig_system_error", "<PERR": "detected_parity", "INTx": "interrupt",
}  # fmt: skip
_SECONDARY_STATUS = {
    "66MHz": "66mhz", "FastB2B": "fast_back", "ParErr": "parity", ">TAbort": "sig_target_abort",
    "<TAbort": "rec_target_abort", "<MAbort": "rec_master_abort", "<SERR": "sig_system_error",
    "<PERR": "detected_parity",
}  # fmt: skip
_BRIDGE_CONTROL = {
    "Parity": "parity", "SERR": "serr", "NoISA": "isa", "VGA": "vga", "VGA16": "vga_16bit",
    "MAbort": "master_abort", ">Reset": "bus_reset", "FastB2B": "fast_back",
    "PriDiscTmr": "pri_discard_timer",
    "SecDiscTmr": "sec_discard_timer", "DiscTmrStat": "discard_timer_status",
    "DiscTmrSERREn": "discard_timer_serr_en",
}  # fmt: skip
_CARDBUS_CONTROL = {
    "Parity": "parity", "SERR": "serr", "ISA": "isa", "VGA": "vga", "MAbort": "master_abort",
    ">Reset": "cb_reset", "16bInt": "16bit_int", "PostWrite": "post_writes",
}  # fmt: skip

_COMMON = f"""
Device:
    {{class_code:class}}: {{vendor_id#}}:{{device_id#}}
    (rev {{revision#}})  (prog-if {{class_code:interface}})  (prog-if {{class_code:interface}} [{{*}}])
    - !!! Invalid class {{#}} for header type {{#}} -- a remark
DeviceName:
    - {{*}} -- the label that firmware gives: show has it
Physical Slot:
    - {{*}} -- show has it
Control:
    {flags("command_bits", COMMAND)}
Status:
    {flags("status_bits", STATUS)}
    DEVSEL={{devsel:devsel}}
Latency:
    {{latency_timer}}  Cache Line Size: {{cache_line_size}} bytes
    ({{min_gnt_ns}}ns min, {{max_lat_ns}}ns max)  ({{min_gnt_ns}}ns min)  ({{max_lat_ns}}ns max)
Interrupts:
    pin {{interrupt_pin:pin}}  unknown pin{{interrupt_pin:no pin}}
    routed to IRQ {{interrupt_line}}
    - MSI(X) -- the kernel's interrupts, and not those of the register
    - disabled -- the command register has it
Interrupt:
    pin {{interrupt_pin:pin}}  routed to IRQ {{interrupt_line}}
BIST result:
    {{bist_code#}}
BIST is running{{bist_start:true}}
NUMA node:
    - {{}} -- list has it
IOMMU group:
    - {{}} -- list has it
Kernel driver in use:
    - {{*}} -- list has it
Kernel modules:
    - {{*}} -- show has it
Region {{n@}}:
    Memory at {{bars[index=$n].address:address}}
    ({{bars[index=$n].type:memory}}, {{bars[index=$n].prefetchable:prefetchable}})
    I/O ports at {{bars[index=$n].address:address}}{{bars[index=$n].type:ports}}
    - [virtual] Memory at {{#}} ({{*}}) -- the kernel has it, and not the register
    - [virtual] I/O ports at {{#}} -- the kernel has it, and not the register
    - Memory at {{#}} ({{*}}) [virtual] -- the kernel has it, and not the register
    - I/O ports at {{#}} [virtual] -- the kernel has it, and not the register
    - [enhanced] -- Enhanced Allocation has it
    - [disabled] -- the command register has it
    - [size={{*}}] -- show has it
Capabilities:
    <access denied>{{capabilities:no value}}
Expansion ROM at {{rom@#}} [virtual]
    - [disabled] -- the kernel has it, and not the register
    - [size={{*}}] -- show has it
Expansion ROM at {{rom_address:address}}
    [disabled]{{rom_enabled:false}}  [disabled by cmd]{{rom_enabled:true}}
    - [size={{*}}] -- show has it
"""

_ENDPOINT = f"""
{_COMMON}
Subsystem:
    {{subsystem_vendor_id#}}:{{subsystem_device_id#}}
"""

_BRIDGE = f"""
{_COMMON}
Subsystem:
    - {{*}} -- a capability of the bridge has it
Bus:
    primary={{bridge.primary_bus#}}  secondary={{bridge.secondary_bus#}}
    subordinate={{bridge.subordinate_bus#}}
    sec-latency={{bridge.sec_latency_timer}}
I/O behind bridge:
    {{bridge.io.start#}}-{{bridge.io.end#}}  [{{bridge.io.bits}}-bit]
    - [size={{*}}] -- the ends tell it
    {{bridge.io:closed}} [disabled] [{{*}}]
Memory behind bridge:
    {{bridge.memory.start#}}-{{bridge.memory.end#}}  [{{bridge.memory.bits}}-bit]
    - [size={{*}}] -- the ends tell it
    {{bridge.memory:closed}} [disabled] [{{*}}]
Prefetchable memory behind bridge:
    {{bridge.prefetchable_memory.start#}}-{{bridge.prefetchable_memory.end#}}
    [{{bridge.prefetchable_memory.bits}}-bit]
    - [size={{*}}] -- the ends tell it
    {{bridge.prefetchable_memory:closed}} [disabled] [{{*}}]
Secondary status:
    {flags("bridge.secondary_status_bits", _SECONDARY_STATUS)}
    DEVSEL={{bridge.secondary_devsel:devsel}}
BridgeCtl:
    {flags("bridge.control_bits", _BRIDGE_CONTROL)}
"""

_CARDBUS = f"""
{_COMMON}
Subsystem:
    {{subsystem_vendor_id#}}:{{subsystem_device_id#}}
Bus:
    primary={{cardbus.primary_bus#}}  secondary={{cardbus.card_bus#}}
    subordinate={{cardbus.subordinate_bus#}}
    sec-latency={{cardbus.latency_timer}}
Memory window 0:
    {{cardbus.memory_0:window}}
    - [disabled] -- the command register has it
    (prefetchable){{cardbus.control_bits:prefetchable 0}}
Memory window 1:
    {{cardbus.memory_1:window}}
    - [disabled] -- the command register has it
    (prefetchable){{cardbus.control_bits:prefetchable 1}}
I/O window 0:
    {{cardbus.io_0:window}}
    - [disabled] -- the command register has it
I/O window 1:
    {{cardbus.io_1:window}}
    - [disabled] -- the command register has it
Secondary status:
    SERR{{cardbus.secondary_status_bits:system error}}
BridgeCtl:
    {flags("cardbus.control_bits", _CARDBUS_CONTROL)}
    <access denied to the rest>{{capabilities:no value}}
16-bit legacy interface ports at
    {{cardbus.legacy_mode_base#}}
"""

_UNKNOWN = """
Device:
    {class_code:class}: {vendor_id#}:{device_id#}
    (rev {revision#})  (prog-if {class_code:interface})  (prog-if {class_code:interface} [{*}])
Subsystem:
    - {*} -- lspci takes what an endpoint would have
!!! Unknown header type
    {header_type#}
"""

# A device whose space has all bits set.
_SILENT = """
Device:
    - {...} -- nothing answers: all bits are ones
"""

HEADERS: dict[int | None, Table] = {
    kind: Table(f"header {kind}", text)
    for kind, text in {0: _ENDPOINT, 1: _BRIDGE, 2: _CARDBUS, -1: _UNKNOWN, None: _SILENT}.items()
}
