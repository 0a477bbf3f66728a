"""A finding as a script that needs nothing but Python's standard library: for a bug report."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vfiotool.host.era import Era
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
    """Return a script that does the operations of a finding, and says whether it shows.

    ``header`` is that of the trace. One process does all that the run's processes did. The script ends with
    1 where it goes as it was found, 0 where all goes as expected, and 2 otherwise. Of what monitors found it
    sees for itself what the kernel logs, and says how to watch the rest.

    Raises:
        UnsupportedError: there is no form of an operation that a script could do.
    """
    unit = header["units"][finding.records[0].unit]
    steps = Steps(unit["members"], unit["hosts"], Era(header["era"]))
    steps.write(finding.records)
    body = _body(unit["members"], steps, _pattern(finding.seen.logged))
    return f"{_START}{_about(header, unit, finding)}\n\n{excerpt(script_runtime, body)}\n\n\n{body}"


def _body(members: Sequence[str], steps: Steps, logged: str) -> str:
    lines = ["log = open_log()", *steps.lines, f"see_log(log, {literal(logged)})"] if logged else steps.lines
    run = textwrap.indent("\n".join(lines), "    ")
    arguments = f"{as_tuple(map(literal, members))}, {as_tuple(map(literal, steps.modules))}, run"
    return (
        f'def run() -> None:\n    """Do what shows it."""\n{run}\n\n\n'
        f'if __name__ == "__main__":\n    sys.exit(main({arguments}))\n'
    )


def _about(header: Mapping[str, Any], unit: Mapping[str, Any], finding: Finding) -> str:
    devices = [f"    {one} ({unit['hosts'].get(one) or 'no host driver'})" for one in unit["members"]]
    lines = [
        *_found(finding, unit["members"]),
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
    if any("process" in one.call.arguments for one in finding.records):
        lines += ["", "Two processes shared the fds when it was found: here one has all of them."]
    if any(one.call.name == RACE for one in finding.records):
        lines += ["", "What two operations at once give is not the same each time. Until it shows:"]
        lines += ["    until python3 -I THIS_FILE; [ $? -eq 1 ]; do :; done"]
    text = "\n".join(
        textwrap.fill(_harmless(line), _WIDTH, subsequent_indent=_indent(line)) for line in lines
    )
    return f'"""{text}\n"""'


def _found(finding: Finding, members: Sequence[str]) -> Iterator[str]:
    if (record := finding.record) is not None:
        shown = _named(record.call, members)
        yield f"{shown}: {record.outcome}, where this is expected: {record.expected}."
    for one in finding.seen.found:
        yield f"{one[0].upper()}{one[1:]}."
    if finding.seen.found and not finding.seen.logged:
        yield ""
        yield "No operation tells of it. Watch it meanwhile: 'udevadm monitor --kernel', 'vfiotool watch'."


def _pattern(logged: str) -> str:
    """Return what finds a line of the log again: its numbers are others each time."""
    return re.sub(r"(?:0x)?[0-9a-f]*\d[0-9a-f]*", lambda _: "[0-9a-fx]+", re.escape(logged))


def _named(call: Call, members: Sequence[str]) -> str:
    """Return what was done, with the address of the member in place of its number."""
    arguments = call.arguments.items()
    return " ".join(
        [call.name, *(members[int(at)] if key == "member" else f"{key}={at}" for key, at in arguments)]
    )


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _harmless(text: str) -> str:
    """Return a text without what could end a docstring: a trace may come from anywhere."""
    return re.sub(r'["\\]', "?", printable(text))
