"""Memory for DMA: its pages, its references, and how it becomes present. A lab guest has real pools."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfiotool._shim import ffi, lib
from vfiotool.errors import ClosedError, DmaRangeError, KernelError, UnsupportedError, UsageError
from vfiotool.host.tree import Tree
from vfiotool.vfio.dma import memory
from vfiotool.vfio.dma.memory import Memory, PageKind

PAGE = mmap.PAGESIZE
MIB = 1 << 20
GIB = 1 << 30
HUGE = 2 * MIB
POOLS = "sys/kernel/mm/hugepages"
THP = "sys/kernel/mm/transparent_hugepage/enabled"


class Machine:
    """The sysfs files of huge pages, and a kernel that grants as many pages as they say, but no memory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.put(THP, "always [madvise] never\n")
        self.flags: list[int] = []
        self.made: list[mmap.mmap] = []
        self.refusal = 0

    def put(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def pool(self, size: int, *, total: int, free: int, reserved: int = 0) -> None:
        for name, count in (("nr", total), ("free", free), ("resv", reserved)):
            self.put(f"{POOLS}/hugepages-{size >> 10}kB/{name}_hugepages", f"{count}\n")

    def map(self, size: int, flags: int) -> mmap.mmap:
        self.flags.append(flags)
        if flags & 0x40000:
            page = 1 << (flags >> 26)
            pool = self.root / POOLS / f"hugepages-{page >> 10}kB"
            if not pool.exists():
                raise KernelError(errno.EINVAL, "mmap", "memory")
            available = int((pool / "free_hugepages").read_text()) - int(
                (pool / "resv_hugepages").read_text()
            )
            if available * page < size:
                raise KernelError(errno.ENOMEM, "mmap", "memory")
        self.made.append(mmap.mmap(-1, size))
        return self.made[-1]

    def vt_prefault(self, address: int, size: int, page_size: int, threads: int) -> int:
        assert size % page_size == address % PAGE == threads == 0
        return self.refusal


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with transparent huge pages and without a pool."""
    made = Machine(tmp_path)
    monkeypatch.setattr(memory, "Tree", lambda: Tree(str(tmp_path)))
    monkeypatch.setattr(memory, "_mapped", made.map)
    monkeypatch.setattr(memory, "lib", made)
    return made


def present(address: int, size: int) -> list[bool]:
    """Return for each page True if it is present (Documentation/admin-guide/mm/pagemap.rst)."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(address // PAGE * 8)
        return [bool(entry >> 63) for (entry,) in struct.iter_unpack("<Q", pagemap.read(size // PAGE * 8))]


def area_flags(address: int) -> set[str]:
    """Return the ``VmFlags`` of the mapping at an address (proc_pid_smaps(5))."""
    found = False
    with open("/proc/self/smaps", encoding="ascii") as smaps:
        for line in smaps:
            first = line.split(maxsplit=1)[0]
            if not first.endswith(":"):
                start, end = (int(bound, 16) for bound in first.split("-"))
                found = start <= address < end
            elif found and first == "VmFlags:":
                return set(line.split()[1:])
    return set()


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def test_small_pages_are_present_and_zero() -> None:
    with Memory(3 * PAGE + 1, "4K") as made:
        assert (made.kind, made.page_size, made.size) == (PageKind.SMALL, PAGE, 4 * PAGE)
        assert made.address % PAGE == 0
        assert all(present(made.address, made.size))
        assert area_flags(made.address) >= {"nh", "wf", "rd", "wr"}
        assert bytes(made.source[made.offset :][: made.size]) == bytes(made.size)


def test_transparent_huge_pages_are_aligned() -> None:
    with Memory(HUGE + PAGE, PageKind.THP) as made:
        assert (made.kind, made.page_size, made.size) == (PageKind.THP, HUGE, HUGE + PAGE)
        assert made.address % HUGE == 0
        assert all(present(made.address, made.size))
        assert area_flags(made.address) >= {"hg", "wf", "rd", "wr"}


def test_a_huge_page_is_as_large_as_the_kernel_says() -> None:
    size = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").read_text(encoding="ascii")
    with Memory(1, "thp") as made:
        assert made.page_size == int(size)


@pytest.mark.parametrize("pages", ["4K", "thp"])
def test_source_and_offset_are_where_the_address_is(pages: str) -> None:
    with Memory(2 * PAGE, pages) as made:
        array = (ctypes.c_char * made.size).from_buffer(made.source, made.offset)
        assert ctypes.addressof(array) == made.address
        array[PAGE] = b"x"
        assert ctypes.string_at(made.address + PAGE, 1) == b"x"


@pytest.mark.parametrize("pages", ["4K", "thp"])
def test_closed_memory_stays_for_its_references(pages: str) -> None:
    made = Memory(PAGE, pages)
    address = made.address
    view = memoryview(made.source)[made.offset :]
    view[:4] = b"kept"
    made.close()
    made.close()
    assert made.closed
    assert bytes(view[:4]) == b"kept"
    assert "wf" in area_flags(address)
    view.release()
    assert "wf" not in area_flags(address)


def test_closed_memory_has_no_address_or_source() -> None:
    made = Memory(PAGE)
    made.close()
    with pytest.raises(ClosedError):
        _ = made.address
    with pytest.raises(ClosedError):
        _ = made.source
    with pytest.raises(ClosedError), made:
        pass
    assert repr(made) == "<Memory of 0x1000 bytes in 4K pages, closed>"


@pytest.mark.parametrize("pages", ["4K", "thp"])
def test_a_forked_child_sees_zeros(pages: str) -> None:
    with Memory(PAGE, pages) as made:
        made.source[made.offset : made.offset + 4] = b"mine"
        child = os.fork()
        if child == 0:
            made.source[made.offset + 1] = 1
            os._exit(made.source[made.offset])
        assert os.waitpid(child, 0)[1] == 0
        assert made.source[made.offset : made.offset + 4] == b"mine"


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_must_be_positive(size: int) -> None:
    with pytest.raises(DmaRangeError, match=f"{size} bytes"):
        Memory(size)


@pytest.mark.parametrize("pages", ["auto", "4K", "thp", "2M", "1G"])
@pytest.mark.parametrize("size", [1 << 60, 1 << 64, 1 << 80])
def test_more_memory_than_the_machine_has_is_an_error(size: int, pages: str) -> None:
    with pytest.raises((KernelError, UnsupportedError)) as caught:
        Memory(size, pages)
    if isinstance(caught.value, KernelError):
        assert caught.value.errno == errno.ENOMEM
    assert caught.value.hint or "out of memory" in str(caught.value)


@pytest.mark.parametrize("pages", ["", "AUTO", "2m", "3M"])
def test_an_unknown_kind_of_pages_is_an_error(pages: str) -> None:
    with pytest.raises(UsageError) as caught:
        Memory(PAGE, pages)
    assert caught.value.hint == "use auto, 4K, thp, 2M, 1G"


@pytest.mark.parametrize(
    ("size", "kind", "has"),
    [
        (1, PageKind.SMALL, PAGE),
        (HUGE - 1, PageKind.SMALL, HUGE),
        (HUGE, PageKind.HUGE_2M, HUGE),
        (HUGE + 1, PageKind.THP, HUGE + PAGE),
        (15 * MIB, PageKind.HUGE_2M, 16 * MIB),
        (9 * MIB, PageKind.HUGE_2M, 10 * MIB),
        (17 * MIB // 2, PageKind.THP, 17 * MIB // 2),
        (GIB, PageKind.HUGE_1G, GIB),
        (GIB + HUGE, PageKind.HUGE_2M, GIB + HUGE),
        (GIB * 15 // 8, PageKind.HUGE_1G, 2 * GIB),
        (3 * GIB, PageKind.THP, 3 * GIB),
    ],
)
def test_auto_takes_the_largest_pages_that_waste_little(
    machine: Machine, size: int, kind: PageKind, has: int
) -> None:
    machine.pool(HUGE, total=1000, free=1000)
    machine.pool(GIB, total=2, free=2)
    with Memory(size) as made:
        assert (made.kind, made.size) == (kind, has)


def test_auto_falls_back_to_available_pages(machine: Machine) -> None:
    machine.pool(HUGE, total=4, free=3, reserved=2)
    with Memory(HUGE) as made:
        assert made.kind is PageKind.HUGE_2M
    with Memory(2 * HUGE) as made:
        assert made.kind is PageKind.THP
    machine.put(THP, "always madvise [never]\n")
    with Memory(2 * HUGE) as made:
        assert (made.kind, made.page_size) == (PageKind.SMALL, PAGE)


def test_pages_of_a_pool_are_shared_and_reserved(machine: Machine) -> None:
    machine.pool(HUGE, total=2, free=2)
    Memory(HUGE + 1, "2M").close()
    assert machine.flags == [mmap.MAP_SHARED | 0x40000 | 21 << 26]


def test_a_pool_that_has_too_few_says_how_many_it_needs(machine: Machine) -> None:
    machine.pool(HUGE, total=10, free=5, reserved=2)
    with pytest.raises(UnsupportedError, match="need 8 pages of 2M, and 3 are free") as caught:
        Memory(8 * HUGE, "2M")
    assert caught.value.hint == f"echo 15 > /{POOLS}/hugepages-2048kB/nr_hugepages"
    machine.pool(GIB, total=0, free=0)
    with pytest.raises(UnsupportedError) as caught:
        Memory(1, "1G")
    assert caught.value.hint.endswith(
        "hugepages-1048576kB/nr_hugepages, or boot with hugepagesz=1G hugepages=1"
    )


def test_a_machine_without_such_a_pool(machine: Machine) -> None:
    with pytest.raises(UnsupportedError, match="this machine has no 1G pages"):
        Memory(GIB, "1G")


@pytest.mark.parametrize("mode", ["always madvise [never]\n", None])
def test_a_machine_without_transparent_huge_pages(machine: Machine, mode: str | None) -> None:
    if mode is None:
        (machine.root / THP).unlink()
    else:
        machine.put(THP, mode)
    with pytest.raises(UnsupportedError, match="transparent") as caught:
        Memory(HUGE, "thp")
    assert f"echo madvise > /{THP}" in caught.value.hint


def test_memory_that_cannot_be_made_present_is_freed(machine: Machine) -> None:
    machine.pool(HUGE, total=1, free=1)
    machine.refusal = -errno.EFAULT
    with pytest.raises(KernelError, match="MADV_POPULATE_WRITE on 0x200000 bytes in 4K pages") as caught:
        Memory(HUGE)
    assert caught.value.errno == errno.EFAULT
    assert [source.closed for source in machine.made] == [True, True, True]


# vt_prefault on all kinds of memory

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

SIZE = 40 * MIB
"""A size that takes more than one thread."""


@pytest.fixture
def area() -> Iterator[mmap.mmap]:
    made = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    made.madvise(mmap.MADV_HUGEPAGE)  # otherwise it would take long
    yield made
    made.close()


def address_of(area: mmap.mmap) -> int:
    return int(ffi.cast("uintptr_t", ffi.from_buffer(area)))


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_prefault_makes_all_pages_present_and_keeps_their_contents(area: mmap.mmap, count: int) -> None:
    area[SIZE - 3 * PAGE] = 7
    before = threads()
    address = address_of(area)
    assert not all(present(address, SIZE))
    assert lib.vt_prefault(address, SIZE, PAGE, count) == 0
    assert all(present(address, SIZE))
    assert threads() == before
    assert area[SIZE - 3 * PAGE] == 7
    assert area.find(b"\7") == SIZE - 3 * PAGE


def test_prefault_of_no_bytes_does_nothing(area: mmap.mmap) -> None:
    assert lib.vt_prefault(address_of(area), 0, PAGE, 0) == 0
    assert not any(present(address_of(area), PAGE))


@pytest.mark.parametrize(
    ("start", "size", "page"),
    [
        (1, PAGE, PAGE),
        (0, PAGE - 1, PAGE),
        (0, PAGE, 0),
        (0, PAGE, PAGE - 1),
        (0, PAGE, 64 * GIB),
    ],
)
def test_prefault_refuses_partial_pages(area: mmap.mmap, start: int, size: int, page: int) -> None:
    assert lib.vt_prefault(address_of(area) + start, size, page, 0) == -errno.EINVAL


@pytest.mark.parametrize("size", [PAGE, 2 * PAGE, SIZE])
def test_prefault_refuses_ranges_beyond_64_bits(size: int) -> None:
    assert lib.vt_prefault((1 << 64) - PAGE, size, PAGE, 0) in (-errno.EINVAL, -errno.ENOMEM)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("protection", [mmap.PROT_READ, 0])
def test_prefault_refuses_read_only_memory(protection: int, count: int) -> None:
    address = LIBC.mmap(None, SIZE, protection, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    before = threads()
    assert lib.vt_prefault(address, SIZE, PAGE, count) in (-errno.EINVAL, -errno.EFAULT)
    assert threads() == before
    LIBC.munmap(address, SIZE)


@pytest.mark.parametrize("count", [1, 2])
def test_prefault_refuses_a_hole(count: int) -> None:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address = LIBC.mmap(None, SIZE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    LIBC.madvise(ctypes.c_void_p(address), ctypes.c_size_t(SIZE), mmap.MADV_HUGEPAGE)
    LIBC.munmap(address + SIZE - 2 * PAGE, PAGE)
    assert lib.vt_prefault(address, SIZE, PAGE, count) in (-errno.ENOMEM, -errno.EFAULT)
    LIBC.munmap(address, SIZE)


def test_a_file_that_ends_before_its_mapping_is_no_signal() -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(4 * PAGE)
        with mmap.mmap(file.fileno(), 4 * PAGE) as mapped:
            file.truncate(PAGE)
            assert lib.vt_prefault(address_of(mapped), 4 * PAGE, PAGE, 0) == -errno.EFAULT
            assert lib.vt_prefault(address_of(mapped), PAGE, PAGE, 0) == 0
