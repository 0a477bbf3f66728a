"""The examples of docs/reading-devices.md are what vfiotool prints."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.support import example_machine
from tests.support.documents import Command, blocks, commands
from tests.unit.conftest import Run
from vfiotool import cli
from vfiotool.host.capture.recording import capture
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


def test_a_capture_shows_the_same(
    vfiotool: Run, host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A capture keeps what show reads: modules, slots, interrupts. Uses are out of its sight in part."""
    example_machine.build(host)
    shown = {one: vfiotool("show", one, "--json").document for one in host.devices}
    archive = tmp_path / "machine.tar.gz"
    archive.write_bytes(capture(host.tree, state_dir=str(tmp_path / "none")).archive())
    monkeypatch.undo()
    for address, here in shown.items():
        there = run_at(archive, address)
        for field in ("modules", "irq", "msi_irqs", "placement", "bars", "link", "link_downgraded"):
            assert (address, field, there[field]) == (address, field, here[field])


def run_at(archive: Path, address: str) -> dict[str, Any]:
    """Return the document of ``show`` of a device of a capture."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.run(["--sysroot", str(archive), "show", address, "--json"]) == 0
    document: dict[str, Any] = json.loads(out.getvalue())
    return document


def test_the_page_shows_each_kind_of_device() -> None:
    machine = example_machine
    kinds = (machine.NIC, machine.PORT, machine.PF, machine.VF, machine.CARDBUS, machine.DEAD, machine.VMD)
    lines = [example.line for example in EXAMPLES]
    assert {f"sudo vfiotool show {address}" for address in (*kinds, machine.GPU)} <= set(lines)
    assert any("COLUMNS=45" in line for line in lines)
    assert any("| grep" in line for line in lines)
