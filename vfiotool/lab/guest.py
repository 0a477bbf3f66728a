"""Run a command in a guest: start QEMU, carry bytes to and fro, and end it whatever happens.

The guest sees the host's whole root file system, copy on write: nothing that it does reaches the host.
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
"""How long a guest may take to its command, where the host has a processor to spare."""
CHECKING = 4
"""How many times as long it takes where the kernel checks all that it does."""
SILENCE_SECONDS = 120
"""How long a guest may say nothing, which it does every few seconds, before it is given up."""

_CONSOLE_LINES = 40
_END_SECONDS = 5  # from QEMU's last word to its end
_REPORT_LINES = 80  # an oops, with the panic that follows it
_LEAD_LINES = 5  # what led to it: init.sh says there which step failed
_CAUSE = re.compile(r"(Kernel panic - not syncing|BUG|Oops|general protection fault)\b.*")
_CMDLINE = (
    # A bug ends the guest, with its report on the console.
    "console=ttyS0 loglevel=5 panic=-1 oops=panic "
    # Tests read back what was logged long ago.
    "log_buf_len=4M "
    # An emulated processor leaks nothing that is worth a mitigation, and pays dearly for each.
    "mitigations=off no5lvl init_on_alloc=0 cryptomgr.notests random.trust_cpu=on "
    # Its clock is sound, but a busy host delays the timer ticks by which the kernel judges that.
    "tsc=reliable no_timer_check"
)
_ESCAPE = b"\x1d\x1d\x1d"
_PIPE_BUF = 4096  # what a pipe that polls writable takes without blocking
_DROPPED = ("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "XDG_RUNTIME_DIR", "TMPDIR", "NOTIFY_SOCKET")
_DROPPED_PREFIXES = ("DBUS_", "SSH_", "SUDO_", "SYSTEMD_", "XDG_SESSION_")
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class GuestConfig:
    """What to run where. ``timeout`` is seconds for the command, None for no limit.

    The tree below the folder ``files`` is laid over the guest's root, as root's own, before its udevd starts.
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
    """What a start is made of, in seconds.

    ``probed`` and ``prepared`` are spent before QEMU starts, ``ready`` is how long after that the command
    could start, and ``phases`` are the guest's own marks, counted from its kernel's first instruction.
    """

    probed: float = 0.0
    prepared: float = 0.0
    ready: float = 0.0
    phases: dict[str, float] | None = None


def run(config: GuestConfig, times: Times) -> int:
    """Run the config's command in a new guest with our stdin, stdout and stderr; return its status.

    A guest that does not reach the command is started once more; a command is never started twice.
    GuestLostError where the guest is lost; LabError where none can be started.
    """
    with terminal_mode() as size:
        try:
            return attempt(config, times, size)
        except GuestLostError as error:
            if times.phases is not None:
                raise
            print(f"{error.console}\n{error.message}; starting it again", file=sys.stderr)
            return attempt(config, times, size)


def attempt(config: GuestConfig, times: Times, size: tuple[int, int] | None) -> int:
    """Start one guest and serve it to its end."""
    begun = time.monotonic()
    guest = Guest(config)
    try:
        times.prepared = time.monotonic() - begun
        status = GuestSession(guest, config, times, size).serve()
    finally:
        guest.close()
    return status


class Guest:
    """A running QEMU; ``channel`` leads to its agent. Owns process and descriptors, single-threaded."""

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
        """The error for a guest that closed its end of the channel: it powered off, or QEMU died."""
        try:
            status = self._qemu.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            status = 0
        if status < 0:
            return self.lost(f"QEMU was ended by {signal.Signals(-status).name}")
        return self.lost(
            f"QEMU ended with status {status}" if status else "it stopped before its command ended"
        )

    def lost(self, why: str) -> GuestLostError:
        """The error for this guest, with what QEMU said and the last lines of the guest's console."""
        self._qemu.kill()
        self._qemu.wait()
        cause, report = last_words(text(self.console))
        report = text(self.messages) + report  # QEMU's own words would be lost before a long console
        return GuestLostError(
            f"the guest was lost: {why}{f' ({cause})' if cause else ''}",
            hint="the end of its console follows" if report else "its console is empty",
            console=report,
        )

    def close(self) -> None:
        """End the guest, whatever it does; any number of times."""
        self._qemu.kill()
        self._qemu.wait()
        self._socket.close()
        for file in self._files:
            file.close()


def text(file: qemu.MemoryFile) -> str:
    """What was printed to this file."""
    return file.contents().decode(errors="replace").replace("\r", "")


def last_words(console: str) -> tuple[str, str]:
    """The kernel's reason, where it names one, and the report around it, else the last lines."""
    lines = console.splitlines()[-_REPORT_LINES:]
    for number, line in enumerate(lines):
        if found := _CAUSE.search(line):
            return found[0], "\n".join(lines[max(0, number - _LEAD_LINES) :])
    return "", "\n".join(lines[-_CONSOLE_LINES:])


def check_module(config: GuestConfig) -> None:
    """UnsupportedError where the machine's IOMMU needs a driver that the kernel does not have."""
    module = config.machine.module
    if module and not initramfs.closure(config.kernel, [module]):
        raise UnsupportedError(
            f"kernel {config.kernel.release} has no {module} driver, so machine"
            f" {config.machine.name} would have no IOMMU",
            hint="choose another kernel or machine: 'vfiotool lab machines' says what each needs",
        )


def build_initramfs(config: GuestConfig) -> bytes:
    """The initramfs of this config's kernel, with the IOMMU's driver before any that it guards."""
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
    """The caller's environment, without what means nothing in a guest and with what names it."""
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
    """Where stdin and stdout are a terminal, yield its size, and put it back as it was at the end."""
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
    """Yield a descriptor that becomes readable when the terminal's size changes."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    handler = signal.signal(signal.SIGWINCH, lambda *_: None)  # only then is the wakeup written
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGWINCH, handler)
        os.close(reader)
        os.close(writer)


def writable(fd: int) -> bool:
    """Whether a write of up to PIPE_BUF bytes does not block."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


class GuestSession:
    """The bytes between one guest and our own stdin, stdout and stderr. Single-threaded."""

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
        """Move bytes until the command's status and all its output are here; GuestLostError else."""
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
        """Send the command, once: from here on it may have run."""
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
        except OSError:  # closed, or a terminal that is gone
            data = b""
        self._reading_stdin = bool(data)
        self._channel.send(wire.STDIN, data)
        self._typed = (self._typed + data)[-len(_ESCAPE) :]
        if self._size is not None and self._typed == _ESCAPE:
            raise KeyboardInterrupt

    def _flush(self) -> None:
        try:
            self._channel.flush()
        except OSError:  # QEMU is gone: receiving says so, with what came before
            self._channel.pending.clear()
        for sink in self._sinks.values():
            while sink.pending and writable(sink.fd):
                sink.write()

    def _check_time(self) -> None:
        now = time.monotonic()
        if self._times.phases is None:
            if now > self._boot_ends:
                seconds = self._boot_ends - self._guest.started
                raise self._guest.lost(f"it did not reach its command in {seconds:.0f} seconds")
            return
        if now > self._heard + SILENCE_SECONDS and not any(s.full for s in self._sinks.values()):
            raise self._guest.lost(f"it said nothing for {SILENCE_SECONDS} seconds")
        if self._command_ends is not None and now > self._command_ends:
            raise self._guest.lost(f"the command ran longer than {self._config.timeout:g} seconds")
