"""The processes that have a device node open, and the uses of a node that only an open can detect."""

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
    """Return the processes that have these nodes open, as ``pid 12 (qemu)``.

    Without root, only the caller's own processes are found. This process is left out, and so is udevd,
    which opens each new disk for a moment.
    """
    found: dict[str, dict[str, None]] = {}
    for pid in tree.find_names("/proc") if nodes else ():
        if not pid.isdecimal() or int(pid) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it has exited, or this user may not inspect it
            for node in _open_paths(tree, pid).intersection(nodes):
                comm = tree.read(f"/proc/{pid}/comm")
                if comm not in _UDEVD:
                    found.setdefault(node, {})[f"pid {pid} ({comm})"] = None
    return {node: tuple(processes) for node, processes in found.items()}


def is_claimed(node: str) -> bool:
    """Return True if the kernel has a disk or a part of it in use, so that an exclusive open fails.

    Needs root; returns False if the open fails for another reason. Source: ``O_EXCL`` of open(2) on a
    block device.
    """
    return _is_busy(node, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK)


def is_group_open(node: str) -> bool:
    """Return True if the node of a group, or a device of the group, is open: the kernel opens it only once.

    This finds uses that ``/proc`` does not show: a descriptor that is being passed between processes, a
    process in another PID namespace, a device that is open while its group is closed. Needs root; returns
    False if the open fails for another reason.
    """
    return _is_busy(node, os.O_RDWR)


def _is_busy(node: str, flags: int) -> bool:
    """Return True if an open of the node fails with EBUSY. A child opens it, because the open may block."""

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
