"""Answers of variable length: the ``argsz`` protocol and the capability chains of VFIO.

The kernel says in ``argsz`` how long its answer would be, and is asked again with more room. What
it writes is checked as if it came from a stranger: no offset or count is followed past the answer.
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
    """The bytes that the kernel wrote for one question; it never reads past their end."""

    def __init__(self, data: bytes, operation: str, subject: str) -> None:
        self.data = data
        self.operation = operation
        self.subject = subject

    def malformed(self, detail: str) -> KernelError:
        """Return the error for an answer that breaks the kernel's own format."""
        return _malformed(self.operation, self.subject, detail)

    def read(self, kind: type[S], offset: int = 0) -> S:
        """Return the structure at an offset.

        Raises:
            KernelError: EBADMSG, it does not fit in the answer.
        """
        if not 0 <= offset <= len(self.data) - ctypes.sizeof(kind):
            raise self.malformed(f"{kind.__name__} at byte {offset} lies outside of the answer")
        return kind.from_buffer_copy(self.data, offset)

    def read_array(self, kind: type[S], offset: int, count: int) -> list[S]:
        """Return ``count`` structures from an offset on.

        Raises:
            KernelError: EBADMSG, they do not fit in the answer.
        """
        size = ctypes.sizeof(kind)
        if count > (len(self.data) - offset) // size:
            raise self.malformed(f"{count} {kind.__name__} do not fit in the answer")
        return [self.read(kind, offset + index * size) for index in range(count)]

    def capabilities(self, first: int) -> dict[int, int]:
        """Return where each capability starts, by id, from the offset of the first one on.

        Left out are versions other than 1: their layout is not known.

        Raises:
            KernelError: EBADMSG, the chain leaves the answer or loops.
        """
        found: dict[int, int] = {}
        seen = set()
        offset = first
        while offset:
            if offset in seen:
                raise self.malformed(f"its chain of capabilities loops at byte {offset}")
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
    """Ask, grow, ask again: ``call`` does the ioctl on a buffer that starts with ``question``.

    Raises:
        KernelError: the kernel's errno; EBADMSG where its answer never fits.
    """
    size = ctypes.sizeof(question)
    # More than twice only where a driver's answer grows between two calls.
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
            raise _malformed(operation, subject, f"it asks for {needed} bytes of room")
        size = needed
    raise _malformed(operation, subject, "it grows with each question")


def _malformed(operation: str, subject: str, detail: str) -> KernelError:
    hint = f"{detail}; this is an error of the device's VFIO driver"
    return KernelError(errno.EBADMSG, operation, subject, hint=hint)
