"""A private tracefs instance and its kprobe events (Documentation/trace/kprobetrace.rst).

The name of the instance identifies the process. If the process is killed, the next instance removes what it
left.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Iterator
from types import TracebackType

from vfiotool.errors import UnsupportedError
from vfiotool.events.entry import now
from vfiotool.host.pending_unbinds import process_start
from vfiotool.host.tree import Tree
from vfiotool.util import kernel_files

MOUNT = "/sys/kernel/tracing"
_NAME = re.compile(r"vfiotool_(\d+)_(\d+)")
_KPROBE = re.compile(r"[pr]\d*:(vfiotool_\d+_\d+)/(\w+) ")
# Before the time come the task, the pid, the processor and the flags.
_LINE = re.compile(r"\s*.+-\d+\s.*?\[\d+\]\s+(?:\S+\s+)?(\d+\.\d+): (\w+): ?(.*)")
_LOST = re.compile(r"CPU:\d+ \[LOST (\d+) EVENTS\]")
_MARK = "vfiotool looks at the clock"
_MARKS = 8
_KIB = 4096  # of buffer for each processor
_READ_BYTES = 1 << 16


class TraceInstance:
    """A tracefs instance. ``name`` is also the group of its kprobe events. For use by a single thread.

    Raises:
        UnsupportedError: this kernel has no tracefs, or it is not mounted.
        OSError: EACCES or EPERM, without root or under lockdown.
    """

    def __init__(self, mount: str = MOUNT) -> None:
        self.mount = mount
        try:
            remove_stale(mount)
        except FileNotFoundError:
            raise UnsupportedError(
                f"tracefs is not mounted at {mount}", hint=f"as root: mount -t tracefs tracefs {mount}"
            ) from None
        self.name = _name(os.getpid())
        self.path = f"{mount}/instances/{self.name}"
        self._pipe: int | None = None
        self._rest = ""
        os.mkdir(self.path)
        try:
            self.log_offset = self._log_offset()
            self._write("trace_clock", "mono")
            self._write("buffer_size_kb", str(_KIB))
            with contextlib.suppress(OSError):  # since 4.20; wake the reader for each event
                self._write("buffer_percent", "0")
            self._pipe = os.open(f"{self.path}/trace_pipe", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> TraceInstance:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int | None:
        """Return the descriptor of the events, which polls readable when events wait."""
        return self._pipe

    def add_kprobe(self, name: str, definition: str, *, at_return: bool = False) -> bool:
        """Add and enable a kprobe event. Return True if this kernel has the function.

        ``definition`` is the text that follows the name in ``kprobe_events``.
        """
        try:
            _append(self.mount, f"{'r' if at_return else 'p'}:{self.name}/{name} {definition}")
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL, errno.EADDRNOTAVAIL, errno.EILSEQ):
                return False
            raise
        self._write(f"events/{self.name}/{name}/enable", "1")
        return True

    def add_tracepoint(self, name: str) -> bool:
        """Enable a tracepoint, named as in ``available_events``. Return True if this kernel has it."""
        try:
            self._write(f"events/{name.replace(':', '/')}/enable", "1")
        except FileNotFoundError:
            return False
        return True

    def read(self) -> Iterator[tuple[float, str, str]]:
        """Yield the time, name and text of the events that are ready; ``missed`` if the buffer overflowed."""
        while self._pipe is not None:
            try:
                data = os.read(self._pipe, _READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                return
            *lines, self._rest = (self._rest + data.decode("utf-8", "replace")).split("\n")
            for line in lines:
                if event := parse_line(line):
                    yield event

    def close(self) -> None:
        """Remove the instance and all its kprobe events. Any number of times."""
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
        _remove(self.mount, self.name)

    def _log_offset(self) -> float:
        """Return CLOCK_MONOTONIC_RAW minus the clock of the kernel's log, in seconds; their rates are equal.

        The trace clock ``global`` is the clock of the log, sched_clock_cpu(), so a trace marker has the
        log's time. The marker that took the shortest time to write is the most exact.
        """
        self._write("trace_clock", "global")
        brackets = [self._mark() for _ in range(_MARKS)]
        with open(f"{self.path}/trace", encoding="utf-8", errors="replace") as trace:
            events = [parse_line(line.rstrip("\n")) for line in trace]
        marks = [event[0] for event in events if event and event[2] == _MARK]
        if len(marks) != _MARKS:
            return 0.0
        begun, ended, mark = min(
            ((begun, ended, mark) for (begun, ended), mark in zip(brackets, marks, strict=True)),
            key=lambda timing: timing[1] - timing[0],
        )
        return (begun + ended) / 2 - mark

    def _mark(self) -> tuple[float, float]:
        """Write a trace marker, and return the times before and after the write."""
        begun = time.clock_gettime(time.CLOCK_MONOTONIC_RAW)
        self._write("trace_marker", _MARK)
        return begun, time.clock_gettime(time.CLOCK_MONOTONIC_RAW)

    def _write(self, name: str, text: str) -> None:
        _write(f"{self.path}/{name}", text)


def parse_line(line: str) -> tuple[float, str, str] | None:
    """Return the time, name and text of a line of ``trace_pipe``, or ``None`` if the line is no event."""
    if lost := _LOST.search(line):
        return now(), "missed", f"{lost[1]} events of the trace buffer"
    found = _LINE.match(line)
    return (float(found[1]), found[2], found[3]) if found else None


def remove_stale(mount: str = MOUNT) -> list[str]:
    """Remove the instances and kprobe events of vfiotool processes that have exited; return their names."""
    names = {name for name in os.listdir(f"{mount}/instances") if _NAME.fullmatch(name)}
    names |= {group for group, _event in _kprobes(mount)}
    stale = sorted(name for name in names if not _is_alive(name))
    for name in stale:
        _remove(mount, name)
    return stale


def _remove(mount: str, name: str) -> None:
    path = f"{mount}/instances/{name}"
    with contextlib.suppress(FileNotFoundError):
        _write(f"{path}/events/enable", "0")
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(path)
    for group, event in _kprobes(mount):
        if group == name:
            with contextlib.suppress(FileNotFoundError):  # another process removed it meanwhile
                _append(mount, f"-:{group}/{event}")


def _kprobes(mount: str) -> list[tuple[str, str]]:
    try:
        with open(f"{mount}/kprobe_events", encoding="ascii", errors="replace") as file:
            return [(found[1], found[2]) for line in file if (found := _KPROBE.match(line))]
    except FileNotFoundError:  # a kernel without kprobes
        return []


def _append(mount: str, line: str) -> None:
    """Change a kprobe event. Without O_APPEND, the open would clear the events of other programs."""
    _write(f"{mount}/kprobe_events", f"{line}\n", append=True)


def _write(path: str, text: str, *, append: bool = False) -> None:
    code = kernel_files.write(path, text, append=append)
    if code:
        raise OSError(code, os.strerror(code), path)


def _name(pid: int) -> str:
    return f"vfiotool_{pid}_{process_start(Tree(), pid)}"


def _is_alive(name: str) -> bool:
    """Return True if the process that created this is alive: its pid and its start time match."""
    found = _NAME.fullmatch(name)
    return found is not None and process_start(Tree(), int(found[1])) == found[2]
