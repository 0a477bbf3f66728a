"""The cost of this package compared with C and with plain Python; `scripts/bench` runs it in a guest.

Each line is a pair that is timed in turns, in this process, on this container and device. The twin in C
(twin.c) makes the same system calls and accesses, and nothing else.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import itertools
import mmap
import os
import platform
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

import vfiotool
from tests.bench import nvme_reads, stress_memory, stress_rate
from tests.bench.pairs import Result, compare
from vfiotool.vfio import Device, Ranges
from vfiotool.vfio.uapi import ContainerIoctl, DmaMapFlags

EDU = "0000:00:10.0"
IDENT, RAISE, ACKNOWLEDGE = 0x00, 0x60, 0x64
IOVA = 1 << 34
PAGE = mmap.PAGESIZE
RW = DmaMapFlags.READ | DmaMapFlags.WRITE
RUN = 24  # bytes of struct vt_range
_MAP = struct.Struct("=IIQQQ")


def twins() -> ctypes.CDLL:
    """The functions of twin.c."""
    source = Path(__file__).with_name("twin.c")
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/twin.so"
        subprocess.run(["gcc", "-O2", "-Wall", "-shared", "-fPIC", "-o", library, source], check=True)
        loaded = ctypes.CDLL(library)
    for name in ("twin_map", "twin_unmap", "twin_read32", "twin_write32", "twin_interrupts"):
        getattr(loaded, name).restype = ctypes.c_int64
    return loaded


def checked(result: int) -> int:
    """Return the nanoseconds that a twin took."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def timed(action: Callable[[], object]) -> int:
    """Return the nanoseconds that a call takes."""
    begun = time.perf_counter_ns()
    action()
    return time.perf_counter_ns() - begun


