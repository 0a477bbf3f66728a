"""The operations of a finding as lines of a script: each a call of a function of ``script_runtime``."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from vfiotool.errors import UnsupportedError
from vfiotool.host.era import Era
from vfiotool.stress.model.lifecycle import Bound, Kind, Member, Model, Operation, State
from vfiotool.stress.operations.irq import KINDS
from vfiotool.stress.operations.lifecycle import call_of, operation_of
from vfiotool.stress.operations.race import CLOSE_AND_RESET, RACE, REMOVE_AND_MAP, RIVALS
from vfiotool.stress.record import Call, Record

_KINDS = frozenset(kind.value for kind in Kind)
_OF_SLOTS = ("slot", "slots")
_IOAS = -1


@dataclass(frozen=True, slots=True)
class _Form:
    """The function that does an operation, and what it takes.

    ``gives`` says that what it returns counts, ``notes`` that it sees for itself what has no errno.
    """

    function: str
    takes: tuple[str, ...] = ()
    gives: bool = False
    notes: bool = False


_FORMS = {
    "open container": _Form("open_container", ("container",)),
    "close container": _Form("close_container", ("container",)),
    "SET_IOMMU": _Form("set_iommu", ("container",)),
    "open group": _Form("open_group", ("group",)),
    "close group": _Form("close_group"),
    "GET_STATUS": _Form("get_status", gives=True),
    "SET_CONTAINER": _Form("set_container", ("container",)),
    "UNSET_CONTAINER": _Form("unset_container"),
    "GET_DEVICE_FD": _Form("get_device_fd", ("member",)),
    "close device": _Form("close_device", ("member",)),
    "open cdev": _Form("open_cdev", ("member",)),
    "BIND_IOMMUFD": _Form("bind_iommufd", ("member",)),
    "ATTACH_IOMMUFD_PT": _Form("attach_iommufd_pt", ("member",)),
    "close cdev": _Form("close_cdev", ("member",)),
    "bind": _Form("bind", ("member", "to")),
    "unbind": _Form("unbind", ("member",)),
    "map": _Form("map_dma", ("space", *_OF_SLOTS)),
    "unmap": _Form("unmap_dma", ("space", *_OF_SLOTS), gives=True),
    "unmap all": _Form("unmap_dma_all", ("space",), gives=True),
    "pins": _Form("pins", gives=True),
    "enable irqs": _Form("enable_irqs", ("member", "kind", "count", "eventfds")),
    "trigger irq": _Form("trigger_irq", ("member", "vector", "times"), gives=True),
    "mask irq": _Form("mask_irq", ("member",)),
    "unmask irq": _Form("unmask_irq", ("member",)),
    "disable irqs": _Form("disable_irqs", ("member",), gives=True),
    "reset": _Form("reset", ("member",)),
    "read config": _Form("read_config", ("member",), gives=True),
    "remove": _Form("remove", ("member",)),
    "rescan": _Form("rescan"),
    "vfs": _Form("set_vfs", ("member", "count")),
    "bind vf": _Form("bind", ("vf", "vfio-pci")),
    "unbind vf": _Form("unbind", ("vf",)),
}
_OF_IOAS = {
    "map": _Form("map_ioas", _OF_SLOTS),
    "unmap": _Form("unmap_ioas", _OF_SLOTS, gives=True),
    "unmap all": _Form("unmap_ioas_all", gives=True),
}
_BEGIN = _Form("begin_unbind", ("member",), notes=True)
_END = _Form("end_wait", ("member",), notes=True)
_AT_ONCE = _Form("at_once", notes=True)
_RACES = {
    REMOVE_AND_MAP: _Form("remove_while_mapping", ("member", "container"), notes=True),
    CLOSE_AND_RESET: _Form("close_while_resetting", ("member", "head_start_us"), notes=True),
}


class Steps:
    """Lines of a script, one a call. ``modules`` are those that it needs.

    It follows the model to know in which address space something is mapped.
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
            "member": self._member,
            "to": self._driver,
            "space": lambda _: self._space,
            "kind": lambda record: KINDS[str(record.call.arguments["kind"])],
            "eventfds": lambda record: _number(record, "count") if 0 in record.expected.errnos else 0,
            "vf": _vf,
            "vfio-pci": lambda _: "vfio-pci",
        }

    def write(self, records: Sequence[Record]) -> None:
        """Write all up to what went otherwise; what waits begins before that which ends its wait.

        Raises:
            UnsupportedError: an operation has no form here.
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

    def _form(self, call: Call) -> _Form:
        if call.name == RACE:
            return _RACES.get(str(call.arguments["of"]), _AT_ONCE)
        forms = _OF_IOAS if self._space == _IOAS else {}
        form = forms.get(call.name) or _FORMS.get(call.name)
        if form is None:
            raise _no_form(call)
        return form

    def _wait(self, record: Record, is_begun: bool) -> None:
        if is_begun:
            self._add(_END, record, _expected(record, _END), _found(record, _END))
        else:
            self._begin(record, _found(record, _BEGIN))

    def _begin(self, record: Record, found: str = "") -> None:
        """Begin what waits, and of two at once do what does not wait."""
        self.lines.append(f"# It waits until {record.expected.waits_for}.")
        form = _BEGIN if record.call.name == Kind.UNBIND.value else self._form(record.call)
        self._add(form, record, found)
        if form is _AT_ONCE:
            self._do(*_done(record))

    def _add(self, form: _Form, record: Record, *options: str) -> None:
        arguments = self._at_once(record) if form is _AT_ONCE else self._taken(form, record)
        self._line(form.function, arguments, *options)

    def _at_once(self, record: Record) -> Iterator[str]:
        """Yield two operations, each with what it takes, the time between them, and what both may give."""
        for operation in _rivals(record):
            one = record._replace(call=call_of(operation))
            form = self._form(one.call)
            yield as_tuple([form.function, *self._taken(form, one)])
        yield literal(_number(record, "head_start_us"))
        yield from map(literal, record.expected.pairs)

    def _taken(self, form: _Form, record: Record) -> Iterator[str]:
        return (literal(self._argument(name, record)) for name in form.takes)

    def _line(self, function: str, arguments: Iterable[str], *options: str) -> None:
        self.lines.append(f"step({', '.join([function, *arguments, *filter(None, options)])})")

    # What comes a little later

    def _await(self, record: Record) -> None:
        if record.call.name == "rescan":
            self._await_drivers(record)
        elif _is_of_node(record):
            is_late = "still there" in record.outcome.note
            self._await_node(record, "gone" if is_late else "there", f"found={literal(record.outcome.note)}")
        elif self._model.era is Era.DEFERRED_PUT and not record.released:
            uevents = [uevent.action for uevent in record.expected.uevents if uevent.subsystem == "vfio"]
            if uevents and record.call.name != "vfs":
                self._await_node(record, "there" if uevents[-1] == "add" else "gone")

    def _await_node(self, record: Record, state: str, *options: str) -> None:
        """Up to 5.15 a worker puts the group."""
        is_vf = record.call.name in ("bind vf", "unbind vf")
        node_of = _vf(record) if is_vf else self._members[0]
        self._line("await_node", map(literal, (node_of, state)), *options)

    def _await_drivers(self, record: Record) -> None:
        bound = {uevent.address for uevent in record.expected.uevents if uevent.action == "bind"}
        for address in self._removed:
            driver = self._hosts[address] if address in bound else ""
            note = record.outcome.note
            found = f"found={literal(note)}" if address in note else ""
            self._line("await_driver", map(literal, (address, driver)), found)

    # What was done

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
        elif name == "remove":
            self._removed.append(str(self._member(record)))
        elif name == "rescan":
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
        """Follow what succeeded, in an order in which all of it does."""
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
        """Say in which container something is mapped now: this process's, or else it is the IOAS."""
        at = self._state.container
        if at is None or not self._state.has_iommu or not self._state.containers[at].is_open:
            return _IOAS
        return _IOAS if self._processes.get(at) else at

    # What a function takes

    def _argument(self, name: str, record: Record) -> int | str:
        found = self._arguments.get(name)
        return found(record) if found else _number(record, name)

    def _member(self, record: Record) -> str:
        return self._members[_number(record, "member")]

    def _driver(self, record: Record) -> str:
        to = Bound(record.call.arguments["to"])
        if to is Bound.STUB and "pci-stub" not in self.modules:
            self.modules.append("pci-stub")
        return {Bound.VFIO: "vfio-pci", Bound.STUB: "pci-stub"}.get(to) or self._hosts[self._member(record)]


