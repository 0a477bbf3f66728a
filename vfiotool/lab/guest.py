"""Run a command in a guest: start QEMU, pass its input and output, and stop QEMU in any case.

The guest has the host's root file system, copy on write: no change by the guest reaches the host.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vfiotool.errors import GuestLostError, UnsupportedError
from vfiotool.lab import initramfs, kernels, machines, qemu, wire

if TYPE_CHECKING:
    from vfiotool.lab.kernels import Kernel
    from vfiotool.lab.machines import Machine

BOOT_SECONDS = 90
"""Seconds that a guest may take to start its command, if the host has an idle processor."""
CHECKING = 4
"""The factor on BOOT_SECONDS for the debug kernel, whose checks slow it down."""
SILENCE_SECONDS = 120
"""Seconds without a frame after which a guest counts as lost; it sends a heartbeat every few seconds."""

_CONSOLE_LINES = 40
_END_SECONDS = 5  # from the end of the channel to QEMU's exit
_REPORT_LINES = 80  # an oops, with the panic that follows it
_LEAD_LINES = 5  # lines before the cause: init.sh prints there which step failed
_CAUSE = re.compile(r"(Kernel panic - not syncing|BUG|Oops|general protection fault)\b.*")
_CMDLINE = (
    # A kernel bug ends the guest, with the report on the console.
    "console=ttyS0 loglevel=5 panic=-1 oops=panic "
    # Tests read old records of the kernel's log.
    "log_buf_len=4M "
    # An emulated processor needs no mitigations, and each costs much time.
    "mitigations=off no5lvl init_on_alloc=0 cryptomgr.notests random.trust_cpu=on "
    # The TSC is reliable, but a busy host delays the timer ticks that the kernel checks it against.
    "tsc=reliable no_timer_check"
)
_ESCAPE = b"\x1d\x1d\x1d"
_PIPE_BUF = 4096  # bytes that a pipe accepts without blocking when it polls writable
_DROPPED = ("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "XDG_RUNTIME_DIR", "TMPDIR", "NOTIFY_SOCKET")
_DROPPED_PREFIXES = ("DBUS_", "SSH_", "SUDO_", "SYSTEMD_", "XDG_SESSION_")
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class GuestConfig:
    """A command and the guest to run it in. ``timeout`` is in seconds for the command; ``None`` is no limit.

    The files below the directory ``files`` are copied over the guest's root, owned by root, before its
    udevd starts.
    """

    argv: tuple[str, ...]
    kernel: Kernel
    machine: Machine
    accelerator: tuple[str, ...] = qemu.TCG
    memory: str = "2G"
    cpus: int = 2
    timeout: float | None = None
    files: str | None = None


@dataclass(slots=True)
class Times:
    """The times of the phases of a start, in seconds.

    ``probed`` and ``prepared`` are spent before QEMU starts. ``ready`` is the time from QEMU's start until
    the command can start. ``phases`` are measured by the guest, from the start of its kernel.
    """

    probed: float = 0.0
    prepared: float = 0.0
    ready: float = 0.0
    phases: dict[str, float] | None = None


def run(config: GuestConfig, times: Times) -> int:
    """Run a command in a new guest, with this process's stdin, stdout and stderr; return its exit status.

    A guest that is lost before its command starts is started once more. A command is never started twice.

    Raises:
        GuestLostError: the guest was lost.
        LabError: no guest can be started.
    """
    with terminal_mode() as size:
        try:
            return attempt(config, times, size)
        except GuestLostError as error:
            if times.phases is not None:
                raise
            print(f"{error.console}\n{error.message}; starting a new guest", file=sys.stderr)
            return attempt(config, times, size)


def attempt(config: GuestConfig, times: Times, size: tuple[int, int] | None) -> int:
    """Start a guest and serve it until its command ends."""
    begun = time.monotonic()
    guest = Guest(config)
    try:
        times.prepared = time.monotonic() - begun
        status = GuestSession(guest, config, times, size).serve()
    finally:
        guest.close()
    return status


class Guest:
    """A running QEMU; ``channel`` is connected to its agent. Owns the process and its descriptors.

    Single-threaded.
    """

    def __init__(self, config: GuestConfig) -> None:
        check_module(config)
        self._files: list[qemu.MemoryFile] = []
        self.console = self._file("console")
        self.messages = self._file("messages")
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = self._arguments(config, theirs.fileno())
            fds = [theirs.fileno(), *(file.fd for file in self._files)]
            self.started = time.monotonic()
            self._qemu = qemu.start(arguments, fds, self.messages.fd)
        self._socket = ours
        self.channel = wire.Channel(ours.fileno())

    def _file(self, name: str, data: bytes = b"", size: int = 0) -> qemu.MemoryFile:
        self._files.append(qemu.MemoryFile(name, data, size))
        return self._files[-1]

    def _arguments(self, config: GuestConfig, port: int) -> list[str]:
        known = qemu.models()
        drives = {
            device.drive: self._file(device.drive, size=machines.DRIVE_SIZE).path
            for device in config.machine.devices(known)
            if device.drive
        }
        initrd = self._file("initrd", build_initramfs(config))
        return [
            *qemu.BARE,
            *("-machine", "q35,kernel-irqchip=split,sata=off,smbus=off,usb=off"),
            *config.accelerator,
            *("-smp", str(config.cpus), "-m", config.memory),
            *("-kernel", config.kernel.image, "-initrd", initrd.path),
            *("-append", f"{_CMDLINE} {config.machine.cmdline}"),
            *("-chardev", f"file,id=console,path={self.console.path},append=on"),
            *("-serial", "chardev:console"),
            *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
            *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root,addr=1c"),
            *("-device", "virtio-serial-pci,addr=1d"),
            *("-chardev", f"socket,id=port,fd={port}"),
            *("-device", f"virtserialport,chardev=port,name={wire.PORT}"),
            *config.machine.arguments(known, drives),
        ]

    def stopped(self) -> GuestLostError:
        """Return the error for a guest that closed its end of the channel: it powered off, or QEMU ended."""
        try:
            status = self._qemu.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            status = 0
        if status < 0:
            return self.lost(f"QEMU was killed by {signal.Signals(-status).name}")
        return self.lost(
            f"QEMU exited with status {status}" if status else "it stopped before its command ended"
        )

    def lost(self, why: str) -> GuestLostError:
        """Return the error for this guest, with QEMU's messages and the last lines of the guest's console."""
        self._qemu.kill()
        self._qemu.wait()
        cause, report = crash_report(text(self.console))
        report = (
            text(self.messages) + report
        )  # QEMU's messages come first: after a long console they would be overlooked
        return GuestLostError(
            f"the guest was lost: {why}{f' ({cause})' if cause else ''}",
            hint="see the end of its console below" if report else "its console is empty",
            console=report,
        )

    def close(self) -> None:
        """Kill QEMU and release the descriptors. Any number of times."""
        self._qemu.kill()
        self._qemu.wait()
        self._socket.close()
        for file in self._files:
            file.close()


def text(file: qemu.MemoryFile) -> str:
    """Return the text in a file."""
    return file.contents().decode(errors="replace").replace("\r", "")


def crash_report(console: str) -> tuple[str, str]:
    """Return the cause of a kernel crash and the lines around it; without a crash, the last lines."""
    lines = console.splitlines()[-_REPORT_LINES:]
    for number, line in enumerate(lines):
        if found := _CAUSE.search(line):
            return found[0], "\n".join(lines[max(0, number - _LEAD_LINES) :])
    return "", "\n".join(lines[-_CONSOLE_LINES:])


def check_module(config: GuestConfig) -> None:
    """Raise UnsupportedError if the machine's IOMMU needs a driver that the kernel lacks."""
    module = config.machine.module
    if module and not initramfs.closure(config.kernel, [module]):
        raise UnsupportedError(
            f"kernel {config.kernel.release} has no {module} driver, so machine"
            f" {config.machine.name} would have no IOMMU",
            hint="choose another kernel or machine: 'vfiotool lab machines' shows the requirements",
        )


