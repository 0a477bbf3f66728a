"""The extended capabilities that tell how functions and root complexes are connected.

Source: PCI Express Base sections 7.8.8, 7.9.8, 7.9.10 and 7.9.11.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.acs import PortType, port_type
from vfiotool.pci.capability_reader import Reader, bits, flag, if_complete, name_of, read_blocks

_ELEMENT_TYPES = ("configuration", "egress", "internal")
_BUS_NUMBERS_SINCE = 2
_ENDPOINTS = (PortType.ENDPOINT, PortType.INTEGRATED_ENDPOINT)
_PORTS = (PortType.ROOT_PORT, PortType.UPSTREAM, PortType.DOWNSTREAM)
_PAGE_BITS = 12
_LEAST_OVERLAY_BITS = 6


@dataclass(frozen=True, slots=True)
class AlternativeRouting:
    """Alternative Routing-ID: the number of the device's next function, 0 if this is the last.

    Functions can be put into groups for arbitration (``mfvc_groups``) and for ACS (``acs_groups``);
    ``function_group`` is this function's group.
    """

    next_function: int
    mfvc_groups: bool
    acs_groups: bool
    mfvc_groups_enabled: bool
    acs_groups_enabled: bool
    function_group: int

    @classmethod
    def read(cls, at: Reader) -> AlternativeRouting:
        able, control = at.u16(4), at.u16(6)
        return cls(
            next_function=bits(able, 8, 8),
            mfvc_groups=flag(able, 0),
            acs_groups=flag(able, 1),
            mfvc_groups_enabled=flag(control, 0),
            acs_groups_enabled=flag(control, 1),
            function_group=bits(control, 4, 3),
        )


@dataclass(frozen=True, slots=True)
class RootComplexLink:
    """A link of an element of a root complex to another element.

    ``type`` is ``configuration`` if the target is a function: its ``bus``, ``device`` and ``function`` are in
    the address. It is ``memory`` if the target is a register block at the address: the three are ``None``.
    """

    valid: bool
    type: str
    associates_rcrb: bool
    target_component: int
    target_port: int
    address: int
    bus: int | None
    device: int | None
    function: int | None

    @classmethod
    def read(cls, at: Reader) -> RootComplexLink:
        description, address = at.u32(0), at.u64(8)
        to_function = flag(description, 1)
        return cls(
            valid=flag(description, 0),
            type="configuration" if to_function else "memory",
            associates_rcrb=flag(description, 2),
            target_component=bits(description, 16, 8),
            target_port=bits(description, 24, 8),
            address=address,
            bus=bits(address, 20, bits(address, 0, 3) or 8) if to_function else None,
            device=bits(address, 15, 5) if to_function else None,
            function=bits(address, 12, 3) if to_function else None,
        )


@dataclass(frozen=True, slots=True)
class RootComplexLinks:
    """Root Complex Link Declaration: an element of the root complex, and its links to others.

    ``links`` is shorter than the register's number if the others are cut off.
    """

    port_number: int
    component: int
    type: str
    links: tuple[RootComplexLink, ...]

    @classmethod
    def read(cls, at: Reader) -> RootComplexLinks:
        element = at.u32(4)
        return cls(
            port_number=bits(element, 24, 8),
            component=bits(element, 16, 8),
            type=name_of(bits(element, 0, 4), _ELEMENT_TYPES),
            links=read_blocks(RootComplexLink.read, at, first=16, size=16, count=bits(element, 8, 8)),
        )


@dataclass(frozen=True, slots=True)
class EventCollector:
    """Root Complex Event Collector: the integrated endpoints whose errors and wake-ups it signals.

    ``devices`` are device numbers on its own bus. ``first_bus`` to ``last_bus`` are other buses; they are
    ``None`` if there are none, or before version 2 of the capability.
    """

    devices: tuple[int, ...]
    first_bus: int | None
    last_bus: int | None

    @classmethod
    def read(cls, at: Reader) -> EventCollector:
        devices = at.u32(4)
        buses = at.u32(8) if bits(at.u16(2), 0, 4) >= _BUS_NUMBERS_SINCE else 0xFF00
        first, last = bits(buses, 8, 8), bits(buses, 16, 8)
        has_buses = (first, last) != (0xFF, 0)
        return cls(
            devices=tuple(number for number in range(32) if flag(devices, number)),
            first_bus=first if has_buses else None,
            last_bus=last if has_buses else None,
        )


@dataclass(frozen=True, slots=True)
class MulticastOverlay:
    """The overlay of a port: a multicast's address is replaced by ``address`` above the low bits.

    ``size`` is in bytes, or ``None`` if the overlay is disabled.
    """

    size: int | None
    address: int

    @classmethod
    def read(cls, at: Reader) -> MulticastOverlay:
        register = at.u64(40)
        size_bits = bits(register, 0, 6)
        return cls(
            size=1 << size_bits if size_bits >= _LEAST_OVERLAY_BITS else None,
            address=register & ~((1 << _LEAST_OVERLAY_BITS) - 1),
        )


@dataclass(frozen=True, slots=True)
class Multicast:
    """Multicast: a write to group ``n`` goes to every function that has bit ``n`` set in ``receive_mask``.

    The groups' addresses start at ``base_address``; each has 2 to the power of ``index_position`` bytes.
    ``block_all_mask`` and ``block_untranslated_mask`` are the groups that the function may not send to.
    ``window_size`` (bytes) is what an endpoint requests. ``ecrc_regeneration`` belongs to ports, ``overlay``
    to all but endpoints. Each is ``None`` for other functions.
    """

    max_groups: int
    window_size: int | None
    ecrc_regeneration: bool | None
    groups: int
    enabled: bool
    index_position: int
    base_address: int
    receive_mask: int
    block_all_mask: int
    block_untranslated_mask: int
    overlay: MulticastOverlay | None

    @classmethod
    def read(cls, at: Reader) -> Multicast:
        able, control, base, kind = at.u16(4), at.u16(6), at.u64(8), port_type(at.config)
        return cls(
            max_groups=bits(able, 0, 6) + 1,
            window_size=1 << bits(able, 8, 6) if kind in _ENDPOINTS else None,
            ecrc_regeneration=flag(able, 15) if kind in _PORTS else None,
            groups=bits(control, 0, 6) + 1,
            enabled=flag(control, 15),
            index_position=bits(base, 0, 6),
            base_address=base >> _PAGE_BITS << _PAGE_BITS,
            receive_mask=at.u64(16),
            block_all_mask=at.u64(24),
            block_untranslated_mask=at.u64(32),
            overlay=None if kind in _ENDPOINTS else if_complete(MulticastOverlay.read, at),
        )
