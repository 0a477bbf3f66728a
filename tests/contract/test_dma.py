"""DMA in every mode, on real kernels and on the fakes.

On a kernel they run in a lab guest of the default machine, with edu and a network card on vfio-pci.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import itertools
import mmap
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.support.address_spaces import (
    EDU_BUFFER,
    EDU_MASK,
    LIMITED,
    MODES,
    OFFERED,
    OTHER,
    PAGE,
    Edu,
    Space,
    child_says,
    kernel_params,
    opened_space,
    params,
    status,
    write,
)
from tests.support.binding_bench import EDU
from vfiotool._shim import ffi
from vfiotool.errors import ClosedError, DmaMapError, DmaRangeError, UnsupportedError
from vfiotool.vfio.device import open_device
from vfiotool.vfio.dma.dma import Dma
from vfiotool.vfio.info import IovaRange
from vfiotool.vfio.iommu import IommuMode
from vfiotool.vfio.iommu.iommufd import Iommufd
from vfiotool.vfio.iommu.ranges import Ranges
from vfiotool.vfio.uapi import DeviceFeature, DeviceFeatureFlags, DmaMapFlags

TOP = 1 << 64
IOVA = 0x1000_0000
NEAR = 0x0800_0000  # edu reaches 28 bits
BOTH = DmaMapFlags.READ | DmaMapFlags.WRITE
PAGES = 64

_FIXED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10  # MAP_FIXED
_libc = ctypes.CDLL(None)


class Memory:
    """Pages of this process: ``source`` has the buffer protocol, ``address`` is its first byte."""

    def __init__(self, pages: int = PAGES, prot: int = mmap.PROT_READ | mmap.PROT_WRITE) -> None:
        self.source = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=prot)
        self.address = address_of(self.source)

    def tear(self, address: int, size: int) -> None:
        """Unmap a page of the memory."""
        assert _libc.munmap(ctypes.c_void_p(address), size) == 0

    def mend(self, address: int, size: int) -> None:
        """Map other memory in place of the hole."""
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        _libc.mmap.restype = ctypes.c_void_p
        there = _libc.mmap(ctypes.c_void_p(address), size, protection, _FIXED, -1, ctypes.c_long(0))
        assert there == address


def address_of(memory: mmap.mmap | bytearray) -> int:
    return int(ffi.cast("uintptr_t", ffi.from_buffer(memory)))


@pytest.fixture
def memory() -> Memory:
    return Memory()


def refused(code: int, action: Callable[[], object]) -> DmaMapError:
    """Run a call that must fail with this errno, and return the error."""
    with pytest.raises(DmaMapError) as caught:
        action()
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[code]
    return caught.value


# Mapping and unmapping


def test_unmap_returns_the_bytes_that_were_mapped(space: Space, memory: Memory) -> None:
    space.iommu.map(memory.address, IOVA, 4 * PAGE, BOTH)
    assert space.iommu.unmap(IOVA, 4 * PAGE) == 4 * PAGE
    refused(errno.ENOENT, lambda: space.iommu.unmap(IOVA, 4 * PAGE))


def test_an_unmap_takes_all_mappings_in_its_range(space: Space, memory: Memory) -> None:
    for at in (0, 2, 3, 9):
        space.iommu.map(memory.address, IOVA + at * PAGE, PAGE, BOTH)
    assert space.iommu.unmap(IOVA, 8 * PAGE) == 3 * PAGE
    assert space.iommu.unmap_all() == PAGE


def test_unmap_all_returns_the_bytes_of_all_mappings(space: Space, memory: Memory) -> None:
    assert space.iommu.unmap_all() == 0
    space.iommu.map(memory.address, IOVA, 4 * PAGE, BOTH)
    space.iommu.map(memory.address, space.ranges[-1].end + 1 - PAGE, PAGE, BOTH)
    assert space.iommu.unmap_all() == 5 * PAGE
    assert space.iommu.unmap_all() == 0
    space.iommu.map(memory.address, IOVA, PAGE, BOTH)


def test_the_last_page_of_each_range_can_be_mapped(space: Space, memory: Memory) -> None:
    for one in space.ranges:
        last = one.end + 1 - PAGE
        space.iommu.map(memory.address, last, PAGE, BOTH)
        assert space.iommu.unmap(last, PAGE) == PAGE


def test_the_last_page_of_64_bits_is_in_no_range(space: Space, memory: Memory) -> None:
    refused(errno.EINVAL, lambda: space.iommu.map(memory.address, TOP - PAGE, PAGE, BOTH))
    refused(errno.ENOENT, lambda: space.iommu.unmap(TOP - PAGE, PAGE))


def test_a_range_beyond_64_bits_is_an_overflow(space: Space, memory: Memory) -> None:
    for iova, size in ((TOP - PAGE, 2 * PAGE), (IOVA, TOP), (TOP, PAGE), (-PAGE, PAGE)):
        refused(errno.EOVERFLOW, partial(space.iommu.map, memory.address, iova, size, BOTH))
        refused(errno.EOVERFLOW, partial(space.iommu.unmap, iova, size))
    refused(errno.EOVERFLOW, lambda: space.iommu.map(TOP - PAGE, IOVA, 2 * PAGE, BOTH))


def test_an_overlapping_map_is_refused(space: Space, memory: Memory) -> None:
    space.iommu.map(memory.address, IOVA + 2 * PAGE, 2 * PAGE, BOTH)
    for first, pages in ((2, 2), (0, 3), (3, 1), (3, 4), (0, 8)):
        action = partial(space.iommu.map, memory.address, IOVA + first * PAGE, pages * PAGE, BOTH)
        refused(errno.EEXIST, action)
    assert space.iommu.unmap_all() == 2 * PAGE


def test_what_is_not_whole_pages_is_refused(space: Space, memory: Memory) -> None:
    for vaddr, iova, size in ((0, 512, PAGE), (512, 0, PAGE), (0, 0, 512), (0, 0, 0)):
        refused(errno.EINVAL, partial(space.iommu.map, memory.address + vaddr, IOVA + iova, size, BOTH))
    assert space.iommu.unmap_all() == 0


def test_a_mapping_that_no_device_may_use_is_refused(space: Space, memory: Memory) -> None:
    refused(errno.EINVAL, lambda: space.iommu.map(memory.address, IOVA, PAGE, DmaMapFlags(0)))
    assert space.iommu.unmap_all() == 0


def test_an_unmap_of_nothing_is_refused(space: Space) -> None:
    refused(errno.EINVAL, lambda: space.iommu.unmap(IOVA, 0))


# Result of an unmap that cuts a mapping of pages 2 to 5, by mode: an errno, or the pages it unmaps.
CUTS = {
    "in front": (0, 4),
    "behind": (4, 4),
    "inside": (3, 1),
    "head": (2, 2),
}
CUT_BY = {
    IommuMode.TYPE1: {"in front": 4, "behind": errno.ENOENT, "inside": errno.ENOENT, "head": 4},
    IommuMode.TYPE1V2: dict.fromkeys(CUTS, errno.EINVAL),
    IommuMode.COMPAT_TYPE1: {"in front": 2, "behind": 2, "inside": 1, "head": 2},
    IommuMode.COMPAT_TYPE1V2: dict.fromkeys(CUTS, errno.ENOENT),
    IommuMode.IOMMUFD: dict.fromkeys(CUTS, errno.ENOENT),
}


def test_each_mode_has_its_own_way_to_cut_a_mapping(space: Space, memory: Memory) -> None:
    outcomes = {}
    for cut, (first, pages) in CUTS.items():
        space.iommu.map(memory.address, IOVA + 2 * PAGE, 4 * PAGE, BOTH)
        try:
            outcomes[cut] = space.iommu.unmap(IOVA + first * PAGE, pages * PAGE) // PAGE
            left = 4 - outcomes[cut]
        except DmaMapError as error:
            outcomes[cut] = error.errno or 0
            left = 4
        assert space.iommu.unmap_all() == left * PAGE
    assert outcomes == CUT_BY[space.mode]


# Reserved IOVAs, and addresses without memory


def test_the_ranges_leave_out_what_the_kernel_reserves(space: Space) -> None:
    for start, end in space.reserved:
        assert not any(one.start <= end and start <= one.end for one in space.ranges)
    assert (0xFEE0_0000, 0xFEEF_FFFF) in space.reserved


def test_reserved_iovas_cannot_be_mapped_but_adjacent_iovas_can(space: Space, memory: Memory) -> None:
    start, end = 0xFEE0_0000, 0xFEEF_FFFF
    for at, pages in ((start, 1), (end + 1 - PAGE, 1), (start - PAGE, 2), (end + 1 - PAGE, 2)):
        refused(errno.EINVAL, partial(space.iommu.map, memory.address, at, pages * PAGE, BOTH))
        error = refused(errno.EINVAL, partial(space.dma.map, memory.source, pages * PAGE, iova=at))
        assert (error.iova, error.size) == (at, pages * PAGE)
    for at in (start - PAGE, end + 1):
        space.iommu.map(memory.address, at, PAGE, BOTH)
    assert space.iommu.unmap_all() == 2 * PAGE


def test_unmapped_memory_cannot_be_mapped_for_dma(space: Space, memory: Memory) -> None:
    before = space.footprint()
    hole = memory.address + 2 * PAGE
    memory.tear(hole, PAGE)
    for first, pages in ((2, 1), (0, 3), (2, 3), (0, PAGES)):
        address = memory.address + first * PAGE
        refused(errno.EFAULT, partial(space.iommu.map, address, IOVA, pages * PAGE, BOTH))
        refused(errno.EFAULT, partial(space.dma.map, address, pages * PAGE))
    assert space.footprint() == before
    memory.mend(hole, PAGE)


def test_read_only_memory_is_mapped_only_for_reads(space: Space) -> None:
    memory = Memory(prot=mmap.PROT_READ)
    refused(errno.EFAULT, lambda: space.iommu.map(memory.address, IOVA, PAGE, BOTH))
    refused(errno.EFAULT, lambda: space.dma.map(memory.address, PAGE))
    with pytest.raises(DmaRangeError, match="read-only"):
        space.dma.map(memory.source)
    with space.dma.map(memory.source, write=False) as mapping:
        assert mapping.size == PAGES * PAGE
    assert space.iommu.unmap_all() == 0


# How many


@pytest.fixture
def few(request: pytest.FixtureRequest, limit_of_eight: None) -> Iterator[Space]:
    yield from opened_space(request, limit=8)


@pytest.mark.parametrize("few", params(*LIMITED), indirect=True)
def test_a_container_reports_how_many_mappings_are_left(few: Space, memory: Memory) -> None:
    assert few.iommu.info().dma_avail == 8
    for at in range(8):
        few.iommu.map(memory.address, IOVA + at * PAGE, PAGE, BOTH)
    assert few.iommu.info().dma_avail == 0
    error = refused(errno.ENOSPC, lambda: few.iommu.map(memory.address, 0, PAGE, BOTH))
    assert "dma_entry_limit" in error.hint
    assert few.iommu.unmap(IOVA, PAGE) == PAGE
    few.iommu.map(memory.address, 0, PAGE, BOTH)


@pytest.mark.parametrize("few", params(*LIMITED), indirect=True)
def test_a_batch_that_is_too_long_maps_nothing(few: Space, memory: Memory) -> None:
    before = few.footprint()
    scattered = [(memory.address, IOVA + 2 * at * PAGE, PAGE) for at in range(9)]
    error = refused(errno.ENOSPC, lambda: few.iommu.map_ranges(Ranges.of(scattered), BOTH))
    assert error.index == 8
    assert few.footprint() == before
    error = refused(errno.ENOSPC, lambda: few.dma.map_ranges(scattered))
    assert "9 mappings are needed and 8 are left" in error.hint
    assert few.footprint() == before
    with few.dma.map_ranges(scattered[:8]) as batch:
        assert (len(batch.runs), batch.size) == (8, 8 * PAGE)
        assert few.iommu.info().dma_avail == 0
    assert few.footprint() == before


def test_only_a_container_of_type1s_own_has_a_limit(space: Space) -> None:
    assert space.iommu.info().dma_avail == space.limit


MANY = 65536
ENGINES = (IommuMode.TYPE1V2, IommuMode.COMPAT_TYPE1V2, IommuMode.IOMMUFD)  # each takes a minute with KASAN


@pytest.mark.full
@pytest.mark.parametrize("space", params(*ENGINES), indirect=True)
def test_65536_mappings_are_more_than_a_container_takes(space: Space, memory: Memory) -> None:
    scattered = Ranges.of([(memory.address, IOVA + at * PAGE, PAGE) for at in range(MANY)])
    if space.limit is not None:
        error = refused(errno.ENOSPC, lambda: space.iommu.map_ranges(scattered, BOTH))
        assert error.index == MANY - 1
        assert space.iommu.unmap_all() == 0
        return
    space.iommu.map_ranges(scattered, BOTH)
    assert space.iommu.unmap_all() == MANY * PAGE


@pytest.mark.full
def test_65536_adjacent_pages_are_one_mapping(space: Space) -> None:
    memory = Memory(MANY)
    left = space.iommu.info().dma_avail
    ranges = [(memory.address + at * PAGE, IOVA + at * PAGE, PAGE) for at in range(MANY)]
    with space.dma.map_ranges(ranges) as batch:
        assert list(batch.runs) == [(memory.address, IOVA, MANY * PAGE)]
        if space.limit is not None:
            assert left is not None
            assert space.iommu.info().dma_avail == left - 1
    assert space.iommu.unmap_all() == 0


# Batches: all or nothing

COUNT = 8
FIRST_MIDDLE_LAST = (0, 3, COUNT - 1)


def batch_of(memory: Memory, *, merged: bool) -> list[tuple[int, int, int]]:
    """Eight pieces of two pages, from the memory's first page on: adjacent in IOVA, or with gaps."""
    step = 2 if merged else 3
    return [(memory.address + 2 * at * PAGE, IOVA + step * at * PAGE, 2 * PAGE) for at in range(COUNT)]


