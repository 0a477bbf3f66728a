"""The examples of docs/reading-devices.md are what vfiotool prints."""

from __future__ import annotations

import shlex

import pytest

from tests.support import example_machine
from tests.support.documents import Command, blocks, commands
from tests.unit.conftest import Run
from vfiotool.pci.names import PciNames
from vfiotool.render import terminal
from vfiotool.testing import FakeHost

PAGE = "docs/reading-devices.md"
COLUMNS = 80
"""The width of the page's terminal where a command names no other."""

EXAMPLES = [one for block in blocks(PAGE) if block.language == "console" for one in commands(block)]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.line)
def test_an_example_is_what_vfiotool_prints(
    vfiotool: Run, host: FakeHost, monkeypatch: pytest.MonkeyPatch, example: Command
) -> None:
    example_machine.build(host)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(PciNames, "of_this_machine", lambda: PciNames(example_machine.NAMES))
    line, _, pipe = example.line.removeprefix("sudo ").partition(" | ")
    before, _, arguments = line.rpartition("vfiotool ")
    width = None if pipe else int(before.partition("COLUMNS=")[2] or COLUMNS)
    monkeypatch.setattr(terminal, "terminal_width", lambda: width)
    result = vfiotool(*shlex.split(arguments))
    assert (result.status, result.stderr) == (0, "")
    printed = [one for one in result.stdout.splitlines() if pipe.partition(" ")[2].strip("'") in one]
    assert list(example.output) == printed


def test_the_page_shows_each_kind_of_device() -> None:
    machine = example_machine
    kinds = (machine.NIC, machine.PORT, machine.PF, machine.VF, machine.CARDBUS, machine.DEAD, machine.VMD)
    lines = [example.line for example in EXAMPLES]
    assert {f"sudo vfiotool show {address}" for address in (*kinds, machine.GPU)} <= set(lines)
    assert any("COLUMNS=45" in line for line in lines)
    assert any("| grep" in line for line in lines)
