"""PID 1 of a running lab guest: runs a single command for the host, reaps orphans, sends heartbeats.

It starts on an emulated processor, so it imports only a small part of the standard library.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import struct
import termios
import time
from typing import Any, NoReturn

from vfiotool.lab import wire

_HEARTBEAT_SECONDS = 5
_PORT_SECONDS = 30
_GRACE_SECONDS = 1  # for output of processes that outlive the command and hold its stdout or stderr
_CANNOT_RUN, _NOT_FOUND = 126, 127


def main() -> None:
    """Serve the host until the command has ended. Never returns: the guest would end with PID 1."""
    started = uptime()
    channel = wire.Channel(open_port())
    os.waitpid(int(os.environ["COLDPLUG"]), 0)
    phases = {
        "kernel": float(os.environ["BOOTED"]),
        "root": float(os.environ["ROOTED"]),
        "agent": started,
        "devices": uptime(),
    }
    channel.send(wire.READY, json.dumps(phases).encode())
    CommandSession(channel).serve()
    while True:  # PID 1 must not end: the host stops the machine once it has the status
        signal.pause()


def uptime() -> float:
    """Return the seconds since this kernel started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def open_port() -> int:
    """Open the host's port. The driver adds the port a moment after it binds to the device."""
    deadline = uptime() + _PORT_SECONDS
    while uptime() < deadline:
        for port in os.listdir("/sys/class/virtio-ports"):
            with open(f"/sys/class/virtio-ports/{port}/name", encoding="ascii") as name:
                if name.read().strip() == wire.PORT:
                    return os.open(f"/dev/{port}", os.O_RDWR | os.O_CLOEXEC)
        time.sleep(0.01)
    raise TimeoutError(f"no virtio port is named {wire.PORT}")


class CommandSession:
    """Moves bytes between the command's file descriptors and the channel. Single-threaded."""

    def __init__(self, channel: wire.Channel) -> None:
        self._channel = channel
        self._pid = 0
        self._terminal = False
        self._stdin: wire.Sink | None = None
        self._stdin_ended = False
        self._outputs: dict[int, int] = {}  # descriptor -> frame type
        self._status: int | None = None
        self._grace_ends = 0.0
        self._next_heartbeat = uptime() + _HEARTBEAT_SECONDS
        self._wakeup, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(
            signal.SIGCHLD, lambda *_: None
        )  # without a handler, no byte is written to the wakeup fd
        signal.set_wakeup_fd(wakeup)

    def serve(self) -> None:
        """Move bytes until the command has ended and all its output is sent."""
        while not self._finished():
            ready = self._wait()
            if uptime() >= self._next_heartbeat:
                self._next_heartbeat = uptime() + _HEARTBEAT_SECONDS
                self._channel.send(wire.HEARTBEAT)
            if self._channel.fd in ready and not (self._stdin and self._stdin.full):
                for kind, payload in self._channel.receive():
                    self._handle(kind, payload)
            self._feed()
            for fd in ready & self._outputs.keys():
                self._collect(fd)
            if self._wakeup in ready:
                self._reap()
            self._channel.flush()

    def _wait(self) -> set[int]:
        """Wait for a ready descriptor, at most until the next heartbeat; return the ready descriptors."""
        full = self._stdin is not None and self._stdin.full
        events = {self._wakeup: select.POLLIN, self._channel.fd: 0 if full else select.POLLIN}
        if self._channel.pending:
            events[self._channel.fd] |= select.POLLOUT
        if not self._channel.full:
            events.update(dict.fromkeys(self._outputs, select.POLLIN))
        if self._stdin and self._stdin.pending:
            events[self._stdin.fd] = events.get(self._stdin.fd, 0) | select.POLLOUT
        poll = select.poll()
        for fd, mask in events.items():
            poll.register(fd, mask)
        until = self._next_heartbeat if self._status is None else self._grace_ends
        return {fd for fd, _ in poll.poll(max(0, (until - uptime()) * 1000))}

    def _finished(self) -> bool:
        """Return True if output and exit status are sent; send the status once the outputs are closed.

        If processes that outlive the command still hold the outputs after a grace period, send only the
        output written so far.
        """
        if self._status is None:
            return False
        if self._outputs and uptime() < self._grace_ends:
            return False
        for fd in list(self._outputs):
            (waiting,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))
            while waiting > 0 and (taken := self._collect(fd)):
                waiting -= taken
            self._outputs.pop(fd, None)
        self._channel.send(wire.EXIT, wire.STATUS.pack(self._status))
        while self._channel.pending:
            select.select([], [self._channel.fd], [])
            self._channel.flush()
        return True

    def _handle(self, kind: int, payload: bytes) -> None:
        if kind == wire.START:
            self._start(json.loads(payload))
        elif kind == wire.STDIN and self._stdin:
            self._stdin.pending += payload
            self._stdin_ended = not payload
        elif kind == wire.WINSIZE and self._terminal and self._stdin:
            rows, columns = wire.SIZE.unpack(payload)
            set_size(self._stdin.fd, rows, columns)

    def _start(self, spec: dict[str, Any]) -> None:
        self._terminal = spec["terminal"] is not None
        ours, theirs = terminal(*spec["terminal"]) if self._terminal else pipes()
        self._pid = os.fork()
        if self._pid == 0:
            become(spec, theirs, self._terminal)
        for fd in set(theirs):
            os.close(fd)
        for fd in set(ours):
            os.set_blocking(fd, False)
        self._stdin = wire.Sink(ours[0])
        self._outputs = {ours[1]: wire.STDOUT}
        if not self._terminal:
            self._outputs[ours[2]] = wire.STDERR

    def _feed(self) -> None:
        if self._stdin is None:
            return
        try:
            self._stdin.flush()
        except OSError:  # the command closed its stdin: drop the rest
            self._stdin.pending.clear()
            self._stdin_ended = True
        if self._stdin_ended and not self._stdin.pending and not self._terminal:
            os.close(self._stdin.fd)
            self._stdin = None

    def _collect(self, fd: int) -> int:
        """Send output of the command from ``fd``; return the number of bytes, 0 if there is no more."""
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return 0
        except OSError:  # EIO: no process has the terminal open any more
            data = b""
        if data:
            self._channel.send(self._outputs[fd], data)
        else:
            del self._outputs[fd]
        return len(data)

    def _reap(self) -> None:
        """Reap all dead children; if the command is among them, record its status."""
        os.read(self._wakeup, 4096)
        while True:
            try:
                pid, code = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._pid:
                ended = os.waitstatus_to_exitcode(code)
                self._status = 128 - ended if ended < 0 else ended
                self._grace_ends = uptime() + _GRACE_SECONDS


