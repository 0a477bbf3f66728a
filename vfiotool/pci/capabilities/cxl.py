"""The Designated Vendor Specific capabilities of Compute Express Link (CXL).

Source: CXL 3.1 section 8.1; include/uapi/linux/pci_regs.h, PCI_DVSEC_CXL_*.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vfiotool.pci.capability_reader import Reader, bits, flag, if_complete, name_of, read_blocks

CXL_VENDOR = 0x1E98
_LEAST_LENGTH = 16
_DEVICE_LENGTH = 0x38
_DEVICE_LENGTH_2 = 0x3C
_PORT_LENGTH = 0x28
_RANGES = 24
_RANGE_SIZE = 16
_RANGE_COUNT = 2
_MEDIA = ("volatile", "non-volatile", "CDAT")
_CLASSES = ("DRAM", "storage", "CDAT")
_INTERLEAVES = (0, 256, 4096, 512, 1024, 2048, 8192, 16384)
_RANGE_MASK = ~0xFFFFFFF
_CACHE_UNITS = (0, 1 << 16, 1 << 20)
_MOST_LOGICAL_DEVICES = 16
_FUNCTION_MAPS = 8
_BLOCKS = 12
_BLOCK_SIZE = 8
_BLOCK_IDS = {
    0: "empty",
    1: "component registers",
    2: "BAR virtualization",
    3: "CXL device registers",
    4: "CPMU registers",
    0xFF: "vendor specific",
}
_MIB_MASK = 0xFFF0
_LARGEST_SCALE = 7  # 10 seconds


@dataclass(frozen=True, slots=True)
class CxlRange:
    """A range of memory of a CXL device, sizes in bytes.

    ``interleave`` is the wanted granularity, 0 for none. ``timeout_s`` is the time in seconds until the
    memory must be active.
    """

    base_address: int
    size: int
    valid: bool
    active: bool
    media: str
    memory_class: str
    interleave: int | None
    timeout_s: int

    @classmethod
    def read(cls, at: Reader) -> CxlRange:
        low = at.u32(4)
        interleave = bits(low, 8, 5)
        return cls(
            base_address=(at.u32(8) << 32 | at.u32(12)) & _RANGE_MASK,
            size=(at.u32(0) << 32 | low) & _RANGE_MASK,
            valid=flag(low, 0),
            active=flag(low, 1),
            media=name_of(bits(low, 2, 3), _MEDIA),
            memory_class=name_of(bits(low, 5, 3), _CLASSES),
            interleave=_INTERLEAVES[interleave] if interleave < len(_INTERLEAVES) else None,
            timeout_s=1 << 2 * bits(low, 13, 3),
        )


@dataclass(frozen=True, slots=True)
class CxlResetState:
    """Whether volatile memory has its default content after each kind of reset (revision 2)."""

    cold_reset: bool
    warm_reset: bool
    hot_reset: bool
    hot_reset_configurable: bool

    @classmethod
    def read(cls, at: Reader) -> CxlResetState:
        able = at.u16(56)
        return cls(*(flag(able, number) for number in range(4)))


@dataclass(frozen=True, slots=True)
class CxlDevice:
    """PCIe DVSEC for CXL Devices: the protocols of the device, its resets, its cache and its memory.

    ``cache_size`` is in bytes; it is ``None`` if the device does not report it. ``reset_timeout`` is the
    register's code.
    """

    cache: bool
    io: bool
    mem: bool
    mem_hwinit: bool
    hdm_count: int
    cache_writeback_capable: bool
    reset_capable: bool
    reset_timeout: int
    reset_mem_clear_capable: bool
    multi_logical_device: bool
    viral: bool
    pm_init_completion_capable: bool
    cache_enabled: bool
    io_enabled: bool
    mem_enabled: bool
    snoop_filter_coverage: int
    snoop_filter_granularity: int
    cache_clean_evict: bool
    viral_enabled: bool
    viral_status: bool
    caching_disabled: bool
    cache_writeback_initiated: bool
    reset_initiated: bool
    reset_mem_clear_enabled: bool
    volatile_after_hot_reset: bool
    cache_invalid: bool
    reset_complete: bool
    reset_error: bool
    pm_init_complete: bool
    cache_size: int | None
    ranges: tuple[CxlRange, ...]
    reset_state: CxlResetState | None

    @classmethod
    def read(cls, at: Reader) -> CxlDevice:
        able, control, status = at.u16(10), at.u16(12), at.u16(14)
        control2, status2, able2 = at.u16(16), at.u16(18), at.u16(22)
        unit = bits(able2, 0, 4)
        has_size = 0 < unit < len(_CACHE_UNITS)
        return cls(
            cache=flag(able, 0),
            io=flag(able, 1),
            mem=flag(able, 2),
            mem_hwinit=flag(able, 3),
            hdm_count=bits(able, 4, 2),
            cache_writeback_capable=flag(able, 6),
            reset_capable=flag(able, 7),
            reset_timeout=bits(able, 8, 3),
            reset_mem_clear_capable=flag(able, 11),
            multi_logical_device=flag(able, 13),
            viral=flag(able, 14),
            pm_init_completion_capable=flag(able, 15),
            cache_enabled=flag(control, 0),
            io_enabled=flag(control, 1),
            mem_enabled=flag(control, 2),
            snoop_filter_coverage=bits(control, 3, 5),
            snoop_filter_granularity=bits(control, 8, 3),
            cache_clean_evict=flag(control, 11),
            viral_enabled=flag(control, 14),
            viral_status=flag(status, 14),
            caching_disabled=flag(control2, 0),
            cache_writeback_initiated=flag(control2, 1),
            reset_initiated=flag(control2, 2),
            reset_mem_clear_enabled=flag(control2, 3),
            volatile_after_hot_reset=flag(control2, 4),
            cache_invalid=flag(status2, 0),
            reset_complete=flag(status2, 1),
            reset_error=flag(status2, 2),
            pm_init_complete=flag(status2, 15),
            cache_size=bits(able2, 8, 8) * _CACHE_UNITS[unit] if has_size else None,
            ranges=read_blocks(CxlRange.read, at, first=_RANGES, size=_RANGE_SIZE, count=_RANGE_COUNT),
            reset_state=if_complete(CxlResetState.read, at) if _has_reset_state(at) else None,
        )


@dataclass(frozen=True, slots=True)
class CxlFunctionMap:
    """Non-CXL Function Map: the eight registers, with a bit for each function that has no CXL."""

    non_cxl_function_mask: tuple[int, ...]

    @classmethod
    def read(cls, at: Reader) -> CxlFunctionMap:
        return cls(tuple(at.u32(12 + 4 * number) for number in range(_FUNCTION_MAPS)))


@dataclass(frozen=True, slots=True)
class CxlPort:
    """CXL Extensions DVSEC for Ports: the alternate buses and addresses behind the port, ends included."""

    pm_init_complete: bool
    unmask_sbr: bool
    unmask_link_disable: bool
    alternate_memory: bool
    alternate_bus_master: bool
    viral_enabled: bool
    alternate_bus_base: int
    alternate_bus_limit: int
    alternate_memory_base_address: int
    alternate_memory_limit_address: int

    @classmethod
    def read(cls, at: Reader) -> CxlPort:
        control = at.u16(12)
        return cls(
            pm_init_complete=flag(at.u16(10), 0),
            unmask_sbr=flag(control, 0),
            unmask_link_disable=flag(control, 1),
            alternate_memory=flag(control, 2),
            alternate_bus_master=flag(control, 3),
            viral_enabled=flag(control, 14),
            alternate_bus_base=at.u8(14),
            alternate_bus_limit=at.u8(15),
            alternate_memory_base_address=(at.u16(16) & _MIB_MASK) << 16,
            alternate_memory_limit_address=(at.u16(18) & _MIB_MASK) << 16 | 0xFFFFF,
        )


@dataclass(frozen=True, slots=True)
class CxlPortFlush:
    """GPF DVSEC for CXL Ports: the time for each phase of a global persistent flush, in microseconds.

    ``None`` if the scale in the register is undefined.
    """

    phase1_timeout_us: int | None
    phase2_timeout_us: int | None

    @classmethod
    def read(cls, at: Reader) -> CxlPortFlush:
        return cls(_microseconds(at.u16(12)), _microseconds(at.u16(14)))


@dataclass(frozen=True, slots=True)
class CxlDeviceFlush:
    """GPF DVSEC for CXL Devices: the time (microseconds) and power (milliwatts) that phase 2 needs.

    The time is ``None`` if the scale in the register is undefined.
    """

    phase2_duration_us: int | None
    phase2_power_mw: int

    @classmethod
    def read(cls, at: Reader) -> CxlDeviceFlush:
        return cls(_microseconds(at.u16(10)), at.u32(12))


@dataclass(frozen=True, slots=True)
class CxlFlexBusPort:
    """PCIe DVSEC for Flex Bus Port: which protocols a link can have, may have, and has.

    The names in ``capable``, ``enabled`` and ``status`` are those of lspci. ``modified_ts_data`` was received
    (since revision 1); the NOP hints exist since revision 2. What the revision does not have is ``None``.
    """

    capable: tuple[str, ...]
    enabled: tuple[str, ...]
    status: tuple[str, ...]
    modified_ts_data: int | None
    nop_hint_capable: bool | None
    nop_hint_enabled: bool | None
    nop_hint_info: int | None

    @classmethod
    def read(cls, at: Reader) -> CxlFlexBusPort:
        revision = bits(at.u32(4), 16, 4)
        has_data, has_hints = revision >= 1, revision > 1
        return cls(
            capable=_flex_bus_names(at.u16(10), _FLEX_BUS, revision),
            enabled=_flex_bus_names(at.u16(12), _FLEX_BUS_CONTROL, revision),
            status=_flex_bus_names(at.u16(14), _FLEX_BUS_STATUS, revision),
            modified_ts_data=bits(at.u32(16), 0, 24) if has_data else None,
            nop_hint_capable=flag(at.u32(20), 0) if has_hints else None,
            nop_hint_enabled=flag(at.u32(24), 0) if has_hints else None,
            nop_hint_info=bits(at.u32(28), 0, 2) if has_hints else None,
        )


@dataclass(frozen=True, slots=True)
class CxlRegisterBlock:
    """A block of CXL registers: the BAR, and the offset in it in bytes."""

    bar: int
    block: str
    offset: int

    @classmethod
    def read(cls, at: Reader) -> CxlRegisterBlock:
        low = at.u32(0)
        number = bits(low, 8, 8)
        return cls(
            bar=bits(low, 0, 3),
            block=_BLOCK_IDS.get(number, f"reserved {number}"),
            offset=at.u32(4) << 32 | low & ~0xFFFF,
        )


@dataclass(frozen=True, slots=True)
class CxlRegisterLocator:
    """Register Locator DVSEC: where the function has blocks of CXL registers."""

    blocks: tuple[CxlRegisterBlock, ...]

    @classmethod
    def read(cls, at: Reader) -> CxlRegisterLocator:
        count = max(_length(at) - _BLOCKS, 0) // _BLOCK_SIZE
        return cls(read_blocks(CxlRegisterBlock.read, at, first=_BLOCKS, size=_BLOCK_SIZE, count=count))


@dataclass(frozen=True, slots=True)
class CxlMultiLogicalDevice:
    """MLD DVSEC: the number of logical devices, or ``None`` if the register's value is undefined."""

    logical_devices: int | None

    @classmethod
    def read(cls, at: Reader) -> CxlMultiLogicalDevice:
        number = at.u16(10)
        return cls(number if 0 < number <= _MOST_LOGICAL_DEVICES else None)


