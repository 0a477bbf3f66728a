"""The documents as their readers run them: the Python of a page is one program, its commands one session."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.support.documents import NOT_RUN, Command, blocks, commands, mismatch, pages, program
from tests.support.guest import EDU, GROUPS, KERNEL, MACHINE, driver, kernel_complaints, path, vfiotool
from tests.support.terminal import Terminal
from vfiotool.binding.operations import bound

pytestmark = pytest.mark.needs_guest

STATUS = {
    "sudo vfiotool persist check": 1,
    "sudo vfiotool stress replay first/trace.jsonl --shrink --script show.py": 1,
}
"""Commands that a page shows as they fail; all others end with 0."""

_IN_LAB = re.compile(r"vfiotool lab run (?:--?[a-z]+ \S+ )*-- ")
_PROMPT = ">>> "
_SECONDS = 300
_WATCH_SECONDS = 60


@pytest.fixture
def on_vfio(tmp_path: Path) -> Iterator[None]:
    """edu where the guide wants it."""
    with bound(EDU, state_dir=str(tmp_path / "state")):
        yield


def run(page: str, folder: Path) -> str:
    """Run the program of a page, and return what it printed."""
    script = folder / "try.py"
    script.write_text(program(page), encoding="utf-8")
    before = kernel_complaints()
    ended = subprocess.run(
        [sys.executable, "-W", "error", script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert kernel_complaints() == before
    return ended.stdout


def test_driving(on_vfio: None, tmp_path: Path) -> None:
    printed = run("docs/driving.md", tmp_path)
    assert f"'ident': {0x010000ED}" in printed
    assert "1048576 bytes in 256 mappings" in printed


def test_getting_started(tmp_path: Path) -> None:
    before = driver(EDU), Path(path(EDU, "driver_override")).read_text()
    assert "0x10000ed is at the start of BAR0" in run("docs/getting-started.md", tmp_path)
    assert (driver(EDU), Path(path(EDU, "driver_override")).read_text()) == before


def test_python_api(tmp_path: Path) -> None:
    groups = len(os.listdir(GROUPS))
    assert len(run("docs/python-api.md", tmp_path).splitlines()) == groups


class Session:
    """A folder in which the commands of a page are run in their order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}

    def run(self, command: Command) -> str | None:
        """Run a command, and return what is wrong with it, or None.

        This is a guest already, and its user is root.
        """
        line = _IN_LAB.sub("", command.line)
        if any(text.startswith(_PROMPT) for text in command.output):
            self._type(line, command.output)
            return None
        if line.startswith("sudo vfiotool watch"):
            return self._watch(line, command.output)
        ended = subprocess.run(
            self._shell(line),
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if ended.returncode != STATUS.get(command.line, 0):
            return f"$ {line}\nended with {ended.returncode}:\n{ended.stdout}"
        differs = mismatch(command.output, ended.stdout) if command.output else None
        return differs and f"$ {line}\n{differs}"

    def _shell(self, line: str) -> list[str]:
        return ["bash", "-c", f'sudo() {{ "$@"; }}; {line}']

    def _type(self, line: str, output: tuple[str, ...]) -> None:
        """Type what the page shows at the prompt of a shell, and await what it shows as the answer."""
        terminal = Terminal(*line.removeprefix("sudo ").split()[1:])
        for text in output:
            if text.startswith(_PROMPT):
                terminal.await_text(_PROMPT)
                terminal.type(text.removeprefix(_PROMPT) + "\n")
            else:
                terminal.await_text(text)
        terminal.end()
        assert terminal.status() == 0

    def _watch(self, line: str, output: tuple[str, ...]) -> str | None:
        """Bind and restore the device that a page watches, and see that the page's entries come; not when."""
        first, *entries = output
        lacking = {tuple(entry.split()[1:]) for entry in entries}
        with subprocess.Popen(
            [*self._shell(f"exec {line.removeprefix('sudo ')}")],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline().rstrip() == first
            address = line.split()[-1]
            for verb in ("bind", "restore"):
                assert vfiotool(verb, address).status == 0
            timer = threading.Timer(_WATCH_SECONDS, process.send_signal, (signal.SIGINT,))
            timer.start()
            while lacking and (entry := process.stdout.readline()):
                lacking.discard(tuple(entry.split()[1:]))
            timer.cancel()
            process.send_signal(signal.SIGINT)
        return f"$ {line}\ndid not show {lacking}" if lacking else None


def pages_with_commands() -> Iterator[ParameterSet]:
    """Yield the pages; README, which everyone follows, is in the fast tier too."""
    for page in pages():
        if any(block.language == "console" for block in blocks(page)):
            yield pytest.param(page, marks=[] if page == "README.md" else [pytest.mark.full])


@pytest.mark.skipif(KERNEL != "6.12" or MACHINE != "default", reason="the pages quote 6.12 on this machine")
@pytest.mark.parametrize("page", [*pages_with_commands()])
def test_commands(page: str, tmp_path: Path) -> None:
    session, wrong = Session(tmp_path), []
    subprocess.run(["modprobe", "-r", "vfio-pci"], check=True)  # the pages show how a bind loads it
    listed = vfiotool("list").stdout
    try:
        for block in blocks(page):
            if block.language == "python":
                (tmp_path / (block.file or "try.py")).write_text(block.text, encoding="utf-8")
            if block.language == "console":
                wrong += [
                    f"{page}:{block.line}: {differs}"
                    for command in commands(block)
                    if command.line not in NOT_RUN and (differs := session.run(command))
                ]
    finally:
        vfiotool("restore", "--all")
    assert not wrong, "\n".join(wrong)
    assert vfiotool("list").stdout == listed
