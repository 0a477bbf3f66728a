"""The Vendor Specific capability of Intel's host bridges and integrated graphics: what was fused off.

Source: Intel Core processor datasheets, volume 2, "Capabilities" registers CAPID0_A to CAPID0_C; version 1 is
in use since the second generation.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capability_reader import Reader, bits, flag, names_of

_VERSION = 1
_TYPES = ("capabilities", "feature detection")
_DDR_STEP_MHZ = 266.6
_REGISTER_A = (
    "DDR3L enabled", "DDR write Vref enabled", "overclocking enabled", "DDR overclocking", "", "", "", "", "",
    "", "", "integrated graphics disabled", "PDC disabled", "x2APIC enabled", "DDPC disabled", "CD disabled",
    "", "1N disabled", "", "", "", "PEG gen 2 disabled", "DMI gen 2 disabled", "VT-d disabled",
    "forced ECC enabled", "ECC disabled", "", "PEG lane width up disabled", "PEG 1.0 disabled",
    "PEG 1.1 disabled", "PEG 1.2 disabled", "PEG 6.0 disabled",
)  # fmt: skip
_REGISTER_B = (
    "", "", "LPDDR3 enabled", "", "", "", "", "", "GMM disabled", "", "", "", "", "", "",
    "DMI gen 3 disabled", "PEG x16 disabled", "additive graphics capable", "additive graphics enabled",
    "package type", "PEG gen 3 disabled", "", "", "", "soft binning capable", "", "", "", "SMT capable",
    "overclocking by SSKU enabled", "overclocking by SSKU capable", "IMGU disabled",
)  # fmt: skip
_REGISTER_C = (
    "", "", "", "", "", "pipe 3 disabled", "IDD disabled", "", "", "SGX disabled", "", "", "", "",
    "QCLK GV disabled", "", "LPDDR4 enabled", "", "", "", "", "", "LPDDR enabled", "", "", "", "", "",
    "PEG gen 4 disabled",
)  # fmt: skip
_BCLK = ("disabled", "115 MHz", "130 MHz", "unlimited")
_A_SIZE, _B_SIZE, _C_SIZE = 8, 12, 16


@dataclass(frozen=True, slots=True)
class IntelCapabilityA:
    """CAPID0_A: ``ddr_max_gb`` is the memory of a channel, ``None`` if it has no limit."""

    flags: tuple[str, ...]
    dmi_width: int
    ddr_max_gb: float | None
    compatibility_device_id: int
    compatibility_revision_id: int

    @classmethod
    def read(cls, at: Reader) -> IntelCapabilityA:
        value = at.u32(4)
        limit = bits(value, 19, 2)
        return cls(
            flags=names_of(value, _REGISTER_A),
            dmi_width=2 if flag(value, 26) else 4,
            ddr_max_gb=0.5 * (1 << (3 - limit) * 2) if limit else None,
            compatibility_device_id=bits(value, 8, 2),
            compatibility_revision_id=bits(value, 4, 4),
        )


@dataclass(frozen=True, slots=True)
class IntelCapabilityB:
    """CAPID0_B: ``ddr3_max_mhz_ref100`` is 0 if the 100 MHz reference is off, ``None`` without a limit."""

    flags: tuple[str, ...]
    cache_size: int
    ddr3_max_mhz_ref100: int | None
    ddr3_max_mhz: int

    @classmethod
    def read(cls, at: Reader) -> IntelCapabilityB:
        value = at.u32(8)
        limit = bits(value, 21, 3)
        return cls(
            flags=names_of(value, _REGISTER_B),
            cache_size=bits(value, 25, 3),
            ddr3_max_mhz_ref100=None if limit == 7 else (6 + limit) * 200 if limit else 0,
            ddr3_max_mhz=(11 - bits(value, 4, 2)) * 2666 // 10,
        )


@dataclass(frozen=True, slots=True)
class IntelCapabilityC:
    """CAPID0_C: the highest frequencies of memory are ``None`` without a limit."""

    flags: tuple[str, ...]
    ddr4_max_mhz: int | None
    lpddr4_max_mhz: int | None
    gear1_max_mhz: int | None
    bclk_overclocking: str

    @classmethod
    def read(cls, at: Reader) -> IntelCapabilityC:
        value = at.u32(12)
        return cls(
            flags=names_of(value, _REGISTER_C),
            ddr4_max_mhz=_frequency(bits(value, 23, 4)),
            lpddr4_max_mhz=_frequency(bits(value, 17, 4)),
            gear1_max_mhz=_frequency(bits(value, 0, 4)),
            bclk_overclocking=_BCLK[bits(value, 7, 2)],
        )


@dataclass(frozen=True, slots=True)
class IntelCapabilities:
    """Intel's vendor capability: ``type`` and ``version``, and the registers of version 1.

    A register is ``None`` in other types and versions, and if the capability is too short for it.
    """

    type: str
    version: int
    a: IntelCapabilityA | None
    b: IntelCapabilityB | None
    c: IntelCapabilityC | None

    @classmethod
    def read(cls, at: Reader) -> IntelCapabilities:
        length, header = at.u8(2), at.u8(3)
        version, kind = bits(header, 0, 4), bits(header, 4, 4)
        is_known = kind == 0 and version == _VERSION
        return cls(
            type=_TYPES[kind] if kind < len(_TYPES) else f"type {kind}",
            version=version,
            a=IntelCapabilityA.read(at) if is_known and length >= _A_SIZE else None,
            b=IntelCapabilityB.read(at) if is_known and length >= _B_SIZE else None,
            c=IntelCapabilityC.read(at) if is_known and length >= _C_SIZE else None,
        )


def _frequency(number: int) -> int | None:
    return int(number * _DDR_STEP_MHZ) if number else None
