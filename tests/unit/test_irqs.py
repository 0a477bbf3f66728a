"""A device's interrupts: counts, all ways to wait, and their end, with IrqDevice in place of the kernel."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import select
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.irq_device import (
    ADDRESS,
    DATA_EVENTFD,
    DATA_NONE,
    ERR,
    EVENTFD,
    INTX,
    MASK,
    MSI,
    MSIX,
    NORESIZE,
    REQ,
    TRIGGER,
    UNMASK,
    IrqDevice,
)
from tests.support.strategies import examples
from vfiotool._shim import lib
from vfiotool.errors import (
    ClosedError,
    IrqError,
    IrqTimeoutError,
    KernelError,
    UnsupportedError,
    VfioToolError,
)
from vfiotool.vfio.irqs.irqs import Irqs, Vector, Vectors
from vfiotool.vfio.uapi import DeviceIoctl, IrqInfoFlags

REASON = "the test took it"


def open_fds() -> dict[str, str]:
    """Return the target of each open fd, except that of the directory that is read."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
    return found


@pytest.fixture
def device() -> Iterator[IrqDevice]:
    """An open device; the test must leave no fd open."""
    before = open_fds()
    opened = IrqDevice()
    yield opened
    opened.close()
    assert open_fds() == before


@pytest.fixture
def irqs(device: IrqDevice) -> Iterator[Irqs]:
    made = Irqs(device)
    yield made
    made.close()


@pytest.fixture
def vectors(irqs: Irqs) -> Vectors:
    """Three vectors of MSI-X."""
    return irqs.msix.enable(3)


@pytest.fixture
def vector(vectors: Vectors) -> Vector:
    return vectors[1]


