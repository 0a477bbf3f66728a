"""Mounted file systems and active swap, by block device."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping

from vfiotool.host.tree import Tree

# This process may be in another mount namespace than init, whose mounts are the machine's.
_MOUNTINFO = ("/proc/self/mountinfo", "/proc/1/mountinfo")
_BTRFS = "/sys/fs/btrfs"
_ESCAPE = re.compile(r"\\([0-7]{3})")


def mount_points(tree: Tree) -> Mapping[str, tuple[str, ...]]:
    """Return the mount points of each block device, by its name in ``/sys/class/block``.

    Source: proc_pid_mountinfo(5). A btrfs has its own device number and any number of disks, which
    ``/sys/fs/btrfs/UUID/devices`` lists.
    """
    numbers = {
        tree.find(f"/sys/class/block/{name}/dev"): name for name in tree.find_names("/sys/class/block")
    }
    siblings = _btrfs_siblings(tree)
    found: dict[str, dict[str, None]] = {}
    for number, point, source in _mounts(tree):
        name = numbers.get(number) or source.removeprefix("/dev/")
        for member in siblings.get(name, (name,)):
            found.setdefault(member, {})[point] = None
    return {name: tuple(points) for name, points in found.items()}


def swaps(tree: Tree) -> frozenset[str]:
    """Return the names of the block devices with active swap (``/proc/swaps``)."""
    lines = (tree.find("/proc/swaps") or "").splitlines()[1:]
    return frozenset(unescape(line.split(None, 1)[0]).removeprefix("/dev/") for line in lines if line.strip())


def _mounts(tree: Tree) -> Iterator[tuple[str, str, str]]:
    """Yield the device number, the mount point and the source of each mount."""
    for path in _MOUNTINFO:
        with contextlib.suppress(PermissionError):
            for line in (tree.find(path) or "").splitlines():
                first, _, last = line.partition(" - ")
                fields, sources = first.split(" "), last.split(" ")
                if len(fields) > 4 and len(sources) > 1:
                    yield fields[2], unescape(fields[4]), unescape(sources[1])


def _btrfs_siblings(tree: Tree) -> Mapping[str, tuple[str, ...]]:
    """Return all disks of the same btrfs for each disk of a btrfs, itself included."""
    folders = (f"{_BTRFS}/{uuid}/devices" for uuid in tree.find_names(_BTRFS))
    groups = [tuple(sorted(tree.find_names(folder))) for folder in folders if tree.exists(folder)]
    return {name: group for group in groups for name in group}


def unescape(text: str) -> str:
    """Undo the kernel's escapes of blanks (``mangle_path()``)."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8) & 0x7F), text)
