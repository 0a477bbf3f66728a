"""Each operation is declared once: what is derived from its declaration, and what implements it elsewhere."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator

import pytest

from vfiotool.host.era import Era
from vfiotool.stress.group import client_pair
from vfiotool.stress.group.client_pair import ClientPair
from vfiotool.stress.group.fds import GroupFds
from vfiotool.stress.model.lifecycle import ContainerState, Member, Model, State
from vfiotool.stress.model.operation import Bound, Fd, Kind, Operation, ScriptForm
from vfiotool.stress.operations import race
from vfiotool.stress.operations.lifecycle import call_of, operation_of
from vfiotool.stress.operations.race import race_form
from vfiotool.stress.operations.registry import FAMILIES, SCRIPT_FORMS
from vfiotool.stress.reproduce import script_runtime

each_kind = pytest.mark.parametrize("kind", list(Kind))
RACES = [*race.RIVALS, race.REMOVE_AND_MAP, race.CLOSE_AND_RESET]


def forms() -> Iterator[ScriptForm]:
    """All forms of all operations."""
    for form in (*SCRIPT_FORMS.values(), *map(race_form, RACES)):
        yield form
        yield from (other for other in (form.in_ioas, form.begins) if other is not None)


def function_of(form: ScriptForm) -> Callable[..., int]:
    """Return the function of a form: of the life cycle a method, bound to the fds of a script."""
    owner = script_runtime.group if hasattr(GroupFds, form.function) else script_runtime
    function: Callable[..., int] = getattr(owner, form.function)
    return function


def missing(kind: Kind) -> list[str]:
    """Return where an implementation of a kind is missing."""
    places = {
        "a rule": hasattr(Model, kind.method),
        "a system call": hasattr(GroupFds, kind.declaration.script.function),
        "a form in scripts": SCRIPT_FORMS.get(kind.value) is kind.declaration.script,
    }
    return [name for name, is_there in places.items() if not is_there]


@each_kind
def test_a_declared_operation_is_implemented_everywhere(kind: Kind) -> None:
    assert missing(kind) == []


@pytest.mark.parametrize(
    ("owner", "name", "place"),
    [
        (Model, Kind.SET_IOMMU.method, "a rule"),
        (GroupFds, "set_iommu", "a system call"),
    ],
)
def test_a_missing_implementation_is_found(
    owner: object, name: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(owner, name)
    assert missing(Kind.SET_IOMMU) == [place]
    if owner is Model:
        with pytest.raises(AttributeError):
            Model(Era.CDEV)


def test_no_rule_is_left_of_an_operation_that_is_not_declared() -> None:
    methods = {
        name
        for name, method in inspect.getmembers(Model, inspect.isfunction)
        if [one.lstrip("_") for one in inspect.signature(method).parameters] == ["self", "state", "operation"]
    }
    assert methods - {"predict", "released", "_is_possible"} == {kind.method for kind in Kind}


def test_no_system_call_is_left_of_an_operation_that_is_not_declared() -> None:
    """What else a group's fds have is used by the operations, or by other functions of scripts."""
    helpers = {
        "opening_name",
        "node_of",
        "ioas",
        "last_of",
        "last",
        "open_node",
        "close_last",
        "close_all",
        "__init__",
    }
    methods = {name for name, _ in inspect.getmembers(GroupFds, inspect.isfunction)}
    assert methods - helpers == {kind.declaration.script.function for kind in Kind}


def test_each_operation_is_of_one_family() -> None:
    assert sum(len(family.forms) for family in FAMILIES) == len(SCRIPT_FORMS)


@pytest.mark.parametrize("form", list(forms()), ids=lambda form: form.function)
def test_a_form_is_a_call_that_the_runtime_takes(form: ScriptForm) -> None:
    function = function_of(form)
    if form is race.AT_ONCE:  # two forms, the time between them, and what both may give
        assert list(inspect.signature(function).parameters) == ["other", "ours", "head_start_us", "allowed"]
    else:
        inspect.signature(function).bind(*form.arguments)


@pytest.mark.parametrize("form", list(forms()), ids=lambda form: form.function)
def test_a_form_says_if_its_function_finds_what_no_errno_shows(form: ScriptForm) -> None:
    assert form.raises_note == raises_note(form.function)


def raises_note(name: str) -> bool:
    """Return True if a function of the runtime, or one that it calls, raises a note."""
    if hasattr(GroupFds, name):
        return False
    tree = ast.parse(inspect.getsource(script_runtime))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    names = {one.id for one in ast.walk(functions[name]) if isinstance(one, ast.Name)}
    return "NoteError" in names or any(raises_note(one) for one in names & functions.keys() - {name})


@each_kind
def test_a_call_has_the_declared_arguments_and_gives_the_operation_back(kind: Kind) -> None:
    takes = kind.declaration.takes
    operation = Operation(
        kind,
        member=2 if "member" in takes else 0,
        container=1 if "container" in takes else 0,
        to=Bound.STUB if "to" in takes else Bound.NONE,
    )
    call = call_of(operation, process=1)
    assert operation_of(call) == operation
    assert tuple(call.arguments) == (*takes, *(["process"] if kind.declaration.takes_process else []))


