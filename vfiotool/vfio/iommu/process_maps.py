"""What this process has mapped: which of its addresses are registers of a device, and not memory."""

from __future__ import annotations

import re

from vfiotool.host.tree import Tree

_MAPS = "/proc/self/maps"  # proc_pid_maps(5)
_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ +(.+)")
_REGISTERS = re.compile(r"anon_inode:\[vfio-device\]|/dev/vfio/devices/vfio\d+|/sys/.*/resource\d(_wc)?")


def has_registers(address: int, size: int) -> bool:
    """Return True if a part of a range is mapped from a device: by VFIO, or by the files of sysfs."""
    try:
        lines = Tree().read(_MAPS).splitlines()
    except OSError:
        return False  # what cannot be read explains nothing
    for line in lines:
        found = _LINE.match(line)
        if found is None or not _REGISTERS.fullmatch(found[3]):
            continue
        if int(found[1], 16) < address + size and address < int(found[2], 16):
            return True
    return False
