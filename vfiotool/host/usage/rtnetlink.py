"""Addresses, and routes of all tables, from the kernel through rtnetlink(7).

``/proc/net/route`` and ``/proc/net/ipv6_route`` show only a single table. Every length comes from outside the
process, so each is checked. This is not pyroute2 because ``show`` and ``bind`` read the network: importing
pyroute2 0.9 (or pyroute2-minimal) alone takes 15 to 25 times as long as starting Python.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_SECONDS = 2.0
_MOST_BYTES = 64 << 20  # the limit of a dump: all routes of the Internet fit
_CHUNK = 1 << 18

# include/uapi/linux/netlink.h and rtnetlink.h
_MESSAGE = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_LINK = struct.Struct("=BxHiII")  # family, type, interface, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix, flags, scope, interface
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, prefix, …, table at 4, protocol at 5, type at 7, flags
_NEXTHOP = struct.Struct("=HBBi")
_NUMBER = struct.Struct("=I")
_ERROR = struct.Struct("=i")
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_RTM_GETLINK, _RTM_GETADDR, _RTM_GETROUTE = 18, 22, 26
_IFLA_ADDRESS, _IFLA_IFNAME = 1, 3
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_MULTIPATH, _RTA_TABLE = 1, 4, 9, 15
_RTN_UNICAST = 1
_RTM_F_CLONED = 0x200
_TYPE_MASK = 0x3FFF

_Attributes = dict[int, bytes]


@dataclass(frozen=True, slots=True)
class Link:
    """The interface with the number ``index``; ``hardware`` is its address on the link (``52:54:00:…``)."""

    index: int
    name: str
    hardware: str


@dataclass(frozen=True, slots=True)
class Address:
    """An address (``192.0.2.2/24``) of the interface with the number ``index``."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Route:
    """A unicast route over the interfaces with these numbers: several for a multipath route.

    ``protocol`` is the origin of the route (``RTPROT_…``).
    """

    indexes: tuple[int, ...]
    destination: str
    table: int
    protocol: int


def open_rtnetlink() -> socket.socket:
    """Return a socket for this process's network namespace. The caller closes it.

    Raises:
        OSError: the kernel has no rtnetlink, or this process may not use it.
    """
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)


def read_links(link: socket.socket) -> list[Link]:
    """Return all interfaces of the network namespace of a socket.

    Raises:
        OSError: the kernel does not answer.
    """
    found = []
    for body in _dump(link, _RTM_GETLINK, socket.AF_UNSPEC, _LINK.size):
        attributes = _attributes(body[_LINK.size :])
        name = attributes.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode("utf-8", "replace")
        found.append(Link(_LINK.unpack_from(body)[2], name, attributes.get(_IFLA_ADDRESS, b"").hex(":")))
    return found


def read_addresses(link: socket.socket) -> list[Address]:
    """Return all addresses of the network namespace of a socket.

    Raises:
        OSError: the kernel does not answer.
    """
    found = []
    for body in _dump(link, _RTM_GETADDR, socket.AF_UNSPEC, _ADDRESS.size):
        family, prefix, _, _, index = _ADDRESS.unpack_from(body)
        attributes = _attributes(body[_ADDRESS.size :])
        text = _host(family, attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS) or b"")
        if text is not None:
            found.append(Address(index, f"{text}/{prefix}"))
    return found


def read_routes(link: socket.socket) -> Iterator[Route]:
    """Yield the unicast routes of the network namespace of a socket, IPv4 and IPv6, of every table.

    A dump larger than 64 MiB ends early.

    Raises:
        OSError: the kernel does not answer, or takes longer than two seconds for a part of the answer.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        for body in _dump(link, _RTM_GETROUTE, family, _ROUTE.size):
            route = parse_route(body)
            if route is not None:
                yield route


def parse_route(body: bytes) -> Route | None:
    """Parse the body of an RTM_NEWROUTE, at least 12 bytes; return ``None`` unless it is a unicast route."""
    family, prefix, _, _, table, protocol, _, kind, flags = _ROUTE.unpack_from(body)
    if kind != _RTN_UNICAST or flags & _RTM_F_CLONED:
        return None
    attributes = _attributes(body[_ROUTE.size :])
    network = _host(family, attributes[_RTA_DST]) if _RTA_DST in attributes else None
    return Route(
        indexes=tuple(dict.fromkeys([*_numbers(attributes, _RTA_OIF), *_hops(attributes)])),
        destination=f"{network}/{prefix}" if network and prefix else "default",
        table=next(_numbers(attributes, _RTA_TABLE), table),
        protocol=protocol,
    )


def _numbers(attributes: _Attributes, kind: int) -> Iterator[int]:
    if len(value := attributes.get(kind, b"")) == 4:
        yield _NUMBER.unpack(value)[0]


def _hops(attributes: _Attributes) -> Iterator[int]:
    """Yield the interfaces of a multipath route (``struct rtnexthop``)."""
    rest = attributes.get(_RTA_MULTIPATH, b"")
    while len(rest) >= _NEXTHOP.size:
        length, _, _, index = _NEXTHOP.unpack_from(rest)
        if length < _NEXTHOP.size:
            return
        yield index
        rest = rest[_aligned(length) :]


def _dump(link: socket.socket, request: int, family: int, least: int) -> Iterator[bytes]:
    """Request a dump of all objects of a kind, and yield the body of each message."""
    sequence = request << 8 | family  # tells this dump from the rest of one that ended early
    body = bytes([family]).ljust(max(_LINK.size, _ADDRESS.size, _ROUTE.size), b"\0")
    size = _MESSAGE.size + len(body)
    link.settimeout(_SECONDS)
    link.send(_MESSAGE.pack(size, request, _NLM_F_REQUEST | _NLM_F_DUMP, sequence, 0) + body)
    received = 0
    while received < _MOST_BYTES:
        chunk = link.recv(_CHUNK)
        received += len(chunk)
        for kind, number, content in messages(chunk):
            if number != sequence:
                continue
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                raise OSError(_error(content), "rtnetlink")
            if len(content) >= least:
                yield content


def messages(chunk: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield the type, the sequence number and the body of each message; stop at a truncated message."""
    while len(chunk) >= _MESSAGE.size:
        length, kind, _, sequence, _ = _MESSAGE.unpack_from(chunk)
        if not _MESSAGE.size <= length <= len(chunk):
            return
        yield kind, sequence, chunk[_MESSAGE.size : length]
        chunk = chunk[_aligned(length) :]


def _attributes(content: bytes) -> _Attributes:
    found = {}
    while len(content) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(content)
        if not _ATTRIBUTE.size <= length <= len(content):
            break
        found[kind & _TYPE_MASK] = content[_ATTRIBUTE.size : length]
        content = content[_aligned(length) :]
    return found


def _error(content: bytes) -> int:
    return -_ERROR.unpack_from(content)[0] if len(content) >= _ERROR.size else errno.EBADMSG


def _host(family: int, raw: bytes) -> str | None:
    if (family, len(raw)) not in ((socket.AF_INET, 4), (socket.AF_INET6, 16)):
        return None
    return str(ipaddress.ip_address(raw))


def _aligned(length: int) -> int:
    return (length + 3) & ~3
