"""Records of the kernel's log (Documentation/ABI/testing/dev-kmsg)."""

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
    """The records that are logged after this object is created, or, if ``whole``, those before it too.

    ``offset`` is CLOCK_MONOTONIC_RAW minus the clock of the log, in seconds.

    Raises:
        OSError: EPERM, only root may read the log (kernel.dmesg_restrict).
    """

    def __init__(self, offset: float = 0.0, path: str = _PATH, *, whole: bool = False) -> None:
        self._offset = offset
        self._fd: int | None = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not whole:
            os.lseek(self._fd, 0, os.SEEK_END)

    def fileno(self) -> int | None:
        return self._fd

    def read(self) -> Iterator[TimelineEntry]:
        while self._fd is not None:
            try:
                record = os.read(self._fd, _LONGEST_RECORD)
            except BlockingIOError:
                return
            except (
                BrokenPipeError
            ):  # records were overwritten before they were read; reading goes on with the oldest
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
    """Return CLOCK_MONOTONIC, whose rate NTP adjusts, minus CLOCK_MONOTONIC_RAW, in seconds."""
    return now() - time.clock_gettime(time.CLOCK_MONOTONIC_RAW)


def parse_record(record: str, offset: float) -> TimelineEntry | None:
    """Return a record as an entry, or ``None`` if the text is not a record."""
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