def both_ways(space: Space, ranges: list[tuple[int, int, int]]) -> list[Callable[[], object]]:
    """Map a batch directly, and as a driver does, for which some errors come before the kernel."""
    return [
        lambda: space.iommu.map_ranges(Ranges.of(ranges), BOTH),
        lambda: space.dma.map_ranges(ranges),
    ]


@pytest.mark.parametrize("merged", [False, True], ids=["scattered", "merged"])
def test_a_batch_with_a_bad_address_maps_nothing(space: Space, memory: Memory, merged: bool) -> None:
    ranges = batch_of(memory, merged=merged)
    before = space.footprint()
    for at in FIRST_MIDDLE_LAST:
        hole = memory.address + 2 * at * PAGE
        memory.tear(hole, 2 * PAGE)
        for action in both_ways(space, ranges):
            error = refused(errno.EFAULT, action)
            assert (error.index, error.iova, error.size) == (at, ranges[at][1], 2 * PAGE)
            assert f"range {at}" in str(error)
            assert space.footprint() == before
            assert space.iommu.unmap_all() == 0
        memory.mend(hole, 2 * PAGE)
    assert space.dma.map_ranges(ranges).size == 2 * COUNT * PAGE


@pytest.mark.parametrize("merged", [False, True], ids=["scattered", "merged"])
def test_a_batch_that_overlaps_maps_nothing(space: Space, memory: Memory, merged: bool) -> None:
    ranges = batch_of(memory, merged=merged)
    for at in FIRST_MIDDLE_LAST:
        with space.dma.map(memory.source, PAGE, iova=ranges[at][1] + PAGE) as there:
            before = space.footprint()
            for action in both_ways(space, ranges):
                error = refused(errno.EEXIST, action)
                assert (error.index, error.iova, error.size) == (at, ranges[at][1], 2 * PAGE)
                assert space.footprint() == before
            assert space.dma.mapped == (there,)
    assert space.dma.map_ranges(ranges).size == 2 * COUNT * PAGE


