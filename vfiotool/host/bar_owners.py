"""What else has a BAR of a device: the names inside it in ``/proc/iomem`` and ``/proc/ioports``.

VFIO requests a BAR as a whole at its first use, and gets EBUSY if any part of it is busy already
(``__request_region()`` in kernel/resource.c). Frame buffers of the firmware and ramoops request memory
without a PCI driver, so no driver link names them. Source of the format: ``r_show()`` in kernel/resource.c.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile

from vfiotool.host.bars import ROM, read_bars
from vfiotool.host.era import detect_era
from vfiotool.host.groups import is_vfio_driver
from vfiotool.host.tree import Tree
from vfiotool.pci.address import is_full_address
from vfiotool.util.text import printable

_MAPS = ("/proc/iomem", "/proc/ioports")
_PLATFORM = "/sys/bus/platform/drivers"
_BOOTFB = "BOOTFB"
# What reserves ranges without a claim to use them (drivers/pnp/system.c, arch/x86/kernel/e820.c).
_PASSIVE = ("pnp ", "Reserved", "reserved")
# The platform driver behind the name of a range (drivers/video/fbdev, drivers/gpu/drm/sysfb).
_DRIVERS = {
    "efifb": "efi-framebuffer",
    "efidrm": "efi-framebuffer",
    "vesafb": "vesa-framebuffer",
    "vesadrm": "vesa-framebuffer",
    "simplefb": "simple-framebuffer",
    "simpledrm": "simple-framebuffer",
}


@dataclass(frozen=True, slots=True)
class BarOwner:
    """A name inside a BAR. ``bar`` is its index, ``None`` if this user may not see addresses."""

    bar: int | None
    name: str

    @property
    def part(self) -> str:
        """The BAR in words."""
        if self.bar is None:
            return "a BAR"
        return "the ROM" if self.bar == ROM else f"bar{self.bar}"


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of ``/proc/iomem``: a range with both ends included, at a depth of nesting."""

    depth: int
    start: int
    end: int
    name: str

    def has(self, other: _Entry) -> bool:
        """Return True if ``other``, which follows in the file, is inside.

        The kernel shows five levels (newer ones eight), and all deeper entries at the last of them. Without
        root all addresses are 0.
        """
        return other.depth > self.depth or (
            self.end > 0 and self.start <= other.start and other.end <= self.end
        )


def bar_owners(tree: Tree, address: str) -> tuple[BarOwner, ...]:
    """Return what has a part of a device's BARs, beside VFIO and the device itself. The reads take no lock.

    The device must be on no driver, or on a VFIO driver: any other driver owns its BARs, too.
    """
    starts = {bar.start: bar.index for bar in read_bars(tree, address)}
    found: dict[BarOwner, None] = {}
    for path in _MAPS:
        for own, inside in _inside(list(_entries(tree.find(path) or "")), address):
            names = [entry.name for entry in inside if not _is_harmless(entry.name)]
            names = [name for name in names if name != _BOOTFB or _is_busy(tree, names)]
            found |= dict.fromkeys(BarOwner(starts.get(own.start), printable(name)) for name in names)
    return tuple(found)


def device_ranges(text: str) -> str:
    """Return the ranges of PCI devices, and all inside them: what ``bar_owners`` needs of a file."""
    entries = list(_entries(text))
    kept = []
    own: _Entry | None = None
    for entry in entries:
        if own is None or not own.has(entry):
            own = entry if is_full_address(entry.name) else None
        if own is not None:
            kept.append(f"{' ' * entry.depth}{entry.start:08x}-{entry.end:08x} : {entry.name}\n")
    return "".join(kept)


def how_to_release(tree: Tree, name: str) -> str:
    """Return how to make an owner of a BAR give it back."""
    base = name.partition(":")[0]
    driver = _DRIVERS.get(base, "")
    for device in sorted(tree.find_names(f"{_PLATFORM}/{driver}")) if driver else ():
        if device.startswith(f"{driver}."):
            return f"echo {device} > {_PLATFORM}/{driver}/unbind, which ends the console on that display"
    if base == _BOOTFB:
        return "boot with initcall_blacklist=sysfb_init, without which no console shows on that display"
    if base.isidentifier() and tree.exists(f"/sys/module/{base}/initstate"):
        return f"modprobe -r {base}"
    return f"end what has it: {printable(name)} in /proc/iomem"


def _entries(text: str) -> Iterator[_Entry]:
    """Yield the entries of ``START-END : NAME`` lines, in hexadecimal; skip other lines."""
    for line in text.splitlines():
        ends, separator, name = line.partition(" : ")
        start, _, end = ends.strip().partition("-")
        try:
            entry = _Entry(len(line) - len(line.lstrip(" ")), int(start, 16), int(end, 16), name)
        except ValueError:
            continue
        if separator:
            yield entry


def _inside(entries: list[_Entry], address: str) -> Iterator[tuple[_Entry, list[_Entry]]]:
    """Yield each entry of a device, with the entries inside it."""
    for at, own in enumerate(entries):
        if own.name == address:
            inside = list(takewhile(own.has, entries[at + 1 :]))
            if not any(is_full_address(entry.name) for entry in inside):  # a PF's range for its VFs
                yield own, inside


def _is_harmless(name: str) -> bool:
    return is_vfio_driver(name) or name.startswith(_PASSIVE)


def _is_busy(tree: Tree, names: Iterable[str]) -> bool:
    """Return True if the firmware's frame buffer is what makes a BAR busy.

    Since 5.18 (commit c96898342c38) only its driver does, which has a name of its own inside.
    """
    return all(name == _BOOTFB for name in names) and not detect_era(tree).has_dma_owner
