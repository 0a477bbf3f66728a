"""Bind and restore, again and again: nothing is lost, nothing leaks, and the kernel has nothing to say.

``VFIOTOOL_CYCLES=1000 vfiotool lab run -- pytest tests/lab/test_cycles.py`` runs as many as one likes.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.guest import E1000E, EDU, MACHINE, TESTDEV, listing, settle
from vfiotool.binding.operations import Binding
from vfiotool.host.pending_unbinds import STATE_DIR

pytestmark = [
    pytest.mark.needs_guest,
    pytest.mark.full,
    pytest.mark.skipif(MACHINE != "default", reason="the machine makes no difference"),
]

DEVICES = (EDU, TESTDEV, E1000E)
CYCLES = int(os.environ.get("VFIOTOOL_CYCLES", "5"))
_NOTICE = 5  # as syslog(3) numbers them: below are warnings and worse
_MONITORED = re.compile(r"^UDEV +\[[\d.]+\] +(bind|unbind) +\S*/([0-9a-f:.]+) \(pci\)$")


class Udev:
    """The bind and unbind events that udevd itself tells of: a process of its own, that asks nobody else."""

    def __init__(self) -> None:
        command = ["udevadm", "monitor", "--udev", "--subsystem-match=pci"]
        self._monitor = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0)
        self._text = ""
        self._read_until(lambda: "UDEV -" in self._text)

    def counts(self, expected: Counter[tuple[str, str]]) -> Counter[tuple[str, str]]:
        """Return how many events of each kind there were, once there are as many as expected."""
        self._read_until(lambda: self._counted().total() >= expected.total())
        settle()
        return self._counted()

    def _counted(self) -> Counter[tuple[str, str]]:
        found = map(_MONITORED.match, self._text.splitlines())
        return Counter((match[1], match[2]) for match in found if match)

    def _read_until(self, enough: Callable[[], bool]) -> None:
        assert self._monitor.stdout
        deadline = time.monotonic() + 30
        while not enough() and time.monotonic() < deadline:
            if select.select([self._monitor.stdout], [], [], 1)[0]:
                self._text += os.read(self._monitor.stdout.fileno(), 1 << 20).decode()

    def close(self) -> None:
        self._monitor.terminate()
        self._monitor.communicate()


class KernelLog:
    """The lines of the kernel's log from now on that are graver than a notice, without their numbers."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self._fd, 0, os.SEEK_END)

    def kinds(self) -> set[str]:
        """Return each kind of line once. EPIPE, were the log overrun, fails the test."""
        found = set()
        with contextlib.suppress(BlockingIOError):
            while record := os.read(self._fd, 1 << 14).decode(errors="replace"):
                head, _, text = record.partition(";")
                if int(head.partition(",")[0]) & 7 < _NOTICE:
                    found.add(re.sub(r"0x[0-9a-f]+|\d+", "N", text.partition("\n")[0]))
        return found

    def close(self) -> None:
        os.close(self._fd)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def expected_events(cycles: int) -> Counter[tuple[str, str]]:
    """Each device is bound and let go once a cycle by vfio-pci, and by its own driver if it has one."""
    drivers = {EDU: 1, TESTDEV: 1, E1000E: 2}
    return Counter(
        {(action, address): cycles * n for address, n in drivers.items() for action in ("bind", "unbind")}
    )


def cycle(binding: Binding) -> None:
    binding.bind(DEVICES)
    binding.restore(DEVICES)


@pytest.fixture
def udev() -> Iterator[Udev]:
    monitor = Udev()
    yield monitor
    monitor.close()


@pytest.fixture
def binding() -> Iterator[Binding]:
    """Put back what a failed cycle leaves, for the tests that follow."""
    binding = Binding()
    yield binding
    if left := binding.recorded():
        binding.restore(left)


def test_cycles(binding: Binding, udev: Udev, capsys: pytest.CaptureFixture[str]) -> None:
    log = KernelLog()
    cycle(binding)
    usual, descriptors_before, before = log.kinds(), descriptors(), listing()
    begun = time.monotonic()
    unusual: set[str] = set()
    for _ in range(CYCLES):
        cycle(binding)
        unusual |= log.kinds() - usual
    took = time.monotonic() - begun
    with capsys.disabled():
        print(f"\n{CYCLES} cycles of {len(DEVICES)} devices, {took / CYCLES:.2f} s each")
    expected = expected_events(CYCLES + 1)
    assert udev.counts(expected) == expected
    assert unusual == set()
    assert descriptors() == descriptors_before
    assert binding.recorded() == []
    state = Path(STATE_DIR)
    assert [*state.glob("journal/*"), *state.glob("transactions/*"), *state.glob("pending/*")] == []
    assert listing() == before
    log.close()