def test_a_batch_that_overlaps_itself_maps_nothing(space: Space, memory: Memory) -> None:
    ranges = batch_of(memory, merged=False)
    ranges[5] = ranges[2]
    before = space.footprint()
    for action in both_ways(space, ranges):
        assert refused(errno.EEXIST, action).index == 5
        assert space.footprint() == before


def test_a_batch_outside_of_the_ranges_maps_nothing(space: Space, memory: Memory) -> None:
    ranges = batch_of(memory, merged=False)
    ranges[4] = (memory.address, 0xFEE0_0000, PAGE)
    before = space.footprint()
    for action in both_ways(space, ranges):
        assert refused(errno.EINVAL, action).index == 4
        assert space.footprint() == before


@pytest.mark.parametrize("merged", [False, True], ids=["scattered", "merged"])
def test_a_batch_is_unmapped_as_it_was_mapped(space: Space, memory: Memory, merged: bool) -> None:
    before = space.footprint()
    with space.dma.map_ranges(batch_of(memory, merged=merged)) as batch:
        assert len(batch.runs) == (1 if merged else COUNT)
        assert batch.iova_of(memory.address + 2 * PAGE + 5) == IOVA + (2 if merged else 3) * PAGE + 5
        with pytest.raises(DmaRangeError):
            batch.iova_of(memory.address - 1)
    assert space.footprint() == before


