"""The link of a device, by the kernel's attributes: its speed and width, beside what the device can do.

Source: ``current_link_speed_show()`` and its siblings in drivers/pci/pci-sysfs.c.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vfiotool.host.config_space import is_whole
from vfiotool.pci.acs import FACING_DOWN, WITHOUT_LINK, port_type
from vfiotool.pci.config_space import header_type

ATTRIBUTES = ("current_link_speed", "current_link_width", "max_link_speed", "max_link_width")

_SPEED = re.compile(r"([0-9]{1,3}(?:\.[0-9])?) GT/s")


def link_of(attributes: Mapping[str, str], config: bytes) -> Mapping[str, str]:
    """Return the attributes if the device has a link: an integrated endpoint has none, whatever it says.

    Without root the kind of the device is out of sight: a link without any known speed is left out.
    """
    if is_linkless(config):
        return {}
    speeds = [attributes.get(name, "") for name in ("current_link_speed", "max_link_speed")]
    return attributes if any(map(_SPEED.match, speeds)) else {}


def is_linkless(config: bytes) -> bool:
    """Return True if the registers say that the device is a part of the root complex, without a link."""
    return is_whole(config) and port_type(config) in WITHOUT_LINK


def downgraded(link: Mapping[str, str], config: bytes) -> tuple[str, ...] | None:
    """Return what of a link is below what the device can do: ``speed``, ``width``; ``None`` if unknown.

    A port that faces down has the speed and the width of the device below it, which is no fault.
    """
    if not link:
        return ()
    if is_whole(config):
        if port_type(config) in FACING_DOWN:
            return ()
    elif header_type(config) != 0:
        return None  # a bridge, or out of sight: it may be a port that faces down
    numbers = {
        part: (read(link.get(f"current_link_{part}", "")), read(link.get(f"max_link_{part}", "")))
        for part, read in (("speed", _speed), ("width", _width))
    }
    if any(None in pair for pair in numbers.values()):
        return None
    return tuple(part for part, (now, most) in numbers.items() if (now or 0) < (most or 0))


def _speed(text: str) -> float | None:
    found = _SPEED.match(text)
    return float(found[1]) if found else None


def _width(text: str) -> float | None:
    """Return the lanes of a width; ``None`` for 0, a link that is down, and 255, which is unknown."""
    return int(text) if text.isdecimal() and text.isascii() and 0 < int(text[:4]) < 64 else None
