"""Who has a device node open, and whether the kernel itself has a disk in use."""

from __future__ import annotations

import contextlib
import errno
import os
import select
from collections.abc import Collection, Mapping

from vfiotool.host.child import start_child
from vfiotool.host.tree import Tree

_SECONDS = 1.0
_FREE, _CLAIMED, _UNKNOWN = b"f", b"c", b"u"
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
    """Say whether the kernel has a disk in use as a whole, or in part: it opens it to no one else then.

    Takes root; where it is not known the answer is no. A disk that is dead may never open, so a child
    tries. Source: ``O_EXCL`` of open(2) on a block device.
    """

    def try_to_open(fd: int) -> None:
        os.write(fd, _open_alone(node))

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
    return answer == _CLAIMED


def _open_alone(node: str) -> bytes:
    try:
        os.open(node, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return _CLAIMED if error.errno == errno.EBUSY else _UNKNOWN
    return _FREE


def _open_paths(tree: Tree, pid: str) -> set[str]:
    folder = f"/proc/{pid}/fd"
    paths = set()
    for fd in tree.names(folder):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            paths.add(os.readlink(tree.path(f"{folder}/{fd}")))
    return paths
