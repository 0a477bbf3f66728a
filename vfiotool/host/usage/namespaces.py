"""What namespaces keep out of sight: network interfaces that sysfs hides, and processes that /proc hides.

A network namespace hides its interfaces from all others (network_namespaces(7)), and a PID namespace hides
the processes outside (pid_namespaces(7)). A process cannot look into the PID namespace above its own.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from vfiotool.host.attributes import device_path
from vfiotool.host.pci_domains import is_host_bridge
from vfiotool.host.tree import Tree
from vfiotool.host.usage.mounts import mounts
from vfiotool.pci.address import is_full_address

MAY_NOT_INSPECT = "this user may not inspect all processes"
NAMESPACE_ALONE = "/proc shows the processes of a PID namespace alone"

_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h, since Linux 3.8
_NETWORK = re.compile(r"net:\[([0-9]{1,20})\]")
_OWN = "/proc/self/ns/net"
_INITS = "/proc/1/ns/net"
_OF_LINKS = 2  # a folder in sysfs has a link for itself, one in its parent, and one from each folder in it
_MOST_FOLDERS = 20_000
# Large folders in which no device is.
_WITHOUT_DEVICES = frozenset({"integrity", "mq", "msi_irqs", "power", "queue", "queues", "statistics"})


@dataclass(frozen=True, slots=True)
class NetworkNamespace:
    """A network namespace: its inode number, a file that setns(2) takes, and words for the user."""

    number: int
    path: str
    words: str


@dataclass(frozen=True, slots=True)
class HiddenFolder:
    """A folder in sysfs that has ``count`` things of network namespaces that sysfs does not show here."""

    path: str
    count: int


def hidden_folders(tree: Tree, address: str) -> list[HiddenFolder]:
    """Return the folders below a device with interfaces of network namespaces that are out of sight.

    Works without root, on a live machine alone. The number of links of a folder counts the folders of all
    namespaces; its list has those of one (``kernfs_dir_pos()``, ``kernfs_refresh_inode()`` in fs/kernfs).
    """
    if tree.root != "/":
        return []
    suspected = [path for path in _folders(os.path.realpath(device_path(address))) if _count_hidden(path)]
    # Read again: a device may have come between the number and the list.
    return [HiddenFolder(path, count) for path in suspected if (count := _count_hidden(path))]


def why_processes_are_hidden(tree: Tree) -> str:
    """Return why /proc does not show all processes of a live machine, or an empty text if it does."""
    if tree.root != "/" or not os.path.exists("/proc/self/ns/pid"):  # a kernel without PID namespaces
        return ""
    try:
        number = os.stat("/proc/1/ns/pid").st_ino
    except PermissionError:
        return MAY_NOT_INSPECT
    except OSError:
        return "/proc does not show all processes"
    return "" if number == _INITIAL_PID_NAMESPACE else NAMESPACE_ALONE


def own_network(tree: Tree) -> int | None:
    """Return the number of this process's network namespace, ``None`` if unknown."""
    return _number(_OWN) if tree.root == "/" else None


def machines_network(tree: Tree) -> int | None:
    """Return the number of the network namespace of the machine's pid 1, ``None`` if unknown."""
    return None if tree.root != "/" or why_processes_are_hidden(tree) else _number(_INITS)


def network_namespaces(tree: Tree) -> list[NetworkNamespace]:
    """Return the network namespaces in sight: of all processes, and those with a name, as of ``ip netns``."""
    found: dict[int, NetworkNamespace] = {}
    for number, path, words in (*_of_init(), *_mounted(tree), *_of_processes(tree)):
        found.setdefault(number, NetworkNamespace(number, path, words))
    return list(found.values())


def _of_init() -> Iterator[tuple[int, str, str]]:
    if (number := _number(_INITS)) is not None:
        yield number, _INITS, "the network namespace of pid 1"


def _mounted(tree: Tree) -> Iterator[tuple[int, str, str]]:
    """Yield the namespaces that are mounted on a file (``nsfs``)."""
    for mount in mounts(tree):
        namespace = _NETWORK.fullmatch(mount.root)
        if namespace is not None:
            words = f"the network namespace {os.path.basename(mount.point)}"
            yield int(namespace[1]), f"/proc/{mount.process}/root{mount.point}", words


def _of_processes(tree: Tree) -> Iterator[tuple[int, str, str]]:
    for pid in sorted(filter(str.isdecimal, tree.find_names("/proc")), key=int):
        path = f"/proc/{pid}/ns/net"
        with contextlib.suppress(OSError):  # it has exited, or this user may not inspect it
            namespace = _NETWORK.fullmatch(os.readlink(path))
            if namespace is not None:
                comm = tree.find(f"/proc/{pid}/comm")
                yield int(namespace[1]), path, f"the network namespace of pid {pid} ({comm})"


def _number(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except OSError:
        return None


def _folders(top: str) -> Iterator[str]:
    """Yield the folders below a device, without those of other PCI devices; but with those of a PCI domain
    that the device makes."""
    waiting = [(top, False)]
    for _ in range(_MOST_FOLDERS):
        if not waiting:
            return
        folder, in_domain = waiting.pop()
        yield folder
        for name in _subfolders(folder):
            if name not in _WITHOUT_DEVICES and (in_domain or not is_full_address(name)):
                waiting.append((f"{folder}/{name}", in_domain or is_host_bridge(name)))


def _subfolders(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:  # removed meanwhile
        return []


def _count_hidden(path: str) -> int:
    try:
        links = os.stat(path).st_nlink
    except OSError:
        return 0
    return max(0, links - _OF_LINKS - len(_subfolders(path)))