def test_buffers_that_are_adjacent_in_memory_become_one_mapping(space: Space, memory: Memory) -> None:
    addresses = array.array("Q", [memory.address + at * PAGE for at in (5, 3, 4, 9)])
    before = space.footprint()
    with space.dma.map_buffers(addresses, PAGE, iova_max=EDU_MASK) as batch:
        assert [size for _vaddr, _iova, size in batch.runs] == [3 * PAGE, PAGE]
        assert batch.iova_of(addresses[2]) == batch.iova_of(addresses[1]) + PAGE
    assert space.footprint() == before


# Buffers


@pytest.fixture
def edu(space: Space) -> Iterator[Edu]:
    """edu's DMA, over an enabled MSI."""
    space.device.bus_master = True
    with space.device.regions.bar0.map() as bar, space.device.irqs.msi.enable() as (vector,):
        yield Edu(bar, vector)


def test_a_device_reads_and_writes_a_buffer(space: Space, edu: Edu) -> None:
    with space.dma.alloc(2 * PAGE, iova_max=EDU_MASK) as buffer:
        buffer[:5] = b"hello"
        edu.copy(buffer.iova, buffer.iova + PAGE + 3, 5)
        assert buffer[PAGE : PAGE + 10] == b"\0\0\0hello\0\0"
        assert (buffer.size, buffer.view.nbytes) == (2 * PAGE, 2 * PAGE)


