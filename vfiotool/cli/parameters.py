"""What the verbs for registers take: numbers, regions, widths; and how they print what they read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem

from vfiotool.errors import UsageError

_MOST_INDEX = 0xFFFFFFFF


def number(text: str) -> int:
    """Parse a number in any notation of Python; registers have no negative ones."""
    try:
        value = int(text, 0)
    except ValueError:
        raise click.BadParameter(f"'{text}' is not a number, such as 4096 or 0x1000") from None
    if value < 0:
        raise click.BadParameter(f"{text} is negative")
    return value


def region_index(text: str) -> int:
    """Parse a region's name or number to the index that VFIO has for it."""
    from vfiotool.vfio.uapi import PciRegion

    if text.upper() in PciRegion.__members__:
        return PciRegion[text.upper()]
    try:
        index = number(text)
    except click.BadParameter:
        index = -1
    if not 0 <= index <= _MOST_INDEX:
        names = ", ".join(name.lower() for name in PciRegion.__members__)
        raise click.BadParameter(f"'{text}' is not a region: {names}, or a number")
    return index


def region_name(index: int) -> str:
    """Return what ``region_index`` takes for a region: its name, or its number where it has none."""
    from vfiotool.vfio.uapi import PciRegion

    return PciRegion(index).name.lower() if index in PciRegion.__members__.values() else str(index)


def _modes(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
    from vfiotool.vfio.iommu.protocol import IommuMode
    from vfiotool.vfio.iommu.selection import AUTO

    names = [AUTO, *(mode.value for mode in IommuMode)]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


width_option = click.option(
    "--width", type=click.Choice([8, 16, 32, 64]), help="How many bits each access has; 32 unless given."
)
iommu_option = click.option(
    "--iommu",
    "mode",
    default="auto",
    show_default=True,
    metavar="MODE",
    shell_complete=_modes,
    help="Through which of the kernel's IOMMU interfaces the device is opened.",
)

WIDTH = 32
"""Bits of an access where none are given."""


def require_aligned(offset: int, width: int) -> None:
    """Refuse an offset that no access of this width can have.

    Raises:
        UsageError: it is no multiple of the width.
    """
    if offset % (width // 8):
        fitting = next(one for one in (32, 16, 8) if offset % (one // 8) == 0)
        raise UsageError(
            f"offset {offset:#x} is no multiple of {width} bits", hint=f"--width {fitting} fits it"
        )


def print_registers(offset: int, values: Iterable[int], width: int) -> None:
    """Print a line for each of the registers from an offset on."""
    for at, value in enumerate(values):
        click.echo(f"{offset + at * width // 8:#010x}: {value:#0{width // 4 + 2}x}")
