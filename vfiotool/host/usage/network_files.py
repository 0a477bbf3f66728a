"""Look into network namespaces of other processes. A child process enters them: this process never moves."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import struct
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from vfiotool.host.usage.link_sockets import LISTS
from vfiotool.host.usage.rtnetlink import open_rtnetlink
from vfiotool.util.child import start_child

_SECONDS = 2.0

# include/uapi/linux/sched.h and mount.h
_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_READ_ONLY = 0x1 | 0x2 | 0x4 | 0x8  # MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC
_MS_PRIVATE = 0x4000 | 0x40000  # MS_REC, MS_PRIVATE
_MNT_DETACH = 0x2

_POINT = b"/dev"  # every machine has it; /sys is busy if the same sysfs is mounted there already
_ERRNO = struct.Struct("=i")
_MOST_FDS = 2 + len(LISTS)


@dataclass(frozen=True, slots=True)
class NetworkFiles:
    """Open files of a network namespace: the root of its sysfs, a socket for rtnetlink, lists of sockets."""

    sysfs: int
    rtnetlink: socket.socket
    socket_lists: tuple[int, ...] = ()


def visit_networks(paths: Sequence[tuple[str, int]]) -> Generator[NetworkFiles | OSError, None, None]:
    """Yield the files of each network namespace, or why it cannot be entered; needs root.

    A namespace is given by the path of its file, as in ``/proc/PID/ns/net``, and by the file's inode number.
    Close the iterator. The files are closed when the iterator goes on. After a namespace that takes longer
    than two seconds, the iterator ends. The child has a mount namespace of its own, where it mounts the sysfs
    of the network namespace: sysfs shows the interfaces of the namespace in which it was mounted. Source:
    namespaces(7), network_namespaces(7), setns(2).
    """
    if not paths:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    pid, fd = start_child(lambda end: _serve(libc, end, paths))
    ours = socket.socket(fileno=fd)
    ours.settimeout(_SECONDS)
    try:
        for _ in paths:
            with contextlib.ExitStack() as opened:
                files = _next(ours, opened)
                yield files
            if isinstance(files, TimeoutError):
                break
    finally:
        with ours:
            ours.shutdown(socket.SHUT_WR)  # ends the child
            poll = select.poll()
            poll.register(ours, select.POLLIN)
            if poll.poll(_SECONDS * 1000):
                os.waitpid(pid, 0)


def _next(ours: socket.socket, opened: contextlib.ExitStack) -> NetworkFiles | OSError:
    try:
        ours.send(b"+")
        answer, fds, _, _ = socket.recv_fds(ours, _ERRNO.size, _MOST_FDS)
    except OSError as error:
        return error
    for fd in fds[:1] + fds[2:]:
        opened.callback(os.close, fd)
    code = _ERRNO.unpack(answer)[0] if len(answer) == _ERRNO.size else errno.EIO
    if code or len(fds) < 2:
        return OSError(code or errno.EIO, os.strerror(code or errno.EIO))
    link = opened.enter_context(socket.socket(fileno=fds[1]))
    return NetworkFiles(fds[0], link, tuple(fds[2:]))


def _serve(libc: ctypes.CDLL, end: int, paths: Sequence[tuple[str, int]]) -> None:
    """Send the files of one namespace for each byte that is received."""
    theirs = socket.socket(fileno=end)
    for path, number in paths:
        if not theirs.recv(1):
            return
        fds: list[int] = []
        try:
            fds = _open_files(libc, path, number)
            code = 0
        except OSError as error:
            code = error.errno or errno.EIO
        socket.send_fds(theirs, [_ERRNO.pack(code)], fds)
        for fd in fds:
            os.close(fd)


def _open_files(libc: ctypes.CDLL, path: str, number: int) -> list[int]:
    namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(namespace).st_ino != number:  # the process has exited, and its pid is another's
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        _check(libc.setns(namespace, _CLONE_NEWNET))
    finally:
        os.close(namespace)
    _check(libc.unshare(_CLONE_NEWNS))
    _check(libc.mount(b"none", b"/", None, _MS_PRIVATE, None))
    _check(libc.mount(b"sysfs", _POINT, b"sysfs", _MS_READ_ONLY, None))
    fds = [os.open(_POINT, os.O_RDONLY | os.O_DIRECTORY)]
    _check(libc.umount2(_POINT, _MNT_DETACH))
    fds.append(open_rtnetlink().detach())
    for name in LISTS:
        with contextlib.suppress(FileNotFoundError):
            fds.append(os.open(f"/proc/self/net/{name}", os.O_RDONLY))
    return fds


def _check(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
