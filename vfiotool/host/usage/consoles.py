"""The graphics card and the serial port that show the console."""

from __future__ import annotations

from collections.abc import Iterator

from vfiotool.host.attributes import device_path
from vfiotool.host.tree import Tree
from vfiotool.host.usage.claim import Claim
from vfiotool.host.usage.pci_parents import required_devices

Found = tuple[str, str, Claim, frozenset[str]]
"""The kind and the name of a console or display, the claim, and the PCI devices that it needs."""


def display_claims(tree: Tree, wanted: frozenset[str]) -> Iterator[Found]:
    """Yield the displays on the wanted devices, and all consoles with the devices that they need."""
    for address in sorted(wanted):
        if tree.find(f"{device_path(address)}/boot_vga") == "1":
            claim = Claim("vga", "is the boot graphics card")
            yield "display", address, claim, frozenset((address,))
    for kind, name, claim in (*_framebuffers(tree), *_serial_lines(tree)):
        yield "console", name, claim, required_devices(tree, kind, name)


def _framebuffers(tree: Tree) -> Iterator[tuple[str, str, Claim]]:
    """Yield all framebuffers if a console is bound to any: the kernel does not say to which."""
    if not any(_is_framebuffer_console(tree, name) for name in tree.find_names("/sys/class/vtconsole")):
        return
    for name in sorted(tree.find_names("/sys/class/graphics")):
        if name.startswith("fb") and name[2:].isdecimal():
            yield "graphics", name, Claim("console", f"shows the console, on framebuffer {name}")


def _is_framebuffer_console(tree: Tree, name: str) -> bool:
    folder = f"/sys/class/vtconsole/{name}"
    return tree.find(f"{folder}/bind") == "1" and "frame buffer" in (tree.find(f"{folder}/name") or "")


def _serial_lines(tree: Tree) -> Iterator[tuple[str, str, Claim]]:
    """Yield the serial ports that the kernel logs to (Documentation/filesystems/proc.rst, consoles)."""
    for line in (tree.find("/proc/consoles") or "").splitlines():
        name = line.split(" ", 1)[0]
        if name and tree.exists(f"/sys/class/tty/{name}"):
            yield "tty", name, Claim("console", f"has the console {name}")