CxlContent = (
    CxlDevice
    | CxlFunctionMap
    | CxlPort
    | CxlPortFlush
    | CxlDeviceFlush
    | CxlFlexBusPort
    | CxlRegisterLocator
    | CxlMultiLogicalDevice
)

_FLEX_BUS = {0: "Cache", 1: "IO", 2: "Mem", 5: "68BFlit", 6: "MltLogDev", 13: "256BFlit", 14: "PBRFlit"}
_FLEX_BUS_STATUS = _FLEX_BUS | {3: "SynHdrByp", 4: "DrftBuf"}
_FLEX_BUS_CONTROL = _FLEX_BUS_STATUS | {7: "RCD", 8: "Retimer1", 9: "Retimer2"}
_SINCE_REVISION_2 = (13, 14)
_READ: dict[int, tuple[int, Callable[[Reader], CxlContent]]] = {
    0: (_DEVICE_LENGTH, CxlDevice.read),
    2: (_LEAST_LENGTH, CxlFunctionMap.read),
    3: (_PORT_LENGTH, CxlPort.read),
    4: (_LEAST_LENGTH, CxlPortFlush.read),
    5: (_LEAST_LENGTH, CxlDeviceFlush.read),
    7: (_LEAST_LENGTH, CxlFlexBusPort.read),
    8: (_LEAST_LENGTH, CxlRegisterLocator.read),
    9: (_LEAST_LENGTH, CxlMultiLogicalDevice.read),
}
_DEVICE = 0


def read_cxl(at: Reader, number: int, revision: int, length: int) -> CxlContent | None:
    """Return the fields of a capability of CXL, by its id, its revision and its length in bytes.

    ``None`` if the id is unknown, if the capability is shorter than its fields, and for a device of CXL 1.1:
    its registers have other meanings.
    """
    least, read = _READ.get(number, (0, None))
    if read is None or length < least or (number == _DEVICE and revision == 0):
        return None
    return if_complete(read, at)


def _has_reset_state(at: Reader) -> bool:
    return bits(at.u32(4), 16, 4) > 1 and _length(at) >= _DEVICE_LENGTH_2


def _length(at: Reader) -> int:
    return bits(at.u32(4), 20, 12)


def _flex_bus_names(value: int, names: dict[int, str], revision: int) -> tuple[str, ...]:
    return tuple(
        name
        for number, name in names.items()
        if flag(value, number) and (revision > 1 or number not in _SINCE_REVISION_2)
    )


def _microseconds(value: int) -> int | None:
    """Return the time of a number in bits 0 to 3, and a power of ten in bits 8 to 11."""
    scale = bits(value, 8, 4)
    return bits(value, 0, 4) * 10**scale if scale <= _LARGEST_SCALE else None
