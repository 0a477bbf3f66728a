"""Mapped registers over plain memory: exact widths, bounds, rights, and revocation during use.

tests/contract/test_regions.py tests what a device sees of an access.
"""

from __future__ import annotations

import gc
import itertools
import mmap
import os
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfiotool.errors import AccessError, ClosedError, KernelError
from vfiotool.vfio.mmio.access import Guard
from vfiotool.vfio.mmio.mmio import Mmio

PAGE = mmap.PAGESIZE
SIZE = 64
WIDTHS = (8, 16, 32, 64)
NAME = "bar0 of 0000:00:10.0"
PATTERN = bytes(range(1, SIZE + 1))


@pytest.fixture
def memory() -> bytearray:
    return bytearray(PATTERN)


@pytest.fixture
def window(memory: bytearray) -> Mmio:
    return Mmio.of_memory(memory, name=NAME)


@pytest.fixture
def file() -> Iterator[int]:
    """A file of four pages; each byte is the number of its page."""
    fd = os.memfd_create("device")
    os.write(fd, b"".join(bytes([number]) * PAGE for number in range(4)))
    yield fd
    os.close(fd)


def mapped(file: int, offset: int = 0, size: int = PAGE, *, write: bool = True) -> Mmio:
    return Mmio.of_file(file, offset, size, write=write, name=NAME)


def read(window: Mmio, width: int, offset: int) -> int:
    methods: dict[int, Callable[[int], int]] = {
        8: window.read8, 16: window.read16, 32: window.read32, 64: window.read64,
    }  # fmt: skip
    return methods[width](offset)


def write(window: Mmio, width: int, offset: int, value: int) -> None:
    methods: dict[int, Callable[[int, int], None]] = {
        8: window.write8, 16: window.write16, 32: window.write32, 64: window.write64,
    }  # fmt: skip
    methods[width](offset, value)


def mappings(address: int) -> str:
    """Return the line of /proc/self/maps for an address, or an empty string."""
    with open("/proc/self/maps", encoding="ascii") as lines:
        for line in lines:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if start <= address < end:
                return line
    return ""


# Single accesses