def until(condition: Callable[[], bool]) -> None:
    """Poll until another thread makes a condition true."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


# Info


def test_counts_are_those_of_the_device(irqs: Irqs) -> None:
    assert [irq.count for irq in (irqs.intx, irqs.msi, irqs.msix, irqs.err, irqs.req)] == [1, 4, 65, 1, 1]
    assert irqs.intx.info.flags == IrqInfoFlags.EVENTFD | IrqInfoFlags.MASKABLE | IrqInfoFlags.AUTOMASKED


def test_an_unknown_index_has_no_vectors(device: IrqDevice, irqs: Irqs) -> None:
    del device.irqs[ERR]
    assert irqs.err.count == 0
    with pytest.raises(UnsupportedError, match=f"{ADDRESS} has no ERR"):
        irqs.err.enable()


def test_a_device_that_is_not_pci_has_no_vectors(device: IrqDevice, irqs: Irqs) -> None:
    device.info_flags = 0
    assert irqs.req.count == irqs.msi.count == 0


def test_other_errors_do_not_mean_missing(device: IrqDevice, irqs: Irqs) -> None:
    device.answers[DeviceIoctl.VFIO_DEVICE_GET_IRQ_INFO] = lambda data: -errno.EIO
    with pytest.raises(KernelError) as caught:
        irqs.msi.enable()
    assert caught.value.errno == errno.EIO


@examples(200)
@given(device_info=st.binary(max_size=40), irq_info=st.binary(max_size=40), count=st.integers(-1, 8))
def test_hostile_information_ends_in_vectors_or_a_named_error(
    device_info: bytes, irq_info: bytes, count: int
) -> None:
    with IrqDevice() as device:
        device.answers[DeviceIoctl.VFIO_DEVICE_GET_INFO] = scribble(device_info)
        device.answers[DeviceIoctl.VFIO_DEVICE_GET_IRQ_INFO] = scribble(irq_info)
        device.answers[DeviceIoctl.VFIO_DEVICE_SET_IRQS] = lambda data: 0
        irqs = Irqs(device)
        try:
            with irqs.msix.enable(count) as vectors:
                assert len(vectors) == count <= irqs.msix.count
        except VfioToolError:
            pass  # no other error


def scribble(answer: bytes) -> Callable[[bytearray], int]:
    """Answer an ioctl with arbitrary bytes, as many as fit."""

    def write(data: bytearray) -> int:
        room = min(len(answer), len(data))
        data[:room] = answer[:room]
        return 0

    return write


# Enabling


def test_set_irqs_has_the_layout_of_the_header(device: IrqDevice, irqs: Irqs) -> None:
    asked: list[bytes] = []
    real = device._vfio_device_set_irqs

    def note(data: bytearray) -> int:
        asked.append(bytes(data))
        return real(data)

    device.answers[DeviceIoctl.VFIO_DEVICE_SET_IRQS] = note
    with irqs.msix.enable(2) as (first, second):
        fds = (first.fileno(), second.fileno())
        second.trigger()
    assert asked == [
        struct.pack("=5I2i", 28, DATA_EVENTFD | TRIGGER, MSIX, 0, 2, *fds),
        struct.pack("=5I", 20, DATA_NONE | TRIGGER, MSIX, 1, 1),
        struct.pack("=5I", 20, DATA_NONE | TRIGGER, MSIX, 0, 0),
    ]


def test_vectors_are_a_sequence_that_disables(device: IrqDevice, irqs: Irqs) -> None:
    with irqs.msix.enable(3) as vectors:
        assert len(vectors) == 3
        assert [vector.index for vector in vectors] == [0, 1, 2]
        assert vectors[-1] is vectors[1:][1]
        assert irqs.msix.enabled
        assert device.armed(MSIX) == 3
    assert device.armed(MSIX) == 0
    assert not irqs.msix.enabled
    vectors.close()
    with pytest.raises(ClosedError), vectors:
        pass


@pytest.mark.parametrize(("count", "has"), [(66, "65 vectors of MSI-X"), (0, "65"), (-1, "65")])
def test_more_vectors_than_the_device_has_are_an_error(
    device: IrqDevice, irqs: Irqs, count: int, has: str
) -> None:
    with pytest.raises(IrqError, match=f"has {has}.* and {count} were requested"):
        irqs.msix.enable(count)
    assert device.set_irqs == []


def test_fewer_vectors_than_requested_leave_none_enabled(device: IrqDevice, irqs: Irqs) -> None:
    before = open_fds()
    device.granted = 5
    with pytest.raises(KernelError, match="8 vectors of MSI-X") as caught:
        irqs.msix.enable(8)
    assert caught.value.errno == errno.ENOSPC
    assert "only 5" in caught.value.hint
    assert open_fds() == before
    irqs.msix.enable(5).close()


def test_a_refused_enable_leaves_no_eventfd(device: IrqDevice, irqs: Irqs) -> None:
    before = open_fds()
    device.answers[DeviceIoctl.VFIO_DEVICE_SET_IRQS] = lambda data: -errno.ENOMEM
    with pytest.raises(KernelError):
        irqs.msi.enable(4)
    assert open_fds() == before
    assert not irqs.msi.enabled
    device.answers.clear()
    irqs.intx.enable().close()


@contextmanager
def fds_left(count: int) -> Iterator[None]:
    """Limit this process to a number of further open files."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
    highest = max(int(fd) for fd in open_fds())
    filler = []
    while (fd := os.open(os.devnull, os.O_RDONLY)) < highest:
        filler.append(fd)
    filler.append(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 1, limits[1]))
    for one in spare:
        os.close(one)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for one in filler:
            os.close(one)


def test_too_many_open_files_leave_no_eventfd(device: IrqDevice, irqs: Irqs) -> None:
    with fds_left(3), pytest.raises(KernelError, match="too many open files") as caught:
        irqs.msix.enable(4)
    assert "ulimit -n" in caught.value.hint
    assert device.set_irqs == []
    assert not irqs.msix.enabled
    irqs.msix.enable(4).close()


def test_enabling_twice_is_an_error(irqs: Irqs, vectors: Vectors) -> None:
    with pytest.raises(IrqError, match=r"MSI-X of .* is enabled already"):
        irqs.msix.enable()
    vectors.close()
    irqs.msix.enable().close()


