"""The graphics card and the serial line on which the kernel shows its console."""

from __future__ import annotations

from collections.abc import Iterator

from vfiotool.host.attributes import device_path
from vfiotool.host.tree import Tree
from vfiotool.host.usage.claim import Claim
from vfiotool.host.usage.pci_parents import required_devices

Found = tuple[str, str, Claim, frozenset[str]]
"""Kind and name of a thing, what it is for, and the devices that carry it."""


def display_claims(tree: Tree, wanted: frozenset[str]) -> Iterator[Found]:
    """Yield what of the console hangs on the wanted devices."""
    for address in sorted(wanted):
        if tree.find(f"{device_path(address)}/boot_vga") == "1":
            claim = Claim("vga", "is the graphics card that the firmware started with")
            yield "display", address, claim, frozenset((address,))
    for kind, name, claim in (*_framebuffers(tree), *_serial_lines(tree)):
        yield "console", name, claim, required_devices(tree, kind, name)


def _framebuffers(tree: Tree) -> Iterator[tuple[str, str, Claim]]:
    """Yield the framebuffers where a console is bound to one: the kernel does not say to which."""
    if not any(_is_framebuffer_console(tree, name) for name in tree.find_names("/sys/class/vtconsole")):
        return
    for name in sorted(tree.find_names("/sys/class/graphics")):
        if name.startswith("fb") and name[2:].isdecimal():
            yield "graphics", name, Claim("console", f"shows the console, on framebuffer {name}")


def _is_framebuffer_console(tree: Tree, name: str) -> bool:
    folder = f"/sys/class/vtconsole/{name}"
    return tree.find(f"{folder}/bind") == "1" and "frame buffer" in (tree.find(f"{folder}/name") or "")


def _serial_lines(tree: Tree) -> Iterator[tuple[str, str, Claim]]:
    """Yield the lines that the kernel logs to (Documentation/filesystems/proc.rst, consoles)."""
    for line in (tree.find("/proc/consoles") or "").splitlines():
        name = line.split(" ", 1)[0]
        if name and tree.exists(f"/sys/class/tty/{name}"):
            yield "tty", name, Claim("console", f"carries the console {name}")
