"""The uses of network interfaces: addresses, routes, and interfaces built on them."""

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
from vfiotool.host.usage.ssh import connected_address

NET = "/sys/class/net"
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


def read_network(tree: Tree) -> Network | None:
    """Read the addresses and routes of the machine or the capture; ``None`` if they cannot be read."""
    if tree.root != "/":
        try:
            return Network.from_json(tree.find(CAPTURED) or "{}")
        except (ValueError, RecursionError):
            return None
    try:
        names = dict(socket.if_nameindex())
        return Network(_addresses(names), _routes(names))
    except OSError:
        return None


def interface_claims(tree: Tree, names: Iterable[str]) -> Mapping[str, tuple[Claim, ...]]:
    """Return the claims on each of these interfaces; an idle interface has no claims."""
    wanted = list(names)
    if not wanted:
        return {}
    network, remote = read_network(tree), connected_address(tree)
    return {name: tuple(_claims(tree, name, network, remote)) for name in wanted}


def _claims(tree: Tree, name: str, network: Network | None, remote: str | None) -> Iterator[Claim]:
    above = _above(tree, name)
    if network is None:
        if _is_up(tree, name):
            yield Claim("network", "is up; its addresses and routes cannot be read")
        network = Network()
    carrying = [one for one in (name, *above) if remote and remote in _hosts(network, one)]
    if carrying:
        through = "" if carrying[0] == name else f", through {carrying[0]}"
        yield Claim("ssh", f"carries this SSH connection ({remote}){through}")
    addresses = [text for text in network.addresses.get(name, ()) if not _is_link_local(text)]
    if addresses and _is_up(tree, name):
        yield Claim("network", f"is up with {some(addresses)}")
    if routes := network.routes.get(name):
        yield Claim("route", f"carries the route {some(routes)}")
    master = tree.find_link(f"{NET}/{name}/master")
    if master is not None:
        yield Claim("member", f"is a member of the {_kind(tree, master)} {master}")
    for upper in _uppers(tree, name):
        if upper != master:
            yield Claim("member", f"is below {upper}")


def _above(tree: Tree, name: str) -> list[str]:
    """Return all interfaces that are built on an interface, nearest first."""
    found: dict[str, None] = {}
    waiting = [name]
    while waiting:
        fresh = [upper for upper in _uppers(tree, waiting.pop(0)) if upper not in found]
        found.update(dict.fromkeys(fresh))
        waiting += fresh
    return list(found)


def _uppers(tree: Tree, name: str) -> list[str]:
    links = sorted(tree.find_names(f"{NET}/{name}"))
    return [link.removeprefix("upper_") for link in links if link.startswith("upper_")]


def _kind(tree: Tree, master: str) -> str:
    kinds = [kind for kind in ("bonding", "bridge") if tree.exists(f"{NET}/{master}/{kind}")]
    return {"bonding": "bond", "bridge": "bridge"}[kinds[0]] if kinds else "interface"


def _is_up(tree: Tree, name: str) -> bool:
    try:
        return bool(int(tree.find(f"{NET}/{name}/flags") or "0", 0) & _IFF_UP)
    except ValueError:
        return False


def _hosts(network: Network, name: str) -> list[str]:
    return [text.partition("/")[0] for text in network.addresses.get(name, ())]


def _is_link_local(text: str) -> bool:
    try:
        return ipaddress.ip_interface(text).is_link_local
    except ValueError:
        return False


def _addresses(names: Mapping[int, str]) -> _Texts:
    found: dict[str, tuple[str, ...]] = {}
    for address in rtnetlink.read_addresses():
        name = names.get(address.index)
        if name is not None:
            found[name] = (*found.get(name, ()), address.text)
    return found


def _routes(names: Mapping[int, str]) -> _Texts:
    found: dict[str, dict[str, None]] = {}
    for route in rtnetlink.read_routes():
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
