"""The documents without a machine: links, commands that parse, reference pages that are complete."""

from __future__ import annotations

import importlib
import itertools
import re
import shlex
from collections.abc import Iterator
from typing import Any

import click
import pytest

from tests.support.documents import NOT_RUN, ROOT, blocks, commands, mismatch, pages, program, read
from vfiotool.cli.root import cli as root
from vfiotool.events.entry import TimelineEntry
from vfiotool.lab.machines import MACHINES
from vfiotool.stress.workloads import WORKLOADS

LANGUAGES = {"console", "mermaid", "python", "text"}
SYNTAX = {("docs/command-line.md", "vfiotool [--debug] [--sysroot PATH] [--state-dir DIR] VERB …\n")}
"""The ``text`` blocks: what cannot be run, because it is no command but the form of one."""

PROGRAMS = ("driving", "getting-started", "python-api")
"""The pages below ``docs`` whose Python a test in a guest runs."""

_NO_TERM = re.compile(
    r"\b(?:cast|troupe|stage|performers?|placard|deeds?|keeper|told|apart|actors?|watchers?)\b", re.IGNORECASE
)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def verbs(
    command: click.Command = root, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every verb of the command line, with its path."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from verbs(found, (*path, name))


def parse(arguments: list[str]) -> None:
    """Parse a command line of vfiotool up to its last argument; raises click's error where it is wrong."""
    command: click.Command = root
    context = click.Context(command)
    _, rest, _ = command.make_parser(context).parse_args(list(arguments))
    while isinstance(command, click.Group):
        found = command.get_command(context, rest[0])
        assert found is not None, f"there is no verb {rest[0]}"
        command, context = found, click.Context(found, parent=context)
        _, rest, _ = command.make_parser(context).parse_args(rest[1:])


def quoted() -> Iterator[tuple[str, str]]:
    """Yield each command of each page."""
    for page in pages():
        for block in blocks(page):
            if block.language == "console":
                for command in commands(block):
                    yield page, command.line


def anchors(page: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(text)}


@pytest.mark.parametrize("page", pages())
def test_every_block_is_run_or_drawn(page: str) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, (page, block.line)
        if block.language == "text":
            assert (page, block.text) in SYNTAX
        if block.language == "console":
            assert list(commands(block)), (page, block.line)
    outside = re.sub(r"^```.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"\n\n    \S", outside), "a block that is indented has no language: fence it"


@pytest.mark.parametrize("page", pages())
def test_a_page_uses_the_terms_of_the_field(page: str) -> None:
    assert _NO_TERM.findall(read(page)) == []


def test_a_test_runs_every_program() -> None:
    """See ``tests/lab/test_docs.py``, ``tests/unit/test_plugin.py``, and below."""
    with_python = {page for page in pages() if any(block.language == "python" for block in blocks(page))}
    assert with_python == {"CONTRIBUTING.md", "docs/testing.md", *(f"docs/{name}.md" for name in PROGRAMS)}


def test_what_is_not_run_is_in_a_page_and_has_a_reason() -> None:
    assert NOT_RUN.keys() <= {line for _, line in quoted()}
    assert all(NOT_RUN.values())


@pytest.mark.parametrize("line", sorted({line for _, line in quoted()}))
def test_a_quoted_command_parses(line: str) -> None:
    for part in line.split(" | "):
        before, program, arguments = part.removeprefix("sudo ").partition("vfiotool ")
        if program and not before:
            parse(shlex.split(arguments))


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page: str) -> None:
    for link in _LINK.findall(read(page)):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(str(path.resolve().relative_to(ROOT))), link


@pytest.mark.parametrize("page", pages())
def test_paths_that_a_page_names_exist(page: str) -> None:
    named = re.findall(r"`((?:vfiotool|tests|scripts|c_shim|docs)/[\w./*-]*)`", read(page))
    assert [path for path in named if not list(ROOT.glob(path.rstrip("/") or "."))] == []


def test_the_architecture_draws_the_layers_that_are_checked() -> None:
    """Each layer of the contract, top down, points to the next."""
    (drawn,) = [block.text for block in blocks("docs/architecture.md") if block.language == "mermaid"]
    edges = {
        (above, below)
        for line in drawn.splitlines()
        for left, right in itertools.pairwise(line.split(" --> "))
        for above, below in itertools.product(left.strip().split(" & "), right.split(" & "))
    }
    contract = re.search(
        r'name = "Imports point one way".*?layers = \[(.*?)\]', read("pyproject.toml"), re.DOTALL
    )
    assert contract is not None
    layers = [re.findall(r"vfiotool\.(\w+)", line) for line in contract[1].strip().splitlines()]
    for above, below in itertools.pairwise(layers):
        assert set(itertools.product(above, below)) <= edges


def test_the_examples_of_contributing_run() -> None:
    names: dict[str, Any] = {"__name__": "contributing"}
    exec(program("CONTRIBUTING.md"), names)  # noqa: S102 - it is a page of this repository
    monitor = names["PcieErrorMonitor"]()
    for line in ("pcieport 0000:00:02.0: AER: Corrected error received", "another line"):
        monitor.see(TimelineEntry(0.0, "kmsg", "line", detail=line))
    monitor.finish()
    assert monitor.findings() == ["PCIe error: pcieport 0000:00:02.0: AER: Corrected error received"]
    assert names["MIXED"].name not in WORKLOADS
    machine = names["NO_REMAPPING"]
    assert machine.name not in MACHINES
    assert machine.arguments(frozenset(), dict.fromkeys(("drive0", "drive1", "drive2"), "drive"))


def test_the_index_names_every_page() -> None:
    linked = set(_LINK.findall(read("docs/README.md")))
    assert {page.removeprefix("docs/") for page in pages() if page.startswith("docs/")} - linked == {
        "README.md"
    }


def test_the_reference_has_every_verb_and_option() -> None:
    text, lacking = read("docs/command-line.md"), []
    for path, verb in verbs():
        if " ".join(path) not in text and path[0] != "stress":
            lacking.append(" ".join(path))
        options = (one for one in verb.params if isinstance(one, click.Option) and not one.hidden)
        lacking += [f"{path} {one.opts}" for one in options if not any(name in text for name in one.opts)]
    assert lacking == []


@pytest.mark.parametrize("module", ["vfiotool", "vfiotool.vfio", "vfiotool.drivers", "vfiotool.testing"])
def test_the_reference_has_every_public_name(module: str) -> None:
    _, _, section = read("docs/python-api.md").partition(f"## `{module}`\n")
    section, _, _ = section.partition("\n## ")
    named = set(re.findall(r"`(\w+)", section))
    assert set(importlib.import_module(module).__all__) <= named


def test_quoted_output_is_compared_line_by_line() -> None:
    printed = "a   \nb 12 s\nc\nd\n"
    assert mismatch(("a", "b … s", "…"), printed) is None
    assert mismatch(("…", "d"), printed) is None
    assert mismatch(("a", "…", "a"), printed) is not None
    assert mismatch(("a", "b … s", "d"), printed) is not None
    assert mismatch(("a.", "…"), printed) is not None
