"""Run pytest in lab guests: two at a time, beside the tests of the host, once their kernels are ready."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from tests.support.guest import ONE_CPU
from tests.tiers import ROOT, Guest
from vfiotool.errors import VfioToolError
from vfiotool.lab import cache, kernels, qemu

AT_A_TIME = 2  # pytest in a guest keeps a processor busy
SECONDS = 7200  # of a guest, on a busy machine too: STUCK is what ends a test that hangs
STUCK = 600  # seconds of one test, which then prints its stack
SLOWEST = 10  # tests of a guest that may be among the slowest of all

# As pytest has them at its start: a test on the host may have patched them at the moment when a guest starts.
_ENVIRONMENT = dict(os.environ)
_LOGS = cache.directory("test-logs")

_running: set[subprocess.Popen[bytes]] = set()

_SUMMARY = re.compile(r"^=+ (.*\b(?:passed|failed|error).* in .*?) =+$", re.MULTILINE)
_DURATION = re.compile(r"^(\d+\.\d+)s (call|setup|teardown) +(\S.*)$", re.MULTILINE)
_QEMU_DIED = re.compile(r"^error: the guest was lost: QEMU was killed by SIGSEGV.*", re.MULTILINE)


class Duration(NamedTuple):
    """Seconds that a phase (setup, call, teardown) of a test took, and where."""

    seconds: float
    phase: str
    test: str


@dataclass(frozen=True, slots=True)
class GuestRun:
    """A run that has ended: pytest's exit status, or the lab's, and all that was printed."""

    guest: Guest
    status: int
    output: str
    seconds: float

    @property
    def summary(self) -> str:
        """Pytest's last line; empty if it printed none."""
        return "".join(_SUMMARY.findall(self.output))

    @property
    def lost(self) -> str:
        """The line with which the lab reports that QEMU itself crashed; empty if it did not."""
        found = _QEMU_DIED.search(self.output)
        return found[0] if found else ""

    @property
    def durations(self) -> list[Duration]:
        """The slowest tests of this guest."""
        found = _DURATION.findall(self.output)
        return [Duration(float(took), phase, f"{test} [{self.guest}]") for took, phase, test in found]


class GuestRuns:
    """The runs of some guests; ``result`` waits for one of them. Safe for threads."""

    def __init__(self, guests: Sequence[Guest], *, full: bool) -> None:
        self._pool = ThreadPoolExecutor(AT_A_TIME)
        self._starter = ThreadPoolExecutor(1)
        self._full = full
        self._runs: Future[dict[Guest, Future[GuestRun]]] = self._starter.submit(self._start, guests)

    def _start(self, guests: Sequence[Guest]) -> dict[Guest, Future[GuestRun]]:
        make_ready(guests)
        return {guest: self._pool.submit(run, guest, full=self._full) for guest in guests}

    def result(self, guest: Guest) -> GuestRun:
        """Wait for the run of a guest."""
        return self._runs.result()[guest].result()

    def ended(self) -> list[GuestRun]:
        """The runs that have ended by now."""
        if not self._runs.done() or self._runs.exception():
            return []
        ended = [run for run in self._runs.result().values() if run.done() and not run.cancelled()]
        return [run.result() for run in ended if not run.exception()]

    def close(self) -> None:
        """Start no more, and end those that run: nobody waits for their results after an interrupt."""
        self._starter.shutdown(cancel_futures=True)
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in set(_running):
            process.send_signal(signal.SIGINT)
        self._pool.shutdown()


def make_ready(guests: Sequence[Guest]) -> None:
    """Build and fetch the kernels that are not there: those that cannot be had fail their guests.

    The debug kernel's build wants all processors, so no guest runs meanwhile.
    """
    names = dict.fromkeys(guest.kernel for guest in guests)
    with ThreadPoolExecutor(1) as pool:
        if kernels.BUILT in names:
            pool.submit(build_debug_kernel)
        for name in names:
            with contextlib.suppress(VfioToolError):
                kernels.get(name)


@functools.cache
def build_debug_kernel() -> tuple[int, str]:
    """Build the debug kernel unless it is there, or wait for who builds it; return status and output."""
    ended = subprocess.run(
        [ROOT / "scripts/build-kernel"],
        env=_ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return ended.returncode, ended.stdout


def run(guest: Guest, *, full: bool) -> GuestRun:
    """Run a guest's tests, and run them in another guest if QEMU itself crashes.

    QEMU 7.2 does so once in many hours: if two processors are emulated, one writes to a device's memory
    while the other has it moved, and ``memory_region_dispatch_write`` follows a pointer into freed memory.
    A guest that is lost in any other way has found something.
    """
    if guest.kernel == kernels.BUILT:
        status, output = build_debug_kernel()
        if status:
            return GuestRun(guest, status, output, 0.0)
    first = run_once(guest, full=full)
    if not first.lost:
        return first
    second = run_once(guest, full=full)
    return GuestRun(
        guest, second.status, f"{first.lost}; it was started once more\n{second.output}", second.seconds
    )


def run_once(guest: Guest, *, full: bool) -> GuestRun:
    """Run a guest's tests; what pytest and the guest print comes as one text."""
    lab = [program("vfiotool"), "lab", "run", "--kernel", guest.kernel, "--machine", guest.machine, "--times"]
    lab += [*ONE_CPU, "--timeout", str(SECONDS)]
    inner = [program("pytest"), "-p", "no:cacheprovider", "--color=no", "-ra", "--tb=short"]
    inner += [f"--durations={SLOWEST}", "--durations-min=1"]
    inner += ["-o", f"faulthandler_timeout={STUCK}", "-o", "faulthandler_exit_on_timeout=true"]
    begun = time.monotonic()
    with open(log_of(guest), "w+", errors="replace") as log:
        process = subprocess.Popen(
            [*lab, "--", *inner, *(["--full"] if full else []), *guest.tests],
            cwd=ROOT,
            env=environment(guest),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        _running.add(process)
        try:
            status = process.wait()
        finally:
            _running.discard(process)
        log.seek(0)
        return GuestRun(guest, status, log.read(), time.monotonic() - begun)


def log_of(guest: Guest) -> str:
    """The file that gets all that pytest and the guest print, while the guest runs."""
    os.makedirs(_LOGS, exist_ok=True)
    return os.path.join(_LOGS, f"{guest}.log")


def environment(guest: Guest) -> dict[str, str]:
    """Return the environment for a guest, with a QEMU that has the device model that the guest needs."""
    path = _ENVIRONMENT["PATH"]
    return {**_ENVIRONMENT, "PATH": f"{igb_qemu()}:{path}" if guest.needs else path}


@functools.cache
def igb_qemu() -> str:
    """Fetch a QEMU that has igb, if need be, and return its folder; empty if there is none."""
    fetched = subprocess.run(
        [sys.executable, ROOT / "scripts/lab_qemu.py"],
        env=_ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return fetched.stdout.strip()


def why_not(guest: Guest) -> str:
    """Return why a guest that needs a device model is left out; empty if it is not."""
    if not guest.needs:
        return ""
    if guest.needs in qemu.models():
        return f"this machine's QEMU has {guest.needs}, so the other guests have run these tests"
    return "" if igb_qemu() else f"this machine's QEMU has no {guest.needs}, and no other one can be fetched"


def program(name: str) -> str:
    """The path of a program of this Python environment."""
    return os.path.join(os.path.dirname(sys.executable), name)
