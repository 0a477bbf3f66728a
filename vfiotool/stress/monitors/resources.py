"""Kernel resources before and after: groups, nodes, kernel memory; and what processes hold."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

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


_NODES = "/dev/vfio"
_CDEVS = f"{_NODES}/devices"
_NO_GROUPS = ("vfio", "devices")

TAINTS = {
    0: "P, a proprietary module was loaded",
    1: "F, a module was loaded by force",
    2: "S, the kernel runs on an out of specification system",
    3: "R, a module was unloaded by force",
    4: "M, a machine check exception was reported",
    5: "B, a bad page was referenced",
    6: "U, userspace asked for it",
    7: "D, the kernel died: an oops or BUG",
    8: "A, an ACPI table was overridden",
    9: "W, the kernel warned",
    10: "C, a staging driver was loaded",
    11: "I, a bug of the firmware is worked around",
    14: "L, a soft lockup occurred",
    15: "K, the kernel was live patched",
    16: "X, auxiliary, the distributor's",
    17: "T, built with the struct randomization plugin",
    18: "N, an in-kernel test was run",
}
"""Bits of the taint (Documentation/admin-guide/tainted-kernels.rst)."""
_MODULES = 1 << 12 | 1 << 13  # out-of-tree and unsigned ones: no defect


@dataclass(frozen=True, slots=True)
class Resources:
    """What there is at a moment.

    ``fds`` pairs processes with how many descriptors each has; ``pinned`` and ``locked`` are VmPin and VmLck
    in kB, all processes together; ``nodes`` are those of groups and devices below ``/dev/vfio``.
    """

    fds: tuple[tuple[int, int], ...]
    pinned: int
    locked: int
    groups: int
    nodes: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Return it as the report has it."""
        return {
            "fds": {str(pid): count for pid, count in self.fds},
            "VmPin": self.pinned,
            "VmLck": self.locked,
            "groups": self.groups,
            "group_nodes": list(self.nodes),
        }


def read_resources(pids: Iterable[int] = (), tree: Tree | None = None) -> Resources:
    """Read it; a process that has ended has nothing.

    Raises:
        OSError: EACCES, a process is another user's.
    """
    tree = tree or Tree()
    held = read_holdings(pids, tree)
    groups = len(tree.find_names("/sys/kernel/iommu_groups"))
    return Resources(held.fds, held.pinned, held.locked, groups, tuple(_nodes(tree)))


def leaked(before: Resources, after: Resources) -> list[str]:
    """Return what there is more than before, or, of groups and nodes, less."""
    had = dict(before.fds)
    found = [
        f"process {pid} has {count} fds, and had {had[pid]}"
        for pid, count in after.fds
        if pid in had and count > had[pid]
    ]
    for name, now, then in (
        ("pinned (VmPin)", after.pinned, before.pinned),
        ("locked (VmLck)", after.locked, before.locked),
    ):
        if now > then:
            found.append(f"{now - then} kB of memory are left {name}: {now}, and it was {then}")
    if after.groups != before.groups:
        found.append(f"there are {after.groups} IOMMU groups, and there were {before.groups}")
    found += [f"the node {node} is left" for node in after.nodes if node not in before.nodes]
    found += [f"the node {node} is gone" for node in before.nodes if node not in after.nodes]
    return found


def read_taint(tree: Tree | None = None) -> int:
    """Return the kernel's taint, a mask."""
    return int((tree or Tree()).read("/proc/sys/kernel/tainted"))


def taint_findings(before: int, after: int) -> list[str]:
    """Return which bits were set meanwhile, but for those that tell of modules' origins."""
    fresh = after & ~before & ~_MODULES
    bits = [bit for bit in range(fresh.bit_length()) if fresh >> bit & 1]
    return [
        f"the kernel is tainted by {TAINTS.get(bit, 'what has no name here')} (bit {bit})" for bit in bits
    ]


class LeakScan:
    """What kmemleak finds that it had not found when this was made; nothing where the kernel has none.

    It finds no object that is younger than 5 seconds (mm/kmemleak.c). One thread uses it.
    """

    MOST_REPORTS = 100
    MOST_LINES = 12
    _OBJECT = re.compile(r"unreferenced object (0x[0-9a-f]+)")
    _ABSENT = (errno.ENOENT, errno.EBUSY, errno.EPERM, errno.EACCES, errno.ENODEV)

    def __init__(self, path: str = "/sys/kernel/debug/kmemleak") -> None:
        self._path = path
        self.is_present = self._look()
        self._known = {address for address, _ in self._reports()} if self.is_present else set[str]()

    def scan(self) -> list[str]:
        """Have the kernel look for leaks, and return a text for each new one, the first hundred."""
        if not self.is_present or not self._look():
            return []
        found = [(address, text) for address, text in self._reports() if address not in self._known]
        self._known.update(address for address, _ in found)
        return [text for _, text in found[: self.MOST_REPORTS]]

    def _look(self) -> bool:
        """Scan twice: an object that has changed since the last scan is not reported yet."""
        return self._write() and self._write()

    def _write(self) -> bool:
        """Write ``scan``, which returns when it is done; say whether the kernel can."""
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            return self._is_absent(error)
        try:
            os.write(fd, b"scan")
        except OSError as error:
            return self._is_absent(error)
        finally:
            os.close(fd)
        return True

    def _is_absent(self, error: OSError) -> bool:
        if error.errno not in self._ABSENT:
            raise error
        return False

    def _reports(self) -> Iterator[tuple[str, str]]:
        """Yield the address of each object, and the first lines of what is said of it."""
        address, lines = "", list[str]()
        with open(self._path, encoding="utf-8", errors="replace") as file:
            for line in file:
                if found := self._OBJECT.match(line):
                    if address:
                        yield address, "\n".join(lines)
                    address, lines = found[1], []
                if len(lines) < self.MOST_LINES:
                    lines.append(line.rstrip("\n"))
        if address:
            yield address, "\n".join(lines)


def _nodes(tree: Tree) -> list[str]:
    groups = [f"{_NODES}/{name}" for name in tree.find_names(_NODES) if name not in _NO_GROUPS]
    return sorted([*groups, *(f"{_CDEVS}/{name}" for name in tree.find_names(_CDEVS))])