def test_a_buffer_works_with_pythons_buffer_users(space: Space) -> None:
    buffer = space.dma.alloc(100)
    assert bytes(buffer) == bytes(100)
    with memoryview(buffer) as view:
        assert (view.nbytes, view.readonly, view.contiguous) == (100, False, True)
        view.cast("B")[10] = 7
    assert (buffer[10], buffer[-90], bytes(buffer[8:12])) == (7, 7, b"\0\0\7\0")
    buffer[0] = 0xFF
    buffer[96:] = bytearray(b"tail")
    struct.pack_into("<I", buffer, 4, 0xDEADBEEF)
    assert struct.unpack_from("<I", buffer.view, 4) == (0xDEADBEEF,)
    assert bytes(buffer).startswith(b"\xff\0\0\0\xef\xbe\xad\xde")
    assert bytes(buffer).endswith(b"tail")
    with pytest.raises(ValueError, match="different"):
        buffer[:4] = b"three"
    with pytest.raises(IndexError):
        buffer[100]
    buffer.close()
    with pytest.raises(ClosedError):
        buffer[0]


def test_numpy_sees_a_buffer_without_a_copy(space: Space) -> None:
    numpy = pytest.importorskip("numpy")
    with space.dma.alloc(PAGE) as buffer:
        array = numpy.frombuffer(buffer, dtype="<u4")
        array[1] = 0x04030201
        assert buffer[4:8] == b"\1\2\3\4"


def test_an_arena_is_one_mapping_of_many_buffers(space: Space, edu: Edu) -> None:
    with space.dma.arena(16 * PAGE, iova_max=EDU_MASK) as arena:
        first, second = arena.alloc(100), arena.alloc(100, align=PAGE)
        assert second.iova % PAGE == 0
        assert len(space.dma.mapped) == 1
        first[:3] = b"abc"
        edu.copy(first.iova, second.iova, 3)
        assert second[:3] == b"abc"
        first.close()
        again = arena.alloc(100)
        assert again.iova == first.iova
    assert second.closed
    assert not space.dma.mapped


# The caller's memory


def test_the_callers_memory_is_mapped_in_place(space: Space, edu: Edu, memory: Memory) -> None:
    memory.source[PAGE : PAGE + 4] = b"mine"
    with space.dma.map(memory.source, 2 * PAGE, offset=PAGE, iova_max=EDU_MASK) as mapping:
        assert (mapping.address, mapping.size) == (memory.address + PAGE, 2 * PAGE)
        edu.copy(mapping.iova, mapping.iova + PAGE, 4)
        with pytest.raises(BufferError):
            memory.source.close()
    assert memory.source[2 * PAGE : 2 * PAGE + 4] == b"mine"
    memory.source.close()


def test_a_bytearray_is_mapped_where_it_has_whole_pages(space: Space) -> None:
    memory = bytearray(4 * PAGE)
    start = -address_of(memory) % PAGE
    refused(errno.EINVAL, lambda: space.dma.map(memory, PAGE, offset=start + 1, iova=IOVA))
    with space.dma.map(memory, 2 * PAGE, offset=start, iova=IOVA), pytest.raises(BufferError):
        memory.append(0)
    memory.append(0)
    with pytest.raises(DmaRangeError, match="exceed memory of"):
        space.dma.map(memory, 8 * PAGE)
    with pytest.raises(DmaRangeError, match="read-only"):
        space.dma.map(bytes(PAGE))
    assert space.dma.mapped == ()


def test_a_file_is_mapped_by_its_descriptor(space: Space, edu: Edu) -> None:
    fd = os.memfd_create("shared")
    os.ftruncate(fd, 4 * PAGE)
    os.pwrite(fd, b"file", PAGE)
    with space.dma.map_file(fd, 2 * PAGE, offset=PAGE, iova_max=EDU_MASK) as mapping:
        edu.copy(mapping.iova, mapping.iova + PAGE, 4)
    assert os.pread(fd, 4, 2 * PAGE) == b"file"
    os.close(fd)


