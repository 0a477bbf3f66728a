"""Two vfiotools at once never change the same IOMMU group: a lock for each group, held while one works."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Iterator

from vfiotool.binding.state_dir import open_own, read_own, unusable
from vfiotool.errors import BlockedError
from vfiotool.host.attributes import device_path
from vfiotool.host.tree import Tree

LOCK_SECONDS = 60.0
_POLL_SECONDS = 0.02


def lock_keys(tree: Tree, addresses: Iterable[str]) -> frozenset[str]:
    """Return what must be locked to change these devices: their groups, those of the VFs' PFs too.

    A device without a group is locked by its own address.
    """
    keys = set()
    for address in addresses:
        physfn = tree.find_link(f"{device_path(address)}/physfn")
        for one in (address, physfn):
            if one is not None:
                group = tree.find_link(f"{device_path(one)}/iommu_group")
                keys.add(one if group is None else f"group-{group}")
    return frozenset(keys)


@contextlib.contextmanager
def locked(folder: str, keys: Iterable[str], *, timeout: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold locks, always taken in the same order; whoever is killed lets go of them.

    Threads of one process are kept apart like processes. ``timeout`` is in seconds.

    Raises:
        BlockedError: another vfiotool did not let go in time.
        VfioToolError: the folder cannot be used.
    """
    with contextlib.ExitStack() as held:
        deadline = time.monotonic() + timeout
        for key in sorted(keys):
            path = f"{folder}/{key}"
            with unusable(folder):
                fd = open_own(path, os.O_RDWR | os.O_CREAT)
            held.callback(os.close, fd)
            _take(fd, path, deadline)
        yield


def _take(fd: int, path: str, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise _busy(path) from None
            time.sleep(_POLL_SECONDS)  # flock has no timeout of its own
            continue
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return


def _busy(path: str) -> BlockedError:
    pid = read_own(path).strip() or "unknown"
    return BlockedError(
        f"another vfiotool (pid {pid}) is changing {os.path.basename(path).replace('-', ' ')}",
        holders=[f"pid {pid} (vfiotool)"],
        hint="wait until it is done, then try again",
    )
