"""Decoding of all capabilities from the bytes of configuration space.

The device is not trusted: a truncated capability gives the fields that it has, or ``Undecoded``, and never an
exception.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from vfiotool.pci.acs import AccessControl
from vfiotool.pci.capabilities import (
    encryption,
    errors,
    flit,
    identity,
    physical_layer,
    power,
    resizable,
    sriov,
    standard,
    topology,
    transactions,
    translation,
    vendor,
    virtual_channel,
)
from vfiotool.pci.capabilities.express import Express
from vfiotool.pci.capability_reader import CutOffError, Reader
from vfiotool.pci.config_space import Capability, capabilities


class Content(Protocol):
    """The fields of a capability: a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


class CapabilityDecoder(Protocol):
    """Decodes capabilities with a certain id."""

    def read(self, at: Reader) -> Content:
        """Decode a capability.

        Raises:
            CutOffError: the capability ends before a required field.
        """


C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Undecoded:
    """A capability that is unknown or truncated: its bytes up to the next capability, in hexadecimal."""

    data: str


@dataclass(frozen=True, slots=True)
class DecodedCapability(Capability):
    """A capability with its decoded fields."""

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
    0x01: errors.AdvancedErrors,
    0x02: virtual_channel.VirtualChannel,
    0x03: identity.SerialNumber,
    0x04: power.PowerBudgeting,
    0x05: topology.RootComplexLinks,
    0x07: topology.EventCollector,
    0x08: virtual_channel.VirtualChannel,
    0x09: virtual_channel.VirtualChannel,
    0x0B: vendor.ExtendedVendorSpecific,
    0x0D: AccessControl,
    0x0E: topology.AlternativeRouting,
    0x0F: translation.AddressTranslation,
    0x10: sriov.Sriov,
    0x12: topology.Multicast,
    0x13: translation.PageRequests,
    0x15: resizable.ResizableBar,
    0x16: power.DynamicPowerAllocation,
    0x17: transactions.TphRequester,
    0x18: power.LatencyTolerance,
    0x19: physical_layer.SecondaryExpress,
    0x1B: translation.ProcessAddressSpace,
    0x1D: errors.DownstreamPortContainment,
    0x1E: power.L1Substates,
    0x1F: transactions.PrecisionTimeMeasurement,
    0x23: vendor.DesignatedVendorSpecific,
    0x24: resizable.VfResizableBar,
    0x25: physical_layer.DataLinkFeature,
    0x26: physical_layer.PhysicalLayer16,
    0x27: physical_layer.LaneMargining,
    0x29: identity.EnclosureManagement,
    0x2A: physical_layer.PhysicalLayer32,
    0x2E: transactions.DataObjectExchange,
    0x2F: flit.Device3,
    0x30: encryption.IntegrityDataEncryption,
    0x31: physical_layer.PhysicalLayer64,
    0x32: flit.FlitLogging,
    0x34: flit.FlitErrorInjection,
    0x36: identity.RegisterLocators,
}


def decode(config: bytes) -> tuple[DecodedCapability, ...]:
    """Return all decoded capabilities in the order of their lists, standard capabilities first."""
    found = capabilities(config)
    return tuple(
        DecodedCapability(
            one.id, one.offset, one.extended, one.name, one.version, _content(config, one, found)
        )
        for one in found
    )


def find(config: bytes, kind: type[C]) -> C | None:
    """Return the fields of the first capability of a type, or ``None`` if none is present and complete."""
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
