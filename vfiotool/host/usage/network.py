"""The uses of the interfaces of a network namespace: addresses, routes, and interfaces built on them."""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vfiotool.host.tree import Tree
from vfiotool.host.usage import rtnetlink
from vfiotool.host.usage.claim import Claim, some
from vfiotool.host.usage.link_sockets import LISTS, LinkSockets, parse_link_sockets
from vfiotool.host.usage.openers import find_openers
from vfiotool.host.usage.rtnetlink import Link

CAPTURED = "/vfiotool/network.json"
"""The file in a capture that has the addresses and routes, which a live machine gives through rtnetlink."""

_IFF_UP = 0x1
_RTPROT_KERNEL = 2  # routes that the kernel adds with an address
_MAIN_TABLE = 254
_MOST_ROUTES = 16  # the limit for an interface: a router can have a million
_NO_ROUTES = tuple(
    map(ipaddress.ip_network, ("fe80::/10", "ff00::/8", "169.254.0.0/16"))
)  # every interface has these

_Texts = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Network:
    """Addresses (``192.0.2.2/24``) and routes (``default``, ``10.0.0.0/8 in table 100``) by the name of the
    interface. Routes that the kernel adds with an address, or for every interface, are left out."""

    addresses: _Texts = field(default_factory=dict)
    routes: _Texts = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the network as JSON, for a capture."""
        return json.dumps({"addresses": self.addresses, "routes": self.routes})

    @classmethod
    def from_json(cls, text: str) -> Network:
        """Parse the result of ``to_json``.

        Raises:
            ValueError: the text is not a network in JSON.
        """
        document = json.loads(text)
        if not isinstance(document, dict):
            raise ValueError("not a network")
        return cls(_texts(document.get("addresses")), _texts(document.get("routes")))


@dataclass(frozen=True, slots=True)
class NetworkView:
    """A network namespace: the folder of its sysfs, and its interfaces, addresses and routes.

    ``links`` are the interfaces by name. ``network`` and ``links`` are ``None`` if they cannot be read;
    ``links`` also for a capture, which has no ``sockets`` either.
    """

    sysfs: str
    network: Network | None
    links: Mapping[str, Link] | None = None
    sockets: LinkSockets = field(default_factory=LinkSockets)

    def has(self, tree: Tree, name: str) -> bool:
        """Return True unless the interface that sysfs shows is of another network namespace."""
        if self.links is None:
            return True
        folder, link = f"{self.sysfs}/class/net/{name}", self.links.get(name)
        shown = tree.find(f"{folder}/ifindex"), tree.find(f"{folder}/address")
        return link is not None and shown == (str(link.index), link.hardware)


def read_network(tree: Tree) -> Network | None:
    """Read the addresses and routes of the machine or the capture; ``None`` if they cannot be read."""
    return read_view(tree).network


def read_view(tree: Tree) -> NetworkView:
    """Read the network namespace of this process, or the network of a capture; another copy has none."""
    if not tree.is_complete:
        return NetworkView("/sys", None)
    if tree.root != "/":
        try:
            return NetworkView("/sys", Network.from_json(tree.find(CAPTURED) or "{}"))
        except (ValueError, RecursionError):
            return NetworkView("/sys", None)
    try:
        texts = [tree.find(f"/proc/self/net/{name}") or "" for name in LISTS]
        with rtnetlink.open_rtnetlink() as link:
            return view_through("/sys", link, texts)
    except OSError:
        return NetworkView("/sys", None)


def view_through(sysfs: str, link: socket.socket, socket_lists: Iterable[str] = ()) -> NetworkView:
    """Read the network namespace of a socket for rtnetlink.

    ``sysfs`` is the folder of its sysfs, ``socket_lists`` the content of its ``link_sockets.LISTS``.
    """
    try:
        links = rtnetlink.read_links(link)
        names = {one.index: one.name for one in links}
        network = Network(_addresses(link, names), _routes(link, names))
    except OSError:
        return NetworkView(sysfs, None)
    return NetworkView(sysfs, network, {one.name: one for one in links}, parse_link_sockets(socket_lists))


def interface_claims(tree: Tree, view: NetworkView, name: str, remote: str | None) -> Iterator[Claim]:
    """Yield the claims on an interface of a namespace; ``remote`` is the address of this SSH connection."""
    net = f"{view.sysfs}/class/net"
    network, above, is_up = view.network, _above(tree, net, name), _is_up(tree, net, name)
    if network is None:
        if is_up:
            yield Claim("network", "is up; its addresses and routes cannot be read")
        network = Network()
    carrying = [one for one in (name, *above) if remote and remote in _hosts(network, one)]
    if carrying:
        through = "" if carrying[0] == name else f", through {carrying[0]}"
        yield Claim("ssh", f"carries this SSH connection ({remote}){through}")
    addresses = [text for text in network.addresses.get(name, ()) if not _is_link_local(text)]
    if addresses and is_up:
        yield Claim("network", f"is up with {some(addresses)}")
    if is_up:
        yield from _socket_claims(tree, view, name)
    if routes := network.routes.get(name):
        yield Claim("route", f"carries the route {some(routes)}")
    master = tree.find_link(f"{net}/{name}/master")
    if master is not None:
        yield Claim("member", f"is a member of the {_kind(tree, net, master)} {master}")
    for upper in _uppers(tree, net, name):
        if upper != master:
            yield Claim("member", f"is below {upper}")


def _socket_claims(tree: Tree, view: NetworkView, name: str) -> Iterator[Claim]:
    """Yield the claims of sockets that need no address, such as those of a sniffer."""
    link = (view.links or {}).get(name)
    inodes = () if link is None else view.sockets.packets.get(link.index, ())
    if inodes:
        owners = find_openers(tree, [f"socket:[{inode}]" for inode in inodes]).processes.values()
        who = some(list(dict.fromkeys(process for processes in owners for process in processes)))
        yield Claim("network", f"is up with a packet socket of {who or 'an unknown process'}")
    if name in view.sockets.sessions:
        yield Claim("network", "carries a PPPoE session")


def _above(tree: Tree, net: str, name: str) -> list[str]:
    """Return all interfaces that are built on an interface, nearest first."""
    found: dict[str, None] = {}
    waiting = [name]
    while waiting:
        fresh = [upper for upper in _uppers(tree, net, waiting.pop(0)) if upper not in found]
        found.update(dict.fromkeys(fresh))
        waiting += fresh
    return list(found)


def _uppers(tree: Tree, net: str, name: str) -> list[str]:
    links = sorted(tree.find_names(f"{net}/{name}"))
    return [link.removeprefix("upper_") for link in links if link.startswith("upper_")]


def _kind(tree: Tree, net: str, master: str) -> str:
    kinds = [kind for kind in ("bonding", "bridge") if tree.exists(f"{net}/{master}/{kind}")]
    return {"bonding": "bond", "bridge": "bridge"}[kinds[0]] if kinds else "interface"


def _is_up(tree: Tree, net: str, name: str) -> bool:
    try:
        return bool(int(tree.find(f"{net}/{name}/flags") or "0", 0) & _IFF_UP)
    except ValueError:
        return False


def _hosts(network: Network, name: str) -> list[str]:
    return [text.partition("/")[0] for text in network.addresses.get(name, ())]


def _is_link_local(text: str) -> bool:
    try:
        return ipaddress.ip_interface(text).is_link_local
    except ValueError:
        return False


def _addresses(link: socket.socket, names: Mapping[int, str]) -> _Texts:
    found: dict[str, tuple[str, ...]] = {}
    for address in rtnetlink.read_addresses(link):
        name = names.get(address.index)
        if name is not None:
            found[name] = (*found.get(name, ()), address.text)
    return found


def _routes(link: socket.socket, names: Mapping[int, str]) -> _Texts:
    found: dict[str, dict[str, None]] = {}
    for route in rtnetlink.read_routes(link):
        if route.protocol == _RTPROT_KERNEL or _comes_with_every_link(route.destination):
            continue
        table = "" if route.table == _MAIN_TABLE else f" in table {route.table}"
        for index in route.indexes:
            routes = found.setdefault(names.get(index, ""), {})
            if len(routes) < _MOST_ROUTES:
                routes[f"{route.destination}{table}"] = None
    return {name: tuple(routes) for name, routes in found.items() if name}


def _comes_with_every_link(destination: str) -> bool:
    if destination == "default":
        return False
    network: Any = ipaddress.ip_network(destination, strict=False)
    return any(network.version == one.version and network.subnet_of(one) for one in _NO_ROUTES)


def _texts(value: object) -> _Texts:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(texts, list) for texts in value.values()):
        raise ValueError("not a network")
    return {str(name): tuple(map(str, texts)) for name, texts in value.items()}
