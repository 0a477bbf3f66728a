"""Identify data of a controller and its namespaces; all of it comes from the device."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vfiotool.drivers.nvme.errors import NvmeError

SIZE = 4096

_BLOCK_SHIFTS = range(9, 17)  # 512 bytes to 64 KiB


@dataclass(frozen=True, slots=True)
class ControllerInfo:
    """The Identify Controller data structure (NVM Express Base Specification 2.0, figure 275).

    ``max_transfer_shift`` is MDTS: a command transfers at most 2^MDTS of the smallest pages; 0 means no
    limit. ``entry_sizes`` are the bytes SQES and CQES.
    """

    vendor_id: int
    subsystem_vendor_id: int
    serial: str
    model: str
    firmware: str
    controller_id: int
    version: tuple[int, int, int]
    max_transfer_shift: int
    entry_sizes: tuple[int, int]
    max_namespaces: int
    volatile_write_cache: bool

    @classmethod
    def parse(cls, data: bytes) -> ControllerInfo:
        """Parse the controller's data, 4096 bytes."""
        return cls(
            vendor_id=int.from_bytes(data[0:2], "little"),
            subsystem_vendor_id=int.from_bytes(data[2:4], "little"),
            serial=_text(data[4:24]),
            model=_text(data[24:64]),
            firmware=_text(data[64:72]),
            controller_id=int.from_bytes(data[78:80], "little"),
            version=(int.from_bytes(data[82:84], "little"), data[81], data[80]),
            max_transfer_shift=data[77],
            entry_sizes=(data[512], data[513]),
            max_namespaces=int.from_bytes(data[516:520], "little"),
            volatile_write_cache=bool(data[525] & 1),
        )


@dataclass(frozen=True, slots=True)
class NamespaceInfo:
    """The Identify Namespace data structure (NVM Command Set Specification 1.0, figure 97).

    ``blocks``, ``capacity`` and ``used`` are in blocks of ``block_size`` bytes; each block has
    ``metadata_size`` further bytes.
    """

    nsid: int
    blocks: int
    capacity: int
    used: int
    block_size: int
    metadata_size: int

    @classmethod
    def parse(cls, nsid: int, data: bytes) -> NamespaceInfo:
        """Parse the controller's data, 4096 bytes.

        Raises:
            NvmeError: there is no such namespace, or its block size is invalid.
        """
        blocks, capacity, used = struct.unpack_from("<QQQ", data, 0)
        if not blocks:
            raise NvmeError(f"namespace {nsid} is not active", hint="namespaces() lists those that are")
        index = data[26] & 0xF | data[26] >> 1 & 0x30
        metadata_size, shift, _ = struct.unpack_from("<HBB", data, 128 + 4 * index)
        if shift not in _BLOCK_SHIFTS:
            raise NvmeError(f"namespace {nsid} has blocks of 2^{shift} bytes: its controller is at fault")
        return cls(nsid, blocks, capacity, used, 1 << shift, metadata_size)


def parse_active(data: bytes, above: int) -> list[int]:
    """Return the numbers in a list of active namespaces (figure 284), which ascend from above ``above``.

    Raises:
        NvmeError: the numbers do not ascend, so that a loop over the lists might never end.
    """
    found: list[int] = []
    for (nsid,) in struct.iter_unpack("<I", data):
        if not nsid:
            break
        if nsid <= (found[-1] if found else above):
            raise NvmeError("the list of namespaces does not ascend: the controller is at fault")
        found.append(nsid)
    return found


def _text(data: bytes) -> str:
    """Return an ASCII field, which is padded with spaces."""
    return data.rstrip(b" \0").decode("ascii", "backslashreplace")
