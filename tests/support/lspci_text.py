"""What ``lspci -vvv`` prints, as a tree: devices, the lines of their headers, and their capabilities."""

from __future__ import annotations

import re
from dataclasses import dataclass

_CAPABILITY = re.compile(r"Capabilities: \[([0-9a-f]+)(?: v(\d+))?\] ?(.*)")


@dataclass(frozen=True, slots=True)
class Section:
    """A capability: its offset, its version if it is an extended one, and its text, with single spaces."""

    offset: int
    version: int | None
    text: str

    @property
    def is_extended(self) -> bool:
        """Return True if it is in extended configuration space."""
        return self.version is not None

    @property
    def is_chain_error(self) -> bool:
        """Return True if it is no capability: the chain of pointers goes wrong here."""
        return self.text.startswith(("<chain looped>", "<chain broken>"))

    @property
    def is_unknown(self) -> bool:
        """Return True if lspci does not know what it is."""
        return self.text.startswith(("Capability ID 0x", "Extended Capability ID 0x"))


@dataclass(frozen=True, slots=True)
class Device:
    """A device: the text of its header, from its name on, and its capabilities in the order of lspci."""

    address: str
    header: str
    sections: tuple[Section, ...]


def parse(text: str) -> dict[str, Device]:
    """Return the devices of ``lspci -D -vvv`` by address."""
    # A capability that lspci has nothing to say about has no end of line.
    lines = text.replace("] \tCapabilities:", "]\n\tCapabilities:")
    paragraphs = re.findall(r"^[0-9a-f]{4,}:.*\n(?:\t.*\n)*", lines, re.MULTILINE)
    return {device.address: device for device in map(_device, paragraphs)}


def _device(paragraph: str) -> Device:
    first, *lines = paragraph.splitlines()
    address, _, name = first.partition(" ")
    blocks: list[list[str]] = [["Device: " + name]]
    for line in lines:
        if _CAPABILITY.match(line.strip()):
            blocks.append([])
        # The lines about the driver come after the capabilities, and belong to the device.
        blocks[0 if line.startswith("\tKernel ") else -1].append(line)
    header, *sections = (" ".join(" ".join(block).split()) for block in blocks)
    return Device(address, header, tuple(map(_section, sections)))


def _section(text: str) -> Section:
    found = _CAPABILITY.match(text)
    assert found is not None, text
    return Section(int(found[1], 16), None if found[2] is None else int(found[2]), found[3])
