"""The AGP capability.

Source: Accelerated Graphics Port 2.0 section 6.1, 3.0 section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capability_reader import Reader, bits, flag, names_of

_STATUS = ("", "", "", "agp3", "fw", "64bit", "htrans", "gart64", "ita_coh", "sba", *[""] * 6, "isoch")
_COMMAND = ("", "", "", "", "fw", "64bit", "", "gart64", "agp", "sba")
_RATES = ("x1", "x2", "x4")
_AGP3_RATES = ("x4", "x8", "x16")


@dataclass(frozen=True, slots=True)
class AgpRegister:
    """The status of an AGP device, or its command: ``flags`` have their names in pci_regs.h.

    ``requests`` is the depth of the queue. ``async_request_size`` and ``calibration`` are the register's
    codes: the size is 16 bytes times two to the power of the code.
    """

    requests: int
    async_request_size: int
    calibration: int
    flags: tuple[str, ...]
    rates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Agp:
    """AGP: the version, what the device can do (``status``), and what is set (``command``)."""

    version: str
    status: AgpRegister
    command: AgpRegister

    @classmethod
    def read(cls, at: Reader) -> Agp:
        version, status, command = at.u8(2), at.u32(4), at.u32(8)
        rates = _AGP3_RATES if bits(version, 4, 4) >= 3 and flag(status, 3) else _RATES
        return cls(
            version=f"{version >> 4:x}.{version & 0xF:x}",
            status=_register(status, _STATUS, rates),
            command=_register(command, _COMMAND, rates),
        )


def _register(value: int, names: tuple[str, ...], rates: tuple[str, ...]) -> AgpRegister:
    return AgpRegister(
        requests=bits(value, 24, 8) + 1,
        async_request_size=bits(value, 13, 3),
        calibration=bits(value, 10, 3),
        flags=names_of(value, names),
        rates=names_of(value, rates),
    )