def test_a_second_kind_is_an_error_that_names_the_first(device: IrqDevice, irqs: Irqs) -> None:
    with irqs.intx.enable(), irqs.err.enable(), irqs.req.enable():
        with pytest.raises(IrqError, match=r"INTx of .* is enabled, so MSI-X cannot be") as caught:
            irqs.msix.enable()
        assert "close the vectors of INTx" in caught.value.hint
        with pytest.raises(IrqError, match=r"INTx of .* is enabled, so MSI cannot be"):
            irqs.msi.enable()
        assert device.armed(MSI) == device.armed(MSIX) == 0
        assert device.armed(REQ) == device.armed(ERR) == device.armed(INTX) == 1
    irqs.msi.enable().close()


def test_a_kernel_that_does_not_disable_leaves_no_fd_open(device: IrqDevice, irqs: Irqs) -> None:
    before = open_fds()
    vectors = irqs.err.enable()
    device.answers[DeviceIoctl.VFIO_DEVICE_SET_IRQS] = lambda data: -errno.EIO
    with pytest.raises(KernelError):
        vectors.close()
    device._forget(ERR)
    assert open_fds() == before


# Counts


def test_counts_are_exact_and_returned_once(device: IrqDevice, vectors: Vectors) -> None:
    for _ in range(1000):
        vectors[0].trigger()
    device.raise_irq(MSIX, 2)
    assert [vector.wait(0) for vector in (vectors[0], vectors[2])] == [1000, 1]
    assert [vector.read() for vector in vectors] == [0, 0, 0]


def test_a_count_does_not_wait(device: IrqDevice, vector: Vector) -> None:
    assert vector.read() == 0
    device.raise_irq(MSIX, 1)
    assert vector.read() == 1


@pytest.mark.parametrize("timeout", [0, -1, 0.001, float("nan")])
def test_no_interrupt_in_time_is_a_timeout(vector: Vector, timeout: float) -> None:
    with pytest.raises(IrqTimeoutError, match=f"MSI-X 1 of {ADDRESS} was not signalled within") as caught:
        vector.wait(timeout)
    assert isinstance(caught.value, TimeoutError)
    assert "bus mastering" in caught.value.hint


@pytest.mark.parametrize("timeout", [None, float("inf"), 1e30])
def test_a_wait_without_a_limit_ends_with_the_interrupt(vector: Vector, timeout: float | None) -> None:
    vector.trigger()
    assert vector.wait(timeout) == 1


def test_a_timeout_is_waited_out(vector: Vector) -> None:
    start = time.monotonic()
    with pytest.raises(IrqTimeoutError):
        vector.wait(0.05)
    assert time.monotonic() - start >= 0.05


def test_a_count_that_no_device_reaches_is_an_error(vector: Vector) -> None:
    os.eventfd_write(vector.fileno(), (1 << 63) + 1)
    assert lib.vt_eventfd_wait(vector.fileno(), 0) == -errno.EOVERFLOW
    os.eventfd_write(vector.fileno(), (1 << 64) - 2)
    with pytest.raises(KernelError):
        vector.read()


# Signals


@contextmanager
def alarms(handler: Callable[[], None], interval: float = 0) -> Iterator[None]:
    """Raise a signal soon, and repeatedly if there is an interval."""
    former = signal.signal(signal.SIGALRM, lambda number, frame: handler())
    signal.setitimer(signal.ITIMER_REAL, 0.01, interval)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def test_a_signal_handler_runs_while_its_thread_waits(vector: Vector) -> None:
    with alarms(vector.trigger):
        assert vector.wait(30) == 1


def test_an_exception_of_a_signal_handler_ends_the_wait(vector: Vector) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with alarms(interrupt), pytest.raises(KeyboardInterrupt):
        vector.wait(30)
    vector.trigger()
    assert vector.wait(0) == 1


