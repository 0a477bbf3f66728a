"""A lock for each IOMMU group, so that only one vfiotool at a time changes its devices."""

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
    """Return the keys to lock before these devices are changed: their groups, and the groups of VFs' PFs.

    The key of a device without a group is its own address.
    """
    addresses = [*addresses]
    groups = {
        address: tree.find_link(f"{device_path(address)}/iommu_group")
        for address in {*addresses, *pfs_of(tree, addresses)}
    }
    return frozenset(address if group is None else f"group-{group}" for address, group in groups.items())


def pfs_of(tree: Tree, addresses: Iterable[str]) -> set[str]:
    """Return the PFs of those devices that are VFs."""
    links = (tree.find_link(f"{device_path(address)}/physfn") for address in addresses)
    return {pf for pf in links if pf is not None}


@contextlib.contextmanager
def locked(folder: str, keys: Iterable[str], *, timeout: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the locks of ``keys``, which are files in ``folder``, until the ``with`` block ends.

    Locks are taken in a fixed order. The kernel releases the locks of a process that is killed. Threads of
    one process exclude each other as processes do. ``timeout`` is in seconds.

    Raises:
        BlockedError: another vfiotool did not release a lock in time.
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
            time.sleep(_POLL_SECONDS)  # flock() has no timeout
            continue
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return


def _busy(path: str) -> BlockedError:
    pid = read_own(path).strip() or "unknown"
    return BlockedError(
        f"another vfiotool (pid {pid}) is changing {os.path.basename(path).replace('-', ' ')}",
        holders=[f"pid {pid} (vfiotool)"],
        hint="wait until that process has ended, then try again",
    )
