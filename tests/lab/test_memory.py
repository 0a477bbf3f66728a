"""Memory for devices on real kernels: pools of huge pages, forks, and what must not be touched."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.guest import EDU, RELEASE
from vfiotool._shim import ffi, lib
from vfiotool.errors import UnsupportedError
from vfiotool.vfio.dma.memory import Memory, PageKind

pytestmark = pytest.mark.needs_guest

PAGE = mmap.PAGESIZE
HUGE = 2 << 20
SIZE = 3 * HUGE
POOL = "/sys/kernel/mm/hugepages/hugepages-2048kB"
POOL_OF_1G = "/sys/kernel/mm/hugepages/hugepages-1048576kB"
CANNOT = (-errno.EINVAL, -errno.ENOMEM, -errno.EFAULT) if RELEASE >= (5, 14) else (-errno.EFAULT,)
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
HUGETLB = 0x40000 | 21 << 26
NORESERVE = 0x4000


def pool(count: str) -> int:
    with open(f"{POOL}/{count}_hugepages", encoding="ascii") as file:
        return int(file.read())


def set_pool(count: int) -> None:
    with open(f"{POOL}/nr_hugepages", "w", encoding="ascii") as file:
        file.write(str(count))


@pytest.fixture
def four_pages() -> Iterator[None]:
    """A pool of four pages of 2M."""
    set_pool(4)
    assert pool("free") == 4
    yield
    set_pool(0)
    assert pool("nr") == 0


def entries(address: int, size: int) -> list[int]:
    """Return the pagemap's entries (Documentation/admin-guide/mm/pagemap.rst)."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(address // PAGE * 8)
        return [entry for (entry,) in struct.iter_unpack("<Q", pagemap.read(size // PAGE * 8))]


def frames(address: int, size: int) -> list[int]:
    """Return the page frame numbers of memory that is present."""
    found = entries(address, size)
    assert all(entry >> 63 for entry in found)
    return [entry & ((1 << 55) - 1) for entry in found]


def address_of(area: mmap.mmap) -> int:
    return int(ffi.cast("uintptr_t", ffi.from_buffer(area)))


def written_after_fork(area: mmap.mmap, start: int, size: int) -> int:
    """Write to all pages while a child has its copy; return how many of them moved away."""
    address = address_of(area) + start
    before = frames(address, size)
    asked, ask = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ask)
        os.read(asked, 1)
        area[start] = 1  # a child may write what it has
        os._exit(0)
    for page in range(start, start + size, PAGE):
        area[page] = 7
    moved = sum(map(int.__ne__, before, frames(address, size)))
    os.close(ask)
    assert os.waitpid(child, 0)[1] == 0
    os.close(asked)
    return moved


@pytest.mark.parametrize("kind", [PageKind.SMALL, PageKind.THP, PageKind.HUGE_2M])
@pytest.mark.usefixtures("four_pages")
def test_all_is_present_and_no_page_moves_away_when_this_process_forks(kind: PageKind) -> None:
    with Memory(SIZE, kind) as made:
        assert made.kind is kind
        assert made.size == SIZE
        assert 0 not in frames(made.address, SIZE)
        assert written_after_fork(made.source, made.offset, SIZE) == 0


def test_a_page_of_common_memory_does_move_away() -> None:
    with mmap.mmap(-1, SIZE, flags=PRIVATE) as area:
        assert lib.vt_prefault(address_of(area), SIZE, PAGE, 2) == 0
        assert written_after_fork(area, 0, SIZE) == SIZE // PAGE


def test_transparent_huge_pages_are_had() -> None:
    with Memory(4 * HUGE, "thp") as made:
        first = [frames(made.address + at, HUGE) for at in range(0, made.size, HUGE)]
    whole = [
        pages for pages in first if pages == list(range(pages[0], pages[0] + 512)) and pages[0] % 512 == 0
    ]
    assert whole


@pytest.mark.usefixtures("four_pages")
def test_pages_of_a_pool_are_taken_and_given_back() -> None:
    with Memory(2 * HUGE + 1, "2M") as made:
        assert (made.size, made.page_size, made.address % HUGE) == (SIZE, HUGE, 0)
        assert pool("free") == 1
        assert [frame % 512 for frame in frames(made.address, SIZE)[::512]] == [0, 0, 0]
    assert pool("free") == 4


@pytest.mark.usefixtures("four_pages")
def test_auto_takes_the_pool_as_long_as_it_lasts() -> None:
    with Memory(SIZE) as first, Memory(SIZE) as second:
        assert (first.kind, second.kind) == (PageKind.HUGE_2M, PageKind.THP)


@pytest.mark.usefixtures("four_pages")
def test_what_the_hint_says_helps() -> None:
    with Memory(SIZE, "2M"):
        with pytest.raises(UnsupportedError, match="need 3 pages of 2M, and 1 are free") as caught:
            Memory(SIZE, "2M")
        subprocess.run(["sh", "-c", caught.value.hint], check=True)
        Memory(SIZE, "2M").close()
        assert pool("nr") == 6


def test_pages_of_1g() -> None:
    reason = "0 are free" if os.path.exists(POOL_OF_1G) else "has no 1G pages"
    with pytest.raises(UnsupportedError, match=reason):
        Memory(1 << 30, "1G")


@pytest.mark.usefixtures("four_pages")
def test_a_pool_that_runs_out_is_an_error_and_no_signal() -> None:
    with mmap.mmap(-1, 8 * HUGE, flags=PRIVATE | HUGETLB | NORESERVE) as area:
        for threads in (1, 2):
            assert lib.vt_prefault(address_of(area), 8 * HUGE, HUGE, threads) == -errno.EFAULT


@pytest.mark.parametrize("flags", [mmap.MAP_PRIVATE, mmap.MAP_SHARED])
def test_prefault_changes_nothing(flags: int) -> None:
    size = 20 << 20
    tasks = os.listdir("/proc/self/task")
    with mmap.mmap(-1, size, flags=flags | mmap.MAP_ANONYMOUS) as area:
        area[5 * PAGE : 5 * PAGE + 4] = b"kept"
        assert lib.vt_prefault(address_of(area), size, PAGE, 2) == 0
        assert all(entry >> 63 for entry in entries(address_of(area), size))
        assert area.find(b"kept") == 5 * PAGE
        assert len(os.listdir("/proc/self/task")) == len(tasks)


def test_what_cannot_be_present() -> None:
    with mmap.mmap(-1, 4 * PAGE, flags=PRIVATE, prot=mmap.PROT_READ) as area:
        assert lib.vt_prefault(address_of(area), 4 * PAGE, PAGE, 1) in CANNOT
    area = mmap.mmap(-1, 4 * PAGE, flags=PRIVATE)
    address = address_of(area)
    area.close()
    assert lib.vt_prefault(address, 4 * PAGE, PAGE, 1) in CANNOT
    assert lib.vt_prefault(-PAGE % (1 << 47), 2 * PAGE, PAGE, 1) in CANNOT


def test_registers_are_not_touched() -> None:
    path = f"/sys/bus/pci/devices/{EDU}/resource0"
    with open(path, "r+b", buffering=0) as bar, mmap.mmap(bar.fileno(), PAGE) as registers:
        assert lib.vt_prefault(address_of(registers), PAGE, PAGE, 1) in CANNOT
