"""An instance of tracefs of our own, and the kprobe events of it (Documentation/trace/kprobetrace.rst).

Its name has the process in it. Whatever ends that process, the next instance removes what it left.
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
# Task, pid, processor and flags come before it.
_LINE = re.compile(r"\s*.+-\d+\s.*?\[\d+\]\s+(?:\S+\s+)?(\d+\.\d+): (\w+): ?(.*)")
_LOST = re.compile(r"CPU:\d+ \[LOST (\d+) EVENTS\]")
_MARK = "vfiotool looks at the clock"
_MARKS = 8
_KIB = 4096  # for each processor
_READ_BYTES = 1 << 16


class TraceInstance:
    """A handle of one thread. ``name`` is also the group of its kprobe events.

    Raises:
        UnsupportedError: this kernel has no tracefs, or it is not mounted.
        OSError: EACCES, EPERM without root or under lockdown.
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
            with contextlib.suppress(OSError):  # since 4.20; the reader is woken for each event
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
        """Return the descriptor of its events, which polls readable when some wait."""
        return self._pipe

    def add_kprobe(self, name: str, definition: str, *, at_return: bool = False) -> bool:
        """Have a kprobe event and turn it on; say whether this kernel has the function.

        ``definition`` is what follows the name in ``kprobe_events``.
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
        """Turn on a tracepoint, named as in ``available_events``; say whether this kernel has it."""
        try:
            self._write(f"events/{name.replace(':', '/')}/enable", "1")
        except FileNotFoundError:
            return False
        return True

    def read(self) -> Iterator[tuple[float, str, str]]:
        """Yield time, name and text of the events that wait; ``missed`` where the buffer was full."""
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
        """Remove it, and all kprobe events of it. Any number of times."""
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
        _remove(self.mount, self.name)

    def _log_offset(self) -> float:
        """Return CLOCK_MONOTONIC_RAW less the clock of the kernel's log, in seconds; both run at one rate.

        The trace clock ``global`` is the log's, sched_clock_cpu(): marks have its time. The one that was
        written fastest is the most exact.
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
            key=lambda one: one[1] - one[0],
        )
        return (begun + ended) / 2 - mark

    def _mark(self) -> tuple[float, float]:
        """Write a mark, and return from when to when that took."""
        begun = time.clock_gettime(time.CLOCK_MONOTONIC_RAW)
        self._write("trace_marker", _MARK)
        return begun, time.clock_gettime(time.CLOCK_MONOTONIC_RAW)

    def _write(self, name: str, text: str) -> None:
        _write(f"{self.path}/{name}", text)


def parse_line(line: str) -> tuple[float, str, str] | None:
    """Return time, name and text of a line of ``trace_pipe``; ``None`` for what is none."""
    if lost := _LOST.search(line):
        return now(), "missed", f"{lost[1]} events of the trace buffer"
    found = _LINE.match(line)
    return (float(found[1]), found[2], found[3]) if found else None


def remove_stale(mount: str = MOUNT) -> list[str]:
    """Remove what ended processes of this program have left, and return the names."""
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
            with contextlib.suppress(FileNotFoundError):  # another process has removed it meanwhile
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
    code = kernel_files.write(path, text.encode("ascii"), append=append)
    if code:
        raise OSError(code, os.strerror(code), path)


def _name(pid: int) -> str:
    return f"vfiotool_{pid}_{process_start(Tree(), pid)}"


def _is_alive(name: str) -> bool:
    """Say whether the process is there that made this; a pid alone may be another's by now."""
    found = _NAME.fullmatch(name)
    return found is not None and process_start(Tree(), int(found[1])) == found[2]
