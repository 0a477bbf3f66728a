"""Who has a device node open, and whether the kernel itself has a disk in use."""

from __future__ import annotations

import contextlib
import errno
import os
import select
from collections.abc import Collection, Mapping

from vfiotool.host.tree import Tree
from vfiotool.util.child import start_child

_SECONDS = 1.0
_FREE, _BUSY, _UNKNOWN = b"f", b"b", b"u"
_UDEVD = ("systemd-udevd", "(udev-worker)", "udevd")


def find_openers(tree: Tree, nodes: Collection[str]) -> Mapping[str, tuple[str, ...]]:
    """Return the processes that have these nodes open, as ``pid 12 (qemu)``; those of others take root.

    Left out are this process, and udevd, which looks into each new disk for a moment.
    """
    found: dict[str, dict[str, None]] = {}
    for pid in tree.find_names("/proc") if nodes else ():
        if not pid.isdecimal() or int(pid) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it has ended, or is not ours to look at
            for node in _open_paths(tree, pid).intersection(nodes):
                comm = tree.read(f"/proc/{pid}/comm")
                if comm not in _UDEVD:
                    found.setdefault(node, {})[f"pid {pid} ({comm})"] = None
    return {node: tuple(processes) for node, processes in found.items()}


def is_claimed(node: str) -> bool:
    """Say whether the kernel has a disk in use, as a whole or in part, so that nobody can open it alone.

    Takes root; where it is not known the answer is no. Source: ``O_EXCL`` of open(2) on a block device.
    """
    return _is_busy(node, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK)


def is_group_open(node: str) -> bool:
    """Say whether a group's node, or a device of the group, is open: the kernel opens it but once.

    This finds what ``/proc`` does not show: a descriptor on its way between processes, a process in
    another PID namespace, a device that is open while its group no longer is. Answers as above.
    """
    return _is_busy(node, os.O_RDWR)


def _is_busy(node: str, flags: int) -> bool:
    """Try to open a node, in a child: what is behind it may be dead, and never answer."""

    def try_to_open(fd: int) -> None:
        os.write(fd, _open(node, flags))

    pid, fd = start_child(try_to_open)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(_SECONDS * 1000):
            return False
        answer = os.read(fd, 1)
    finally:
        os.close(fd)
    os.waitpid(pid, 0)
    return answer == _BUSY


def _open(node: str, flags: int) -> bytes:
    try:
        os.open(node, flags | os.O_CLOEXEC)
    except OSError as error:
        return _BUSY if error.errno == errno.EBUSY else _UNKNOWN
    return _FREE


def _open_paths(tree: Tree, pid: str) -> set[str]:
    folder = f"/proc/{pid}/fd"
    paths = set()
    for fd in tree.names(folder):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            paths.add(os.readlink(tree.path(f"{folder}/{fd}")))
    return paths