# Faults


def test_dma_to_unmapped_iovas_is_lost(space: Space, edu: Edu) -> None:
    with space.dma.alloc(PAGE, iova=NEAR) as buffer:
        buffer[:] = b"\x55" * PAGE
        edu.fetch(buffer.iova, 2048)
        edu.store(NEAR + PAGE, 4)
        edu.store(NEAR - 4, 4)
        assert bytes(buffer) == b"\x55" * PAGE


def test_dma_after_unmap_is_lost(space: Space, edu: Edu) -> None:
    buffer = space.dma.alloc(PAGE, iova=NEAR)
    view = buffer.view
    edu.store(buffer.iova, 4)
    buffer.close()
    view[:4] = b"mine"
    edu.store(NEAR, 4)
    assert bytes(view[:4]) == b"mine"


def test_a_device_cannot_write_to_a_read_only_mapping(space: Space, edu: Edu) -> None:
    with (
        space.dma.alloc(2 * PAGE, iova=NEAR, write=False) as readable,
        space.dma.alloc(PAGE, iova=0) as other,
    ):
        readable[:4] = b"mine"
        edu.fetch(readable.iova, 4)
        edu.store(other.iova, 4)
        assert other[:4] == b"mine"
        edu.store(readable.iova + PAGE, 4)
        assert not any(readable[PAGE:])


def test_a_fault_is_logged_and_raises_no_interrupt(space: Space) -> None:
    with space.device.regions.bar0.map() as bar, space.device.irqs.msi.enable() as (vector,):
        space.device.bus_master = True

        def store() -> None:
            for offset, value in ((0x80, EDU_BUFFER), (0x88, NEAR + 8), (0x90, 4), (0x98, 0b011)):
                bar.write64(offset, value)

        assert space.fault_of(store) == NEAR
        assert vector.read() == 0


# End of mappings


@pytest.mark.parametrize("order", list(itertools.permutations(("mapping", "device", "space"))), ids="-".join)
def test_everything_closes_in_any_order(space: Space, memory: Memory, order: tuple[str, ...]) -> None:
    mapping = space.dma.map(memory.source)
    buffer = space.dma.alloc(PAGE)
    batch = space.dma.map_ranges(batch_of(memory, merged=False))
    ends = {
        "mapping": lambda: [one.close() for one in (mapping, buffer, batch)],
        "device": space.device.close,
        "space": space.iommu.close,
    }
    for one in order:
        ends[one]()
    for one in order:
        ends[one]()
    assert mapping.closed
    assert buffer.closed
    assert batch.closed
    assert space.dma.mapped == ()
    memory.source.close()


def test_mappings_end_with_the_last_device(space: Space) -> None:
    buffer = space.dma.alloc(PAGE)
    buffer[:4] = b"kept"
    view = buffer.view
    space.device.close()
    with pytest.raises(ClosedError, match="no longer mapped") as caught:
        buffer[0]
    assert "last device" in caught.value.hint
    assert bytes(view[:4]) == b"kept"
    with pytest.raises(ClosedError):
        space.dma.alloc(PAGE)


def test_unmap_all_closes_all_mappings(space: Space, memory: Memory) -> None:
    before = space.footprint()
    mapping = space.dma.map(memory.source)
    buffer = space.dma.alloc(3 * PAGE)
    assert space.dma.unmap_all() == (PAGES + 3) * PAGE
    assert mapping.closed
    assert buffer.closed
    assert space.footprint() == before
    mapping.close()
    memory.source.close()


def test_a_released_device_ends_its_mappings(space: Space, memory: Memory) -> None:
    mapping = space.dma.map(memory.source)
    space.device.file.revoke("a test requested it")
    assert space.device.closed
    if space.mode in LIMITED:
        with pytest.raises(ClosedError, match="no device is open"):
            space.dma.alloc(PAGE)
    else:
        mapping.close()  # an IOAS outlives its devices
    assert mapping.closed
    assert space.dma.mapped == ()
    with pytest.raises(ClosedError) as caught:
        space.device.config.read16(0)
    assert "a test requested it" in caught.value.hint
    memory.source.close()


def test_a_forked_child_leaves_its_parents_mappings(space: Space, edu: Edu) -> None:
    buffer = space.dma.alloc(PAGE, iova_max=EDU_MASK)
    buffer[:4] = b"mine"
    before = space.footprint()

    def in_child() -> bool:
        ends = (buffer.close, space.device.close, space.iommu.close)
        for end in ends:
            end()
        with pytest.raises(ClosedError):
            space.dma.alloc(PAGE)
        return True

    assert child_says(in_child) == "True"
    assert space.footprint() == before
    edu.copy(buffer.iova, buffer.iova + 8, 4)
    assert buffer[8:12] == b"mine"
    buffer.close()
    assert space.footprint().locked <= before.locked


