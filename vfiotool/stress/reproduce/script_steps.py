"""Write the operations of a finding as lines of a script: calls of ``GroupFds`` and of ``script_runtime``."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import permutations

from vfiotool.errors import UnsupportedError
from vfiotool.host.era import Era
from vfiotool.stress.group.fds import GroupFds
from vfiotool.stress.model.lifecycle import Member, Model, State
from vfiotool.stress.model.operation import Bound, Kind, Operation, ScriptForm
from vfiotool.stress.operations.hotplug import REMOVE, RESCAN
from vfiotool.stress.operations.irq import KINDS
from vfiotool.stress.operations.lifecycle import call_of, operation_of
from vfiotool.stress.operations.race import AT_ONCE, CLOSE_AND_RESET, RACE, REMOVE_AND_MAP, RIVALS, race_form
from vfiotool.stress.operations.registry import SCRIPT_FORMS
from vfiotool.stress.operations.sriov import BIND_VF, UNBIND_VF, VFS
from vfiotool.stress.record import Call, Record

_KINDS = frozenset(kind.value for kind in Kind)
_IOAS = -1

_END = ScriptForm("end_wait", ("member",), raises_note=True)


class Steps:
    """The lines of a script, one per call. ``modules`` are the kernel modules that the script needs.

    The class follows the model's state, which tells in which address space the harness maps memory.
    """

    def __init__(self, members: Sequence[str], hosts: Mapping[str, str], era: Era) -> None:
        self.lines: list[str] = []
        self.modules = ["vfio-pci"]
        self._members = members
        self._hosts = hosts
        self._model = Model(era)
        self._state = State((Member(Bound.VFIO),) * len(members))
        self._processes: dict[int, int] = {}
        self._removed: list[str] = []
        self._arguments: dict[str, Callable[[Record], int | str]] = {
            "group": lambda _: self._members[0],
            "container": lambda record: _number(record, "container"),
            "member": self._member,
            "to": self._driver,
            "space": lambda _: self._space,
            "kind": lambda record: KINDS[str(record.call.arguments["kind"])],
            "eventfds": lambda record: _number(record, "count") if 0 in record.expected.errnos else 0,
            "vf": _vf,
            "vfio-pci": lambda _: "vfio-pci",
        }

    def write(self, records: Sequence[Record]) -> None:
        """Write all records up to the first unexpected outcome.

        A call that blocks is started before the calls that unblock it.

        Raises:
            UnsupportedError: an operation has no form in a script.
        """
        is_begun = False
        for at, record in enumerate(records):
            if record.released and not is_begun:
                self._begin(next(one for one in records[at:] if str(one.call) == record.released))
                is_begun = True
            if record.expected.waits_for:
                self._wait(record, is_begun)
                is_begun = False
            else:
                self._call(record)
            self._await(record)
            self._follow(record)
            if record.is_unexpected:
                return

    def _call(self, record: Record) -> None:
        form = self._form(record.call)
        self._add(form, record, _expected(record, form), _found(record, form))

    def _form(self, call: Call) -> ScriptForm:
        if call.name == RACE:
            return race_form(str(call.arguments["of"]))
        form = SCRIPT_FORMS.get(call.name)
        if form is None:
            raise _no_form(call)
        return form.in_ioas if form.in_ioas and self._space == _IOAS else form

    def _begin_form(self, call: Call) -> ScriptForm:
        form = self._form(call)
        return form.begins or form

    def _wait(self, record: Record, is_begun: bool) -> None:
        if is_begun:
            self._add(_END, record, _expected(record, _END), _found(record, _END))
        else:
            self._begin(record, _found(record, self._begin_form(record.call)))

    def _begin(self, record: Record, found: str = "") -> None:
        """Start a call that blocks. Of two operations at once, follow the one that does not block."""
        self.lines.append(f"# This waits until {record.expected.waits_for}.")
        form = self._begin_form(record.call)
        self._add(form, record, found)
        if form is AT_ONCE:
            self._do(*_done(record))

    def _add(self, form: ScriptForm, record: Record, *options: str) -> None:
        arguments = self._at_once(record) if form is AT_ONCE else self._taken(form, record)
        self._line(form.function, arguments, *options)

    def _at_once(self, record: Record) -> Iterator[str]:
        """Yield two operations with their arguments, the time between them, and their allowed results."""
        for operation in _rivals(record):
            one = record._replace(call=call_of(operation))
            form = self._form(one.call)
            yield as_tuple([_spelled(form.function), *self._taken(form, one)])
        yield literal(_number(record, "head_start_us"))
        yield from map(literal, record.expected.pairs)

    def _taken(self, form: ScriptForm, record: Record) -> Iterator[str]:
        return (literal(self._argument(name, record)) for name in form.arguments)

    def _line(self, function: str, arguments: Iterable[str], *options: str) -> None:
        self.lines.append(f"step({', '.join([_spelled(function), *arguments, *filter(None, options)])})")

    # Effects that come later

    def _await(self, record: Record) -> None:
        if record.call.name == RESCAN:
            self._await_drivers(record)
        elif _is_of_node(record):
            is_late = "still there" in record.outcome.note
            self._await_node(record, "gone" if is_late else "there", f"found={literal(record.outcome.note)}")
        elif self._model.era is Era.DEFERRED_PUT and not record.released:
            uevents = [uevent.action for uevent in record.expected.uevents if uevent.subsystem == "vfio"]
            if uevents and record.call.name != VFS:
                self._await_node(record, "there" if uevents[-1] == "add" else "gone")

    def _await_node(self, record: Record, state: str, *options: str) -> None:
        """Wait for the node of a group: up to 5.15 a worker of the kernel puts the group."""
        is_vf = record.call.name in (BIND_VF, UNBIND_VF)
        node_of = _vf(record) if is_vf else self._members[0]
        self._line("await_node", map(literal, (node_of, state)), *options)

    def _await_drivers(self, record: Record) -> None:
        bound = {uevent.address for uevent in record.expected.uevents if uevent.action == "bind"}
        for address in self._removed:
            driver = self._hosts[address] if address in bound else ""
            note = record.outcome.note
            found = f"found={literal(note)}" if address in note else ""
            self._line("await_driver", map(literal, (address, driver)), found)

    # The state after a call

    def _follow(self, record: Record) -> None:
        name = record.call.name
        if record.outcome.errno or record.outcome.note:
            return
        if name in _KINDS:
            self._do(operation_of(record.call))
        if name == RACE:
            self._follow_race(record)
        elif name == Kind.OPEN_CONTAINER.value:
            self._processes[_number(record, "container")] = _number(record, "process")
        elif name == REMOVE:
            self._removed.append(str(self._member(record)))
        elif name == RESCAN:
            self._removed.clear()

    def _follow_race(self, record: Record) -> None:
        of, at = record.call.arguments["of"], _number(record, "member")
        if of == CLOSE_AND_RESET:
            self._do(Operation(Kind.CLOSE_DEVICE, member=at))
        elif of == REMOVE_AND_MAP:
            self._removed.append(self._members[at])
        elif record.expected.waits_for:
            self._do(Operation(Kind.UNBIND, member=at))
        else:
            self._do(*_done(record))

    def _do(self, *operations: Operation) -> None:
        """Enter the state after operations that succeeded, in an order in which all of them do."""
        for order in permutations(operations):
            state, codes = self._state, set[int]()
            for operation in order:
                prediction = self._model.predict(state, operation)
                state = prediction.state
                codes.add(prediction.errno)
            if codes <= {0}:
                self._state = state
                return

    @property
    def _space(self) -> int:
        """The container in which the first process maps memory now, or ``_IOAS``."""
        at = self._state.container
        if at is None or not self._state.has_iommu or not self._state.containers[at].is_open:
            return _IOAS
        return _IOAS if self._processes.get(at) else at

    # The arguments of a function

    def _argument(self, name: str, record: Record) -> int | str:
        found = self._arguments.get(name)
        return found(record) if found else int(record.call.arguments[name])

    def _member(self, record: Record) -> str:
        return self._members[_number(record, "member")]

    def _driver(self, record: Record) -> str:
        to = Bound(record.call.arguments["to"])
        if to is Bound.STUB and "pci-stub" not in self.modules:
            self.modules.append("pci-stub")
        return {Bound.VFIO: "vfio-pci", Bound.STUB: "pci-stub"}.get(to) or self._hosts[self._member(record)]


def _spelled(function: str) -> str:
    """Return a function as a script names it: an operation of the life cycle is a method of ``group``."""
    return f"group.{function}" if hasattr(GroupFds, function) else function


def literal(value: int | str) -> str:
    """Return a value as a literal of Python, with double quotes if the text is simple."""
    if isinstance(value, int):
        return str(int(value)) if -1024 < value < 1024 else f"{value:#x}"
    is_simple = value.isascii() and value.isprintable() and not set(value) & set('"\\')
    return f'"{value}"' if is_simple else ascii(value)


def as_tuple(literals: Iterable[str]) -> str:
    """Return a tuple of literals as a literal of Python."""
    parts = list(literals)
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"


def _number(record: Record, name: str) -> int:
    return int(record.call.arguments.get(name, 0))


def _rivals(record: Record) -> tuple[Operation, Operation]:
    rivals, at = RIVALS[str(record.call.arguments["of"])], _number(record, "member")
    return rivals.other(at), rivals.ours(at)


def _done(record: Record) -> list[Operation]:
    """Return those of two operations at once that succeeded without blocking."""
    (pair,) = record.expected.pairs
    return [one for one, came in zip(_rivals(record), pair.split(" and "), strict=True) if came == "0"]


def _vf(record: Record) -> str:
    """Return the address of a VF, from the expected uevents."""
    return next(str(uevent.address) for uevent in record.expected.uevents if uevent.subsystem == "pci")


def _expected(record: Record, form: ScriptForm) -> str:
    expected, options = record.expected, list[str]()
    if expected.errnos != {0}:
        options.append(f"errnos={as_tuple(map(_errno, sorted(expected.errnos)))}")
    if form.returns_value and expected.value is not None:
        options.append(f"value={literal(expected.value)}")
    return ", ".join(options)


def _found(record: Record, form: ScriptForm) -> str:
    """Return the unexpected outcome as an option of ``step``, if the outcome is the operation's own."""
    outcome = record.outcome
    if not record.is_unexpected or _is_of_node(record) or (record.call.name == RESCAN and outcome.note):
        return ""
    if outcome.note and not form.raises_note:
        raise _no_form(record.call, f", which found: {outcome.note}")
    if outcome.note:
        return f"found={literal(outcome.note)}"
    return f"found=({_errno(outcome.errno)}, {literal(outcome.value if form.returns_value else 0)})"


def _is_of_node(record: Record) -> bool:
    """Return True if only the group's node is not as expected."""
    return record.outcome.note.startswith("/dev/vfio/")


def _errno(code: int) -> str:
    name = errno.errorcode.get(code)
    return f"errno.{name}" if name else str(code)


def _no_form(call: Call, found: str = "") -> UnsupportedError:
    return UnsupportedError(
        f"no script can execute '{call}'{found}",
        hint="replay the trace with 'vfiotool stress replay'",
    )
