"""A finding as a script that needs nothing but Python's standard library: for a bug report."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from vfiotool.host.era import Era
from vfiotool.stress import standalone_parts
from vfiotool.stress.action import Action
from vfiotool.stress.excerpt import excerpt
from vfiotool.stress.replay import Finding
from vfiotool.stress.standalone_steps import Steps, as_tuple, literal

_WIDTH = 100
_START = "#!/usr/bin/env python3\n"


def script(header: Mapping[str, Any], finding: Finding) -> str:
    """Return a script that does the operations of a finding, and says whether it shows.

    ``header`` is that of the trace. One process does all that the run's processes did. The script ends with
    1 where the operation goes as it was found, 0 where all goes as expected, and 2 otherwise.

    Raises:
        UnsupportedError: there is no form of an operation that a script could do.
    """
    unit = header["units"][finding.record.unit]
    steps = Steps(unit["members"], unit["hosts"], Era(header["era"]))
    steps.write(finding.records)
    body = _body(unit["members"], steps)
    return f"{_START}{_about(header, unit, finding)}\n\n{excerpt(standalone_parts, body)}\n\n\n{body}"


def _body(members: Sequence[str], steps: Steps) -> str:
    run = textwrap.indent("\n".join(steps.lines), "    ")
    arguments = f"{as_tuple(map(literal, members))}, {as_tuple(map(literal, steps.modules))}, run"
    return (
        f'def run() -> None:\n    """Do what shows it."""\n{run}\n\n\n'
        f'if __name__ == "__main__":\n    sys.exit(main({arguments}))\n'
    )


def _about(header: Mapping[str, Any], unit: Mapping[str, Any], finding: Finding) -> str:
    record = finding.record
    devices = [f"    {one} ({unit['hosts'].get(one) or 'no host driver'})" for one in unit["members"]]
    shown = _named(record.action, unit["members"])
    lines = [
        f"{shown}: {record.outcome}, where this is expected: {record.expected}.",
        "",
        f"Found by 'vfiotool stress' on Linux {header['kernel']}, with this group of devices:",
        *devices,
        "",
        "Run it as root, on a machine where these devices may be taken. "
        "It binds them to vfio-pci, and at the end back to the drivers that they have now:",
        "    python3 -I THIS_FILE",
        "",
        "It ends with 1 where it goes as it was found, 0 where all goes as expected, and 2 otherwise.",
    ]
    if any("process" in one.action.arguments for one in finding.records):
        lines += ["", "Two processes shared the fds when it was found: here one has all of them."]
    text = "\n".join(
        textwrap.fill(_harmless(line), _WIDTH, subsequent_indent=_indent(line)) for line in lines
    )
    return f'"""{text}\n"""'


def _named(action: Action, members: Sequence[str]) -> str:
    """Return what was done, with the address of the member in place of its number."""
    arguments = action.arguments.items()
    return " ".join(
        [action.name, *(members[int(at)] if key == "member" else f"{key}={at}" for key, at in arguments)]
    )


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _harmless(text: str) -> str:
    """Return a text without what could end a docstring: a trace may come from anywhere."""
    return "".join(char if char.isprintable() and char not in '"\\' else "?" for char in text)
