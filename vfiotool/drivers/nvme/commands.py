"""NVMe commands: 64 bytes each, in the layout of the specification.

The command identifier is 0: ``QueuePair`` sets it. ``prp1`` is the IOVA of the page that the command
reads or writes. Sections are of the NVM Express Base Specification 2.0 unless another is named.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

SIZE = 64
COMPLETION_SIZE = 16
SIZE_SHIFT, COMPLETION_SIZE_SHIFT = 6, 4

WRITE, READ = 0x01, 0x02  # NVM Command Set Specification 1.0, sections 3.2.6 and 3.2.4

_LAYOUT = struct.Struct(
    "<BBHIIIQQQIIIIII"
)  # figure 87: CDW0, NSID, CDW2, CDW3, MPTR, PRP1, PRP2, CDW10 to 15

_FLUSH = 0x00
_DELETE_SQ, _CREATE_SQ, _DELETE_CQ, _CREATE_CQ = 0x00, 0x01, 0x04, 0x05
_IDENTIFY = 0x06
_SET_FEATURES = 0x09

_IDENTIFY_NAMESPACE, _IDENTIFY_CONTROLLER, _IDENTIFY_ACTIVE = 0x00, 0x01, 0x02
_NUMBER_OF_QUEUES = 0x07
_CONTIGUOUS, _INTERRUPTS = 1 << 0, 1 << 1


class Completion(NamedTuple):
    """A completion of a command; ``status`` is 0 for success."""

    cid: int
    status: int
    result: int


def command(
    opcode: int, *, nsid: int = 0, prp1: int = 0, prp2: int = 0, words: tuple[int, ...] = ()
) -> bytes:
    """Return a command; ``words`` are command dwords 10 and on (figure 87)."""
    more = words + (0,) * (6 - len(words))
    return _LAYOUT.pack(opcode, 0, 0, nsid, 0, 0, 0, prp1, prp2, *more)


def identify_controller(prp1: int) -> bytes:
    """Return a command that writes the controller's identify data to a page (section 5.17)."""
    return command(_IDENTIFY, prp1=prp1, words=(_IDENTIFY_CONTROLLER,))


def identify_namespace(nsid: int, prp1: int) -> bytes:
    """Return a command that writes a namespace's identify data to a page (section 5.17)."""
    return command(_IDENTIFY, nsid=nsid, prp1=prp1, words=(_IDENTIFY_NAMESPACE,))


def identify_active_namespaces(above: int, prp1: int) -> bytes:
    """Return a command that lists the active namespaces with numbers above ``above`` (section 5.17)."""
    return command(_IDENTIFY, nsid=above, prp1=prp1, words=(_IDENTIFY_ACTIVE,))


def set_number_of_queues(count: int) -> bytes:
    """Return a command that requests ``count`` queues of each kind (section 5.27.1.5)."""
    return command(_SET_FEATURES, words=(_NUMBER_OF_QUEUES, count - 1 << 16 | count - 1))


def create_completion_queue(queue: int, entries: int, prp1: int, vector: int | None) -> bytes:
    """Return a command that creates a completion queue, with an interrupt vector or none (section 5.4)."""
    flags = _CONTIGUOUS if vector is None else vector << 16 | _INTERRUPTS | _CONTIGUOUS
    return command(_CREATE_CQ, prp1=prp1, words=(entries - 1 << 16 | queue, flags))


def create_submission_queue(queue: int, entries: int, prp1: int) -> bytes:
    """Return a command that creates the submission queue for a completion queue (section 5.5)."""
    return command(_CREATE_SQ, prp1=prp1, words=(entries - 1 << 16 | queue, queue << 16 | _CONTIGUOUS))


def delete_completion_queue(queue: int) -> bytes:
    """Return a command that deletes a completion queue (section 5.6)."""
    return command(_DELETE_CQ, words=(queue,))


def delete_submission_queue(queue: int) -> bytes:
    """Return a command that deletes a submission queue and completes or aborts its commands (section 5.7)."""
    return command(_DELETE_SQ, words=(queue,))


def flush(nsid: int) -> bytes:
    """Return a command that makes all completed writes durable (section 7.1)."""
    return command(_FLUSH, nsid=nsid)