def build_initramfs(config: GuestConfig) -> bytes:
    """Return the initramfs, which loads the IOMMU's driver before the drivers of devices behind it."""
    package_root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    agent = f"import sys; sys.path.insert(0, {package_root!r}); "
    agent += "from vfiotool.lab.agent import main; main()"
    settings = {
        "RELEASE": config.kernel.release,
        "MODULES_ROOT": os.path.abspath(config.kernel.modules_root),
        "PYTHON": sys.executable,
        "AGENT": agent,
        "FILES": os.path.abspath(config.files) if config.files else "",
    }
    module = config.machine.module
    modules = ["virtio_pci", *([module] if module else []), *initramfs.ROOT_MODULES]
    return initramfs.build(config.kernel, modules, settings)


def environment(config: GuestConfig, caller: Mapping[str, str]) -> dict[str, str]:
    """Return the caller's environment without the host's session, with the names of kernel and machine."""
    kept = {
        key: value
        for key, value in caller.items()
        if key not in _DROPPED and not key.startswith(_DROPPED_PREFIXES)
    }
    path = [os.path.dirname(sys.executable), kept.get("PATH", ""), _SYSTEM_PATH]
    return {
        **kept,
        "PATH": ":".join(filter(None, path)),
        "VFIOTOOL_LAB_KERNEL": config.kernel.name,
        "VFIOTOOL_LAB_MACHINE": config.machine.name,
    }


@contextlib.contextmanager
def terminal_mode() -> Iterator[tuple[int, int] | None]:
    """Yield the size of the terminal and restore its mode afterwards; yield ``None`` without a terminal."""
    if not (os.isatty(0) and os.isatty(1)):
        yield None
        return
    before = termios.tcgetattr(0)
    try:
        size = os.get_terminal_size(1)
        yield size.lines, size.columns
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextlib.contextmanager
def window_changes() -> Iterator[int]:
    """Yield a descriptor that polls readable when the size of the terminal changes."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    handler = signal.signal(
        signal.SIGWINCH, lambda *_: None
    )  # without a handler, no byte is written to the wakeup fd
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGWINCH, handler)
        os.close(reader)
        os.close(writer)


def writable(fd: int) -> bool:
    """Return True if a write of up to PIPE_BUF bytes does not block."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