def pipes() -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return three pipes: this side's ends and the command's, in the order stdin, stdout, stderr."""
    (stdin, to_stdin), (from_stdout, stdout), (from_stderr, stderr) = (
        os.pipe(),
        os.pipe(),
        os.pipe(),
    )
    return (to_stdin, from_stdout, from_stderr), (stdin, stdout, stderr)


def terminal(rows: int, columns: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return a pseudo-terminal of this size: this side's descriptor and the command's, three times each."""
    ours, theirs = os.openpty()
    set_size(ours, rows, columns)
    return (ours, ours, ours), (theirs, theirs, theirs)


def set_size(fd: int, rows: int, columns: int) -> None:
    """Set the size of a terminal; the kernel signals the foreground processes."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def become(spec: dict[str, Any], stdio: tuple[int, int, int], terminal: bool) -> NoReturn:
    """Execute the command in this forked child; never returns."""
    try:
        os.setsid()
        for number, fd in enumerate(stdio):
            os.dup2(fd, number)
        if terminal:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores both signals; a command must not
            signal.signal(ignored, signal.SIG_DFL)
        os.chdir(spec["cwd"])
    except OSError as error:
        refuse(spec, _CANNOT_RUN, error)
    try:
        os.execvpe(spec["argv"][0], spec["argv"], spec["env"])  # noqa: S606 - no shell is meant
    except FileNotFoundError as error:
        refuse(spec, _NOT_FOUND, error)
    except OSError as error:
        refuse(spec, _CANNOT_RUN, error)


def refuse(spec: dict[str, Any], status: int, error: OSError) -> NoReturn:
    """Write to the command's stderr why it cannot run, and exit the child."""
    where = f"{error.filename}: " if error.filename not in (None, spec["argv"][0]) else ""
    os.write(2, f"error: cannot run {spec['argv'][0]}: {where}{error.strerror}\n".encode())
    os._exit(status)
