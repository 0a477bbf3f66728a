"""Regions of a fake device: existence, bounds, mappings, and guards.

tests/contract/test_regions.py tests the regions of vfio-pci.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.memory_device_file import (
    ADDRESS,
    ALL,
    MMAP,
    READ,
    WRITE,
    MemoryDeviceFile,
    at,
    device,
    region_answer,
    with_msix,
)
from vfiotool.errors import AccessError, ClosedError, KernelError, UnsupportedError, VfioToolError
from vfiotool.vfio.info import MmapArea
from vfiotool.vfio.regions.config_space import ConfigSpace
from vfiotool.vfio.regions.region import Region
from vfiotool.vfio.regions.regions import Regions
from vfiotool.vfio.uapi import PciRegion

PAGE = 4096


@pytest.fixture
def file() -> Iterator[MemoryDeviceFile]:
    with device() as made:
        yield made


@pytest.fixture
def regions(file: MemoryDeviceFile) -> Regions:
    return Regions(file)


@contextlib.contextmanager
def only_bar0(answer: bytes, config: bytes = b"") -> Iterator[Regions]:
    with MemoryDeviceFile({0: answer}, config=config) as file:
        yield Regions(file)


def poke(file: MemoryDeviceFile, offset: int, data: bytes) -> None:
    """Change a region's bytes directly in its file."""
    os.pwrite(file.fileno(), data, offset)


# Existing regions


def test_regions_are_found_by_index_and_by_name(regions: Regions) -> None:
    assert regions[0] is regions[PciRegion.BAR0] is regions.bar0
    assert regions.rom.index == PciRegion.ROM
    assert isinstance(regions.config, ConfigSpace)
    assert regions.config is regions[7]
    assert (regions.bar1.name, regions.bar1.size) == (f"bar1 of {ADDRESS}", 0x100)
    assert repr(regions.bar0) == f"<Region bar0 of {ADDRESS}, 0x4000 bytes>"


def test_iteration_yields_existing_regions(regions: Regions) -> None:
    assert [region.index for region in regions] == [0, 1, 2, 6, 7]
    assert 0 in regions
    assert 3 not in regions, "the region is empty"
    assert 4 not in regions


@pytest.mark.parametrize("index", [3, 4, 8, 9, -1, 1 << 32, 1 << 80])
def test_a_missing_region_is_an_error(regions: Regions, index: int) -> None:
    name = PciRegion(index).name.lower() if 0 <= index < 9 else f"region {index}"
    with pytest.raises(UnsupportedError, match=f"^{ADDRESS} has no {name}$") as caught:
        regions[index]
    assert caught.value.hint == (
        "it has bar0 (0x4000 bytes), bar1 (0x100 bytes), bar2 (0x1000 bytes), rom (0x800 bytes), "
        "config (0x100 bytes)"
    )


def test_an_unknown_attribute_is_an_error(regions: Regions) -> None:
    for name in ("bar3", "bar4", "bar5", "vga"):
        with pytest.raises(UnsupportedError, match=f"has no {name}"):
            getattr(regions, name)
    with MemoryDeviceFile({}) as empty, pytest.raises(UnsupportedError, match="has no config") as caught:
        Regions(empty).config  # noqa: B018 - it raises
    assert caught.value.hint == "it has no regions"


def test_device_specific_regions(file: MemoryDeviceFile) -> None:
    file.answers[9] = region_answer(ALL, PAGE, at(9))
    file.num_regions = 10
    regions = Regions(file)
    poke(file, at(9), b"\1\2\3\4")
    assert regions[9].read32(0) == 0x04030201
    assert regions[9].name == f"region 9 of {ADDRESS}"
    assert [region.index for region in regions][-1] == 9


# Access by system calls