class GuestSession:
    """Moves bytes between a guest and this process's stdin, stdout and stderr. Single-threaded."""

    def __init__(self, guest: Guest, config: GuestConfig, times: Times, size: tuple[int, int] | None) -> None:
        self._guest = guest
        self._channel = guest.channel
        self._config = config
        self._times = times
        self._size = size
        self._sinks = {wire.STDOUT: wire.Sink(1, _PIPE_BUF), wire.STDERR: wire.Sink(2, _PIPE_BUF)}
        self._reading_stdin = False
        self._typed = b""
        self._status: int | None = None
        self._heard = time.monotonic()
        self._command_ends: float | None = None
        load = os.getloadavg()[0] / (os.cpu_count() or 1)
        patience = max(1.0, load) * (CHECKING if config.kernel.name == kernels.BUILT else 1)
        self._boot_ends = guest.started + BOOT_SECONDS * patience

    def serve(self) -> int:
        """Move bytes until the command's status and all its output have arrived; GuestLostError otherwise."""
        with window_changes() as changed:
            while True:
                if self._status is not None and not any(s.pending for s in self._sinks.values()):
                    return self._status
                ready = self._wait(changed)
                if self._channel.fd in ready:
                    self._receive()
                if changed in ready:
                    os.read(changed, 4096)
                    self._resize()
                if self._reading_stdin and 0 in ready:
                    self._read_stdin()
                self._flush()
                self._check_time()

    def _wait(self, changed: int) -> set[int]:
        events = {changed: select.POLLIN}
        if self._status is None:
            full = any(sink.full for sink in self._sinks.values())
            events[self._channel.fd] = (0 if full else select.POLLIN) | (
                select.POLLOUT if self._channel.pending else 0
            )
        if self._reading_stdin and not self._channel.full:
            events[0] = select.POLLIN
        for sink in self._sinks.values():
            if sink.pending:
                events[sink.fd] = events.get(sink.fd, 0) | select.POLLOUT
        poll = select.poll()
        for fd, mask in events.items():
            poll.register(fd, mask)
        return {fd for fd, _ in poll.poll(1000)}

    def _receive(self) -> None:
        try:
            frames = self._channel.receive()
        except wire.WireError:
            raise self._guest.stopped() from None
        self._heard = time.monotonic()
        for kind, payload in frames:
            if kind == wire.READY:
                self._start(json.loads(payload))
            elif kind == wire.EXIT:
                (self._status,) = wire.STATUS.unpack(payload)
            elif kind in self._sinks:
                self._sinks[kind].pending += payload

    def _start(self, phases: dict[str, float]) -> None:
        """Send the command, only once: from now on it may have run."""
        self._times.ready = time.monotonic() - self._guest.started
        self._times.phases = phases
        if self._config.timeout is not None:
            self._command_ends = time.monotonic() + self._config.timeout
        spec: dict[str, Any] = {
            "argv": self._config.argv,
            "env": environment(self._config, os.environ),
            "cwd": os.getcwd(),
            "terminal": self._size,
        }
        self._channel.send(wire.START, json.dumps(spec).encode())
        self._reading_stdin = True
        if self._size is not None:
            tty.setraw(0, termios.TCSADRAIN)
            self._resize()

    def _resize(self) -> None:
        if self._size is not None and self._reading_stdin:
            size = os.get_terminal_size(1)
            self._channel.send(wire.WINSIZE, wire.SIZE.pack(size.lines, size.columns))

    def _read_stdin(self) -> None:
        try:
            data = os.read(0, 1 << 16)
        except OSError:  # stdin is closed, or its terminal is gone
            data = b""
        self._reading_stdin = bool(data)
        self._channel.send(wire.STDIN, data)
        self._typed = (self._typed + data)[-len(_ESCAPE) :]
        if self._size is not None and self._typed == _ESCAPE:
            raise KeyboardInterrupt

    def _flush(self) -> None:
        try:
            self._channel.flush()
        except OSError:  # QEMU has exited: receive() raises that, after the frames that arrived
            self._channel.pending.clear()
        for sink in self._sinks.values():
            while sink.pending and writable(sink.fd):
                sink.write()

    def _check_time(self) -> None:
        now = time.monotonic()
        if self._times.phases is None:
            if now > self._boot_ends:
                seconds = self._boot_ends - self._guest.started
                raise self._guest.lost(f"it did not start its command within {seconds:.0f} seconds")
            return
        if now > self._heard + SILENCE_SECONDS and not any(s.full for s in self._sinks.values()):
            raise self._guest.lost(f"no heartbeat for {SILENCE_SECONDS} seconds")
        if self._command_ends is not None and now > self._command_ends:
            raise self._guest.lost(f"the command ran longer than {self._config.timeout:g} seconds")