class Memory:
    """Memory that is present before the measurement."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.map.madvise(mmap.MADV_HUGEPAGE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        ctypes.memset(self.address, 1, size)


class Maps:
    """Mapping, compared with a loop in C."""

    def __init__(self, device: Device, twin: ctypes.CDLL) -> None:
        self.dma = device.dma
        self.container = device.dma.iommu.container.fileno()  # type: ignore[attr-defined]
        self.twin = twin

    def scattered(self, memory: Memory, size: int, count: int, rounds: int) -> Result:
        """``count`` pieces of memory, some repeated, none adjacent to the one before: each takes a call."""
        order = list(range(min(count, memory.size // size)))
        order.sort(key=lambda piece: (piece % 2, -piece))  # even ones, then odd ones, each downwards
        words = array.array("Q")
        for place, piece in zip(range(count), itertools.cycle(order)):
            words.extend((memory.address + piece * size, IOVA + place * size, size))
        ranges = Ranges.of(words)
        pointer = ctypes.c_void_p(words.buffer_info()[0])

        def ours() -> int:
            begun = time.perf_counter_ns()
            batch = self.dma.map_ranges(ranges)
            taken = time.perf_counter_ns() - begun
            batch.close()
            return taken

        def theirs() -> int:
            taken = checked(self.twin.twin_map(self.container, pointer, ctypes.c_uint64(count)))
            self._twin_unmap(count * size)
            return taken

        name = f"map {count} ranges of {size >> 10} KiB at once : C loop"
        return compare(name, ours, theirs, count, at_most=1.05, rounds=rounds)

    def one(self, memory: Memory) -> Result:
        """One call from Python for each mapping."""
        count = 256

        def ours() -> int:
            made = []
            begun = time.perf_counter_ns()
            for number in range(count):
                made.append(self.dma.map(memory.address, PAGE, iova=IOVA + number * PAGE))
            taken = time.perf_counter_ns() - begun
            for mapping in made:
                mapping.close()
            return taken

        words = array.array("Q")
        for number in range(count):
            words.extend((memory.address, IOVA + number * PAGE, PAGE))
        pointer = ctypes.c_void_p(words.buffer_info()[0])

        def theirs() -> int:
            taken = checked(self.twin.twin_map(self.container, pointer, ctypes.c_uint64(count)))
            self._twin_unmap(count * PAGE)
            return taken

        return compare("one map() of 4 KiB : C", ours, theirs, count)

    def contiguous(self, memory: Memory, size: int) -> Result:
        """Buffers of 4 KiB in any order in contiguous memory: a single call against a call for each."""
        count = size // PAGE
        addresses = [memory.address + number * PAGE for number in range(count)]
        addresses = addresses[::2] + addresses[1::2]
        words = array.array("Q", addresses)

        def ours() -> int:
            begun = time.perf_counter_ns()
            batch = self.dma.map_buffers(words, PAGE)
            taken = time.perf_counter_ns() - begun
            assert len(batch.runs) == 1
            batch.close()
            return taken

        def theirs() -> int:
            begun = time.perf_counter_ns()
            request, iova = int(ContainerIoctl.VFIO_IOMMU_MAP_DMA), IOVA
            for address in addresses:
                fcntl.ioctl(self.container, request, _MAP.pack(_MAP.size, RW, address, iova, PAGE))
                iova += PAGE
            taken = time.perf_counter_ns() - begun
            self._twin_unmap(size)
            return taken

        name = f"map {size >> 20} MiB in buffers of 4 KiB : ioctls in Python"
        return compare(name, ours, theirs, count, at_most=1 / 20, rounds=3)

    def memory_each(self, memory: Memory) -> tuple[float, float]:
        """Bytes of memory that a mapping takes, single and in a batch."""
        count = 2048
        tracemalloc.start()
        made = [self.dma.map(memory.address, PAGE, iova=IOVA + n * PAGE) for n in range(count)]
        single = tracemalloc.get_traced_memory()[0] / count
        for mapping in made:
            mapping.close()
        del made
        before = tracemalloc.get_traced_memory()[0]
        ranges = [(memory.address, IOVA + n * PAGE, PAGE) for n in range(count)]
        batch = self.dma.map_ranges(ranges)
        del ranges
        kept = tracemalloc.get_traced_memory()[0] - before
        batched = (kept + len(batch.runs) * RUN) / count  # the memory of C is not traced
        tracemalloc.stop()
        batch.close()
        return single, batched

    def _twin_unmap(self, size: int) -> None:
        checked(self.twin.twin_unmap(self.container, ctypes.c_uint64(IOVA), ctypes.c_uint64(size)))


def registers(device: Device, twin: ctypes.CDLL) -> Iterator[Result]:
    """Registers by exact width, compared with C and with a slice of an mmap, which has no exact width."""
    count = 2000
    info = device.regions.bar0.info
    with device.regions.bar0.map() as bar0, mmap.mmap(device.fileno(), PAGE, offset=info.offset) as plain:
        address = ctypes.c_void_p(bar0.address + IDENT)
        scratch = ctypes.c_void_p(bar0.address + 4)  # edu returns the value inverted
        times = ctypes.c_uint64(count)

        def read() -> None:
            for _ in range(count):
                bar0.read32(IDENT)

        def write() -> None:
            for _ in range(count):
                bar0.write32(4, 7)

        def read_slice() -> None:
            for _ in range(count):
                int.from_bytes(plain[IDENT : IDENT + 4], "little")

        def write_slice() -> None:
            for _ in range(count):
                plain[4:8] = b"\7\0\0\0"

        yield compare("read32 : C", lambda: timed(read), lambda: twin.twin_read32(address, times), count)
        yield compare(
            "write32 : C", lambda: timed(write), lambda: twin.twin_write32(scratch, 7, times), count
        )
        yield compare("read32 : slice of an mmap", lambda: timed(read), lambda: timed(read_slice), count)
        yield compare("write32 : slice of an mmap", lambda: timed(write), lambda: timed(write_slice), count)


def interrupts(device: Device, twin: ctypes.CDLL) -> Result:
    """From the write that raises an interrupt to its acknowledgement."""
    count = 200
    device.bus_master = True
    with device.regions.bar0.map() as bar0, device.irqs.msi.enable() as (vector,):

        def ours() -> int:
            begun = time.perf_counter_ns()
            for _ in range(count):
                bar0.write32(RAISE, 1)
                vector.wait(30)
                bar0.write32(ACKNOWLEDGE, 1)
            return time.perf_counter_ns() - begun

        def theirs() -> int:
            return checked(
                twin.twin_interrupts(
                    ctypes.c_void_p(bar0.address + RAISE),
                    ctypes.c_void_p(bar0.address + ACKNOWLEDGE),
                    vector.fileno(),
                    ctypes.c_uint64(count),
                )
            )

        return compare("interrupt to Python : to C", ours, theirs, count)


def all_pairs(device: Device) -> Iterator[Result]:
    """Yield every pair, in the order of the table."""
    twin = twins()
    maps = Maps(device, twin)
    memory = Memory(1 << 30)
    # Rounds in the kernel vary: a ratio near 1 needs many rounds.
    for size, count, rounds in ((PAGE, 16384, 121), (64 << 10, 16384, 121), (2 << 20, 4096, 121)):
        yield maps.scattered(memory, size, count, rounds)
    yield maps.contiguous(memory, 1 << 30)
    yield maps.one(memory)
    yield from registers(device, twin)
    yield interrupts(device, twin)
    single, batched = maps.memory_each(memory)
    print(f"memory for a mapping: {single:.0f} bytes by itself, {batched:.0f} in a batch", file=sys.stderr)


@contextlib.contextmanager
def raised_limit() -> Iterator[None]:
    """Let a container accept as many mappings as the loop that merges none makes."""
    with open("/sys/module/vfio_iommu_type1/parameters/dma_entry_limit", "r+", encoding="ascii") as file:
        former = file.read()
        file.write("1000000")
        file.flush()
        try:
            yield
        finally:
            file.write(former)


def main() -> int:
    """Print the table; return 1 if a goal is missed."""
    table = Table("pair", "ns each", "other", "ratio", "goal", box=None, pad_edge=False)
    results = []
    with vfiotool.bound(EDU), raised_limit(), vfiotool.open_device(EDU, iommu="type1v2") as device:
        for result in all_pairs(device):
            results.append(result)
            shown = f"{result.ratio:.3f}" + ("" if result.met else " missed")
            table.add_row(result.name, f"{result.ours:,.0f}", f"{result.theirs:,.0f}", shown, result.goal)
            print(result.name, shown, file=sys.stderr, flush=True)
    Console(width=120).print(f"Linux {platform.release()}, {os.cpu_count()} processors", table, sep="\n")
    missed = nvme_reads.main() + stress_rate.main() + stress_memory.main()
    return 0 if all(result.met for result in results) and not missed else 1


if __name__ == "__main__":
    sys.exit(main())
