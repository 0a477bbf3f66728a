"""The agent runs a command like a shell; here it runs on the host, over a socket instead of the port."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vfiotool.lab import wire

AGENT = """
import sys
from vfiotool.lab import agent, wire
agent.CommandSession(wire.Channel(int(sys.argv[1]))).serve()
"""


class Host:
    """The host's side of the connection to an agent."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.channel = wire.Channel(sock.fileno())
        sock.settimeout(30)

    def send(self, kind: int, payload: bytes = b"") -> None:
        self.channel.send(kind, payload)
        self.socket.sendall(bytes(self.channel.pending))
        self.channel.pending.clear()

    def start(self, *argv: str, **more: Any) -> None:
        spec = {"argv": argv, "env": dict(os.environ), "cwd": "/", "terminal": None, **more}
        self.send(wire.START, json.dumps(spec).encode())

    def until(self, wanted: int, containing: bytes = b"") -> tuple[dict[int, bytes], bytes]:
        """Return all bytes by frame type up to the next frame of a type, and the payload of this frame."""
        seen: dict[int, bytes] = {}
        while True:
            self.socket.settimeout(30)
            assert self.socket.recv(1, socket.MSG_PEEK), "the agent is gone"
            for kind, payload in self.channel.receive():
                seen[kind] = seen.get(kind, b"") + payload
                if kind == wanted and containing in seen[kind]:
                    return seen, payload

    def end(self) -> tuple[int, bytes, bytes]:
        """Return the command's status, stdout and stderr."""
        seen, status = self.until(wire.EXIT)
        (code,) = wire.STATUS.unpack(status)
        return code, seen.get(wire.STDOUT, b""), seen.get(wire.STDERR, b"")


@pytest.fixture
def host() -> Iterator[Host]:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            command = [sys.executable, "-c", AGENT, str(theirs.fileno())]
            agent = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        try:
            yield Host(ours)
        finally:
            agent.kill()
            agent.wait()


def test_stdout_stderr_and_the_status_are_separate(host: Host) -> None:
    host.start("sh", "-c", "printf out; printf err >&2; exit 7")
    assert host.end() == (7, b"out", b"err")


def test_the_status_of_a_killed_command_is_128_plus_the_signal(host: Host) -> None:
    host.start("sh", "-c", "kill -KILL $$")
    assert host.end()[0] == 128 + signal.SIGKILL


def test_the_status_of_a_missing_command_is_127(host: Host) -> None:
    host.start("/no/such/command")
    status, out, err = host.end()
    assert (status, out) == (127, b"")
    assert err == b"error: cannot run /no/such/command: No such file or directory\n"


def test_the_status_of_a_file_that_is_not_executable_is_126(host: Host) -> None:
    host.start("/etc/passwd")
    status, _, err = host.end()
    assert status == 126
    assert b"Permission denied" in err


def test_the_error_names_a_missing_directory(host: Host) -> None:
    host.start("true", cwd="/no/such/directory")
    status, _, err = host.end()
    assert status == 126
    assert b"/no/such/directory: No such file or directory" in err


def test_stdin_passes_completely_with_its_end(host: Host) -> None:
    data = bytes(range(256)) * 16
    host.start("cat")
    host.send(wire.STDIN, data)
    host.send(wire.STDIN)
    assert host.end() == (0, data, b"")


def await_stop(pid: int) -> None:
    """Wait until a process has stopped itself, so that the signal to continue does not come too early."""
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline, "it did not stop"
        time.sleep(0.001)


def test_a_closed_stdin_does_not_stop_the_command(host: Host) -> None:
    host.start("sh", "-c", "exec <&-; echo $$; kill -STOP $$; exit 4")
    pid = int(host.until(wire.STDOUT, b"\n")[1])
    host.send(wire.STDIN, bytes(1 << 18))
    host.send(wire.STDIN)
    await_stop(pid)
    os.kill(pid, signal.SIGCONT)
    assert host.end()[0] == 4


def test_more_output_than_any_buffer_holds_is_complete(host: Host) -> None:
    host.start("head", "-c", str(8 << 20), "/dev/zero")
    status, out, _ = host.end()
    assert (status, len(out)) == (0, 8 << 20)


def test_processes_that_outlive_the_command_do_not_delay_its_end(host: Host) -> None:
    host.start("sh", "-c", "sleep 1000 & echo $!")
    status, out, _ = host.end()
    os.kill(int(out), signal.SIGKILL)
    assert status == 0


def test_a_terminal_has_the_size_of_the_hosts_and_follows_changes(host: Host) -> None:
    script = "trap 'stty size; exit 5' WINCH; stty size; while :; do sleep 0.05; done"
    host.start("sh", "-c", script, terminal=[33, 77])
    host.until(wire.STDOUT, b"33 77")
    host.send(wire.WINSIZE, wire.SIZE.pack(44, 99))
    status, out, err = host.end()
    assert (status, out.strip(), err) == (5, b"44 99", b"")


def test_a_terminal_turns_control_c_into_a_signal(host: Host) -> None:
    host.start("sh", "-c", "echo ready; exec sleep 1000", terminal=[24, 80])
    host.until(wire.STDOUT, b"ready")
    host.send(wire.STDIN, b"\x03")
    assert host.end()[0] == 128 + signal.SIGINT
