"""The scripts for bug reports: what they have, what they do, and what they end with."""

from __future__ import annotations

import ast
import builtins
import ctypes
import errno
import symtable
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from vfiotool.errors import UnsupportedError
from vfiotool.host.era import Era
from vfiotool.stress import standalone_parts
from vfiotool.stress.action import Action, Expectation, Outcome, Record, Sign
from vfiotool.stress.deeds.life_cycle import action_of
from vfiotool.stress.model import Bound, Kind, Operation
from vfiotool.stress.replay import Finding
from vfiotool.stress.standalone import script
from vfiotool.vfio import uapi

PAIR = ["0000:03:01.0", "0000:03:02.0"]
HEADER = {
    "kernel": "6.12.1-amd64",
    "era": Era.CDEV.value,
    "units": [{"group": 3, "members": PAIR, "hosts": {PAIR[0]: "e1000", PAIR[1]: "e1000"}}],
}
OLD = {**HEADER, "kernel": "5.10.0-1-amd64", "era": Era.DEFERRED_PUT.value}
EIO = Outcome(errno.EIO)
WAITS = Expectation(waits_for="its fds are closed", signs=(Sign("vfio", "remove"),))
UNBIND = Action("unbind", {"member": 0})


def record(
    action: Action, expected: Expectation | None = None, outcome: Outcome | None = None, released: str = ""
) -> Record:
    """What came of an operation; by default a success that was expected."""
    expected, outcome = expected or Expectation(value=0), outcome or Outcome()
    return Record(0.0, 0.0, 0, "replay", 0, action, expected, outcome, released)


def of_kind(kind: Kind, outcome: Outcome = EIO) -> Record:
    to = Bound.STUB if kind is Kind.BIND else Bound.NONE
    return record(action_of(Operation(kind, member=1, container=1, to=to)), outcome=outcome)


def found(*records: Record) -> Finding:
    return Finding((), records)


def calls(text: str) -> list[str]:
    """The steps of a script, one a line."""
    run = next(one for one in ast.parse(text).body if isinstance(one, ast.FunctionDef) and one.name == "run")
    return [ast.unparse(one) for one in run.body[1:]]


SCRIPTS = {kind.value: script(HEADER, found(of_kind(kind))) for kind in Kind}
SCRIPTS["waits"] = script(OLD, found(record(UNBIND, WAITS, EIO)))
each = pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS.keys())


# What a script has


@each
def test_it_needs_the_standard_library_alone(text: str) -> None:
    modules = {name.split(".")[0] for name in imported(ast.parse(text)).values()}
    assert modules <= sys.stdlib_module_names