def test_signals_do_not_prolong_a_wait(vector: Vector) -> None:
    came: list[float] = []

    def note() -> None:
        came.append(time.monotonic())
        if len(came) == 100:  # a wait that restarts at each signal would never end
            signal.setitimer(signal.ITIMER_REAL, 0)

    start = time.monotonic()
    with alarms(note, interval=0.01), pytest.raises(IrqTimeoutError):
        vector.wait(0.1)
    assert time.monotonic() - start >= 0.1
    assert 1 <= len(came) < 100


def test_a_signal_handler_may_close_the_vector_of_its_thread(vectors: Vectors) -> None:
    with alarms(vectors.close), pytest.raises(ClosedError):
        vectors[0].wait(30)


# Waits at the end of a vector

ENDS: dict[str, Callable[[IrqDevice, Irqs, Vectors], object]] = {
    "vectors.close": lambda device, irqs, vectors: vectors.close(),
    "vector.close": lambda device, irqs, vectors: vectors[1].close(),
    "irqs.close": lambda device, irqs, vectors: irqs.close(),
    "file.close": lambda device, irqs, vectors: device.close(),
    "file.revoke": lambda device, irqs, vectors: device.revoke(REASON),
}
ends = pytest.mark.parametrize("end", ENDS.values(), ids=list(ENDS))
End = Callable[[IrqDevice, Irqs, Vectors], object]


