"""Parameters of the register verbs (numbers, regions, widths), and the output of register values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem

from vfiotool.errors import UsageError

_MOST_INDEX = 0xFFFFFFFF


def number(text: str) -> int:
    """Parse a number that is not negative, in any integer notation of Python."""
    try:
        value = int(text, 0)
    except ValueError:
        raise click.BadParameter(f"'{text}' is not a number (examples: 4096, 0x1000)") from None
    if value < 0:
        raise click.BadParameter(f"{text} is negative")
    return value


def region_index(text: str) -> int:
    """Return the VFIO index of the region with this name or number."""
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
    """Return the name of a region, or its number if it has no name; ``region_index`` accepts both."""
    from vfiotool.vfio.uapi import PciRegion

    return PciRegion(index).name.lower() if index in PciRegion.__members__.values() else str(index)


def _modes(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
    from vfiotool.vfio.iommu.protocol import IommuMode
    from vfiotool.vfio.iommu.selection import AUTO

    names = [AUTO, *(mode.value for mode in IommuMode)]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


width_option = click.option(
    "--width", type=click.Choice([8, 16, 32, 64]), help="Width of each access in bits; 32 by default."
)
iommu_option = click.option(
    "--iommu",
    "mode",
    default="auto",
    show_default=True,
    metavar="MODE",
    shell_complete=_modes,
    help="IOMMU interface of the kernel through which the device is opened.",
)
vf_token_option = click.option(
    "--vf-token",
    type=click.UUID,
    metavar="UUID",
    help="VF token, for a VF whose PF is on vfio-pci too.",
)

WIDTH = 32
"""Default width of an access, in bits."""


def require_aligned(offset: int, width: int) -> None:
    """Refuse an offset that is not aligned to the width (bits) of an access.

    Raises:
        UsageError: the offset is not a multiple of the width.
    """
    if offset % (width // 8):
        fitting = next(one for one in (32, 16, 8) if offset % (one // 8) == 0)
        raise UsageError(
            f"offset {offset:#x} is not a multiple of {width} bits", hint=f"use --width {fitting}"
        )


def print_registers(offset: int, values: Iterable[int], width: int) -> None:
    """Print a line for each register, from ``offset`` on."""
    for at, value in enumerate(values):
        click.echo(f"{offset + at * width // 8:#010x}: {value:#0{width // 4 + 2}x}")
