"""Sockets on the link of a network interface: packet sockets and PPPoE sessions, which need no address.

Source: ``/proc/net/packet`` (``packet_seq_show()`` in net/packet/af_packet.c) and ``/proc/net/pppoe``
(``pppoe_seq_show()`` in drivers/net/ppp/pppoe.c). A sniffer, a DHCP client or an LLDP agent has the first.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

LISTS = ("packet", "pppoe")
"""The files in ``/proc/self/net``; each exists once its protocol is loaded."""

_HEADERS = {"packet": "sk", "pppoe": "Id"}
_PACKET_FIELDS, _INDEX, _INODE = 9, 4, 8
_PPPOE_FIELDS, _DEVICE = 3, 2


@dataclass(frozen=True, slots=True)
class LinkSockets:
    """The inode numbers of packet sockets by the number of their interface, and the interfaces with a PPPoE
    session by name. A packet socket that is bound to no interface is left out."""

    packets: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    sessions: frozenset[str] = frozenset()


def parse_link_sockets(texts: Iterable[str]) -> LinkSockets:
    """Parse the content of the files in ``LISTS``, which their headers tell apart; skip malformed lines."""
    packets: dict[int, tuple[str, ...]] = {}
    sessions = set()
    for text in texts:
        header, *lines = text.splitlines() or [""]
        first = header.split()[:1]
        for fields in map(str.split, lines):
            if first == [_HEADERS["packet"]] and len(fields) == _PACKET_FIELDS:
                index, inode = fields[_INDEX], fields[_INODE]
                if _is_number(index) and _is_number(inode) and int(index):
                    packets[int(index)] = (*packets.get(int(index), ()), inode)
            elif first == [_HEADERS["pppoe"]] and len(fields) == _PPPOE_FIELDS:
                sessions.add(fields[_DEVICE])
    return LinkSockets(packets, frozenset(sessions))


def read_text(fd: int) -> str:
    """Return the rest of an open file of /proc; empty if it cannot be read."""
    content = b""
    try:
        while chunk := os.read(fd, 1 << 16):
            content += chunk
    except OSError:
        return ""
    return content.decode("utf-8", "replace")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= len(str(1 << 64))
