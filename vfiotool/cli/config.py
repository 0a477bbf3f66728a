"""The verb that reads configuration space: decoded as a whole, or a single register."""

from __future__ import annotations

from collections.abc import Sequence

import click

from vfiotool.cli.completion import complete_device
from vfiotool.cli.parameters import WIDTH, number, print_registers, require_aligned, width_option
from vfiotool.cli.settings import Settings, json_option
from vfiotool.errors import UsageError, VfioToolError
from vfiotool.host.attributes import answers, read_name
from vfiotool.host.config_space import is_whole, read_config
from vfiotool.host.selectors import select_meant
from vfiotool.host.tree import Tree
from vfiotool.host.vpd import has_vpd, read_vpd
from vfiotool.pci.capabilities.decoding import DecodedCapability, decode
from vfiotool.pci.config_space import EXTENDED_SIZE, HEADER_SIZE
from vfiotool.pci.header import read_header
from vfiotool.pci.ids import FOR_ROOT, silence_text
from vfiotool.pci.names import PciNames
from vfiotool.pci.vpd import Vpd, parse_vpd
from vfiotool.render.documents import to_json, write_document

_VPD = (False, 0x03)  # a standard capability, and its id


@click.command("config")
@click.argument("selector", metavar="ADDRESS", shell_complete=complete_device)
@click.argument("offset", metavar="[OFFSET]", type=number, required=False)
@width_option
@json_option
@click.pass_obj
def config(
    settings: Settings, /, selector: str, offset: int | None, width: int | None, as_json: bool
) -> None:
    """Decode the configuration space of a device on any driver: the header, all capabilities, and the VPD.

    With OFFSET (bytes), print the register at that offset. 'vfiotool poke ADDRESS config …' writes.
    """
    if offset is None and width is not None:
        raise click.UsageError("--width needs OFFSET")
    width = width or WIDTH
    if offset is not None:
        require_aligned(offset, width)
    (address,) = select_meant(settings.tree, [selector], several=False)
    raw = read_config(settings.tree, address)
    if offset is None:
        _show_all(settings.tree, address, raw, as_json)
        return
    value = _register(address, raw, offset, width)
    if as_json:
        document = {
            "address": address,
            "answers": answers(raw),
            "offset": offset,
            "width": width,
            "value": value,
        }
        write_document("config", document)
    else:
        print_registers(offset, [value], width)


def _show_all(tree: Tree, address: str, raw: bytes, as_json: bool) -> None:
    header = read_header(raw)
    capabilities = decode(raw) if is_whole(raw) else None
    vpd = None if header is None else _vpd(tree, address)
    known = {
        "value": header is not None,
        "answers": answers(raw) is not None,
        "capabilities": header is None or capabilities is not None,
        "vpd": header is None or vpd is not None or _lacks_vpd(tree, address, capabilities),
    }
    unavailable = [name for name, is_known in known.items() if not is_known]
    if as_json:
        parts = {"capabilities": to_json(capabilities), "vpd": to_json(vpd)}
        value = None if header is None else to_json(header) | parts
        document = {"address": address, "answers": answers(raw), "value": value, "unavailable": unavailable}
        write_document("config", document)
        return
    from vfiotool.render.config_space import print_config

    if answers(raw) is False:
        unavailable = [f"value: {silence_text(address)}"]
    elif header is not None and capabilities is None:
        unavailable[unavailable.index("capabilities")] += f": {FOR_ROOT}"
    title = f"{address} {read_name(tree, address, PciNames.of_this_machine())}"
    print_config(title, header, capabilities or (), unavailable, vpd)


def _vpd(tree: Tree, address: str) -> Vpd | None:
    """Return the Vital Product Data; ``None`` if the device has none, or if they cannot be read."""
    data = read_vpd(tree, address) if has_vpd(tree, address) else None
    return None if data is None else parse_vpd(data)


def _lacks_vpd(tree: Tree, address: str, capabilities: Sequence[DecodedCapability] | None) -> bool:
    """Return True if it is known that a device has no Vital Product Data."""
    if has_vpd(tree, address):
        return False
    if capabilities is None:
        return tree.is_complete
    return not any((one.extended, one.id) == _VPD for one in capabilities)


def _register(address: str, raw: bytes, offset: int, width: int) -> int:
    """Return the value of a register of configuration space.

    Raises:
        UsageError: the register is outside configuration space.
        VfioToolError: this user may not read the register, or the kernel cannot read it now.
    """
    end = offset + width // 8
    if not raw:
        raise VfioToolError(
            f"configuration space of {address} cannot be read now",
            hint="the device may be in a reset or a removal: see 'vfiotool list' and the kernel log",
        )
    if len(raw) == HEADER_SIZE and HEADER_SIZE < end <= EXTENDED_SIZE:
        raise VfioToolError(
            f"the kernel shows this user only {HEADER_SIZE:#x} bytes of {address}'s configuration space, and "
            f"the access ends at {end:#x}",
            hint="run as root",
        )
    if end > len(raw):
        raise UsageError(
            f"configuration space of {address} has {len(raw):#x} bytes, and the access ends at {end:#x}",
            hint="OFFSET is in bytes",
        )
    return int.from_bytes(raw[offset:end], "little")
