"""VFIO's info ioctls: replies of variable length, with ``argsz`` and capability chains.

The kernel writes the size of its full reply to ``argsz``. A caller with a smaller buffer repeats the
ioctl with a larger buffer. Every reply is checked as untrusted input: no offset and no count is followed
beyond the end of the reply.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Callable
from typing import TypeVar

from vfiotool.errors import KernelError
from vfiotool.vfio.uapi import vfio_info_cap_header

MAX_SIZE = 1 << 20
_ATTEMPTS = 4

S = TypeVar("S", bound=ctypes.Structure)


class InfoReply:
    """The bytes that the kernel wrote for an info ioctl. Reads past their end are refused."""

    def __init__(self, data: bytes, operation: str, subject: str) -> None:
        self.data = data
        self.operation = operation
        self.subject = subject

    def malformed(self, detail: str) -> KernelError:
        """Return the error for a reply that breaks the kernel's own format."""
        return _malformed(self.operation, self.subject, detail)

    def read(self, kind: type[S], offset: int = 0) -> S:
        """Return the structure at an offset.

        Raises:
            KernelError: EBADMSG, the structure does not fit in the reply.
        """
        if not 0 <= offset <= len(self.data) - ctypes.sizeof(kind):
            raise self.malformed(f"{kind.__name__} at byte {offset} lies outside of the reply")
        return kind.from_buffer_copy(self.data, offset)

    def read_array(self, kind: type[S], offset: int, count: int) -> list[S]:
        """Return ``count`` structures that start at an offset.

        Raises:
            KernelError: EBADMSG, the structures do not fit in the reply.
        """
        size = ctypes.sizeof(kind)
        if count > (len(self.data) - offset) // size:
            raise self.malformed(f"{count} {kind.__name__} do not fit in the reply")
        return [self.read(kind, offset + index * size) for index in range(count)]

    def capabilities(self, first: int) -> dict[int, int]:
        """Return the offset of each capability by its id; ``first`` is the offset of the first capability.

        Capabilities of a version other than 1 are left out: their layout is not known.

        Raises:
            KernelError: EBADMSG, the chain leaves the reply or loops.
        """
        found: dict[int, int] = {}
        seen = set()
        offset = first
        while offset:
            if offset in seen:
                raise self.malformed(f"the capability chain loops at byte {offset}")
            seen.add(offset)
            header = self.read(vfio_info_cap_header, offset)
            if header.version == 1:
                found.setdefault(header.id, offset)
            offset = header.next
        return found


def query_info(
    call: Callable[[bytearray], object],
    question: ctypes.Structure,
    operation: str,
    subject: str,
) -> InfoReply:
    """Call an info ioctl, with a larger buffer if its reply needs more room.

    ``call`` performs the ioctl on a buffer that starts with ``question``.

    Raises:
        KernelError: the kernel's errno; EBADMSG if the reply never fits.
    """
    size = ctypes.sizeof(question)
    # More than two attempts are needed only if a driver's reply grows between two calls.
    for _ in range(_ATTEMPTS):
        data = bytearray(bytes(question).ljust(size, b"\0"))
        struct.pack_into("=I", data, 0, size)
        try:
            call(data)
        except OSError as error:
            raise KernelError(error.errno or errno.EIO, operation, subject) from None
        (needed,) = struct.unpack_from("=I", data)
        if needed <= size:
            return InfoReply(bytes(data), operation, subject)
        if needed > MAX_SIZE:
            raise _malformed(operation, subject, f"the reply needs {needed} bytes")
        size = needed
    raise _malformed(operation, subject, "the reply grows with each call")


def _malformed(operation: str, subject: str, detail: str) -> KernelError:
    hint = f"{detail}; this is a bug in the device's VFIO driver"
    return KernelError(errno.EBADMSG, operation, subject, hint=hint)
