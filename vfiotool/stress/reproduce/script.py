"""Write a finding as a script for a bug report, which needs Python's standard library alone."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vfiotool.host.era import Era
from vfiotool.stress.group import fds
from vfiotool.stress.operations.race import RACE
from vfiotool.stress.record import Call
from vfiotool.stress.reproduce import script_runtime
from vfiotool.stress.reproduce.excerpt import excerpt
from vfiotool.stress.reproduce.replay import Finding
from vfiotool.stress.reproduce.script_steps import Steps, as_tuple, literal
from vfiotool.util.text import printable

_WIDTH = 100
_START = "#!/usr/bin/env python3\n"


def script(header: Mapping[str, Any], finding: Finding) -> str:
    """Return a script that executes the operations of a finding, and checks if the finding shows again.

    ``header`` is the trace's. A single process executes the operations of all the run's processes. The exit
    status of the script is 1 if the finding shows again, 0 if all results are as expected, and 2 in any other
    case. Of the findings of monitors, the script checks the kernel's log, and says how to watch the others.

    Raises:
        UnsupportedError: an operation has no form in a script.
    """
    unit = header["units"][finding.records[0].unit]
    steps = Steps(unit["members"], unit["hosts"], Era(header["era"]))
    steps.write(finding.records)
    body = _body(unit["members"], steps, _pattern(finding.seen.logged))
    return f"{_START}{_about(header, unit, finding)}\n\n{excerpt((fds, script_runtime), body)}\n\n\n{body}"


def _body(members: Sequence[str], steps: Steps, logged: str) -> str:
    lines = ["log = open_log()", *steps.lines, f"see_log(log, {literal(logged)})"] if logged else steps.lines
    run = textwrap.indent("\n".join(lines), "    ")
    arguments = f"{as_tuple(map(literal, members))}, {as_tuple(map(literal, steps.modules))}, run"
    return (
        f'def run() -> None:\n    """Execute the operations that show the finding."""\n{run}\n\n\n'
        f'if __name__ == "__main__":\n    sys.exit(main({arguments}))\n'
    )


def _about(header: Mapping[str, Any], unit: Mapping[str, Any], finding: Finding) -> str:
    devices = [f"    {one} ({unit['hosts'].get(one) or 'no host driver'})" for one in unit["members"]]
    lines = [
        *_found(finding, unit["members"]),
        "",
        f"'vfiotool stress' found this on Linux {header['kernel']}, with this group of devices:",
        *devices,
        "",
        "Run this script as root, on a machine where nobody else uses these devices. "
        "It binds them to vfio-pci, and at the end back to their present drivers:",
        "    python3 -I THIS_FILE",
        "",
        "The exit status is 1 if the finding shows again, 0 if all results are as expected, and 2 in any "
        "other case.",
    ]
    if any("process" in one.call.arguments for one in finding.records):
        lines += [
            "",
            "Two processes shared the fds when this was found; in this script, one has all of them.",
        ]
    if any(one.call.name == RACE for one in finding.records):
        lines += [
            "",
            "The result of two operations at once varies. Repeat the script until the finding shows:",
        ]
        lines += ["    until python3 -I THIS_FILE; [ $? -eq 1 ]; do :; done"]
    text = "\n".join(map(_filled, lines))
    return f'"""{text}\n"""'


def _found(finding: Finding, members: Sequence[str]) -> Iterator[str]:
    if (record := finding.record) is not None:
        shown = _named(record.call, members)
        yield f"{shown}: {record.outcome}. Expected: {record.expected}."
    for one in finding.seen.found:
        yield f"{one[0].upper()}{one[1:]}."
    if finding.seen.found and not finding.seen.logged:
        yield ""
        yield (
            "No result of an operation shows this. "
            "Watch the events while the script runs: 'udevadm monitor --kernel', 'vfiotool watch'."
        )


def _pattern(logged: str) -> str:
    """Return a pattern for a line of the log, whose numbers differ each time."""
    return re.sub(r"(?:0x)?[0-9a-f]*\d[0-9a-f]*", lambda _: "[0-9a-fx]+", re.escape(logged))


def _named(call: Call, members: Sequence[str]) -> str:
    """Return a call as a text, with the address of the member in place of its index."""
    arguments = call.arguments.items()
    return " ".join(
        [call.name, *(members[int(at)] if key == "member" else f"{key}={at}" for key, at in arguments)]
    )


def _filled(line: str) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(_harmless(line), _WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _harmless(text: str) -> str:
    """Return a text without characters that could end a docstring: a trace may come from anywhere."""
    return re.sub(r'["\\]', "?", printable(text))
