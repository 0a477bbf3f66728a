"""The addresses on the bus that reach a device and never memory."""

from __future__ import annotations

from vfiotool.host.attributes import device_path
from vfiotool.testing import FakeHost
from vfiotool.vfio.bus_ranges import bus_ranges
from vfiotool.vfio.info import IovaRange

A, B, C = "0000:00:01.0", "0000:00:02.0", "0000:00:03.0"
MEMORY, PORTS, MEMORY_64 = 0x40200, 0x40101, 0x14220C


def resource(*lines: tuple[int, int, int]) -> str:
    return "\n".join(f"{start:#018x} {end:#018x} {flags:#018x}" for start, end, flags in lines)


def test_memory_bars_of_all_devices_of_the_group(host: FakeHost) -> None:
    for address, group in ((A, 1), (B, 1), (C, 2)):
        host.add_group(group)
        host.add_device(address, group=group)
    bars = ((0xFE000000, 0xFE000FFF, MEMORY), (0xC000, 0xC01F, PORTS), (0, 0, 0))
    host.put(f"{device_path(A)}/resource", resource(*bars))
    host.put(f"{device_path(B)}/resource", resource((0x100000000, 0x100003FFF, MEMORY_64)))
    host.put(f"{device_path(C)}/resource", resource((0xFE001000, 0xFE001FFF, MEMORY)))
    expected = {IovaRange(0xFE000000, 0xFE000FFF), IovaRange(0x100000000, 0x100003FFF)}
    assert set(bus_ranges(host.tree, A)) == set(bus_ranges(host.tree, B)) == expected


def test_a_device_without_a_group_has_its_own(host: FakeHost) -> None:
    host.add_device(A)
    host.put(f"{device_path(A)}/resource", resource((0xFE000000, 0xFE000FFF, MEMORY)))
    assert bus_ranges(host.tree, A) == (IovaRange(0xFE000000, 0xFE000FFF),)


def test_malformed_ranges_are_left_out(host: FakeHost) -> None:
    host.add_device(A)
    host.put(f"{device_path(A)}/resource", f"{resource((0x2000, 0x1000, MEMORY))}\nnothing here\n1 2")
    assert bus_ranges(host.tree, A) == ()
