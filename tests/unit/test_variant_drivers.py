from __future__ import annotations

import pytest

from vfiotool.host.attributes import addresses
from vfiotool.host.devices import PciDevice, read_devices
from vfiotool.host.variant_drivers import best_vfio_driver, modalias
from vfiotool.pci.names import PciNames
from vfiotool.testing import FakeHost

ALIASES = """\
# Aliases extracted from modules themselves.
alias pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_core
alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci
alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci
alias vfio_pci:v000015B3d*sv*sd*bc*sc*i* any_of_the_vendor
alias vfio_pci:v000015B3d0000101Esv000015B3sd00000007bc*sc*i* one_board
alias vfio_pci:v*d*sv*sd*bc01sc08i02 any_nvme
alias vfio_pci:v000019E5d0000A251sv*sd*bc*sc*i* first
alias vfio_pci:v000019E5d0000A251sv*sd*bc*sc*i* second
"""
JUNK = """\
alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* ../../evil
alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i*
alias vfio_pci:v*15B3*d*101E*sv*sd*bc*sc*i* wide
alias vfio_pci:v000015b3d0000101esv*sd*bc*sc*i* lower_case
alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* two words
vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* no_keyword
alias
"""


def device(
    host: FakeHost,
    vendor: int,
    model: int,
    *,
    class_code: int = 0x020000,
    subsystem: tuple[int, int] = (0, 0),
) -> PciDevice:
    address = "0000:01:00.0"
    host.add_device(address, vendor=vendor, device=model, class_code=class_code)
    for name, number in zip(("subsystem_vendor", "subsystem_device"), subsystem, strict=True):
        host.put(f"{host.devices[address].folder}/{name}", f"{number:#06x}")
    (found,) = read_devices(host.tree, addresses(host.tree), PciNames(b""))
    return found


def put_aliases(host: FakeHost, content: str | bytes) -> None:
    host.put(f"/lib/modules/{host.kernel}/modules.alias", content)


@pytest.mark.parametrize(
    ("ids", "class_code", "subsystem", "driver"),
    [
        ((0x15B3, 0x101E), 0x020000, (0, 0), "mlx5_vfio_pci"),
        ((0x15B3, 0x101E), 0x020000, (0x15B3, 7), "one_board"),
        ((0x15B3, 0x101E), 0x020000, (0x15B3, 8), "mlx5_vfio_pci"),
        ((0x15B3, 0x1019), 0x020000, (0, 0), "any_of_the_vendor"),
        ((0x8086, 0x10D3), 0x020000, (0, 0), "vfio-pci"),
        ((0x1B36, 0x0010), 0x010802, (0, 0), "any_nvme"),
        ((0x19E5, 0xA251), 0x020000, (0, 0), "first"),
    ],
)
def test_the_alias_with_the_fewest_wildcards(
    host: FakeHost, ids: tuple[int, int], class_code: int, subsystem: tuple[int, int], driver: str
) -> None:
    put_aliases(host, ALIASES + JUNK)
    assert (
        best_vfio_driver(host.tree, device(host, *ids, class_code=class_code, subsystem=subsystem)) == driver
    )


@pytest.mark.parametrize(
    "content", ["", JUNK, b"\xff\0alias vfio_pci:" * 99, "alias vfio_pci:" + "v*" * 9999]
)
def test_other_lines_are_skipped(host: FakeHost, content: str | bytes) -> None:
    put_aliases(host, content)
    assert best_vfio_driver(host.tree, device(host, 0x15B3, 0x101E)) == "vfio-pci"


@pytest.mark.parametrize("release", ["6.12.0", "../../../etc", ""])
def test_without_modules_alias_it_is_vfio_pci(host: FakeHost, release: str) -> None:
    host.put("/etc/modules.alias", ALIASES)
    host.put("/proc/sys/kernel/osrelease", release)
    assert best_vfio_driver(host.tree, device(host, 0x15B3, 0x101E)) == "vfio-pci"


def test_the_modalias_of_a_device(host: FakeHost) -> None:
    """The kernel's modalias of this device, with the prefix of VFIO drivers, as libkmod matches it."""
    one = device(host, 0x8086, 0x10D3, class_code=0x010802, subsystem=(0x1AF4, 0x1100))
    assert modalias(one) == "pci:v00008086d000010D3sv00001AF4sd00001100bc01sc08i02"
