"""From the bytes of configuration space to what each capability says.

Nothing here trusts the device: a capability that is cut off gives what is there of it, or ``Undecoded``, and
never an exception.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from vfiotool.pci.acs import AccessControl
from vfiotool.pci.capabilities import extended, standard
from vfiotool.pci.capabilities.express import Express
from vfiotool.pci.capability_reader import CutOffError, Reader
from vfiotool.pci.config_space import Capability, capabilities


class Content(Protocol):
    """What a capability says: a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


class CapabilityDecoder(Protocol):
    """A kind of capability that is decoded."""

    def read(self, at: Reader) -> Content:
        """Decode one.

        Raises:
            CutOffError: it ends before what it must have.
        """


C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Undecoded:
    """A capability that is not known here, or is cut off: its bytes up to the next one, in hexadecimal."""

    data: str


@dataclass(frozen=True, slots=True)
class DecodedCapability(Capability):
    """A capability, and what it says."""

    content: Content


_STANDARD: dict[int, CapabilityDecoder] = {
    0x01: standard.PowerManagement,
    0x05: standard.Msi,
    0x09: standard.VendorSpecific,
    0x0D: standard.BridgeSubsystem,
    0x10: Express,
    0x11: standard.MsiX,
    0x13: standard.AdvancedFeatures,
}
_EXTENDED: dict[int, CapabilityDecoder] = {
    0x01: extended.AdvancedErrors,
    0x03: extended.SerialNumber,
    0x0B: extended.ExtendedVendorSpecific,
    0x0D: AccessControl,
    0x0E: extended.AlternativeRouting,
    0x0F: extended.AddressTranslation,
    0x10: extended.Sriov,
    0x13: extended.PageRequests,
    0x15: extended.ResizableBar,
    0x18: extended.LatencyTolerance,
    0x1B: extended.ProcessAddressSpace,
    0x1E: extended.L1Substates,
    0x23: extended.DesignatedVendorSpecific,
    0x24: extended.VfResizableBar,
}


def decode(config: bytes) -> tuple[DecodedCapability, ...]:
    """Return all capabilities in the order of their chains, standard ones first, with what they say."""
    found = capabilities(config)
    return tuple(
        DecodedCapability(one.id, one.offset, one.extended, one.name, _content(config, one, found))
        for one in found
    )


def find(config: bytes, kind: type[C]) -> C | None:
    """Return what the first capability of a kind says; ``None`` where there is none that is whole."""
    return next((one.content for one in decode(config) if isinstance(one.content, kind)), None)


def _content(config: bytes, one: Capability, found: Iterable[Capability]) -> Content:
    kind = (_EXTENDED if one.extended else _STANDARD).get(one.id)
    if kind is not None:
        try:
            return kind.read(Reader(config, one))
        except CutOffError:
            pass
    following = min((other.offset for other in found if other.offset > one.offset), default=len(config))
    return Undecoded(Reader(config, one).hex(0, following - one.offset))
