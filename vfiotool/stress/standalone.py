"""A finding as a script that needs nothing but Python's standard library: for a bug report."""

from __future__ import annotations

import errno
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vfiotool.errors import UnsupportedError
from vfiotool.host.era import Era
from vfiotool.stress import standalone_parts
from vfiotool.stress.action import Action, Record
from vfiotool.stress.excerpt import excerpt
from vfiotool.stress.model import Bound, Kind
from vfiotool.stress.replay import Finding

_WIDTH = 100


@dataclass(frozen=True, slots=True)
class _Form:
    """The function that does an operation, what it takes, and whether what it returns counts."""

    function: str
    takes: tuple[str, ...] = ()
    gives: bool = False


_FORMS = {
    Kind.OPEN_CONTAINER.value: _Form("open_container", ("container",)),
    Kind.CLOSE_CONTAINER.value: _Form("close_container", ("container",)),
    Kind.SET_IOMMU.value: _Form("set_iommu", ("container",)),
    Kind.OPEN_GROUP.value: _Form("open_group", ("group",)),
    Kind.CLOSE_GROUP.value: _Form("close_group"),
    Kind.GET_STATUS.value: _Form("get_status", gives=True),
    Kind.SET_CONTAINER.value: _Form("set_container", ("container",)),
    Kind.UNSET_CONTAINER.value: _Form("unset_container"),
    Kind.GET_DEVICE_FD.value: _Form("get_device_fd", ("member",)),
    Kind.CLOSE_DEVICE.value: _Form("close_device", ("member",)),
    Kind.OPEN_CDEV.value: _Form("open_cdev", ("member",)),
    Kind.BIND_IOMMUFD.value: _Form("bind_iommufd", ("member",)),
    Kind.ATTACH_IOMMUFD_PT.value: _Form("attach_iommufd_pt", ("member",)),
    Kind.CLOSE_CDEV.value: _Form("close_cdev", ("member",)),
    Kind.BIND.value: _Form("bind", ("member", "to")),
    Kind.UNBIND.value: _Form("unbind", ("member",)),
}
_BEGIN, _END = _Form("begin_unbind", ("member",)), _Form("end_unbind", ("member",))


def script(header: Mapping[str, Any], finding: Finding) -> str:
    """Return a script that does the operations of a finding, and says whether it shows.

    ``header`` is that of the trace. One process does all that the run's processes did. The script ends with
    1 where the operation goes as it was found, 0 where all goes as expected, and 2 otherwise.

    Raises:
        UnsupportedError: there is no form of an operation that a script could do.
    """
    unit = header["units"][finding.record.unit]
    steps = _Steps(unit["members"], unit["hosts"], header["era"] == Era.DEFERRED_PUT.value)
    steps.write(finding)
    body = _body(unit["members"], steps)
    return f"{_START}{_about(header, unit, finding)}\n\n{excerpt(standalone_parts, body)}\n\n\n{body}"


_START = "#!/usr/bin/env python3\n"


# What is done