def test_two_devices_share_an_address_space(space: Space, edu: Edu) -> None:
    with space.open(OTHER) as other:
        assert other.dma is space.dma
        buffer = other.dma.alloc(PAGE, iova_max=EDU_MASK)
        buffer[:4] = b"both"
        edu.fetch(buffer.iova, 4)
    assert not buffer.closed
    edu.store(buffer.iova + 4, 4)
    assert buffer[:8] == b"bothboth"


# iommufd alone


@pytest.mark.parametrize("space", kernel_params(IommuMode.IOMMUFD), indirect=True)
def test_a_copy_from_another_ioas_is_not_pinned_again(space: Space, edu: Edu) -> None:
    iommu = space.iommu
    assert isinstance(iommu, Iommufd)
    with iommu.another() as second, open_device(OTHER, iommu=Dma(second)) as other:
        buffer = other.dma.alloc(2 * PAGE)
        pinned = status("VmPin")
        iommu.copy(second, buffer.iova + PAGE, NEAR, PAGE, BOTH)
        assert status("VmPin") == pinned
        refused(errno.ENOENT, lambda: iommu.copy(second, buffer.iova + 8 * PAGE, NEAR + PAGE, PAGE, BOTH))
        buffer[PAGE : PAGE + 4] = b"copy"
        edu.copy(NEAR, NEAR + 4, 4)
        assert buffer[PAGE : PAGE + 8] == b"copycopy"
        buffer.close()
        assert iommu.unmap(NEAR, PAGE) == PAGE


@pytest.mark.parametrize("space", kernel_params(IommuMode.IOMMUFD), indirect=True)
def test_iovas_that_are_reserved_cannot_be_kept_valid(space: Space) -> None:
    iommu = space.iommu
    assert isinstance(iommu, Iommufd)
    before = iommu.info()
    iommu.allow_iovas(IovaRange(0, EDU_MASK), IovaRange(1 << 32, (1 << 33) - 1))
    assert iommu.info() == before
    with pytest.raises(DmaRangeError):
        iommu.allow_iovas(IovaRange(0xFEE0_0000, 0xFEEF_FFFF))


@pytest.mark.parametrize("space", kernel_params(IommuMode.IOMMUFD), indirect=True)
def test_an_ioas_maps_a_file_if_the_kernel_can(space: Space) -> None:
    iommu = space.iommu
    assert isinstance(iommu, Iommufd)
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    assert iommu.can_map_files == (release >= (6, 14))
    fd = os.memfd_create("shared")
    os.ftruncate(fd, PAGE)
    if iommu.can_map_files:
        iommu.map_file(fd, 0, IOVA, PAGE, BOTH)
        assert iommu.unmap(IOVA, PAGE) == PAGE
    else:
        with pytest.raises(UnsupportedError):
            iommu.map_file(fd, 0, IOVA, PAGE, BOTH)
    os.close(fd)


# Only on a kernel: BARs, limits, and allocations that fail


@pytest.mark.parametrize("space", kernel_params(*MODES), indirect=True)
def test_a_device_reaches_the_bar_of_another(space: Space, edu: Edu, memory: Memory) -> None:
    """type1 maps a BAR; iommufd maps memory alone, or a dma-buf of the BAR where the kernel exports one."""
    with space.open(OTHER) as other, other.regions.bar0.map() as bar:
        bar.write32(RECEIVE_ADDRESS, 0)
        exports = DeviceFeatureFlags.GET in other.features.probe(DeviceFeature.DMA_BUF)
        if space.mode not in LIMITED:
            error = refused(errno.EFAULT, lambda: space.dma.map(bar.address, bar.size, iova_max=EDU_MASK))
            assert "has registers of a device" in str(error)
        if space.mode not in LIMITED and not (space.mode is IommuMode.IOMMUFD and exports):
            error = refused(errno.EFAULT, lambda: space.dma.map(bar, iova_max=EDU_MASK))
            assert "has registers of a device" in str(error)
            assert "type1v2" in error.hint
            return
        memory.source[:4] = b"peer"
        with space.dma.map(bar, iova_max=EDU_MASK) as peer, space.dma.map(memory.source, iova=0) as own:
            edu.copy(own.iova, peer.iova + RECEIVE_ADDRESS, 4)
            assert bar.read32(RECEIVE_ADDRESS) == int.from_bytes(b"peer", "little")