def test_calls_and_texts_stay_as_old_traces_have_them() -> None:
    texts = {
        str(call_of(Operation(kind, member=1, container=1, to=Bound.VFIO), process=1)): str(
            Operation(kind, member=1, container=1, to=Bound.VFIO)
        )
        for kind in Kind
    }
    assert texts == {
        "open container container=1 process=1": "open container 1",
        "close container container=1": "close container 1",
        "SET_IOMMU container=1": "SET_IOMMU 1",
        "SET_CONTAINER container=1": "SET_CONTAINER 1",
        "close group": "close group",
        "GET_STATUS": "GET_STATUS",
        "UNSET_CONTAINER": "UNSET_CONTAINER",
        "open group process=1": "open group",
        "GET_DEVICE_FD member=1": "GET_DEVICE_FD member 1",
        "close device member=1": "close device member 1",
        "unbind member=1 process=1": "unbind member 1",
        "open cdev member=1": "open cdev member 1",
        "BIND_IOMMUFD member=1": "BIND_IOMMUFD member 1",
        "ATTACH_IOMMUFD_PT member=1": "ATTACH_IOMMUFD_PT member 1",
        "close cdev member=1": "close cdev member 1",
        "bind member=1 to=vfio process=1": "bind member 1 to vfio",
    }


@each_kind
def test_an_operation_is_possible_only_while_its_fd_is_open(kind: Kind) -> None:
    by = kind.declaration.by
    model = Model(Era.CDEV)
    closed = State((Member(Bound.VFIO),), (ContainerState(),))
    assert (by is None) or kind not in {one.kind for one in model.operations(closed)}
    members = (Member(Bound.VFIO, fds=int(by is Fd.DEVICE), cdev=by is Fd.CDEV),)
    opened = State(members, (ContainerState(is_open=True),), is_open=by is Fd.GROUP)
    assert (by is None) or kind in {one.kind for one in model.operations(opened)}


@each_kind
def test_each_fd_that_is_opened_is_closed_by_an_operation_on_it(kind: Kind) -> None:
    closing = [one for one in Kind if one.declaration.undoes is kind]
    if kind.declaration.opens is not None:
        (close,) = closing
        assert close.declaration.closes is close.declaration.by is kind.declaration.opens
    assert len(closing) <= 1


# Who executes it


class Recorder:
    """In place of a process: records the operations that it is asked for, and has them succeed."""

    def __init__(self, *_arguments: object) -> None:
        self.done: list[Operation] = []

    def do(self, operation: Operation) -> tuple[int, int]:
        self.done.append(operation)
        return 0, 0

    def start(self, operation: Operation) -> None:
        self.done.append(operation)

    def finish(self) -> tuple[int, int]:
        return 0, 0


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> ClientPair:
    monkeypatch.setattr(client_pair, "GroupClient", Recorder)
    monkeypatch.setattr(client_pair, "_SecondProcess", Recorder)
    return ClientPair(0, ("0000:00:10.0",), {})


@each_kind
def test_the_process_that_opened_an_fd_executes_what_is_done_by_it(pair: ClientPair, kind: Kind) -> None:
    declaration = kind.declaration
    opening = {
        Fd.CONTAINER: [Kind.OPEN_CONTAINER],
        Fd.GROUP: [Kind.OPEN_CONTAINER, Kind.OPEN_GROUP],
        Fd.DEVICE: [Kind.OPEN_GROUP, Kind.GET_DEVICE_FD],
    }
    for one in opening.get(declaration.by, []) if declaration.by else []:
        assert pair.do(Operation(one), process=1) == (0, 0)
    any_process = declaration.by is None and kind is not Kind.OPEN_CDEV
    assert pair.owner(Operation(kind), process=1) == int(any_process or declaration.by in opening)


def test_an_fd_is_the_last_ones_that_opened_it(pair: ClientPair) -> None:
    device, close = Operation(Kind.GET_DEVICE_FD), Operation(Kind.CLOSE_DEVICE)
    pair.do(Operation(Kind.OPEN_GROUP), process=1)
    pair.do(device)
    assert (pair.owner(close), pair.owns_device(0)) == (1, False)
    pair.do(Operation(Kind.CLOSE_GROUP))
    pair.do(Operation(Kind.OPEN_GROUP), process=0)
    pair.do(device)
    assert (pair.owner(close), pair.owns_device(0)) == (0, True)
    pair.do(close)
    assert (pair.owner(close), pair.owns_device(0)) == (1, False)


def test_fds_are_closed_in_the_reverse_order_of_opening(pair: ClientPair) -> None:
    close = Operation(Kind.CLOSE_DEVICE)
    for process in (0, 1, 0):
        pair.do(Operation(Kind.OPEN_GROUP), process=process)
        pair.do(Operation(Kind.GET_DEVICE_FD))
        pair.do(Operation(Kind.CLOSE_GROUP))
    closed_by = []
    for _ in range(3):
        closed_by.append(pair.owner(close))
        pair.do(close)
    assert closed_by == [0, 1, 0]


def test_a_container_is_a_processs_until_it_is_closed(pair: ClientPair) -> None:
    opened, close = Operation(Kind.OPEN_CONTAINER, container=1), Operation(Kind.CLOSE_CONTAINER, container=1)
    assert not pair.owns_container(1)
    pair.do(opened)
    assert pair.owns_container(1)
    pair.do(close)
    assert not pair.owns_container(1)
    pair.do(opened, process=1)
    assert not pair.owns_container(1)