def in_threads(count: int, action: Callable[[], object]) -> tuple[list[threading.Thread], list[object]]:
    """Run an action in threads, and collect the result or exception of each."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(action())
        except VfioToolError as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, results


def joined(threads: list[threading.Thread]) -> bool:
    for thread in threads:
        thread.join(30)
    return not any(thread.is_alive() for thread in threads)


@ends
def test_all_waiting_threads_are_woken_by_the_end(
    device: IrqDevice, irqs: Irqs, vectors: Vectors, end: End
) -> None:
    threads, results = in_threads(4, vectors[1].wait)
    until(lambda: vectors[1]._inside == 4)
    end(device, irqs, vectors)
    assert joined(threads)
    assert [type(result) for result in results] == [ClosedError] * 4


@ends
def test_after_the_end_each_use_raises_closed_error(
    device: IrqDevice, irqs: Irqs, vectors: Vectors, end: End
) -> None:
    end(device, irqs, vectors)
    vector = vectors[1]
    uses: tuple[Callable[[], object], ...] = (vector.wait, vector.read, vector.fileno, vector.trigger)
    for use in uses:
        with pytest.raises(ClosedError):
            use()
    with pytest.raises(ClosedError):
        asyncio.run(vector.wait_async())
    assert vector.closed


def test_closed_error_has_the_reason(device: IrqDevice, vectors: Vectors) -> None:
    device.revoke(REASON)
    with pytest.raises(ClosedError) as caught:
        vectors[0].wait()
    assert caught.value.hint == REASON


@ends
def test_a_waiting_task_is_woken_by_the_end(
    device: IrqDevice, irqs: Irqs, vectors: Vectors, end: End
) -> None:
    async def run() -> list[object]:
        tasks = [asyncio.create_task(vectors[1].wait_async()) for _ in range(3)]
        await asyncio.sleep(0)
        await asyncio.to_thread(end, device, irqs, vectors)
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    assert [type(result) for result in asyncio.run(run())] == [ClosedError] * 3


def test_a_foreign_event_loop_is_woken_when_the_device_is_released(device: IrqDevice, vector: Vector) -> None:
    with select.epoll() as epoll:
        epoll.register(vector, select.EPOLLIN)
        ready: list[list[tuple[int, int]]] = []
        threads, _ = in_threads(1, lambda: ready.append(epoll.poll(30)))
        device.revoke(REASON)
        assert joined(threads)
        assert ready == [[(vector._fd, select.EPOLLIN)]]
        assert epoll.poll(0), "the eventfd stays readable"
    with pytest.raises(ClosedError):
        vector.read()


def test_threads_race_for_counts_and_none_is_lost(device: IrqDevice, vector: Vector) -> None:
    """Four threads read the counts that a fifth triggers, until all vectors are closed."""
    total = [0] * 4

    def take(number: int) -> None:
        while True:
            total[number] += vector.wait()

    numbers = iter(range(4))
    threads, results = in_threads(4, lambda: take(next(numbers)))
    for _ in range(2000):
        device.raise_irq(MSIX, 1)
    until(lambda: sum(total) == 2000)
    vector.close()
    assert joined(threads)
    assert [type(result) for result in results] == [ClosedError] * 4
    assert sum(total) == 2000


def test_two_threads_may_close(device: IrqDevice, vectors: Vectors) -> None:
    threads, results = in_threads(4, vectors.close)
    assert joined(threads)
    assert results == [None] * 4
    assert device.set_irqs.count((DATA_NONE | TRIGGER, MSIX, 0, 0)) == 1


# select and asyncio


def test_select_and_poll_see_an_interrupt(device: IrqDevice, vectors: Vectors) -> None:
    assert select.select(list(vectors), [], [], 0) == ([], [], [])
    device.raise_irq(MSIX, 2)
    assert select.select(list(vectors), [], [], 30) == ([vectors[2]], [], [])
    poll = select.poll()
    poll.register(vectors[2], select.POLLIN)
    assert poll.poll(30_000) == [(vectors[2].fileno(), select.POLLIN)]
    assert vectors[2].read() == 1
    assert poll.poll(0) == []


def test_a_task_waits(device: IrqDevice, vector: Vector) -> None:
    async def run() -> int:
        task = asyncio.create_task(vector.wait_async(30))
        await asyncio.sleep(0)
        device.raise_irq(MSIX, 1)
        return await task

    assert asyncio.run(run()) == 1


def test_a_task_times_out(vector: Vector) -> None:
    for timeout in (0, 0.01):
        with pytest.raises(IrqTimeoutError):
            asyncio.run(vector.wait_async(timeout))


def test_a_cancelled_task_consumes_no_interrupt(device: IrqDevice, vector: Vector) -> None:
    async def run() -> int:
        task = asyncio.create_task(vector.wait_async())
        await asyncio.sleep(0)
        device.raise_irq(MSIX, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await vector.wait_async()

    before = open_fds()
    assert asyncio.run(run()) == 1
    assert open_fds() == before


def test_tasks_share_the_interrupts(device: IrqDevice, vector: Vector) -> None:
    async def run() -> list[int]:
        tasks = [asyncio.create_task(vector.wait_async(30)) for _ in range(3)]
        for number in range(1, 4):
            await asyncio.sleep(0)
            device.raise_irq(MSIX, 1)
            while sum(task.done() for task in tasks) < number:
                await asyncio.sleep(0)
        return [task.result() for task in tasks]

    assert asyncio.run(run()) == [1, 1, 1]


# INTx


def test_intx_is_masked_by_itself_until_it_is_unmasked(device: IrqDevice, irqs: Irqs) -> None:
    with irqs.intx.enable() as (vector,):
        device.raise_irq(INTX)
        device.raise_irq(INTX)
        assert vector.wait(0) == 1
        vector.unmask()
        assert vector.wait(0) == 1, "the interrupt that was raised meanwhile"
        vector.unmask()
        vector.mask()
        device.raise_irq(INTX)
        assert vector.read() == 0
    assert [call[0] for call in device.set_irqs[1:4]] == [
        DATA_NONE | UNMASK,
        DATA_NONE | UNMASK,
        DATA_NONE | MASK,
    ]


def test_the_kernel_masks_nothing_else(device: IrqDevice, vector: Vector) -> None:
    calls = list(device.set_irqs)
    for use in (vector.mask, vector.unmask):
        with pytest.raises(UnsupportedError, match="cannot mask MSI-X 1"):
            use()
    assert device.set_irqs == calls


# Growth


def test_msix_grows_if_the_kernel_can(device: IrqDevice, vectors: Vectors) -> None:
    first = [vector.fileno() for vector in vectors]
    vectors[0].trigger()
    made = vectors.grow(65)
    assert len(made) == 62
    assert len(vectors) == device.armed(MSIX) == 65
    assert [vector.fileno() for vector in vectors][:3] == first
    device.raise_irq(MSIX, 64)
    assert (vectors[0].wait(0), vectors[64].wait(0)) == (1, 1)
    assert vectors.grow(65) == ()


@pytest.mark.parametrize("count", [2, 66])
def test_growth_has_its_limits(vectors: Vectors, count: int) -> None:
    with pytest.raises(IrqError):
        vectors.grow(count)
    assert len(vectors) == 3


def test_a_kernel_that_cannot_resize_is_named(device: IrqDevice, irqs: Irqs) -> None:
    device.irqs[MSIX] = (EVENTFD | NORESIZE, 65)
    vectors = irqs.msix.enable(3)
    with pytest.raises(UnsupportedError, match="NORESIZE") as caught:
        vectors.grow(4)
    assert "6.5" in caught.value.hint
    assert len(vectors) == device.armed(MSIX) == 3


def test_a_failed_growth_changes_nothing(device: IrqDevice, vectors: Vectors) -> None:
    before = open_fds()
    device.granted = 10
    with pytest.raises(KernelError):
        vectors.grow(20)
    assert open_fds() == before
    assert len(vectors) == device.armed(MSIX) == 3
    vectors[0].trigger()
    assert vectors[0].wait(0) == 1


def test_nothing_grows_after_the_end(vectors: Vectors) -> None:
    vectors.close()
    with pytest.raises(ClosedError):
        vectors.grow(4)


# After a reset


def test_rearm_keeps_eventfds_and_counts(device: IrqDevice, irqs: Irqs, vectors: Vectors) -> None:
    with irqs.req.enable():
        fds = [vector.fileno() for vector in vectors]
        device.raise_irq(MSIX, 0)
        device.set_irqs.clear()
        irqs.rearm()
        assert device.set_irqs == [(DATA_NONE | TRIGGER, MSIX, 0, 0), (DATA_EVENTFD | TRIGGER, MSIX, 0, 3)]
        device.raise_irq(MSIX, 0)
        assert vectors[0].wait(0) == 2
        assert [vector.fileno() for vector in vectors] == fds


def test_rearm_skips_closed_vectors(device: IrqDevice, irqs: Irqs, vectors: Vectors) -> None:
    vectors.close()
    device.set_irqs.clear()
    irqs.rearm()
    assert device.set_irqs == []


def test_a_rearm_that_fails_leaves_nothing_enabled(device: IrqDevice, irqs: Irqs, vectors: Vectors) -> None:
    device.granted = 2
    with pytest.raises(KernelError):
        irqs.rearm()
    assert vectors.closed
    with pytest.raises(ClosedError):
        vectors[0].wait()


# Processes


def test_a_forked_child_has_no_vectors_and_disables_none(
    device: IrqDevice, irqs: Irqs, vectors: Vectors
) -> None:
    pid = os.fork()
    if not pid:
        os._exit(child_of_a_fork(device, vectors))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert device.armed(MSIX) == 3
    vectors[0].trigger()
    assert vectors[0].wait(0) == 1


def child_of_a_fork(device: IrqDevice, vectors: Vectors) -> int:
    """Return 0 if a child has no interrupts, and does not make the kernel disable them."""
    asked = len(device.set_irqs)
    try:
        vectors[0].wait(0)
    except ClosedError as error:
        vectors.close()
        has_reason = "belongs to the parent process" in error.hint
        return 0 if has_reason and len(device.set_irqs) == asked else 1
    return 2


def test_a_lost_device_leaves_no_eventfd_behind() -> None:
    before = open_fds()
    lost = [Irqs(IrqDevice())]
    lost[0].msix.enable(3)
    with pytest.warns(ResourceWarning, match="never closed"):
        lost.clear()
    assert open_fds() == before