RECEIVE_ADDRESS = 0x5408  # RAL1 of the e1000e, which keeps written values

LIMITED_CHILD = """
import mmap, sys
from vfiotool import open_device
from vfiotool._shim import ffi
from vfiotool.errors import DmaMapError
from vfiotool.vfio.uapi import DmaMapFlags

with open_device(sys.argv[1], iommu=sys.argv[2]) as device:
    device.dma.alloc(8 * 4096).close()
    memory = mmap.mmap(-1, 32 * 4096)
    address = int(ffi.cast("uintptr_t", ffi.from_buffer(memory)))
    for action in (
        lambda: device.dma.alloc(32 * 4096),
        lambda: device.dma.map_ranges([(address + at * 4096, at * 8192, 4096) for at in range(32)]),
        lambda: device.dma.iommu.map(address, 0, 32 * 4096, DmaMapFlags.READ),
    ):
        try:
            action()
        except DmaMapError as error:
            print(error.errno, error.hint)
    assert not device.dma.mapped
    assert device.dma.unmap_all() == 0
    device.dma.alloc(8 * 4096).close()
"""


@pytest.mark.needs_guest
@pytest.mark.parametrize("mode", [one.value for one in OFFERED])
def test_the_error_of_the_memlock_limit_says_what_to_raise(mode: str, vfio_devices: None) -> None:
    bounded = [
        "prlimit",
        "--memlock=65536:65536",
        "setpriv",
        "--bounding-set=-ipc_lock",
        sys.executable,
        "-c",
    ]
    done = subprocess.run([*bounded, LIMITED_CHILD, EDU, mode], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    predicted, batch, kernels = done.stdout.splitlines()
    for line in (predicted, batch):
        assert line.startswith(
            f"{errno.ENOMEM} 0 bytes are locked or pinned, 65536 are allowed, 131072 are needed"
        )
        assert "prlimit --memlock=131072" in line
    assert kernels.startswith(f"{errno.ENOMEM} ")
    assert "memlock" in kernels


FAILURES = ("failslab", "fail_page_alloc", "fail_usercopy")
DEBUGFS = "/sys/kernel/debug"
MOST_STEPS = 2000


@pytest.fixture
def fail_nth() -> Iterator[Callable[[int], bool]]:
    """Make the n-th allocation or copy from now on fail; 0 ends that, and returns True if none failed."""
    if not os.path.exists("/proc/self/fail-nth"):
        pytest.skip("this kernel has no fault injection")
    if not os.path.exists(f"{DEBUGFS}/failslab"):
        subprocess.run(["mount", "-t", "debugfs", "debugfs", DEBUGFS], check=True)
    for name in FAILURES:
        for attribute, value in (
            ("ignore-gfp-wait", "N"),
            ("ignore-gfp-highmem", "N"),
            ("min-order", "0"),
            ("verbose", "0"),
        ):
            if os.path.exists(f"{DEBUGFS}/{name}/{attribute}"):
                write(f"{DEBUGFS}/{name}/{attribute}", value)
    fd = os.open("/proc/self/fail-nth", os.O_RDWR)

    def arm(number: int) -> bool:
        """Arm the fault, or return True if it has not struck; this call itself may be the fault."""
        waits = False
        if not number:
            try:
                waits = int(os.pread(fd, 20, 0)) > 0
            except OSError:
                waits = True
        with contextlib.suppress(OSError):
            os.pwrite(fd, b"%d" % number, 0)
        return waits

    yield arm
    arm(0)
    os.close(fd)


@pytest.mark.parametrize("merged", [False, True], ids=["scattered", "merged"])
@pytest.mark.parametrize("space", kernel_params(*MODES), indirect=True)
def test_a_failed_batch_leaves_no_mapping(
    space: Space, memory: Memory, merged: bool, fail_nth: Callable[[int], bool]
) -> None:
    ranges = batch_of(memory, merged=merged)
    given = Ranges.of(ranges)
    with space.dma.map(memory.source, iova=NEAR):  # so that memory, tables and caches are present
        before = space.footprint()
        codes = set()
        for step in range(1, MOST_STEPS):
            fail_nth(step)
            try:
                space.iommu.map_ranges(given, BOTH)
                failed = 0
            except DmaMapError as error:
                failed = error.errno or 0
            finally:
                is_done = fail_nth(0)
            codes.add(failed)
            if not failed:
                assert space.iommu.unmap_ranges(given) == 2 * COUNT * PAGE
            assert space.footprint() == before
            if is_done:
                break
        assert not failed
        assert step > COUNT if not merged else step > 1
        assert codes == {0, errno.ENOMEM, errno.EFAULT}
