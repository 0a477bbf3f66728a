"""Reads with a time limit, for files whose read may never return.

Some attributes take the device's lock. While an unbind of the device waits for its holder, reads of
``driver_override``, ``uevent`` and ``sriov_numvfs`` block uninterruptibly (seen on 6.1; on 6.12 only
``sriov_numvfs``). A thread that blocks there would keep its process from exiting. So a child process
reads, and is left behind if it blocks. A child that runs, or waits for a processor, is not blocked: on a
busy machine its start alone can take longer than ``STALL_SECONDS``.
"""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Mapping, Sequence

from vfiotool.host.tree import Tree
from vfiotool.util.child import start_child

STALL_SECONDS = 0.25
MAX_STALLS = 4
_SPINNING_SECONDS = 10.0
_CHUNK = 65536

ReadResult = bytes | OSError | None
"""The content of a file, the error of its read, or ``None`` if the read did not return in time."""

_HEADER = struct.Struct("=iI")  # errno (0 if the read succeeded), length of the content
_stuck_children: list[int] = []


def read_all(
    tree: Tree, paths: Sequence[str], *, most: Mapping[str, int] | None = None
) -> Mapping[str, ReadResult]:
    """Read files, each of which may block; all blocked reads together take about a second at most.

    ``most`` has the files of which so many bytes are enough: a read may return more.

    After a read that blocks, the other files of the same directory are not read: they are behind the
    same lock. After ``MAX_STALLS`` blocked reads, no more files are read. Thread-safe, except for the
    list of children that were left behind.
    """
    known = tree.nonblocking_reads(paths)
    if known is not None:
        return known
    _reap()
    answers: dict[str, ReadResult] = dict.fromkeys(paths)
    waiting = list(paths)
    stalls = 0
    while waiting and stalls < MAX_STALLS:
        done = _read_until_stall(tree, waiting, answers, most or {})
        if done == len(waiting):
            break
        stalls += 1
        folder = waiting[done].rpartition("/")[0] + "/"
        waiting = [path for path in waiting[done + 1 :] if not path.startswith(folder)]
    return answers


def _read_until_stall(
    tree: Tree, paths: list[str], answers: dict[str, ReadResult], most: Mapping[str, int]
) -> int:
    """Fill in ``answers`` in order; return the number of reads that returned before one blocked."""
    pid, fd = _start_reader([(tree.path(path), most.get(path)) for path in paths])
    received = 0
    try:
        for path in paths:
            header = _receive(pid, fd, _HEADER.size)
            if header is None:
                break
            code, length = _HEADER.unpack(header)
            content = _receive(pid, fd, length)
            if content is None:
                break
            answers[path] = OSError(code, os.strerror(code), path) if code else content
            received += 1
    finally:
        os.close(fd)
        if received == len(paths):
            os.waitpid(pid, 0)
        else:
            _stuck_children.append(pid)
    return received


def _start_reader(files: list[tuple[str, int | None]]) -> tuple[int, int]:
    def read_and_send(fd: int) -> None:
        for path, most in files:
            _send(fd, *_read(path, most))

    return start_child(read_and_send)


def _read(path: str, most: int | None) -> tuple[int, bytes]:
    """Read a file to its end, or the first bytes by a single read: a register must not be read in vain."""
    try:
        fd = os.open(path, os.O_RDONLY)
        content = os.read(fd, _CHUNK if most is None else most)
        while most is None and (chunk := os.read(fd, _CHUNK)):
            content += chunk
        os.close(fd)
    except OSError as error:
        return error.errno or -1, b""
    return 0, content


def _send(fd: int, code: int, content: bytes) -> None:
    message = _HEADER.pack(code, len(content)) + content
    while message:
        message = message[os.write(fd, message) :]


def _receive(pid: int, fd: int, size: int) -> bytes | None:
    """Return ``size`` bytes from the child, or ``None`` if the child is blocked or has exited early."""
    content = b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    give_up = time.monotonic() + _SPINNING_SECONDS
    while len(content) < size:
        if poll.poll(STALL_SECONDS * 1000):
            chunk = os.read(fd, size - len(content))
            if not chunk:
                return None
            content += chunk
        elif time.monotonic() > give_up or not (_is_running(pid) or poll.poll(0)):
            return None
    return content


def _is_running(pid: int) -> bool:
    """Return True if a child has, or waits for, a processor."""
    from vfiotool.util.tasks import task_state  # here, because its imports cost a listing 40 % of its time

    return task_state(pid) == "R"


def _reap() -> None:
    """Reap the children that were left behind and have exited since."""
    for pid in _stuck_children[:]:
        try:
            ended, _ = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            ended = pid
        if ended:
            _stuck_children.remove(pid)
