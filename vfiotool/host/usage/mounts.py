"""Mounted file systems and active swap."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from vfiotool.host.tree import Tree
from vfiotool.host.usage.claim import Claim, some

# This process may be in another mount namespace than init, whose mounts are the machine's.
_PROCESSES = ("self", "1")
_BTRFS = "/sys/fs/btrfs"
_ROOTS = ("/", "/usr", "/boot", "/boot/efi", "/efi")
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount: the file system's device number (``8:1``), its type and source, and where it is mounted.

    ``root`` is the part of the file system that is mounted. ``process`` is the folder in ``/proc`` of a
    process that sees the mount.
    """

    process: str
    number: str
    root: str
    point: str
    kind: str
    source: str


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
    for mount in mounts(tree):
        known = numbers.get(mount.number)
        for name in (known,) if known else _sources(mount):
            for member in siblings.get(name, (name,)):
                found.setdefault(member, {})[mount.point] = None
    return {name: tuple(points) for name, points in found.items()}


def swaps(tree: Tree) -> frozenset[str]:
    """Return the names of the block devices with active swap (``/proc/swaps``)."""
    lines = (tree.find("/proc/swaps") or "").splitlines()[1:]
    return frozenset(_decode(line.split(None, 1)[0]).removeprefix("/dev/") for line in lines if line.strip())


def mounts(tree: Tree) -> Iterator[Mount]:
    """Yield each mount that this process or pid 1 sees."""
    for process in _PROCESSES:
        with contextlib.suppress(PermissionError):
            for line in (tree.find(f"/proc/{process}/mountinfo") or "").splitlines():
                first, _, last = line.partition(" - ")
                fields, sources = first.split(" "), last.split(" ")
                if len(fields) > 4 and len(sources) > 1:
                    number, root, point, kind, source = *fields[2:5], *sources[:2]
                    yield Mount(process, number, _decode(root), _decode(point), kind, _decode(source))


def mount_claims(points: Iterable[str], through: str = "") -> Iterator[Claim]:
    """Yield the claims of a file system that is mounted on these points."""
    vital: list[str] = []
    others: list[str] = []
    for point in points:
        (vital if point in _ROOTS else others).append(point)
    if vital:
        yield Claim("root", f"holds {', '.join(vital)} of this machine{through}")
    if others:
        yield Claim("mounted", f"is mounted on {some(others)}{through}")


def _sources(mount: Mount) -> Iterator[str]:
    """Yield the names of the devices of a file system: a bcachefs of several separates them by colons."""
    several = mount.source.split(":") if mount.source.startswith("/dev/") else [mount.source]
    return (one.removeprefix("/dev/") for one in several)


def _btrfs_siblings(tree: Tree) -> Mapping[str, tuple[str, ...]]:
    """Return all disks of the same btrfs for each disk of a btrfs, itself included."""
    folders = (f"{_BTRFS}/{uuid}/devices" for uuid in tree.find_names(_BTRFS))
    groups = [tuple(sorted(tree.find_names(folder))) for folder in folders if tree.exists(folder)]
    return {name: group for group in groups for name in group}


def _decode(text: str) -> str:
    """Undo the kernel's escapes of blanks (``mangle_path()``)."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8) & 0x7F), text)
