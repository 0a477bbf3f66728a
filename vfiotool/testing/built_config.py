"""Build configuration space: the counterpart of ``vfiotool.pci.config_space``."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vfiotool.pci.config_space import EXTENDED_SIZE, HEADER_SIZE, STANDARD_SIZE

_HEADER = struct.Struct("<HHHHI2xB")
_HEADER_TYPE_AT = 0x0E
_CAP_LIST = 0x10
_POINTER_AT = 0x34
_PCI_X, _EXPRESS = 0x07, 0x10
_EXPRESS_SIZE = 60


def config_space(
    *,
    vendor: int = 0x1234,
    device: int = 0x11E8,
    class_code: int = 0,
    revision: int = 0,
    header_type: int = 0,
    capabilities: Sequence[tuple[int, int, bytes]] = (),
    extended: Sequence[tuple[int, int]] = (),
) -> bytes:
    """Return 256 bytes, or 4096 bytes if ``extended`` is given, with the capabilities chained in their order.

    A capability is ``(id, offset, body)``, where the body follows the two-byte header. An extended capability
    is ``(id, offset)``; the first must be at 0x100. Only PCI Express and PCI-X functions have extended
    capabilities: if ``capabilities`` has neither, the builder adds an endpoint's PCI Express as the last.
    """
    if extended and not {_PCI_X, _EXPRESS} & {number for number, _, _ in capabilities}:
        capabilities = [*capabilities, (_EXPRESS, _free_offset(capabilities), b"\x02" + bytes(57))]
    config = bytearray(EXTENDED_SIZE if extended else STANDARD_SIZE)
    status = _CAP_LIST if capabilities else 0
    _HEADER.pack_into(config, 0, vendor, device, 0, status, class_code << 8 | revision, header_type)
    nexts = [offset for _, offset, _ in capabilities]
    config[_POINTER_AT : _POINTER_AT + 1] = bytes(nexts[:1] or [0])
    for (number, offset, body), following in zip(capabilities, [*nexts[1:], 0], strict=False):
        assert HEADER_SIZE <= offset <= STANDARD_SIZE - 2 - len(body)  # noqa: S101 - a mistake in the test
        config[offset : offset + 2 + len(body)] = bytes((number, following)) + body
    offsets = [offset for _, offset in extended]
    for (number, offset), following in zip(extended, [*offsets[1:], 0], strict=False):
        struct.pack_into("<I", config, offset, following << 20 | 1 << 16 | number)
    return bytes(config)


def _free_offset(capabilities: Sequence[tuple[int, int, bytes]]) -> int:
    """Return the first offset where PCI Express lies beside all others."""
    taken = [(offset, offset + 2 + len(body)) for _, offset, body in capabilities]
    return next(
        at
        for at in range(HEADER_SIZE, STANDARD_SIZE - _EXPRESS_SIZE + 1, 4)
        if all(at + _EXPRESS_SIZE <= start or end <= at for start, end in taken)
    )
