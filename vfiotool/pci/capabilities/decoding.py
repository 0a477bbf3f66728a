"""Decoding of all capabilities from the bytes of configuration space.

The device is not trusted: a truncated capability gives the fields that it has, or ``Undecoded``, and never an
exception.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import Field, dataclass
from importlib import import_module
from typing import Any, ClassVar, Protocol, TypeVar

from vfiotool.pci.capability_reader import Reader, if_complete
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


# The names of decoders, below ``vfiotool.pci``: most functions have few of them, and an import takes time.
_STANDARD = {
    0x01: "capabilities.standard.PowerManagement",
    0x02: "capabilities.agp.Agp",
    0x03: "capabilities.board.VitalProductData",
    0x04: "capabilities.board.SlotIdentification",
    0x05: "capabilities.standard.Msi",
    0x06: "capabilities.board.HotSwap",
    0x07: "capabilities.pci_x.PciX",
    0x08: "capabilities.hypertransport.HyperTransport",
    0x09: "capabilities.vendor_specific.VendorSpecific",
    0x0A: "capabilities.board.DebugPort",
    0x0C: "capabilities.board.HotPlugController",
    0x0D: "capabilities.standard.BridgeSubsystem",
    0x10: "capabilities.express.Express",
    0x11: "capabilities.standard.MsiX",
    0x12: "capabilities.board.SataRegisters",
    0x13: "capabilities.standard.AdvancedFeatures",
    0x14: "capabilities.enhanced_allocation.EnhancedAllocation",
}
_EXTENDED = {
    0x01: "capabilities.errors.AdvancedErrors",
    0x02: "capabilities.virtual_channel.VirtualChannel",
    0x03: "capabilities.identity.SerialNumber",
    0x04: "capabilities.power.PowerBudgeting",
    0x05: "capabilities.topology.RootComplexLinks",
    0x07: "capabilities.topology.EventCollector",
    0x08: "capabilities.virtual_channel.VirtualChannel",
    0x09: "capabilities.virtual_channel.VirtualChannel",
    0x0B: "capabilities.vendor.ExtendedVendorSpecific",
    0x0D: "acs.AccessControl",
    0x0E: "capabilities.topology.AlternativeRouting",
    0x0F: "capabilities.translation.AddressTranslation",
    0x10: "capabilities.sriov.Sriov",
    0x12: "capabilities.topology.Multicast",
    0x13: "capabilities.translation.PageRequests",
    0x15: "capabilities.resizable.ResizableBar",
    0x16: "capabilities.power.DynamicPowerAllocation",
    0x17: "capabilities.transactions.TphRequester",
    0x18: "capabilities.power.LatencyTolerance",
    0x19: "capabilities.physical_layer.SecondaryExpress",
    0x1B: "capabilities.translation.ProcessAddressSpace",
    0x1D: "capabilities.errors.DownstreamPortContainment",
    0x1E: "capabilities.power.L1Substates",
    0x1F: "capabilities.transactions.PrecisionTimeMeasurement",
    0x23: "capabilities.vendor.DesignatedVendorSpecific",
    0x24: "capabilities.resizable.VfResizableBar",
    0x25: "capabilities.physical_layer.DataLinkFeature",
    0x26: "capabilities.physical_layer.PhysicalLayer16",
    0x27: "capabilities.physical_layer.LaneMargining",
    0x29: "capabilities.identity.EnclosureManagement",
    0x2A: "capabilities.physical_layer.PhysicalLayer32",
    0x2E: "capabilities.transactions.DataObjectExchange",
    0x2F: "capabilities.flit.Device3",
    0x30: "capabilities.encryption.IntegrityDataEncryption",
    0x31: "capabilities.physical_layer.PhysicalLayer64",
    0x32: "capabilities.flit.FlitLogging",
    0x34: "capabilities.flit.FlitErrorInjection",
    0x36: "capabilities.identity.RegisterLocators",
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
    found = capabilities(config)
    contents = (_content(config, one, found) for one in found)
    return next((content for content in contents if isinstance(content, kind)), None)


def _decoder(one: Capability) -> CapabilityDecoder | None:
    table = _EXTENDED if one.extended else _STANDARD
    module, _, name = table.get(one.id, "").rpartition(".")
    if not name:
        return None
    decoder: CapabilityDecoder = getattr(import_module(f"vfiotool.pci.{module}"), name)
    return decoder


def _content(config: bytes, one: Capability, found: Iterable[Capability]) -> Content:
    kind = _decoder(one)
    if kind is not None:
        content = if_complete(kind.read, Reader(config, one))
        if content is not None:
            return content
    following = min((other.offset for other in found if other.offset > one.offset), default=len(config))
    return Undecoded(Reader(config, one).hex(0, following - one.offset))
