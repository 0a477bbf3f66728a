"""The processes that have a device node open, and the uses of a node that only an open can detect."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from vfiotool.host.tree import Tree
from vfiotool.util.child import start_child

_SECONDS = 1.0
_FREE, _BUSY, _UNKNOWN = b"f", b"b", b"u"
# A drive without a medium, and a device that is gone: nothing can use them.
_NOT_THERE = (errno.ENOMEDIUM, errno.ENXIO, errno.ENODEV)
_UDEVD = ("systemd-udevd", "(udev-worker)", "udevd")


@dataclass(frozen=True, slots=True)
class Openers:
    """The processes that have nodes open, by node, as ``pid 12 (qemu)``.

    ``is_complete`` is False if this user may not inspect some process, whose nodes are then unknown.
    """

    processes: Mapping[str, tuple[str, ...]]
    is_complete: bool


def find_openers(tree: Tree, nodes: Collection[str], numbers: Mapping[str, str] | None = None) -> Openers:
    """Return the processes that have these nodes open, or other files that /proc shows by name.

    ``numbers`` has nodes by their type and device number (``c 226:0``): on a live machine a node is found by
    its number too, if a container has it in another folder, or under another name in ``/dev``.

    This process is left out, and so is udevd, which opens each new disk for a moment. Processes that /proc
    does not show at all are not found: see ``namespaces.why_processes_are_hidden``.
    """
    found: dict[str, dict[str, None]] = {}
    is_complete = True
    numbers = numbers if numbers and tree.root == "/" else {}
    names = {os.path.basename(node) for node in nodes}
    for pid in tree.find_names("/proc") if nodes else ():
        if not pid.isdecimal() or int(pid) == os.getpid():
            continue
        try:
            for node in _open_nodes(tree, pid, nodes, names, numbers):
                comm = tree.read(f"/proc/{pid}/comm")
                if comm not in _UDEVD:
                    found.setdefault(node, {})[f"pid {pid} ({comm})"] = None
        except PermissionError:
            is_complete = False
        except OSError:  # it has exited
            continue
    return Openers({node: tuple(processes) for node, processes in found.items()}, is_complete)


def is_claimed(node: str) -> bool | None:
    """Return True if the kernel has a disk or a part of it in use, so that an exclusive open fails.

    Returns ``None`` if that cannot be known: the open takes root and the node, and fails for another reason.
    Source: ``O_EXCL`` of open(2) on a block device.
    """
    return _is_busy(node, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK)


def is_group_open(node: str) -> bool | None:
    """Return True if the node of a group, or a device of the group, is open: the kernel opens it only once.

    This finds uses that ``/proc`` does not show: a descriptor that is being passed between processes, a
    process in another PID namespace, a device that is open while its group is closed. Returns ``None`` if
    that cannot be known: the open takes root, and fails for another reason. The node of a group goes with the
    group, up to 5.15 a little after its last device is unbound: nobody has that group open.
    """
    answer = _is_busy(node, os.O_RDWR)
    return False if answer is None and not os.path.lexists(node) else answer


def _is_busy(node: str, flags: int) -> bool | None:
    """Return True if an open of the node fails with EBUSY, ``None`` if it fails otherwise or takes too long.

    A child opens it, because the open may block.
    """

    def try_to_open(fd: int) -> None:
        os.write(fd, _open(node, flags))

    pid, fd = start_child(try_to_open)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(_SECONDS * 1000):
            return None
        answer = os.read(fd, 1)
    finally:
        os.close(fd)
    os.waitpid(pid, 0)
    return {_BUSY: True, _FREE: False}.get(answer)


def _open(node: str, flags: int) -> bytes:
    try:
        os.open(node, flags | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NOT_THERE:
            return _FREE
        return _BUSY if error.errno == errno.EBUSY else _UNKNOWN
    return _FREE


def _open_nodes(
    tree: Tree, pid: str, nodes: Collection[str], names: Collection[str], numbers: Mapping[str, str]
) -> set[str]:
    """Return which of these nodes a process has open; ``names`` are their names without folders."""
    folder = f"/proc/{pid}/fd"
    found = set()
    for fd in tree.names(folder):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            path = os.readlink(tree.path(f"{folder}/{fd}"))
            if path in nodes:
                found.add(path)
            elif numbers and (path.startswith("/dev/") or os.path.basename(path) in names):
                found.update(filter(None, [numbers.get(_number(f"{folder}/{fd}"))]))
    return found


def _number(path: str) -> str:
    """Return the type and the number of an open node; not for all files, since a file server may be gone."""
    status = os.stat(path)
    if not (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        return ""
    kind = "c" if stat.S_ISCHR(status.st_mode) else "b"
    return f"{kind} {os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