@dataclass(slots=True)
class _Steps:
    """Lines of the script, one a call."""

    members: list[str]
    hosts: Mapping[str, str]
    has_deferred_put: bool
    lines: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=lambda: ["vfio-pci"])

    def write(self, finding: Finding) -> None:
        """Write all up to what went otherwise; what waits begins before that which ends its wait."""
        begun = ""
        for at, record in enumerate(finding.records):
            if record.released and not begun:
                waiting = next(one for one in finding.records[at:] if str(one.action) == record.released)
                self._begin(waiting)
                begun = record.released
            if record.expected.waits_for:
                self._wait(record, bool(begun))
                begun = ""
            else:
                self._call(record)
            self._await_node(record)
            if record.is_unexpected:
                return

    def _call(self, record: Record) -> None:
        form = _FORMS.get(record.action.name)
        if form is None:
            raise UnsupportedError(
                f"there is no standalone form of '{record.action.name}'",
                hint="replay the trace with 'vfiotool stress replay'",
            )
        self._add(form, record, _expected(record, form), _found(record, form))

    def _wait(self, record: Record, is_begun: bool) -> None:
        if is_begun:
            self._add(_END, record, _expected(record, _END), _found(record, _END))
        else:
            self._begin(record, _found(record, _BEGIN))

    def _begin(self, record: Record, found: str = "") -> None:
        self.lines.append(f"# It waits until {record.expected.waits_for}.")
        self._add(_BEGIN, record, found)

    def _await_node(self, record: Record) -> None:
        """Up to 5.15 a worker puts the group, so that its node may go a little later."""
        signs = [sign.action for sign in record.expected.signs if sign.subsystem == "vfio"]
        if _is_of_node(record):
            state = "gone" if "still there" in record.outcome.note else "there"
            self._line("await_node", (self.members[0], state), f"found={_literal(record.outcome.note)}")
        elif signs and self.has_deferred_put:
            self._line("await_node", (self.members[0], "there" if signs[-1] == "add" else "gone"))

    def _add(self, form: _Form, record: Record, *options: str) -> None:
        self._line(form.function, [self._argument(one, record.action) for one in form.takes], *options)

    def _line(self, function: str, arguments: Iterable[int | str], *options: str) -> None:
        parts = [function, *map(_literal, arguments), *filter(None, options)]
        self.lines.append(f"step({', '.join(parts)})")

    def _argument(self, name: str, action: Action) -> int | str:
        arguments = action.arguments
        if name == "group":
            return self.members[0]
        value = arguments.get(name, 0)
        if name == "member":
            return self.members[int(value)]
        if name == "to":
            return self._driver(Bound(value), self.members[int(arguments.get("member", 0))])
        return value

    def _driver(self, to: Bound, address: str) -> str:
        if to is Bound.STUB and "pci-stub" not in self.modules:
            self.modules.append("pci-stub")
        return {Bound.VFIO: "vfio-pci", Bound.STUB: "pci-stub"}.get(to) or self.hosts[address]


def _expected(record: Record, form: _Form) -> str:
    expected, options = record.expected, list[str]()
    if expected.errnos != {0}:
        options.append(f"errnos={_tuple(map(_errno, sorted(expected.errnos)))}")
    if form.gives and expected.value is not None:
        options.append(f"value={_literal(expected.value)}")
    return ", ".join(options)


def _found(record: Record, form: _Form) -> str:
    outcome = record.outcome
    if not record.is_unexpected or _is_of_node(record):
        return ""
    if outcome.note:
        return f"found={_literal(outcome.note)}"
    return f"found=({_errno(outcome.errno)}, {_literal(outcome.value if form.gives else 0)})"


def _is_of_node(record: Record) -> bool:
    """Say whether all went as told, but for the group's node."""
    return record.outcome.note.startswith("/dev/vfio/")


def _errno(code: int) -> str:
    name = errno.errorcode.get(code)
    return f"errno.{name}" if name else str(code)


def _literal(value: int | str) -> str:
    """Return it as Python has it, in double quotes where that is simple."""
    if isinstance(value, int):
        return str(value) if -1024 < value < 1024 else f"{value:#x}"
    is_simple = value.isascii() and value.isprintable() and not set(value) & set('"\\')
    return f'"{value}"' if is_simple else ascii(value)


def _body(members: list[str], steps: _Steps) -> str:
    run = textwrap.indent("\n".join(steps.lines), "    ")
    arguments = f"{_tuple(map(_literal, members))}, {_tuple(map(_literal, steps.modules))}, run"
    return (
        f'def run() -> None:\n    """Do what shows it."""\n{run}\n\n\n'
        f'if __name__ == "__main__":\n    sys.exit(main({arguments}))\n'
    )


def _tuple(literals: Iterable[str]) -> str:
    parts = list(literals)
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"


# What it shows


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


def _named(action: Action, members: list[str]) -> str:
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