@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_each_access_is_one_call_of_its_width(file: MemoryDeviceFile, width: int) -> None:
    bar1 = Regions(file).bar1
    value = 0x8877665544332211 & (1 << width) - 1
    getattr(bar1, f"write{width}")(8, value)
    assert file.written == [(at(1) + 8, value.to_bytes(width // 8, "little"))]
    assert getattr(bar1, f"read{width}")(8) == value
    assert getattr(bar1, f"read{width}")(16) == 0


def test_bytes_are_read_and_written_anywhere_inside(file: MemoryDeviceFile) -> None:
    bar1 = Regions(file).bar1
    bar1.write(memoryview(b"abcde"), 0xFB)
    assert bar1.read(6, 0xFA) == b"\0abcde"
    assert bar1.read(0x100) == bytes(0xFB) + b"abcde"
    assert bar1.read(0, 0x100) == b""
    bar1.write(b"")


@settings(deadline=None)
@given(
    offset=st.integers(-0x200, 0x200) | st.integers(-(1 << 70), 1 << 70),
    size=st.integers(-0x200, 0x200) | st.integers(-(1 << 70), 1 << 70),
)
def test_no_call_leaves_its_region(offset: int, size: int) -> None:
    with device() as file:
        bar1 = Regions(file).bar1
        if 0 <= offset <= offset + size <= 0x100:
            assert bar1.read(size, offset) == bytes(size)
            bar1.write(bytes(size), offset)
            return
        with pytest.raises(AccessError, match="lies outside"):
            bar1.read(size, offset)
        if 0 <= size <= 0x200:
            with pytest.raises(AccessError, match="lies outside"):
                bar1.write(bytes(size), offset)
        for width in (8, 16, 32, 64):
            if offset < 0 or offset + width // 8 > 0x100:
                with pytest.raises(AccessError):
                    getattr(bar1, f"read{width}")(offset)
                with pytest.raises(AccessError):
                    getattr(bar1, f"write{width}")(offset, 0)
        assert file.written == []


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda r: r.bar1.read32(0x100),
            f"a 32-bit read at 0x100 of bar1 of {ADDRESS} lies outside: it has 0x100",
        ),
        (lambda r: r.bar1.read16(1), "is misaligned"),
        (lambda r: r.bar1.write16(0, 1 << 16), "a 16-bit write at 0x0 of .* cannot hold 0x10000"),
        (lambda r: r.bar1.write8(0, -1), "cannot hold -0x1"),
        (lambda r: r.rom.write8(0, 1), "a 8-bit write at 0x0 of rom of .* is forbidden: it is read-only"),
        (lambda r: r.bar2.write(b"abc", 4), "a write of 0x3 bytes at 0x4 of bar2 of .* it is read-only"),
    ],
)
def test_the_error_of_a_refused_access_has_the_reason(
    file: MemoryDeviceFile, use: Callable[[Regions], object], message: str
) -> None:
    with pytest.raises(AccessError, match=message) as caught:
        use(Regions(file))
    assert caught.value.hint
    assert file.written == []


def test_an_unreadable_region_refuses_reads() -> None:
    with (
        only_bar0(region_answer(WRITE, 0x100, 0)) as regions,
        pytest.raises(AccessError, match="cannot be read"),
    ):
        regions.bar0.read8(0)


