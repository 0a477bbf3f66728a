"""Tables and lines at every width of a terminal: words stay whole, and nothing is folded in a pipe."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import struct
import sys
import termios
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiotool import cli
from vfiotool.events.entry import TimelineEntry
from vfiotool.host.attributes import addresses
from vfiotool.host.config_space import read_config
from vfiotool.host.device_details import read_details
from vfiotool.host.devices import read_devices
from vfiotool.host.doctor import examine
from vfiotool.host.freeing import how_to_free
from vfiotool.host.groups import group_ids, read_groups
from vfiotool.host.tree import Tree
from vfiotool.lab import machines
from vfiotool.pci.capabilities.decoding import decode
from vfiotool.pci.header import read_header
from vfiotool.pci.names import PciNames
from vfiotool.render import terminal
from vfiotool.render.checks import print_checks
from vfiotool.render.config_space import print_config
from vfiotool.render.persist_entries import print_entries
from vfiotool.render.tables import print_details, print_devices, print_groups
from vfiotool.render.terminal import print_entry, print_facts, print_table, print_text, text_width, whole
from vfiotool.render.timeline import write_line
from vfiotool.testing import FakeHost, config_space

WIDTHS = range(20, 201)
PORT, GPU, SOUND, NVME, VMD = "0000:00:01.0", "0000:01:00.0", "0000:01:00.1", "10000:e1:00.0", "0000:00:0e.0"
_COMMAND = re.compile(r"(?<!\w)'([a-z]+ [^']+)'")

Output = Callable[[], object]
Printed = Callable[[Output, int | None], str]


@pytest.fixture
def machine(host: FakeHost) -> FakeHost:
    """A machine with long names of drivers and groups, an address of five digits, and blocked groups."""
    express = config_space(
        capabilities=[
            (0x05, 0x40, bytes(12)),
            (0x10, 0x50, b"\x02\x00" + bytes(58)),
            (0x7F, 0xB0, bytes(40)),
        ],
        extended=[(0x01, 0x100), (0x0D, 0x150)],
    )
    host.add_driver("vfio-pci")
    host.add_device(PORT, class_code=0x060400, group=1, driver="pcieport", config=express)
    host.add_device(GPU, vendor=0x10DE, device=0x1184, class_code=0x030000, group=1, driver="nouveau",
                    bridge=PORT, config=express)  # fmt: skip
    host.add_device(SOUND, vendor=0x10DE, device=0x0E0A, class_code=0x040300, group=1,
                    driver="snd_hda_codec_of_a_long_name", bridge=PORT, config=express)  # fmt: skip
    host.add_device(NVME, vendor=0x144D, device=0xA80A, class_code=0x010802, group=1234, driver="nvme")
    host.add_device(VMD, vendor=0x8086, device=0x467F, class_code=0x010400)
    return host


@pytest.fixture
def outputs(machine: FakeHost, state_dir: str) -> dict[str, Output]:
    """Functions that print what a verb prints, by the name of the verb."""
    tree = machine.tree
    names = PciNames(b"10de  A Vendor [with brackets]\n\t1184  A model of many words, among them GeForce\n")
    devices = read_devices(tree, addresses(tree), names, state_dir=state_dir)
    groups = read_groups(tree, group_ids(tree), devices)
    details = {device.address: read_details(tree, device, devices) for device in devices}
    raw = read_config(tree, GPU)
    assert raw is not None
    entry = {"path": "pci0000:00/0000:00:01.0/0000:01:00.0", "vendor_id": 0x10DE, "device_id": 0x1184,
             "driver": "vfio-pci", "owner": {"uid": 1000, "gid": 100}, "present_at": GPU,
             "bound_to": "nouveau"}  # fmt: skip
    timeline = TimelineEntry(
        50.7, "probe", "iommu_device_unuse_default_domain", GPU, 13, "snd_hda_intel", detail="a result"
    )
    verbs: dict[str, Output] = {
        "list": lambda: print_devices(devices),
        "groups": lambda: print_groups(groups, devices),
        "config": lambda: print_config(GPU, read_header(raw), decode(raw), ["some"]),
        "doctor": lambda: print_checks(examine(tree)),
        "persist list": lambda: print_entries([entry, entry | {"owner": None, "present_at": None}]),
        "watch": lambda: write_line(timeline),
    }
    for address, one in details.items():
        free = how_to_free(tree, devices, address, state_dir=state_dir)
        verbs[f"show {address}"] = partial(print_details, one, free)
    return verbs


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Printed:
    """Return what a function prints on a terminal of a width, or in a pipe (``None``)."""
    monkeypatch.setenv("TERM", "dumb")

    def run(function: Output, width: int | None) -> str:
        monkeypatch.setattr(terminal, "terminal_width", lambda: width)
        capsys.readouterr()
        function()
        return capsys.readouterr().out

    return run


def check(printed: Printed, function: Output) -> None:
    """Check that at each width the words are those of the pipe, in their order, and no command is folded."""
    piped = printed(function, None)
    commands = set(_COMMAND.findall(piped))
    for width in WIDTHS:
        output = printed(function, width)
        assert output.split() == piped.split(), width
        assert [command for command in commands if command not in output] == [], width
        for line in output.splitlines():
            text = line.strip()
            assert text_width(line) <= width or text in piped, (width, line)
            assert text_width(line) <= width or len(text) == len(line) or " " not in text, (width, line)


def test_every_verb_at_every_width(outputs: dict[str, Output], printed: Printed) -> None:
    for function in outputs.values():
        check(printed, function)


def test_what_a_reader_searches_for_is_in_each_output(outputs: dict[str, Output], printed: Printed) -> None:
    """The property above holds for an output without words, too."""
    assert {PORT, GPU, NVME, "10de:1184", "1234", "snd_hda_codec_of_a_long_name"} <= words(
        printed(outputs["list"], 45)
    )
    groups = printed(outputs["groups"], 45)
    assert {PORT, GPU, SOUND, NVME, "1", "1234"} <= words(groups)
    assert "'vfiotool show ADDRESS'" in groups
    assert "'vfiotool bind --group 0000:01:00.0'" in printed(outputs[f"show {GPU}"], 45)


def words(output: str) -> set[str]:
    return set(output.split())


def test_the_table_of_the_labs_devices_at_every_width(printed: Printed) -> None:
    rows = [(device.address, device.ids, device.what) for device in machines.DEVICES]
    check(printed, lambda: print_table(("ADDRESS", "ID", "DEVICE"), rows))


TEXT = st.text(st.characters(codec="utf-8", exclude_characters=" "), max_size=30)


@given(
    st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(TEXT, min_size=n, max_size=n), min_size=1)),
    st.integers(20, 200),
)
def test_a_table_of_any_text_keeps_its_words(rows: list[list[str]], width: int) -> None:
    seen = []
    for columns in (width, None):
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
            patch.setenv("TERM", "dumb")
            patch.setattr(terminal, "terminal_width", lambda columns=columns: columns)
            print_table(rows[0], rows[1:])
        seen.append(out.getvalue())
    assert seen[0].split() == seen[1].split()
    assert all(text_width(line) <= width or " " not in line.strip() for line in seen[0].splitlines())


def test_a_terminal_has_a_width_and_a_pipe_has_none(
    monkeypatch: pytest.MonkeyPatch, outputs: dict[str, Output], tmp_path: Path
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 45, 0, 0))
    with open(slave, "w", encoding="utf-8") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        assert terminal.terminal_width() == 45
        patch.setenv("COLUMNS", "30")
        assert terminal.terminal_width() == 30
    os.close(master)
    monkeypatch.setenv("COLUMNS", "30")
    with open(tmp_path / "output", "w", encoding="utf-8") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        assert terminal.terminal_width() is None


def test_a_pipe_gets_a_line_for_each_row_and_fact(capsys: pytest.CaptureFixture[str]) -> None:
    long = "word " * 100 + "end"
    print_table(("ADDRESS", "DEVICE"), [(GPU, long), (PORT, "")])
    print_facts([("label", long), ("", long)])
    print_text(long)
    assert capsys.readouterr().out.splitlines() == [
        "ADDRESS       DEVICE",
        f"{GPU}  {long}",
        PORT,
        f"  label  {long}",
        f"         {long}",
        long,
    ]


def test_a_row_that_is_too_long_takes_more_lines(printed: Printed) -> None:
    def table() -> None:
        print_table(
            ("GROUP", "ADDRESS", "DRIVER", "DEVICE"),
            [("13", GPU, "snd_hda_codec_of_a_long_name", "A name of words"), ("", PORT, "-", "Another")],
        )

    assert printed(table, 80).splitlines() == [
        "GROUP  ADDRESS       DRIVER                        DEVICE",
        "13     0000:01:00.0  snd_hda_codec_of_a_long_name  A name of words",
        "       0000:00:01.0  -                             Another",
    ]
    assert printed(table, 50).splitlines() == [
        "GROUP  ADDRESS       DRIVER",
        "    DEVICE",
        "13     0000:01:00.0  snd_hda_codec_of_a_long_name",
        "    A name of words",
        "       0000:00:01.0  -",
        "    Another",
    ]
    assert printed(table, 32).splitlines() == [
        "GROUP  ADDRESS",
        "    DRIVER",
        "    DEVICE",
        "13     0000:01:00.0",
        "    snd_hda_codec_of_a_long_name",
        "    A name of words",
        "       0000:00:01.0",
        "    -",
        "    Another",
    ]


def test_a_command_that_is_too_long_gets_a_line_of_its_own(printed: Printed) -> None:
    def fact() -> None:
        print_facts([("how to free", "bind it with 'vfiotool bind --group 0000:01:00.0', or not")])

    assert printed(fact, 45).splitlines() == [
        "  how to free  bind it with",
        "        'vfiotool bind --group 0000:01:00.0',",
        "               or not",
    ]
    assert printed(fact, 20).splitlines() == [
        "  how to free",
        "    bind it with",
        "'vfiotool bind --group 0000:01:00.0',",
        "    or not",
    ]


def test_text_from_outside_cannot_change_the_terminal(printed: Printed) -> None:
    """Nor can it pretend to be a space that is never folded: this is one of ours."""
    assert printed(lambda: print_text("a\x1b[2Jb\nc"), 80) == "a?[2Jb?c\n"
    assert printed(lambda: print_entry("start ", whole("two\u202ewords")), 80) == "start two?words\n"


def test_wide_characters_take_two_columns(printed: Printed) -> None:
    assert printed(lambda: print_table(("A", "B"), [("\u4e2d", "x")]), 80) == "A   B\n\u4e2d  x\n"


@pytest.mark.parametrize("width", [20, 45, 60, 80])
@pytest.mark.parametrize("verb", ["list", "groups"])
def test_a_real_machine_at_the_widths_where_words_were_cut(
    printed: Printed, capsys: pytest.CaptureFixture[str], verb: str, width: int
) -> None:
    root = str(Path(__file__).parents[1] / "data" / "machines" / "bridge-and-width")
    devices = [*addresses(Tree(root))]
    groups = [str(number) for number in group_ids(Tree(root))]
    output = printed(lambda: cli.run(["--sysroot", root, verb]), width)
    assert {*devices, *groups, "snd_hda_intel", "skl_uncore"} <= words(output)