@pytest.mark.parametrize("width", WIDTHS)
def test_reads_are_little_endian_and_unsigned(window: Mmio, memory: bytearray, width: int) -> None:
    for offset in range(0, SIZE, width // 8):
        expected = int.from_bytes(PATTERN[offset : offset + width // 8], "little")
        assert read(window, width, offset) == expected
    memory[:8] = b"\xff" * 8
    assert read(window, width, 0) == (1 << width) - 1


@pytest.mark.parametrize("width", WIDTHS)
def test_a_write_changes_its_own_bytes_and_no_others(window: Mmio, memory: bytearray, width: int) -> None:
    for offset in range(0, SIZE, width // 8):
        memory[:] = PATTERN
        value = (1 << width) - 2
        write(window, width, offset, value)
        expected = bytearray(PATTERN)
        expected[offset : offset + width // 8] = value.to_bytes(width // 8, "little")
        assert memory == expected


@settings(deadline=None)
@given(
    width=st.sampled_from(WIDTHS),
    offset=st.integers(-SIZE, 2 * SIZE) | st.integers(-(1 << 70), 1 << 70),
    value=st.integers(-5, 1 << 8) | st.integers(-(1 << 70), 1 << 70),
)
def test_no_access_leaves_the_window(width: int, offset: int, value: int) -> None:
    memory = bytearray(PATTERN * 3)
    size = width // 8
    inside = Mmio.of_memory(memoryview(memory)[SIZE : 2 * SIZE], name=NAME)
    fits = 0 <= offset <= SIZE - size and offset % size == 0
    expected = bytearray(PATTERN * 3)
    if fits:
        assert read(inside, width, offset) == int.from_bytes(PATTERN[offset : offset + size], "little")
    else:
        with pytest.raises(AccessError):
            read(inside, width, offset)
    if fits and 0 <= value < 1 << width:
        write(inside, width, offset, value)
        expected[SIZE + offset : SIZE + offset + size] = value.to_bytes(size, "little")
    else:
        with pytest.raises(AccessError):
            write(inside, width, offset, value)
    assert memory == expected


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda w: w.read32(SIZE), "a 32-bit read at 0x40 of bar0 of 0000:00:10.0 lies outside: it has 0x40"),
        (lambda w: w.read8(-1), "a 8-bit read at -0x1 of .* lies outside"),
        (lambda w: w.read32(1 << 80), "at 0x1000.* lies outside"),
        (lambda w: w.write32(1 << 80, 0), "at 0x1000.* lies outside"),
        (lambda w: w.read64(SIZE - 4), "a 64-bit read at 0x3c of .* lies outside"),
        (lambda w: w.read64(1 << 80), "lies outside"),
        (lambda w: w.read16(1), "a 16-bit read at 0x1 of .* is misaligned"),
        (lambda w: w.write8(0, 256), "a 8-bit write at 0x0 of .* cannot hold 0x100"),
        (lambda w: w.write32(0, -1), "cannot hold -0x1"),
        (lambda w: w.write64(0, 1 << 64), "cannot hold 0x10000000000000000"),
        (
            lambda w: w.read_block(0, 6),
            "a read of 0x6 bytes, 32 bits at a time, at 0x0 of .* is no multiple of 4",
        ),
        (lambda w: w.read_block(0, 8, 12), "has an invalid width"),
        (lambda w: w.read_fifo(0, 8, 0), "has an invalid width"),
        (lambda w: w.read_block(2, 8), "is misaligned"),
        (lambda w: w.read_block(0, 1 << 50), "lies outside"),
        (lambda w: w.read_block(0, -4), "lies outside"),
        (lambda w: w.read_fifo(0, -4), "lies outside"),
        (lambda w: w.read_block(SIZE - 4, 8), "lies outside"),
        (lambda w: w.write_block(SIZE - 4, bytes(8)), "a write of 0x8 bytes, .* lies outside"),
        (lambda w: w.write_block(1 << 80, bytes(8)), "lies outside"),
        (lambda w: w.write_block(0, bytes(5)), "is no multiple of 4"),
        (lambda w: w.write_fifo(SIZE, bytes(4)), "lies outside"),
        (lambda w: w.write_fifo(0, bytes(4), 33), "has an invalid width"),
    ],
)
def test_the_error_of_a_refused_access_has_the_reason(
    window: Mmio, memory: bytearray, use: Callable[[Mmio], object], message: str
) -> None:
    with pytest.raises(AccessError, match=message) as caught:
        use(window)
    assert caught.value.hint
    assert memory == PATTERN


def test_a_read_only_window_can_be_read() -> None:
    window = Mmio.of_memory(PATTERN, write=False, name=NAME)
    uses: list[Callable[[], None]] = [
        lambda: window.write8(0, 0),
        lambda: window.write64(0, 0),
        lambda: window.write_block(0, bytes(4)),
        lambda: window.write_fifo(0, bytes(4)),
    ]
    for use in uses:
        with pytest.raises(AccessError, match="is forbidden: it is read-only"):
            use()
    assert window.read8(0) == 1


# Blocks and fifos


@pytest.mark.parametrize("width", WIDTHS)
def test_a_block_is_copied_in_order(window: Mmio, memory: bytearray, width: int) -> None:
    assert window.read_block(0, SIZE, width) == PATTERN
    assert window.read_block(8, 16, width) == PATTERN[8:24]
    window.write_block(16, PATTERN[::-1][:24], width)
    assert memory == PATTERN[:16] + PATTERN[::-1][:24] + PATTERN[40:]
    assert window.read_block(SIZE, 0, width) == b""


@pytest.mark.parametrize("width", WIDTHS)
def test_a_fifo_stays_at_one_offset(window: Mmio, memory: bytearray, width: int) -> None:
    size = width // 8
    assert window.read_fifo(8, 3 * size, width) == PATTERN[8 : 8 + size] * 3
    assert len(window.read_fifo(8, 4 * SIZE, width)) == 4 * SIZE, "a FIFO may be longer than the region"
    window.write_fifo(8, bytes(4 * SIZE - size) + b"\xaa" * size, width)
    assert memory == PATTERN[:8] + b"\xaa" * size + PATTERN[8 + size :]


@pytest.mark.parametrize("data", [bytearray(b"abcd"), memoryview(b"abcd"), struct.pack("4s", b"abcd")])
def test_a_block_comes_from_any_buffer(window: Mmio, memory: bytearray, data: bytes) -> None:
    window.write_block(4, data)
    assert memory[4:8] == b"abcd"


# Guards


@pytest.mark.parametrize("width", WIDTHS)
def test_no_write_touches_a_guarded_byte(window: Mmio, memory: bytearray, width: int) -> None:
    guarded = (*range(13, 22), *range(40, 41))
    window.guard(Guard(13, 22, "the MSI-X table belongs to the kernel", "use irqs"))
    window.guard(Guard(40, 41, "the pending bits belong to the kernel", "use irqs"))
    size = width // 8
    for offset in range(0, SIZE, size):
        if any(offset <= byte < offset + size for byte in guarded):
            table = any(offset <= byte < offset + size for byte in range(13, 22))
            with pytest.raises(AccessError, match="MSI-X table" if table else "pending bits"):
                write(window, width, offset, 0)
            assert read(window, width, offset), "guarded bytes can be read"
        else:
            write(window, width, offset, 0)
    assert [at for at in range(SIZE) if memory[at]] == [
        at for at in range(SIZE) if any(at // size == byte // size for byte in guarded)
    ]


def test_a_block_that_meets_a_guard_is_refused_as_a_whole(window: Mmio, memory: bytearray) -> None:
    window.guard(Guard(32, 36, "the MSI-X table belongs to the kernel", "use irqs"))
    with pytest.raises(AccessError, match="is forbidden: the MSI-X table") as caught:
        window.write_block(0, bytes(SIZE))
    assert caught.value.hint == "use irqs"
    assert memory == PATTERN
    window.write_block(0, bytes(32))
    window.write_fifo(28, bytes(SIZE))
    assert memory == bytes(32) + PATTERN[32:]


# Mapped files


def test_a_file_is_mapped_from_any_byte_on(file: int) -> None:
    with mapped(file, PAGE + 0x10, 2 * PAGE) as window:
        assert (window.size, window.address % PAGE) == (2 * PAGE, 0x10)
        assert window.read_block(0, 2 * PAGE, 64) == b"\1" * (PAGE - 16) + b"\2" * PAGE + b"\3" * 16
        window.write32(4, 0x01020304)
        assert os.pread(file, 8, PAGE + 0x10) == b"\1\1\1\1\4\3\2\1"
        with pytest.raises(AccessError):
            window.read8(2 * PAGE)


def test_alignment_counts_from_the_device_not_from_the_window(file: int) -> None:
    with mapped(file, 2, 8) as window:
        assert window.read32(2) == 0
        with pytest.raises(AccessError, match="is misaligned"):
            window.read32(0)


def test_a_window_outlives_its_descriptor() -> None:
    fd = os.memfd_create("device")
    os.truncate(fd, PAGE)
    with mapped(fd) as window:
        os.close(fd)
        window.write32(0, 7)
        assert window.read32(0) == 7


@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (0, 0), (0, -1), (-PAGE, PAGE), (0, 1 << 63), (0, (1 << 64) - 1), (8, (1 << 64) - 8), (1 << 63, PAGE),
        (0, (1 << 63) - 1), ((1 << 63) - 1, (1 << 63) - 1), (1 << 70, 1 << 70),
    ],
)  # fmt: skip
def test_invalid_file_ranges_are_not_mapped(file: int, offset: int, size: int) -> None:
    with pytest.raises(KernelError, match=f"mmap on {NAME} failed"):
        mapped(file, offset, size)


def test_a_read_only_file_is_mapped_read_only(file: int) -> None:
    fd = os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)
    with pytest.raises(KernelError) as caught:
        mapped(fd)
    assert caught.value.errno == 13
    with mapped(fd, write=False) as window, pytest.raises(AccessError, match="read-only"):
        window.write8(0, 1)
    os.close(fd)


