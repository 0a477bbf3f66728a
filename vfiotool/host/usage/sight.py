"""What of the uses of devices is out of sight in a tree: the files that would tell are not there."""

from __future__ import annotations

from collections.abc import Iterator

from vfiotool.host.tree import Tree
from vfiotool.host.usage.mounts import mounts

_MOUNTS = ("/proc/self/mountinfo", "/proc/1/mountinfo")
_SWAPS = "/proc/swaps"
_SWAPS_HEADER = "Filename"
_FILES = {
    "network interfaces": "/sys/class/net",
    "disks": "/sys/class/block",
    "consoles": "/proc/consoles",
}


def unseen_uses(tree: Tree) -> tuple[str, ...]:
    """Return which uses of devices cannot be seen, and the file that would tell; empty if all can be seen.

    What only some processes or namespaces hide on a live machine is a claim on the device instead: see
    ``read_usage``.
    """
    return tuple(_unseen(tree))


def _unseen(tree: Tree) -> Iterator[str]:
    if not tree.is_live:  # no capture and no copy has the descriptors of all processes
        yield "open nodes (/proc/PID/fd)"
    if tree.is_complete:
        if not any(tree.exists(path) for path in _MOUNTS):
            yield f"mounts ({_MOUNTS[0]})"
        return
    # A copy can have an empty file: tar believes the size that the kernel gives a file in /proc, which is 0.
    if not any(mounts(tree)):
        yield f"mounts ({_MOUNTS[0]})"
    if not (tree.find(_SWAPS) or "").startswith(_SWAPS_HEADER):
        yield f"swap ({_SWAPS})"
    for what, path in _FILES.items():
        if not tree.exists(path):
            yield f"{what} ({path})"
    yield "addresses and routes"
