"""Shell completion: the offered words, and their use by bash, zsh and fish."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.conftest import missing
from vfiotool import cli
from vfiotool.testing import FakeHost

NIC, NVME, PORT, BEHIND, VMD = "0000:00:12.0", "0000:00:13.0", "0000:00:1c.0", "0000:01:00.0", "10000:e1:00.0"
PROGRAMS = os.path.dirname(sys.executable)
SECONDS = 60
TAB, SHOW_LINE = "\t", "\x18"


@pytest.fixture
def machine(host: FakeHost) -> FakeHost:
    host.add_device(NIC, vendor=0x8086, device=0x10D3, class_code=0x020000, group=7, driver="e1000e")
    host.add_device(PORT, vendor=0x8086, device=0x1C10, class_code=0x060400, group=8, driver="pcieport")
    host.add_device(NVME, vendor=0x1B36, device=0x0010, class_code=0x010802, group=70, driver="nvme")
    host.add_device(BEHIND, vendor=0x1B36, device=0x0010, class_code=0x010802, group=9, bridge=PORT)
    host.add_device(VMD, vendor=0x1B36, device=0x0011, class_code=0x010802)
    host.add_class("net", "enp0s18", f"{host.devices[NIC].folder}/net/enp0s18")
    host.add_class("net", "eno1; reboot", f"{host.devices[NIC].folder}/net/eno1; reboot")
    host.add_class("net", "env0", "/sys/devices/virtual/net/env0")
    host.add_class("block", "nvme0n1", f"{host.devices[NVME].folder}/nvme/nvme0/nvme0n1")
    return host


@dataclass(slots=True)
class Shell:
    """The requests of a shell, and the answers of vfiotool."""

    host: FakeHost
    state_dir: str
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def asks(self, shell: str, **environment: str) -> list[str]:
        for name, value in {"_VFIOTOOL_COMPLETE": f"{shell}_complete", **environment}.items():
            self.monkeypatch.setenv(name, value)
        self.capsys.readouterr()
        with contextlib.suppress(SystemExit):
            cli.run([])
        stdout, stderr = self.capsys.readouterr()
        assert stderr == ""
        return list(filter(None, stdout.splitlines()))

    def line(self, words: str) -> str:
        return f"vfiotool --sysroot {self.host.tree.root} --state-dir {self.state_dir} {words}"

    def bash(self, words: str) -> list[str]:
        """Return the words that bash is offered if it splits words only at spaces."""
        answer = self.asks("bash", COMP_LINE=self.line(words), COMP_WORDBREAKS=" ")
        return [line.removeprefix("plain,") for line in answer]


@pytest.fixture
def shell(
    machine: FakeHost, state_dir: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    return Shell(machine, state_dir, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("show ", [NIC, NVME, PORT, BEHIND, VMD]),
        ("list 0000:00:1", [NIC, NVME, PORT]),
        (f"list {NIC} 1", [VMD, "1b36:0010", "1b36:0011"]),
        ("bind ", [NIC, NVME, BEHIND, VMD]),
        ("unbind --all 0000:00:1", [NIC, NVME]),
        ("show 00:1", ["00:12.0", "00:13.0", "00:1c.0"]),
        ("show 1b", ["1b36:0010", "1b36:0011"]),
        ("show gr", ["group:7", "group:8", "group:9", "group:70"]),
        ("show group:7", ["group:7", "group:70"]),
        ("groups 7", ["7", "70"]),
        ("show en", ["enp0s18"]),
        ("show nv", ["nvme0n1"]),
        ("show 'en", ["enp0s18"]),
        ("show zz", []),
        ("restore ", []),
        ("show 0000:00:12.0 ", []),
        ("sho", ["show"]),
        ("nonsense 00", []),
    ],
)
def test_words_are_offered(shell: Shell, words: str, offered: list[str]) -> None:
    assert shell.bash(words) == offered


def test_device_names_are_the_help(shell: Shell) -> None:
    line = shell.line("show 10000:")
    zsh = shell.asks("zsh", COMP_WORDS=line, COMP_CWORD=str(len(line.split()) - 1))
    fish = shell.asks("fish", COMP_WORDS=line, COMP_CWORD="10000:")
    kind, value, name = zsh
    assert (kind, value.replace("\\", "")) == ("plain", VMD)
    assert name.startswith("Red Hat Inc. ")
    assert name.endswith(" (no driver)")
    assert fish == [f"plain,{VMD}\t{name}"]


def test_restore_offers_only_recorded_devices(shell: Shell, state_dir: str) -> None:
    os.makedirs(f"{state_dir}/journal")
    for address in (NVME, "0000:09:00.0"):
        with open(f"{state_dir}/journal/{address}.json", "w", encoding="ascii"):
            pass
    assert shell.bash("restore ") == [NVME]


@pytest.mark.parametrize(
    ("words", "offered"),
    [("show x", 0), ("groups ", 0), ("restore ", 0), ("show ", 5), ("show 1234", 0), ("show 8086", 1)],
)
def test_an_unreadable_machine_offers_what_is_known_and_prints_nothing(
    shell: Shell, words: str, offered: int
) -> None:
    """The user is typing, so an error must not be printed."""
    for address in (NIC, VMD):
        shell.host.put(f"{shell.host.devices[address].folder}/vendor", "nonsense")
    shutil.rmtree(shell.host.tree.path("/sys/kernel/iommu_groups"))
    assert len(shell.bash(words)) == offered


@pytest.mark.parametrize("shell_name", ["bash", "zsh", "fish", "tcsh", ""])
def test_a_request_without_a_line_is_answered_silently(shell: Shell, shell_name: str) -> None:
    assert shell.asks(shell_name) == []


class Terminal:
    """An interactive shell on its own terminal. Ctrl-X prints the typed line."""

    def __init__(self, argv: list[str], home: str) -> None:
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            environment = {
                "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
                "HOME": home,
                "TERM": "dumb",
                "LC_ALL": "C",
            }
            try:
                os.execvpe(argv[0], argv, environment)  # noqa: S606 - it is the shell
            finally:
                os._exit(127)

    def type(self, text: str) -> None:
        """Type a text."""
        os.write(self._fd, text.encode())

    def read_until(self, wanted: str) -> re.Match[str]:
        """Read the output until it contains the awaited text."""
        shown = ""
        deadline = time.monotonic() + SECONDS
        while (found := re.search(wanted, shown)) is None:
            ready, _, _ = select.select([self._fd], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{wanted!r} never came; shown was {shown!r}"
            shown += os.read(self._fd, 65536).decode()
        return found

    def completed(self, line: str) -> str:
        """Type a line and a tab, and return the completed line."""
        self.type(line + TAB + SHOW_LINE)
        return self.read_until(r"\[\[(.*?)\]\]")[1]

    def close(self) -> None:
        """End the shell."""
        os.close(self._fd)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


SHELLS = {
    "bash": (
        ["bash", "--norc", "--noprofile", "-i"],
        ["""bind -x '"\\C-x": printf "[""[%s]""]" "$READLINE_LINE"'"""],
        'eval "$(_VFIOTOOL_COMPLETE=bash_source vfiotool)"; echo read""y',
    ),
    "zsh": (
        ["zsh", "-f", "-i"],
        [
            "autoload -Uz compinit; compinit -D",
            """show() { print -rn -- "[""[$BUFFER]""]" }; zle -N show; bindkey '^X' show""",
        ],
        'eval "$(_VFIOTOOL_COMPLETE=zsh_source vfiotool)"; echo read""y',
    ),
    "fish": (
        ["fish", "--no-config", "-i"],
        ["""bind \\cx 'printf "[""[%s]""]" (commandline)'"""],
        '_VFIOTOOL_COMPLETE=fish_source vfiotool | source; echo read""y',
    ),
}


@pytest.fixture(params=SHELLS)
def terminal(request: pytest.FixtureRequest, machine: FakeHost) -> Iterator[Terminal]:
    argv, preparations, source = SHELLS[request.param]
    if shutil.which(argv[0]) is None:
        missing(f"{argv[0]} is not installed")
    opened = Terminal(argv, machine.tree.root)
    for command in (*preparations, source):
        opened.type(command + "\r")
    opened.read_until("ready\r\n")
    yield opened
    opened.close()


def test_a_shell_completes_addresses(terminal: Terminal, machine: FakeHost) -> None:
    """readline splits words at colons, and an address contains colons."""
    start = f"vfiotool --sysroot {machine.tree.root} show "
    clear = "\x15"
    for typed, whole in {
        "0000:00:13": NVME,
        "0000:01": BEHIND,
        "10": VMD,
        "00:13": "00:13.0",
        "8086:10": "8086:10d3",
        "group:70": "group:70",
        "enp": "enp0s18",
    }.items():
        assert terminal.completed(start + typed) == f"{start}{whole} "
        terminal.type(clear)
    assert terminal.completed(f"{start}0000:00:") == f"{start}0000:00:1"