# The end of a window


def test_close_unmaps_the_file_once(file: int) -> None:
    window = mapped(file)
    address = window.address
    assert "memfd:device" in mappings(address)
    window.close()
    assert "memfd" not in mappings(address)
    assert mappings(address), "running accesses reach memory"
    assert window.closed
    window.close()
    window.revoke("the kernel asks for it")
    with pytest.raises(ClosedError, match=f"{NAME} is closed") as caught:
        window.read32(0)
    assert caught.value.hint == "map it again"


CLOSED_USES: list[Callable[[Mmio], object]] = [
    lambda w: w.read8(0), lambda w: w.read16(0), lambda w: w.read32(0), lambda w: w.read64(0),
    lambda w: w.write8(0, 0), lambda w: w.write16(0, 0), lambda w: w.write32(0, 0), lambda w: w.write64(0, 0),
    lambda w: w.read_block(0, 4), lambda w: w.read_fifo(0, 4), lambda w: w.write_block(0, b"abcd"),
    lambda w: w.write_fifo(0, b"abcd"), lambda w: w.address, lambda w: w.__enter__(),
    lambda w: w.read32(1 << 80), lambda w: w.write32(0, 1 << 80), lambda w: w.read_block(0, 1 << 50),
]  # fmt: skip


@pytest.mark.parametrize("use", CLOSED_USES)
def test_errors_of_a_revoked_window_have_the_reason(file: int, use: Callable[[Mmio], object]) -> None:
    window = mapped(file)
    window.revoke("the kernel asks for it")
    with pytest.raises(ClosedError, match=f"{NAME} is closed") as caught:
        use(window)
    assert caught.value.hint == "the kernel asks for it"
    assert os.pread(file, PAGE, 0) == bytes(PAGE)
    assert window.size == PAGE


