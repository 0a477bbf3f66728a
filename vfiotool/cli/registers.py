"""The verbs peek and poke, which read and write a device's registers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click

from vfiotool.cli.completion import complete_opened, complete_region
from vfiotool.cli.opening import open_selected, select_live
from vfiotool.cli.parameters import (
    WIDTH,
    iommu_option,
    number,
    print_registers,
    region_index,
    region_name,
    require_aligned,
    vf_token_option,
    width_option,
)
from vfiotool.cli.settings import Settings, json_option
from vfiotool.errors import UsageError, VfioToolError
from vfiotool.render.documents import write_document

TYPE_CHECKING = False
if TYPE_CHECKING:
    import uuid

    from vfiotool.vfio.regions.region import Region
    from vfiotool.vfio.regions.register_space import RegisterSpace

_address = click.argument("selector", metavar="ADDRESS", shell_complete=complete_opened)
_region = click.argument("index", metavar="REGION", type=region_index, shell_complete=complete_region)
_offset = click.argument("offset", metavar="OFFSET", type=number)


@click.command("peek")
@_address
@_region
@_offset
@width_option
@click.option(
    "--count",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of consecutive registers to read; 1 by default.",
)
@iommu_option
@vf_token_option
@json_option
@click.pass_obj
def peek(
    settings: Settings,
    /,
    selector: str,
    index: int,
    offset: int,
    width: int | None,
    count: int | None,
    mode: str,
    vf_token: uuid.UUID | None,
    as_json: bool,
) -> None:
    """Read registers of a device on a VFIO driver.

    REGION is bar0 to bar5, rom, config, vga or a number. OFFSET is in bytes, for example 64 or 0x40.
    """
    width = width or WIDTH
    require_aligned(offset, width)
    address = select_live(settings, selector)
    step = width // 8
    end = offset + (count or 1) * step
    with (
        open_selected(settings, address, mode, vf_token) as device,
        _register_space(device.regions[index], offset, end) as (space, start),
    ):
        read = getattr(space, f"read{width}")
        values = [read(at - start) for at in range(offset, end, step)]
    if as_json:
        fields = _described(address, index, offset, width)
        write_document("peek", fields | {"value": values[0] if count is None else values})
    else:
        print_registers(offset, values, width)


@click.command("poke")
@_address
@_region
@_offset
@click.argument("value", metavar="VALUE", type=number)
@width_option
@click.option("--verify", is_flag=True, help="Read the register back, and fail if it has another value.")
@iommu_option
@vf_token_option
@json_option
@click.pass_obj
def poke(
    settings: Settings,
    /,
    selector: str,
    index: int,
    offset: int,
    value: int,
    width: int | None,
    verify: bool,
    mode: str,
    vf_token: uuid.UUID | None,
    as_json: bool,
) -> None:
    """Write VALUE to a register of a device on a VFIO driver.

    A wrong write can hang the device or start DMA. REGION and OFFSET are as for 'peek'; VALUE is a number.
    """
    width = width or WIDTH
    require_aligned(offset, width)
    if value >> width:
        raise UsageError(f"{value:#x} has more than {width} bits", hint="--width can be up to 64")
    address = select_live(settings, selector)
    with (
        open_selected(settings, address, mode, vf_token) as device,
        _register_space(device.regions[index], offset, offset + width // 8) as (space, start),
    ):
        getattr(space, f"write{width}")(offset - start, value)
        read = getattr(space, f"read{width}")(offset - start) if verify else None
    if as_json:
        write_document("poke", _described(address, index, offset, width) | {"value": value, "read": read})
    elif read is not None:
        print_registers(offset, [read], width)
    if read not in (None, value):
        raise VfioToolError(
            f"{region_name(index)} of {address} has {read:#x} at {offset:#x} after a write of {value:#x}",
            hint="the register may be read-only, or clear bits that are written as 1",
        )


def _described(address: str, index: int, offset: int, width: int) -> dict[str, str | int]:
    return {"address": address, "region": region_name(index), "offset": offset, "width": width}


@contextlib.contextmanager
def _register_space(region: Region, start: int, end: int) -> Iterator[tuple[RegisterSpace, int]]:
    """Yield a register space that contains these bytes of a region, and its offset in the region.

    The space is a mapping if the kernel can map the bytes, else the region itself (system calls).

    Raises:
        UsageError: the bytes are outside the region.
    """
    if end > region.size:
        raise UsageError(
            f"{region.name} has {region.size:#x} bytes, and the access ends at {end:#x}",
            hint="OFFSET is in bytes",
        )
    if any(area.offset <= start and end <= area.offset + area.size for area in region.areas):
        with region.map(start, end - start) as window:
            yield window, start
    else:
        yield region, 0
