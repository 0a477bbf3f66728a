"""The extended capabilities for power and latency.

Source: PCI Express Base sections 7.8.1 to 7.8.3 and 7.9.12.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capability_reader import Reader, bits, flag, name_of, names_of

_L1_SUBSTATES = ("PCI-PM L1.2", "PCI-PM L1.1", "ASPM L1.2", "ASPM L1.1")
_L1_2 = 0b101  # PCI-PM L1.2 and ASPM L1.2
_ASPM_L1_2 = 2
_POWER_ON_STEPS_US = (2, 10, 100)
_LARGEST_SCALE = 5
_POWER_STATES = ("D0", "D1", "D2", "D3")
_POWER_TYPES = (
    "PME auxiliary", "auxiliary", "idle", "sustained", "sustained, emergency power reduction",
    "maximum, emergency power reduction", "", "maximum",
)  # fmt: skip
_POWER_RAILS = ("12 V", "3.3 V", "1.5 V or 1.8 V", "", "", "", "", "thermal")
_BUDGET_UNITS_MW = (1000, 100, 10, 1)
_LARGEST_BASE_POWER = 0xEF  # greater values of the unit of 1 W are ranges
_ALLOCATION_UNITS_MW = (10_000, 1000, 100, 10)
_LATENCY_UNITS_MS = (1, 10, 100)


@dataclass(frozen=True, slots=True)
class LatencyTolerance:
    """Latency Tolerance Reporting: the maximum latencies that the function may request, in nanoseconds.

    ``None`` if the scale in the register is undefined.
    """

    max_snoop_ns: int | None
    max_no_snoop_ns: int | None

    @classmethod
    def read(cls, at: Reader) -> LatencyTolerance:
        return cls(_latency(at.u16(4)), _latency(at.u16(6)))


@dataclass(frozen=True, slots=True)
class L1Substates:
    """L1 PM Substates: the supported and the enabled substates of the link, and their times.

    The times count for L1.2, and are ``None`` without it: how long the port needs to restore the common mode
    voltage (``port_cm_restore_time_us``) and its power (``port_power_on_time_us``), what is set for both, and
    the latency that the device must tolerate for ASPM L1.2. A time is ``None``, too, if its scale is
    undefined.
    """

    supported: tuple[str, ...]
    l1_pm_substates: bool
    port_cm_restore_time_us: int | None
    port_power_on_time_us: int | None
    enabled: tuple[str, ...]
    cm_restore_time_us: int | None
    ltr_l12_threshold_ns: int | None
    power_on_time_us: int | None

    @classmethod
    def read(cls, at: Reader) -> L1Substates:
        able, control, control2 = at.u32(4), at.u32(8), at.u32(12)
        has_l1_2, has_threshold = bool(able & _L1_2), flag(able, _ASPM_L1_2)
        threshold = _scaled_latency(bits(control, 16, 10), bits(control, 29, 3))
        return cls(
            supported=names_of(able, _L1_SUBSTATES),
            l1_pm_substates=flag(able, 4),
            port_cm_restore_time_us=bits(able, 8, 8) if has_l1_2 else None,
            port_power_on_time_us=_power_on_time(able >> 16) if has_l1_2 else None,
            enabled=names_of(control, _L1_SUBSTATES),
            cm_restore_time_us=bits(control, 8, 8) if has_l1_2 else None,
            ltr_l12_threshold_ns=threshold if has_threshold else None,
            power_on_time_us=_power_on_time(control2) if has_l1_2 else None,
        )


@dataclass(frozen=True, slots=True)
class PowerBudgeting:
    """Power Budgeting: the entry of the device's power table that ``data_select`` has selected.

    ``power_mw`` is in milliwatts, or ``None`` if the entry has a range. ``system_allocated`` is True if the
    power is in the budget of the system already.
    """

    data_select: int
    power_mw: int | None
    pm_sub_state: int
    pm_state: str
    type: str
    rail: str
    system_allocated: bool

    @classmethod
    def read(cls, at: Reader) -> PowerBudgeting:
        data = at.u32(8)
        base, unit = bits(data, 0, 8), _BUDGET_UNITS_MW[bits(data, 8, 2)]
        return cls(
            data_select=at.u8(4),
            power_mw=None if base > _LARGEST_BASE_POWER and unit == _BUDGET_UNITS_MW[0] else base * unit,
            pm_sub_state=bits(data, 10, 3),
            pm_state=_POWER_STATES[bits(data, 13, 2)],
            type=name_of(bits(data, 15, 3), _POWER_TYPES),
            rail=name_of(bits(data, 18, 3), _POWER_RAILS),
            system_allocated=flag(at.u8(12), 0),
        )


@dataclass(frozen=True, slots=True)
class DynamicPowerAllocation:
    """Dynamic Power Allocation: the substates of D0, with the maximum power of each in milliwatts.

    A substate has the transition latency 0 or 1, by its bit in ``latency_mask``. A latency is ``None``
    if its unit is undefined. ``substates_mw`` is shorter if the others are cut off.
    """

    substate: int
    control_enabled: bool
    substate_control: int
    latencies_ms: tuple[int | None, int | None]
    latency_mask: int
    substates_mw: tuple[int, ...]

    @classmethod
    def read(cls, at: Reader) -> DynamicPowerAllocation:
        able, status = at.u32(4), at.u16(12)
        step = bits(able, 8, 2)
        unit_ms = _LATENCY_UNITS_MS[step] if step < len(_LATENCY_UNITS_MS) else None
        unit_mw = _ALLOCATION_UNITS_MW[bits(able, 12, 2)]
        first, second = (None if unit_ms is None else bits(able, number, 8) * unit_ms for number in (16, 24))
        return cls(
            substate=bits(status, 0, 5),
            control_enabled=flag(status, 8),
            substate_control=bits(at.u16(14), 0, 5),
            latencies_ms=(first, second),
            latency_mask=at.u32(8),
            substates_mw=tuple(
                power * unit_mw for power in bytes.fromhex(at.hex(16, 16 + bits(able, 0, 5) + 1))
            ),
        )


def _latency(value: int) -> int | None:
    return _scaled_latency(bits(value, 0, 10), bits(value, 10, 3))


def _scaled_latency(value: int, scale: int) -> int | None:
    """Return nanoseconds from a value and a scale, a power of 32."""
    return value << 5 * scale if scale <= _LARGEST_SCALE else None


def _power_on_time(value: int) -> int | None:
    """Return microseconds from a scale in bits 0 and 1, and a value in bits 3 to 7."""
    scale = bits(value, 0, 2)
    return bits(value, 3, 5) * _POWER_ON_STEPS_US[scale] if scale < len(_POWER_ON_STEPS_US) else None
