"""Resources before and after: groups, nodes, the taint, kernel memory, and what processes hold."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from vfiotool.host.tree import Tree
from vfiotool.util import kernel_files

_GONE = (errno.ENOENT, errno.ESRCH)


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
    """The resources that processes and the machine hold at one moment.

    ``fds`` pairs each process with the number of its descriptors. ``pinned`` and ``locked`` are VmPin and
    VmLck in kB, all processes together (proc(5)). ``groups`` is the number of IOMMU groups, ``nodes`` are the
    nodes of groups and devices below ``/dev/vfio``; both are None if only processes were measured.
    """

    fds: tuple[tuple[int, int], ...]
    pinned: int
    locked: int
    groups: int | None = None
    nodes: tuple[str, ...] | None = None

    @property
    def held(self) -> tuple[int, int, int]:
        """The descriptors, and the pinned and locked memory in kB, of all processes together."""
        return sum(count for _, count in self.fds), self.pinned, self.locked

    def document(self) -> dict[str, Any]:
        """Return the resources in the form of the report."""
        return {
            "fds": {str(pid): count for pid, count in self.fds},
            "VmPin": self.pinned,
            "VmLck": self.locked,
            "groups": self.groups,
            "group_nodes": None if self.nodes is None else list(self.nodes),
        }


_HELD = ("file descriptors", "kB of pinned memory (VmPin)", "kB of locked memory (VmLck)")
"""The names of ``Resources.held``."""


def read_process_resources(pids: Iterable[int], tree: Tree) -> Resources:
    """Return the resources of processes. A process that has exited holds nothing.

    Raises:
        OSError: EACCES if a process belongs to another user.
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
    return Resources(tuple(fds), pinned, locked)


def read_resources(pids: Iterable[int] = (), tree: Tree | None = None) -> Resources:
    """Return the resources of processes and of the machine. Raise as ``read_process_resources`` does."""
    tree = tree or Tree()
    groups = len(tree.find_names("/sys/kernel/iommu_groups"))
    return replace(read_process_resources(pids, tree), groups=groups, nodes=tuple(_nodes(tree)))


def _kilobytes(status: str, name: str) -> int:
    """Return a value of ``/proc/PID/status`` in kB. A process that is exiting has no such line."""
    found = re.search(rf"^{name}:\s*(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) if found else 0


def leaked(before: Resources, after: Resources) -> list[str]:
    """Return a finding for each resource that grew, and for each group or node that appeared or vanished."""
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
            found.append(f"{now - then} kB of memory stay {name}: {now} kB, and {then} kB before")
    if after.groups != before.groups:
        found.append(f"the machine has {after.groups} IOMMU groups, and had {before.groups}")
    was, now_there = before.nodes or (), after.nodes or ()
    found += [f"the node {node} is left" for node in now_there if node not in was]
    found += [f"the node {node} is gone" for node in was if node not in now_there]
    return found


class CycleLeakCheck:
    """Finds what grows from cycle to cycle. Only one thread may use a check.

    Each cycle is compared with the least that was held after any earlier cycle of the same key, so a slow
    leak is found even if a transient resource hides the leak at first. Each growth is reported once.
    """

    def __init__(self) -> None:
        self._least: dict[Hashable, tuple[int, ...]] = {}
        self._reported: dict[Hashable, tuple[int, ...]] = {}

    def grown(self, key: Hashable, held: Resources) -> list[str]:
        """Return a finding for each resource that is held in a larger amount than reported before."""
        now = held.held
        least = tuple(map(min, self._least.get(key, now), now))
        known = self._reported.get(key, now) if least == self._least.get(key) else least
        self._least[key] = least
        self._reported[key] = tuple(map(max, known, now))
        return [
            f"{amount - base} {name}"
            for name, amount, base, reported in zip(_HELD, now, least, known, strict=True)
            if amount > reported
        ]


def read_taint(tree: Tree | None = None) -> int:
    """Return the kernel's taint, a mask."""
    return int((tree or Tree()).read("/proc/sys/kernel/tainted"))


def taint_findings(before: int, after: int) -> list[str]:
    """Return a finding for each taint bit that was set meanwhile, except the bits for modules' origins."""
    fresh = after & ~before & ~_MODULES
    bits = [bit for bit in range(fresh.bit_length()) if fresh >> bit & 1]
    return [f"the kernel is tainted by {TAINTS.get(bit, 'an unknown bit')} (bit {bit})" for bit in bits]


class LeakScan:
    """Finds the leaks that kmemleak reports after the scan was created. Finds nothing without kmemleak.

    kmemleak reports no object that is younger than 5 seconds (mm/kmemleak.c). Only one thread may use a scan.
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
        """Make the kernel scan, and return a text for each new leak, at most a hundred."""
        if not self.is_present or not self._look():
            return []
        found = [(address, text) for address, text in self._reports() if address not in self._known]
        self._known.update(address for address, _ in found)
        return [text for _, text in found[: self.MOST_REPORTS]]

    def _look(self) -> bool:
        """Scan twice: the kernel reports an object only if the object did not change between two scans."""
        return self._write() and self._write()

    def _write(self) -> bool:
        """Write ``scan`` and wait for the scan. Return True if the kernel has kmemleak."""
        code = kernel_files.write(self._path, "scan")
        if code and code not in self._ABSENT:
            raise OSError(code, os.strerror(code), self._path)
        return not code

    def _reports(self) -> Iterator[tuple[str, str]]:
        """Yield the address of each object, and the first lines of the object's report."""
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
