"""Errors of the NVMe driver, and the meanings of status codes."""

from __future__ import annotations

from vfiotool.errors import VfioToolError

_TYPES = {0: "generic", 1: "command specific", 2: "media and data integrity", 3: "path", 7: "vendor specific"}

# (status code type, status code): NVM Express Base Specification 2.0, section 3.3.3.2.1.
_MEANINGS = {
    (0, 0x00): "success",
    (0, 0x01): "invalid command opcode",
    (0, 0x02): "invalid field in the command",
    (0, 0x03): "command identifier in use",
    (0, 0x04): "data transfer error",
    (0, 0x05): "aborted by a loss of power",
    (0, 0x06): "internal error",
    (0, 0x07): "aborted by request",
    (0, 0x08): "aborted as its queue was deleted",
    (0, 0x0B): "invalid namespace or format",
    (0, 0x0C): "wrong sequence of commands",
    (0, 0x13): "invalid offset of a PRP",
    (0, 0x80): "LBA out of range",
    (0, 0x81): "capacity exceeded",
    (0, 0x82): "namespace not ready",
    (0, 0x84): "format in progress",
    (1, 0x00): "invalid completion queue",
    (1, 0x01): "invalid queue identifier",
    (1, 0x02): "invalid queue size",
    (1, 0x03): "too many aborts at once",
    (1, 0x05): "too many requests for events",
    (1, 0x08): "invalid interrupt vector",
    (1, 0x0A): "invalid format",
    (1, 0x0C): "queues must be deleted in order",
    (1, 0x0D): "the feature cannot be saved",
    (1, 0x0E): "the feature cannot be changed",
    (1, 0x80): "conflicting attributes",
    (1, 0x82): "write to a read-only range",
    (2, 0x80): "write fault",
    (2, 0x81): "unrecovered read error",
    (2, 0x82): "guard check failed",
    (2, 0x85): "compare failure",
    (2, 0x86): "access denied",
    (2, 0x87): "block deallocated or not written",
}


class NvmeError(VfioToolError):
    """A controller has failed, or its data are invalid."""


class NvmeTimeoutError(NvmeError, TimeoutError):
    """A controller did not respond in time. It still owns the memory that it was given for the reply."""


class NvmeStatusError(NvmeError):
    """A command failed: ``type`` and ``code`` are those of its status, ``text`` is their meaning.

    ``permanent`` is True if the controller would fail the command again (DNR). ``index`` is the index of the
    command if many were submitted at once.
    """

    def __init__(self, command: str, status: int, *, index: int | None = None, failed: int = 1) -> None:
        """Make the error for the 15 bits of a completion's status."""
        self.type, self.code = status >> 8 & 0x7, status & 0xFF
        self.permanent = bool(status >> 14 & 1)
        self.index = index
        self.text = meaning(self.type, self.code)
        others = f", the first of {failed} that failed" if failed > 1 else ""
        which = "" if index is None else f", number {index}{others},"
        super().__init__(f"{command}{which} failed: {self.text} (type {self.type:#x}, code {self.code:#x})")


def meaning(kind: int, code: int) -> str:
    """Return the meaning of a status."""
    known = _MEANINGS.get((kind, code))
    return known or f"{_TYPES.get(kind, 'unknown')} error {code:#x}"