def literal(value: int | str) -> str:
    """Return it as Python has it, in double quotes where that is simple."""
    if isinstance(value, int):
        return str(int(value)) if -1024 < value < 1024 else f"{value:#x}"
    is_simple = value.isascii() and value.isprintable() and not set(value) & set('"\\')
    return f'"{value}"' if is_simple else ascii(value)


def as_tuple(literals: Iterable[str]) -> str:
    """Return a tuple as Python has it."""
    parts = list(literals)
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"


def _number(record: Record, name: str) -> int:
    return int(record.call.arguments.get(name, 0))


def _rivals(record: Record) -> tuple[Operation, Operation]:
    rivals, at = RIVALS[str(record.call.arguments["of"])], _number(record, "member")
    return rivals.other(at), rivals.ours(at)


def _done(record: Record) -> list[Operation]:
    """Return which of two operations at once succeeded, and did not wait."""
    (pair,) = record.expected.pairs
    return [one for one, came in zip(_rivals(record), pair.split(" and "), strict=True) if came == "0"]


def _vf(record: Record) -> str:
    """Return the address of a VF, of which the uevents tell."""
    return next(str(uevent.address) for uevent in record.expected.uevents if uevent.subsystem == "pci")


def _expected(record: Record, form: _Form) -> str:
    expected, options = record.expected, list[str]()
    if expected.errnos != {0}:
        options.append(f"errnos={as_tuple(map(_errno, sorted(expected.errnos)))}")
    if form.gives and expected.value is not None:
        options.append(f"value={literal(expected.value)}")
    return ", ".join(options)


def _found(record: Record, form: _Form) -> str:
    """Return what went otherwise, if it is of the operation itself."""
    outcome = record.outcome
    if not record.is_unexpected or _is_of_node(record) or (record.call.name == "rescan" and outcome.note):
        return ""
    if outcome.note and not form.notes:
        raise _no_form(record.call, f", which found: {outcome.note}")
    if outcome.note:
        return f"found={literal(outcome.note)}"
    return f"found=({_errno(outcome.errno)}, {literal(outcome.value if form.gives else 0)})"


def _is_of_node(record: Record) -> bool:
    """Say whether all went as told, but for a group's node."""
    return record.outcome.note.startswith("/dev/vfio/")


def _errno(code: int) -> str:
    name = errno.errorcode.get(code)
    return f"errno.{name}" if name else str(code)


def _no_form(call: Call, found: str = "") -> UnsupportedError:
    return UnsupportedError(
        f"there is no standalone form of '{call}'{found}",
        hint="replay the trace with 'vfiotool stress replay'",
    )
