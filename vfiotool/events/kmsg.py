"""The kernel's log as it grows (Documentation/ABI/testing/dev-kmsg)."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator

from vfiotool.events.entry import TimelineEntry, find_address, now

_PATH = "/dev/kmsg"
_LONGEST_RECORD = 8192
_LEVELS = ("emergency", "alert", "critical", "error", "warning", "notice", "info", "debug")
_RECORD = re.compile(r"(\d+),(\d+),(\d+),[^;]*;([^\n]*)((?:\n .*)*)")
_DEVICE = re.compile(r"^ DEVICE=\+pci:(\S+)$", re.MULTILINE)


class KernelLog:
    """What is logged from now on. ``offset`` is CLOCK_MONOTONIC_RAW less the log's clock, in seconds.

    Raises:
        OSError: EPERM, the log is root's alone here (kernel.dmesg_restrict).
    """

    def __init__(self, offset: float = 0.0, path: str = _PATH) -> None:
        self._offset = offset
        self._fd: int | None = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._fd, 0, os.SEEK_END)

    def fileno(self) -> int | None:
        return self._fd

    def read(self) -> Iterator[TimelineEntry]:
        while self._fd is not None:
            try:
                record = os.read(self._fd, _LONGEST_RECORD)
            except BlockingIOError:
                return
            except BrokenPipeError:  # it was written faster than read, and goes on with the oldest there is
                yield TimelineEntry(now(), "kmsg", "missed", detail="records of the kernel's log")
                continue
            if not record:
                return
            entry = parse_record(record.decode("utf-8", "replace"), self._offset + _slewed())
            if entry is not None:
                yield entry

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _slewed() -> float:
    """Return by how much CLOCK_MONOTONIC, which NTP adjusts, is ahead of the raw clock, in seconds."""
    return now() - time.clock_gettime(time.CLOCK_MONOTONIC_RAW)


def parse_record(record: str, offset: float) -> TimelineEntry | None:
    """Return a record as an entry, ``None`` for what is none."""
    found = _RECORD.match(record)
    if found is None:
        return None
    priority, seqnum, microseconds, text, fields = found.groups()
    device = _DEVICE.search(fields)
    return TimelineEntry(
        int(microseconds) / 1e6 + offset,
        "kmsg",
        _LEVELS[int(priority) & 7],
        address=device[1] if device else find_address(text),
        seqnum=int(seqnum),
        detail=text,
    )