def test_a_closed_device_raises_closed_error(file: MemoryDeviceFile) -> None:
    regions = Regions(file)
    bar0, bar1 = regions.bar0, regions.bar1
    file.close()
    uses: list[Callable[[], object]] = [
        lambda: bar1.read8(0), lambda: bar1.write8(0, 0), lambda: bar0.map(), lambda: regions[2],
        lambda: list(regions), lambda: 4 in regions, lambda: regions.config.vendor_id,
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(ClosedError):
            use()


# Mapping


def test_a_whole_region_is_mapped(file: MemoryDeviceFile) -> None:
    with Regions(file).bar0.map() as window:
        assert (window.size, window.name) == (0x4000, f"bar0 of {ADDRESS}")
        window.write32(0x3FFC, 7)
        assert file.pread(4, 0x3FFC) == b"\7\0\0\0"
        assert window.address % PAGE == 0


@pytest.mark.parametrize(("offset", "size"), [(0x1000, 0x1000), (0x3000, None), (0x104, 0x20), (0xFF0, 0x20)])
def test_a_part_of_a_region_is_mapped(file: MemoryDeviceFile, offset: int, size: int | None) -> None:
    poke(file, offset, b"\1\2\3\4\5\6\7\x08")
    with Regions(file).bar0.map(offset, size) as window:
        assert window.size == (size or 0x4000 - offset)
        assert window.read_block(0, 8) == b"\1\2\3\4\5\6\7\x08"
        with pytest.raises(
            AccessError, match=f"at {window.size:#x} of bar0 of {ADDRESS} from {offset:#x} on lies"
        ):
            window.read8(window.size)


def test_a_map_of_less_than_a_page_has_exact_bounds() -> None:
    with only_bar0(region_answer(ALL, 0x100, 0)) as regions, regions.bar0.map() as window:
        assert window.size == 0x100
        with pytest.raises(AccessError, match="lies outside: it has 0x100 bytes"):
            window.read8(0x100)


@pytest.mark.parametrize(("offset", "size"), [(0, 0x4001), (0x3FFF, 2), (-1, 4), (1 << 70, 4)])
def test_a_map_outside_of_the_region_is_refused(regions: Regions, offset: int, size: int) -> None:
    with pytest.raises(AccessError, match=r"^a map of .* lies outside: it has 0x4000 bytes$"):
        regions.bar0.map(offset, size)


@pytest.mark.parametrize(("offset", "size"), [(0x4000, None), (0, 0), (0, -4), (1 << 70, None)])
def test_an_empty_map_is_refused(regions: Regions, offset: int, size: int | None) -> None:
    with pytest.raises(AccessError, match=r"^a map of .* is empty$") as caught:
        regions.bar0.map(offset, size)
    assert caught.value.hint == "the region has 0x4000 bytes"


def test_a_read_only_region_is_mapped_read_only(regions: Regions) -> None:
    with regions.bar2.map() as window:
        assert window.read32(0) == 0
        with pytest.raises(AccessError, match="it is read-only"):
            window.write32(0, 1)


def test_the_error_of_an_unmappable_region_has_a_hint(regions: Regions) -> None:
    for region in (regions.bar1, regions.rom, regions.config):
        assert region.areas == ()
        with pytest.raises(AccessError, match="is not possible: the kernel cannot map this region") as caught:
            region.map()
        assert "read32()" in caught.value.hint


# MSI-X tables of different kernels


def test_a_mapping_of_the_whole_bar_guards_the_msix_table() -> None:
    """Since 4.16 (MSIX_MAPPABLE)."""
    with only_bar0(region_answer(ALL, 0x4000, 0, msix=True), with_msix(0x2000, 0x3000, count=65)) as regions:
        assert regions.bar0.info.msix_mappable
        with regions.bar0.map() as window, regions.bar0.map(0x1800, 0x1000) as part:
            for at_, why in (
                (0x2000, "table"),
                (0x2000 + 65 * 16 - 4, "table"),
                (0x3000, "pending"),
                (0x300C, "pending"),
            ):
                with pytest.raises(AccessError, match=f"is forbidden: the MSI-X {why}") as caught:
                    window.write32(at_, 1)
                assert "irqs" in caught.value.hint
                assert window.read32(at_) == 0
                with pytest.raises(AccessError, match=f"is forbidden: the MSI-X {why}"):
                    regions.bar0.write32(at_, 1)
            for at_ in (0x1FFC, 0x2000 + 65 * 16, 0x2FFC, 0x3010):
                window.write32(at_, 0x11111111)
                assert regions.bar0.read32(at_) == 0x11111111
                regions.bar0.write32(at_, 0x22222222)
            with pytest.raises(AccessError, match="MSI-X table"):
                part.write32(0x800, 1)
            part.write32(0x7FC, 5)
            assert window.read32(0x1FFC) == 5


def test_a_bar_is_mapped_around_its_msix_table() -> None:
    """Kernels up to 4.15, and other drivers: SPARSE_MMAP excludes the page of the table."""
    areas = ((0x3000, 0x1000), (0, 0x1000), (0x1000, 0x1000), (0x2000, 0))
    with only_bar0(region_answer(ALL, 0x4000, 0, areas), with_msix(0x2000, 0x2800)) as regions:
        bar0 = regions.bar0
        assert bar0.areas == (MmapArea(0, 0x2000), MmapArea(0x3000, 0x1000))
        known = re.escape(
            "only 0x0 to 0x1fff, 0x3000 to 0x3fff can be mapped; the MSI-X table belongs to the kernel"
        )
        for offset, size in ((0, None), (0x1FFC, 8), (0x2000, 0x1000)):
            with pytest.raises(AccessError, match=known) as caught:
                bar0.map(offset, size)
            assert "areas" in caught.value.hint
        for area in bar0.areas:
            with bar0.map(area.offset, area.size) as window:
                window.write32(area.size - 4, 9)
                assert bar0.read32(area.offset + area.size - 4) == 9
        assert bar0.read32(0x2000) == 0


def test_table_and_pending_bits_are_each_guarded_in_their_own_bar() -> None:
    with device(with_msix(0x3000 | 0, 0x40 | 1)) as file:
        regions = Regions(file)
        with regions.bar0.map() as window:
            window.write32(0x40, 1)
            with pytest.raises(AccessError, match="MSI-X table"):
                window.write32(0x3000, 1)
        with pytest.raises(AccessError, match="pending bits"):
            regions.bar1.write32(0x40, 1)
        regions.bar1.write32(0x48, 1)


# End and low power


def test_a_released_device_closes_its_windows(file: MemoryDeviceFile) -> None:
    regions = Regions(file)
    window, other = regions.bar0.map(), regions.bar2.map()
    file.revoke("the kernel asks for it")
    for use in (window.read32, other.read32, regions.bar0.read32):
        with pytest.raises(ClosedError) as caught:
            use(0)
        assert caught.value.hint == "the kernel asks for it"


def test_all_windows_are_blocked_until_no_reason_is_left(file: MemoryDeviceFile) -> None:
    regions = Regions(file)
    broken = "it is broken", "mend it"
    with regions.bar0.map() as first, regions.bar2.map() as second:
        file.set_asleep(True)
        with regions.bar0.map(0x1000) as third:
            file.set_asleep(True, broken)
            for window in (first, second, third):
                with pytest.raises(AccessError, match="it is broken"):
                    window.read32(0)
            file.set_asleep(False, broken)
            with pytest.raises(AccessError, match="the device is in low power") as caught:
                third.read32(0)
            assert caught.value.hint == "leave its low_power() context first"
            file.set_asleep(False, ("it never slept for this", ""))
            file.set_asleep(False)
            poke(file, 0x1000, b"\5")
            assert [window.read8(0) for window in (first, second, third)] == [0, 0, 5]


# Hostile replies


@pytest.mark.parametrize(
    ("offset", "size"), [((1 << 63) - 1, 2), (1 << 63, 1), (0, (1 << 64) - 1), ((1 << 64) - 1, 1)]
)
def test_a_region_beyond_the_largest_offset_is_malformed(offset: int, size: int) -> None:
    with only_bar0(region_answer(ALL, size, offset)) as regions, pytest.raises(KernelError) as caught:
        regions.bar0  # noqa: B018 - it raises
    assert caught.value.errno == errno.EBADMSG
    assert "bar0" in caught.value.hint


def test_a_region_of_more_than_all_addresses_is_not_mapped() -> None:
    with only_bar0(region_answer(ALL, (1 << 63) - 1, 0)) as regions:
        bar0 = regions.bar0
        with pytest.raises(KernelError, match=f"mmap on {ADDRESS} failed"):
            bar0.map()


numbers = st.one_of(
    st.integers(0, 0x4000), st.sampled_from([1 << 12, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
)  # fmt: skip
hostile_answers = st.one_of(
    st.binary(max_size=200),
    st.builds(
        region_answer,
        st.integers(0, 15),
        numbers,
        numbers,
        st.none() | st.lists(st.tuples(numbers, numbers), max_size=4).map(tuple),
        msix=st.booleans(),
    ),
)


@settings(deadline=None)
@given(
    answers=st.dictionaries(st.integers(0, 10), hostile_answers, max_size=5),
    config=st.binary(max_size=300)
    | st.builds(with_msix, st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF)),
    num_regions=st.integers(0, 20) | st.sampled_from([4096, 4097, 0xFFFFFFFF]),
)
def test_any_reply_gives_regions_or_a_named_error(
    answers: dict[int, bytes], config: bytes, num_regions: int
) -> None:
    with MemoryDeviceFile(answers, config=config, num_regions=num_regions) as file:
        regions = Regions(file)
        for index in range(11):
            try_out(lambda index=index: use(regions[index]))  # type: ignore[misc]
        try_out(lambda: [region.name for region in regions])
        try_out(lambda: regions.config.capabilities())


def use(region: Region) -> None:
    try_out(lambda: region.read32(0))
    try_out(lambda: region.write32(0, 1))
    try_out(lambda: region.read8(region.size - 1))
    for area in (*region.areas, MmapArea(0, region.size)):
        try_out(lambda area=area: region.map(area.offset, min(area.size, PAGE)).close())  # type: ignore[misc]


def try_out(action: Callable[[], object]) -> None:
    with contextlib.suppress(VfioToolError):
        action()


def test_the_longest_list_of_regions_ends() -> None:
    with MemoryDeviceFile({}, num_regions=4096) as file:
        assert list(Regions(file)) == []
    with (
        MemoryDeviceFile({}, num_regions=4097) as file,
        pytest.raises(KernelError, match="VFIO_DEVICE_GET_INFO"),
    ):
        list(Regions(file))


@pytest.mark.parametrize("flags", [0, READ, MMAP, ALL])
def test_the_flags_of_a_region_are_respected(flags: int) -> None:
    with only_bar0(region_answer(flags, PAGE, 0)) as regions:
        assert (regions.bar0.areas != ()) == bool(flags & MMAP)
        try_out(lambda: regions.bar0.map().close())
