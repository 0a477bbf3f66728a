"""The network interfaces of PCI devices, in this network namespace and in all others of the machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from vfiotool.host.tree import Tree
from vfiotool.host.usage.claim import Claim
from vfiotool.host.usage.link_sockets import read_text
from vfiotool.host.usage.namespaces import (
    NetworkNamespace,
    hidden_folders,
    machines_network,
    network_namespaces,
    own_network,
    why_processes_are_hidden,
)
from vfiotool.host.usage.network import NetworkView, interface_claims, read_view, view_through
from vfiotool.host.usage.pci_parents import required_by, required_devices
from vfiotool.host.usage.ssh import connected_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vfiotool.host.usage.network_files import NetworkFiles

NAMESPACE = "namespace"
"""The rule for what may be in another network namespace: back on its driver, it is in that of the machine."""

_NET = "/sys/class/net"
_UNSEEN = "a network namespace that cannot be inspected"


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface, or another thing of a network namespace: ``kind`` is its class in sysfs.

    The kind ``hidden`` stands for things of the class ``name`` that are out of sight. ``state`` is the
    interface's operstate. ``devices`` are the PCI devices that it needs.
    """

    kind: str
    name: str
    state: str | None
    claims: tuple[Claim, ...]
    devices: frozenset[str]


def find_interfaces(tree: Tree, wanted: frozenset[str]) -> list[Interface]:
    """Return the interfaces of these PCI devices, by name; those that are out of sight last.

    Looks into other network namespaces only if one has an interface of these devices, which takes root.
    """
    carried = {name: required_devices(tree, "net", name) for name in sorted(tree.find_names(_NET))}
    carried = {name: devices for name, devices in carried.items() if devices & wanted}
    hidden = {one.path: one.count for address in sorted(wanted) for one in hidden_folders(tree, address)}
    if not carried and not hidden:
        return []
    view, remote = read_view(tree), connected_address(tree)
    plain = tree.unrecorded  # hardware addresses are not for a capture
    here = [name for name in carried if view.has(plain, name)]
    home = _home_claims(tree)
    found = [_interface(tree, view, name, remote, home, carried[name]) for name in here]
    strangers = {name: carried[name] for name in carried if name not in here}
    if strangers or hidden:
        found += _Elsewhere(remote, {_place(name) for name in here}).find(strangers, hidden)
    return sorted(found, key=lambda one: (one.kind == "hidden", one.name))


def _home_claims(tree: Tree) -> tuple[Claim, ...]:
    """Return a claim if this process's network namespace is known not to be the machine's."""
    own, machines = own_network(tree), machines_network(tree)
    if None in (own, machines) or own == machines:
        return ()
    return (Claim(NAMESPACE, "is in the network namespace of this process, which is not that of pid 1"),)


def _place(name: str) -> str:
    return os.path.realpath(f"{_NET}/{name}")


class _Elsewhere:
    """Looks for interfaces in all network namespaces that this process may enter.

    ``here`` are the paths of the interfaces that are known to be in this process's namespace.
    """

    def __init__(self, remote: str | None, here: Iterable[str]) -> None:
        self._tree, self._remote = Tree(), remote  # not a tree that records: a capture has one namespace
        self._own = own_network(self._tree)
        self._machines = machines_network(self._tree) or self._own
        self._here = frozenset(here)
        self._found_at: set[str] = set()
        self._failure = ""

    def find(self, strangers: Mapping[str, frozenset[str]], hidden: Mapping[str, int]) -> Iterator[Interface]:
        """Yield the interfaces in other namespaces, and what stays out of sight.

        ``strangers`` are interfaces that sysfs shows here, and that are of another namespace. ``hidden`` has
        the number of the others by folder.
        """
        left = dict(hidden)
        folders = dict.fromkeys([*hidden, *(os.path.dirname(_place(name)) for name in strangers)])
        for folder, interface in self._visit(list(folders)):
            left[folder] = left.get(folder, 0) - (interface.name not in strangers)
            yield interface
        for name, devices in strangers.items():
            if _place(name) not in self._found_at:
                home = (Claim(NAMESPACE, f"is in {_UNSEEN}: {self._why()}"),)
                yield _interface(self._tree, NetworkView("/sys", None), name, self._remote, home, devices)
        for folder, count in left.items():
            if count > 0:
                yield self._unseen(folder, count)

    def _visit(self, folders: list[str]) -> Iterator[tuple[str, Interface]]:
        from vfiotool.host.usage.network_files import visit_networks  # here: few listings need ctypes

        namespaces = network_namespaces(self._tree)
        with contextlib.closing(visit_networks([(one.path, one.number) for one in namespaces])) as visits:
            for namespace, files in zip(namespaces, visits, strict=False):
                if isinstance(files, OSError):
                    self._failure = files.strerror or str(files)
                else:
                    yield from self._look_into(namespace, files, folders)

    def _look_into(
        self, namespace: NetworkNamespace, files: NetworkFiles, folders: list[str]
    ) -> Iterator[tuple[str, Interface]]:
        sysfs = f"/proc/self/fd/{files.sysfs}"
        view = None
        for folder in folders:
            for name in sorted(self._tree.find_names(sysfs + folder.removeprefix("/sys"))):
                path = f"{folder}/{name}"  # two namespaces may have an interface of one name there
                if namespace.number != self._own or path not in self._here:
                    self._found_at.add(path)
                    view = view or view_through(sysfs, files.rtnetlink, map(read_text, files.socket_lists))
                    yield folder, self._found(view, namespace, folder, name)

    def _found(self, view: NetworkView, namespace: NetworkNamespace, folder: str, name: str) -> Interface:
        home = () if namespace.number == self._machines else (Claim(NAMESPACE, f"is in {namespace.words}"),)
        kind, devices = os.path.basename(folder), required_by([f"{folder}/{name}"])
        if kind != "net":
            return Interface(kind, name, None, home, devices)
        return _interface(self._tree, view, name, self._remote, home, devices)

    def _unseen(self, folder: str, count: int) -> Interface:
        kind = os.path.basename(folder)
        what = "network interface" if kind == "net" else f"{kind} device"
        text = f"has {count} {what}{'s' * (count > 1)} in {_UNSEEN}: {self._why()}"
        return Interface("hidden", kind, None, (Claim(NAMESPACE, text),), required_by([folder]))

    def _why(self) -> str:
        if os.geteuid() != 0:
            return "only root may"
        return why_processes_are_hidden(self._tree) or self._failure or "no process in sight is in it"


def _interface(
    tree: Tree,
    view: NetworkView,
    name: str,
    remote: str | None,
    home: tuple[Claim, ...],
    devices: frozenset[str],
) -> Interface:
    claims = (*home, *interface_claims(tree, view, name, remote))
    state = tree.find(f"{view.sysfs}/class/net/{name}/operstate") or "unknown"
    return Interface("net", name, state, claims, devices)