def test_closing_a_window_over_memory_leaves_the_memory(window: Mmio, memory: bytearray) -> None:
    window.close()
    with pytest.raises(ClosedError):
        window.write8(0, 0)
    assert memory == PATTERN


def test_the_addresses_of_a_window_are_freed_with_it(file: int) -> None:
    window = mapped(file)
    address = window.address
    window.close()
    weak = weakref.ref(window)
    del window
    gc.collect()
    assert weak() is None
    assert not mappings(address)


@pytest.mark.parametrize("use", [lambda w: w.read32(99), lambda w: w.write_block(1, memoryview(bytes(8)))])
def test_the_collector_survives_windows_over_views(use: Callable[[Mmio], object]) -> None:
    """An error's traceback makes a cycle; a cffi buffer over a view must not be part of it."""
    for _ in range(100):
        with pytest.raises(AccessError) as caught:
            use(Mmio.of_memory(memoryview(bytearray(SIZE))))
        cycle: list[object] = [caught.value]
        cycle.append(cycle)
    del cycle, caught
    assert gc.collect() >= 100


def test_a_lost_window_warns_and_is_freed(file: int) -> None:
    lost = [mapped(file)]
    address = lost[0].address
    with pytest.warns(ResourceWarning, match=r"bar0 .* was never closed"):
        lost.clear()
    assert "memfd" not in mappings(address)


def test_repr(file: int) -> None:
    window = mapped(file)
    assert repr(window) == f"<Mmio {NAME}, 0x1000 bytes, at {window.address:#x}>"
    window.sleep("it is off", "turn it on")
    assert "asleep" in repr(window)
    window.close()
    assert repr(window) == f"<Mmio {NAME}, 0x1000 bytes, closed>"


