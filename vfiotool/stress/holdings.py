"""What processes hold of the kernel: file descriptors, and memory that is pinned or locked."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from dataclasses import dataclass

from vfiotool.host.tree import Tree

_GONE = (errno.ENOENT, errno.ESRCH)


@dataclass(frozen=True, slots=True)
class Holdings:
    """``fds`` pairs processes with how many descriptors each has; ``pinned`` is VmPin, ``locked`` VmLck.

    Both are in kB, all processes together (proc(5)).
    """

    fds: tuple[tuple[int, int], ...]
    pinned: int
    locked: int

    def more_than(self, other: Holdings) -> tuple[str, ...]:
        """Name what these are more of than others."""
        named = (
            ("file descriptors", self._count() - other._count()),
            ("kB of pinned memory (VmPin)", self.pinned - other.pinned),
            ("kB of locked memory (VmLck)", self.locked - other.locked),
        )
        return tuple(f"{more} {name}" for name, more in named if more > 0)

    def _count(self) -> int:
        return sum(count for _, count in self.fds)


def read_holdings(pids: Iterable[int], tree: Tree) -> Holdings:
    """Return what these processes hold together; one that has ended holds nothing.

    Raises:
        OSError: EACCES, a process is another user's.
    """
    fds, pinned, locked = list[tuple[int, int]](), 0, 0
    for pid in pids:
        try:
            count = len(tree.names(f"/proc/{pid}/fd"))
            status = tree.read(f"/proc/{pid}/status")
        except OSError as error:
            if error.errno not in _GONE:
                raise
            continue
        fds.append((pid, count))
        pinned += _kilobytes(status, "VmPin")
        locked += _kilobytes(status, "VmLck")
    return Holdings(tuple(fds), pinned, locked)


def _kilobytes(status: str, name: str) -> int:
    """Return a line of ``/proc/PID/status``; a process that is ending has no memory."""
    found = re.search(rf"^{name}:\s*(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) if found else 0
