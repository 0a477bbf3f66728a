"""Integrity and Data Encryption (IDE): streams of a link, and selective streams between two functions.

Source: PCI Express Base section 7.9.26.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capability_reader import Reader, bits, flag, if_complete, name_of, read_blocks

_STREAMS = 12
_LINK_STREAM_SIZE = 8
_SELECTIVE_STREAM_SIZE = 20
_ADDRESS_SIZE = 12
_MIB_BITS = 20
_ALGORITHMS = ("AES-GCM-256-96b",)
_STATES = ("insecure", "", "secure")
_HEADER_ENCRYPTIONS = ("none", "17:2", "25:2", "33:2", "41:2")


@dataclass(frozen=True, slots=True)
class IdeControl:
    """The control and the state of a stream: ``tx_aggregation_*`` are numbers of aggregated TLPs.

    ``npr``, ``pr`` and ``cpl`` are non-posted requests, posted requests and completions. ``xt`` is the XT
    mode of PCI Express 6.1. ``ide_fail`` is True if a message said that a check failed.
    """

    enabled: bool
    xt: bool
    tx_aggregation_npr: int
    tx_aggregation_pr: int
    tx_aggregation_cpl: int
    pcrc_enabled: bool
    partial_header_encryption: str
    algorithm: str
    traffic_class: int
    stream_id: int
    state: str
    ide_fail: bool

    @classmethod
    def read(cls, at: Reader) -> IdeControl:
        control, status = at.u32(0), at.u32(4)
        return cls(
            enabled=flag(control, 0),
            xt=flag(control, 1),
            tx_aggregation_npr=1 << bits(control, 2, 2),
            tx_aggregation_pr=1 << bits(control, 4, 2),
            tx_aggregation_cpl=1 << bits(control, 6, 2),
            pcrc_enabled=flag(control, 8),
            partial_header_encryption=name_of(bits(control, 10, 4), _HEADER_ENCRYPTIONS),
            algorithm=name_of(bits(control, 14, 5), _ALGORITHMS),
            traffic_class=bits(control, 19, 3),
            stream_id=bits(control, 24, 8),
            state=name_of(bits(status, 0, 4), _STATES),
            ide_fail=flag(status, 31),
        )


@dataclass(frozen=True, slots=True)
class IdeAddress:
    """Addresses of the partner of a selective stream, the limit included."""

    valid: bool
    base_address: int
    limit_address: int

    @classmethod
    def read(cls, at: Reader) -> IdeAddress:
        low = at.u32(0)
        return cls(
            valid=flag(low, 0),
            base_address=at.u32(8) << 32 | bits(low, 8, 12) << _MIB_BITS,
            limit_address=at.u32(4) << 32 | bits(low, 20, 12) << _MIB_BITS | (1 << _MIB_BITS) - 1,
        )


@dataclass(frozen=True, slots=True)
class IdeSelectiveStream:
    """A selective stream: with the requester ids from ``rid_base`` to ``rid_limit``, and with ``addresses``.

    ``addresses`` is shorter than ``address_count`` if the others are cut off.
    """

    control: IdeControl
    configuration_enabled: bool
    default: bool
    tee_limited: bool
    rid_valid: bool
    rid_base: int
    rid_limit: int
    segment: int
    address_count: int
    addresses: tuple[IdeAddress, ...]

    @classmethod
    def read(cls, at: Reader) -> IdeSelectiveStream:
        count, control, rid, rid2 = bits(at.u32(0), 0, 4), at.u32(4), at.u32(12), at.u32(16)
        return cls(
            control=IdeControl.read(at.block(4)),
            configuration_enabled=flag(control, 9),
            default=flag(control, 22),
            tee_limited=flag(control, 23),
            rid_valid=flag(rid2, 0),
            rid_base=bits(rid2, 8, 16),
            rid_limit=bits(rid, 8, 16),
            segment=bits(rid2, 24, 8),
            address_count=count,
            addresses=read_blocks(
                IdeAddress.read, at, first=_SELECTIVE_STREAM_SIZE, size=_ADDRESS_SIZE, count=count
            ),
        )


@dataclass(frozen=True, slots=True)
class IntegrityDataEncryption:
    """Integrity and Data Encryption: the supported features, and the streams.

    ``link_stream_count`` and ``selective_stream_count`` are the device's numbers; ``link_streams`` and
    ``selective_streams`` are shorter if the others are cut off.
    """

    link_stream_count: int
    selective_stream_count: int
    flow_through: bool
    partial_header_encryption: bool
    aggregation: bool
    pcrc: bool
    ide_km: bool
    selective_configuration: bool
    algorithm: str
    traffic_classes: int
    tee_limited: bool
    xt: bool
    flow_through_enabled: bool
    link_streams: tuple[IdeControl, ...]
    selective_streams: tuple[IdeSelectiveStream, ...]

    @classmethod
    def read(cls, at: Reader) -> IntegrityDataEncryption:
        able = at.u32(4)
        classes = bits(able, 13, 3) + 1
        links = classes if flag(able, 0) else 0
        selective = bits(able, 16, 8) + 1 if flag(able, 1) else 0
        return cls(
            link_stream_count=links,
            selective_stream_count=selective,
            flow_through=flag(able, 2),
            partial_header_encryption=flag(able, 3),
            aggregation=flag(able, 4),
            pcrc=flag(able, 5),
            ide_km=flag(able, 6),
            selective_configuration=flag(able, 7),
            algorithm=name_of(bits(able, 8, 5), _ALGORITHMS),
            traffic_classes=classes,
            tee_limited=flag(able, 24),
            xt=flag(able, 25),
            flow_through_enabled=flag(at.u32(8), 2),
            link_streams=read_blocks(
                IdeControl.read, at, first=_STREAMS, size=_LINK_STREAM_SIZE, count=links
            ),
            selective_streams=_selective_streams(at, _STREAMS + links * _LINK_STREAM_SIZE, selective),
        )


def _selective_streams(at: Reader, offset: int, count: int) -> tuple[IdeSelectiveStream, ...]:
    streams: list[IdeSelectiveStream] = []
    while len(streams) < count and (stream := if_complete(IdeSelectiveStream.read, at.block(offset))):
        streams.append(stream)
        offset += _SELECTIVE_STREAM_SIZE + stream.address_count * _ADDRESS_SIZE
    return tuple(streams)