def test_revoke_while_threads_access(file: int) -> None:
    """No access crashes or is lost: each reaches the file or plain memory, or raises ClosedError."""
    current = [mapped(file)]
    done = threading.Event()
    outcomes: list[BaseException] = []
    closed = threading.Semaphore(0)

    def use() -> None:
        while not done.is_set():
            window = current[0]
            try:
                for offset in itertools.cycle(range(0, PAGE, 8)):
                    window.read64(offset)
                    window.write32(offset, 1)
                    window.read_block(0, PAGE, 8)
            except ClosedError:
                closed.release()
            except BaseException as error:
                outcomes.append(error)
                return

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        old, current[0] = current[0], mapped(file)
        old.revoke("the kernel asks for it")
        assert closed.acquire(timeout=60)
    done.set()
    current[0].close()
    for thread in threads:
        thread.join()
    assert outcomes == []


def test_two_threads_close_one_window(file: int) -> None:
    for _ in range(50):
        window = mapped(file)
        threads = [threading.Thread(target=window.close), threading.Thread(target=window.revoke, args=("-",))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert window.closed


def test_a_forked_child_frees_only_its_copy(file: int) -> None:
    window = mapped(file)
    pid = os.fork()
    if not pid:  # pragma: no cover - in the child
        try:
            window.revoke("it belongs to the parent")
            os._exit("memfd" in mappings(window._window.base))
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    window.write32(0, 5)
    assert os.pread(file, 4, 0) == b"\5\0\0\0"
    window.close()


# Blocked windows


def test_a_blocked_window_refuses_accesses_until_it_wakes(file: int) -> None:
    with mapped(file, PAGE + 8, 16) as window:
        address = window.address
        window.sleep("its memory is turned off", "set memory to True")
        with pytest.raises(
            AccessError, match=r"a 32-bit read at 0x0 .* not possible: its memory is turned off"
        ) as e:
            window.read32(0)
        assert e.value.hint == "set memory to True"
        with pytest.raises(AccessError):
            window.write_block(0, bytes(4))
        assert "memfd" not in mappings(address)
        window.wake(file)
        assert window.address == address
        assert window.read32(0) == 0x01010101
        window.write8(0, 9)
        assert os.pread(file, 1, PAGE + 8) == b"\x09"


def test_a_window_that_cannot_be_mapped_again_stays_blocked(file: int) -> None:
    with mapped(file) as window, open(os.devnull, "rb") as other:
        window.sleep("it is off", "turn it on")
        with pytest.raises(KernelError):
            window.wake(other.fileno())
        with pytest.raises(AccessError, match="it is off"):
            window.read8(0)


def test_a_window_that_was_revoked_does_not_wake(file: int) -> None:
    window = mapped(file)
    address = window.address
    window.sleep("it is off", "turn it on")
    window.revoke("the kernel asks for it")
    window.wake(file)
    with pytest.raises(ClosedError):
        window.read8(0)
    assert "memfd" not in mappings(address)


def test_a_device_that_is_off_kills_only_unblocked_accesses() -> None:
    """An access beyond a file's end raises the same signal as an access to a device that is off."""
    program = """if True:
        import os, sys
        from vfiotool.errors import AccessError
        from vfiotool.vfio.mmio.mmio import Mmio
        fd = os.memfd_create("device")
        os.truncate(fd, 4096)
        window = Mmio.of_file(fd, 0, 4096, write=True, name="bar0")
        if sys.argv[1:]:
            window.sleep("it is off", "turn it on")
        os.truncate(fd, 0)
        try:
            window.read32(0)
        except AccessError:
            pass
        window.close()
    """
    run = [sys.executable, "-c", program]
    assert subprocess.run([*run, "sleep"], check=False).returncode == 0
    assert subprocess.run(run, check=False).returncode == -signal.SIGBUS