def imported(tree: ast.Module) -> dict[str, str]:
    """Imported names, each with its module."""
    names = dict[str, str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {one.name: one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {one.name: node.module or "." for one in node.names}
    return names


@each
def test_it_has_all_that_it_uses_and_no_more(text: str) -> None:
    """The compiler's own table of names says what each block means by a name."""
    table = symtable.symtable(text, "script.py", "exec")
    defined = {one.get_name() for one in table.get_symbols() if one.is_assigned() or one.is_imported()}
    used = {name for block in blocks(table) for name in globals_of(block)} | annotated(text)
    assert used - defined <= set(dir(builtins)) | {"__name__"}
    assert defined - used == {"annotations"}  # from __future__


def blocks(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from blocks(child)


def globals_of(block: symtable.SymbolTable) -> Iterator[str]:
    is_module = block.get_type() == "module"
    for symbol in block.get_symbols():
        if symbol.is_referenced() and (is_module or symbol.is_global()):
            yield symbol.get_name()


def annotated(text: str) -> set[str]:
    """Names that no compiler looks at."""
    written = [
        one
        for node in ast.walk(ast.parse(text))
        for one in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if one is not None
    ]
    return {one.id for node in written for one in ast.walk(node) if isinstance(one, ast.Name)}


def test_names_of_the_parts_are_not_used_for_anything_else() -> None:
    """What a script needs is found by the spelling of names."""
    with open(standalone_parts.__file__, encoding="utf-8") as file:
        table = symtable.symtable(file.read(), "parts.py", "exec")
    top = {one.get_name() for one in table.get_symbols()}
    for block in [*blocks(table)][1:]:
        assert not {one.get_name() for one in block.get_symbols() if one.is_local()} & top, block.get_name()


def numbers() -> dict[str, int]:
    """The constants of the parts that are the kernel's."""
    names = [name for name in dir(standalone_parts) if name.startswith(("VFIO_", "IOMMU_"))]
    return {name: getattr(standalone_parts, name) for name in names}


def test_its_constants_are_the_kernels() -> None:
    ioctls = [uapi.ContainerIoctl, uapi.GroupIoctl, uapi.DeviceIoctl, uapi.IommufdIoctl]
    known = {one.name: one.value for kind in ioctls for one in kind}
    known["VFIO_TYPE1v2_IOMMU"] = uapi.IommuType.TYPE1v2
    assert numbers()
    assert {name: known[name] for name in numbers()} == numbers()


def test_each_constant_says_where_it_comes_from() -> None:
    text = "\n".join(SCRIPTS.values())
    for name in numbers():
        line = next(line for line in text.splitlines() if line.startswith(f"{name} ="))
        assert "<linux/" in line


def test_what_a_trace_has_ends_no_text() -> None:
    """A trace may come from anywhere, and root runs the script."""
    hostile = '"""\nimport evil\n"""\\'
    unit = {"group": 3, "members": PAIR[:1], "hosts": {PAIR[0]: f"'{hostile}"}}
    bind = Action("bind", {"member": 0, "to": "host", hostile: hostile})
    text = script({**HEADER, "kernel": hostile, "units": [unit]}, found(record(bind, outcome=EIO)))
    assert "evil" not in imported(ast.parse(text))
    (call,) = ast.parse(calls(text)[0], mode="eval").body.args[2:]  # type: ignore[attr-defined]
    assert ast.literal_eval(call) == f"'{hostile}"


# What it does


def test_a_step_says_what_must_come_of_it() -> None:
    text = script(
        HEADER,
        found(
            record(Action("open container", {"container": 1, "process": 1})),
            record(Action("open group")),
            record(Action("SET_CONTAINER", {"container": 1}), Expectation(frozenset((errno.EPERM,))), EIO),
        ),
    )
    assert calls(text) == [
        "step(open_container, 1)",
        f"step(open_group, '{PAIR[0]}')",
        "step(set_container, 1, errnos=(errno.EPERM,), found=(errno.EIO, 0))",
    ]
    assert "Two processes" in ast.get_docstring(ast.parse(text), clean=False)  # type: ignore[operator]


def test_nothing_is_done_after_what_went_otherwise() -> None:
    status = record(Action("GET_STATUS"), Expectation(value=1), Outcome(0, 3))
    text = script(HEADER, found(record(Action("open group")), status, record(Action("close group"))))
    assert calls(text)[1:] == ["step(get_status, value=1, found=(0, 3))"]


@pytest.mark.parametrize(
    ("to", "driver", "modules"),
    [
        (Bound.HOST, "e1000", ["vfio-pci"]),
        (Bound.STUB, "pci-stub", ["vfio-pci", "pci-stub"]),
        (Bound.VFIO, "vfio-pci", ["vfio-pci"]),
    ],
)
def test_a_driver_is_bound_by_its_name(to: Bound, driver: str, modules: list[str]) -> None:
    text = script(HEADER, found(record(action_of(Operation(Kind.BIND, member=1, to=to)), outcome=EIO)))
    assert calls(text) == [f"step(bind, '{PAIR[1]}', '{driver}', found=(errno.EIO, 0))"]
    ran: list[Any] = []
    namespace = loaded(text, subprocess=SimpleNamespace(run=lambda argv, check: ran.append(argv[1])))
    namespace["main"]((), tuple(modules), lambda: None)
    assert ran == modules
    assert f"main({tuple(PAIR)!r}, ".replace("'", '"') in text


def test_an_unbind_that_waits_begins_before_what_it_waits_for() -> None:
    release = record(Action("close device", {"member": 0}), released=str(UNBIND))
    text = script(HEADER, found(release, record(UNBIND, WAITS, EIO)))
    assert calls(text) == [
        f"step(begin_unbind, '{PAIR[0]}')",
        f"step(close_device, '{PAIR[0]}')",
        f"step(end_unbind, '{PAIR[0]}', found=(errno.EIO, 0))",
    ]


def test_an_unbind_that_does_not_wait() -> None:
    text = script(HEADER, found(record(UNBIND, WAITS, Outcome(note="did not wait"))))
    assert calls(text) == [f"step(begin_unbind, '{PAIR[0]}', found='did not wait')"]


def test_up_to_5_15_a_node_is_waited_for() -> None:
    gone = record(UNBIND, Expectation(signs=(Sign("vfio", "remove"),)))
    back = record(Action("bind", {"member": 0, "to": "vfio"}), Expectation(signs=(Sign("vfio", "add"),)))
    last = record(Action("open group"), outcome=EIO)
    assert calls(script(OLD, found(gone, back, last)))[1::2] == [
        f"step(await_node, '{PAIR[0]}', 'gone')",
        f"step(await_node, '{PAIR[0]}', 'there')",
    ]
    assert not any("await_node" in one for one in calls(script(HEADER, found(gone, back, last))))


@pytest.mark.parametrize(("note", "state"), [("still there", "gone"), ("not there", "there")])
def test_a_node_that_did_not_come_to_be_as_told(note: str, state: str) -> None:
    late = Outcome(note=f"/dev/vfio/3 is {note} after 5 s")
    assert calls(script(OLD, found(record(Action("close group"), outcome=late)))) == [
        "step(close_group)",
        f"step(await_node, '{PAIR[0]}', '{state}', found='{late.note}')",
    ]


def test_what_has_no_form_is_named() -> None:
    with pytest.raises(UnsupportedError, match="no standalone form of 'two unbinds'"):
        script(HEADER, found(record(Action("two unbinds"), outcome=EIO)))


# What it ends with


def loaded(text: str, **replaced: Any) -> dict[str, Any]:
    """What a script defines, with some of it replaced."""
    namespace: dict[str, Any] = {"__name__": "script"}
    exec(compile(text, "script.py", "exec"), namespace)  # noqa: S102 - it is ours
    assert replaced.keys() <= namespace.keys()
    namespace.update(replaced)
    return namespace


STATUS = script(
    HEADER, found(record(Action("GET_STATUS"), Expectation(frozenset((0, 5)), value=1), Outcome(0, 3)))
)


def gives(result: int | BaseException) -> Callable[[], int]:
    def get_status() -> int:
        if isinstance(result, BaseException):
            raise result
        return result

    return get_status


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (1, 0),
        (3, 1),
        (2, 2),
        (OSError(errno.EIO, ""), 0),
        (OSError(errno.EINVAL, ""), 2),
    ],
)
def test_it_ends_with_what_it_saw(
    result: int | BaseException, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace = loaded(STATUS, get_status=gives(result))
    namespace["subprocess"] = SimpleNamespace(run=lambda *_, check: None, SubprocessError=OSError)
    assert namespace["main"]((), (), namespace["run"]) == status
    printed = capsys.readouterr().out
    assert printed.startswith("get_status(): ")
    assert ("expected: 0 or EIO, 1" in printed) == bool(status)


def test_whatever_comes_the_devices_are_given_back() -> None:
    done: list[str] = []
    namespace = loaded(
        STATUS,
        get_status=gives(3),
        driver_of=lambda device: "e1000",
        override_of=lambda device: "",
        take=lambda device: done.append(f"take {device}"),
        clean_up=lambda: done.append("clean up"),
        give_back=lambda device, driver, override: done.append(f"{device} to {driver}"),
        subprocess=SimpleNamespace(run=lambda *_, check: None, SubprocessError=OSError),
    )
    assert namespace["main"](PAIR[:1], ["vfio-pci"], namespace["run"]) == 1
    assert done == [f"take {PAIR[0]}", "clean up", f"{PAIR[0]} to e1000"]


def test_a_device_that_is_not_there_is_no_bug(capsys: pytest.CaptureFixture[str]) -> None:
    namespace = loaded(STATUS, DEVICES="/nowhere")
    assert namespace["main"](PAIR, (), namespace["run"]) == 2
    assert "it cannot be run" in capsys.readouterr().err


# What it asks the kernel


STRUCTURES = {
    Kind.GET_STATUS: ("VFIO_GROUP_GET_STATUS", uapi.vfio_group_status),
    Kind.BIND_IOMMUFD: ("VFIO_DEVICE_BIND_IOMMUFD", uapi.vfio_device_bind_iommufd),
    Kind.ATTACH_IOMMUFD_PT: ("VFIO_DEVICE_ATTACH_IOMMUFD_PT", uapi.vfio_device_attach_iommufd_pt),
}


@pytest.mark.parametrize("kind", STRUCTURES, ids=str)
def test_what_it_asks_has_the_size_that_it_says(kind: Kind) -> None:
    name, structure = STRUCTURES[kind]
    asked: dict[int, bytes] = {}
    namespace = loaded(
        SCRIPTS[kind.value],
        fcntl=SimpleNamespace(ioctl=lambda fd, number, question: asked.setdefault(number, question)),
    )
    if kind is not Kind.GET_STATUS:
        namespace["keep"] = lambda what, path: namespace["fds"].update({what: [9]})
    namespace["fds"].update({"group": [7], f"cdev {PAIR[1]}": [8]})
    namespace[kind.value.lower()](*([] if kind is Kind.GET_STATUS else PAIR[1:]))
    question = asked[namespace[name]]
    assert len(question) == ctypes.sizeof(structure)
    assert structure.from_buffer_copy(question).argsz == ctypes.sizeof(structure)
