"""The scripts for bug reports: their text, their steps, and their exit status."""

from __future__ import annotations

import ast
import builtins
import contextlib
import ctypes
import enum
import errno
import inspect
import itertools
import os
import symtable
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from vfiotool.errors import UnsupportedError
from vfiotool.host.driver_ids import takes_any_device
from vfiotool.host.era import Era
from vfiotool.stress.group import fds
from vfiotool.stress.model.operation import Bound, Kind, Operation
from vfiotool.stress.operations import dma, race
from vfiotool.stress.operations.lifecycle import call_of
from vfiotool.stress.record import Call, Expectation, ExpectedUevent, Outcome, Record
from vfiotool.stress.reproduce import script_runtime
from vfiotool.stress.reproduce.replay import Finding, MonitorFindings
from vfiotool.stress.reproduce.script import script
from vfiotool.stress.reproduce.script_runtime import UnexpectedError
from vfiotool.vfio import uapi

PAIR = ["0000:03:01.0", "0000:03:02.0"]
HEADER = {
    "kernel": "6.12.1-amd64",
    "era": Era.CDEV.value,
    "units": [{"group": 3, "members": PAIR, "hosts": {PAIR[0]: "e1000", PAIR[1]: "e1000"}}],
}
OLD = {**HEADER, "kernel": "5.10.0-1-amd64", "era": Era.DEFERRED_PUT.value}
EIO = Outcome(errno.EIO)
WAITS = Expectation(waits_for="its fds are closed", uevents=(ExpectedUevent("vfio", "remove"),))
UNBIND = Call("unbind", {"member": 0})


def record(
    call: Call, expected: Expectation | None = None, outcome: Outcome | None = None, released: str = ""
) -> Record:
    """Return a record of a call; by default of an expected success."""
    expected, outcome = expected or Expectation(value=0), outcome or Outcome()
    return Record(0.0, 0.0, 0, "replay", 0, call, expected, outcome, released)


def of_kind(kind: Kind, outcome: Outcome = EIO) -> Record:
    to = Bound.STUB if kind is Kind.BIND else Bound.NONE
    return record(call_of(Operation(kind, member=1, container=1, to=to)), outcome=outcome)


def found(*records: Record) -> Finding:
    return Finding((), records)


def calls(text: str) -> list[str]:
    """Return the steps of a script, as texts."""
    run = next(one for one in ast.parse(text).body if isinstance(one, ast.FunctionDef) and one.name == "run")
    return [ast.unparse(one) for one in run.body[1:]]


def ready(*more: Record) -> tuple[Record, ...]:
    """Return the records that open a container for mappings, and then those given."""
    opened = (Kind.OPEN_CONTAINER, Kind.OPEN_GROUP, Kind.SET_CONTAINER, Kind.SET_IOMMU)
    return (*(record(call_of(Operation(kind))) for kind in opened), *more)


def do(name: str, expected: Expectation | None = None, **arguments: int | str) -> Record:
    return record(Call(name, {"member": 1, **arguments}), expected, EIO)


def raced(of: str, *pairs: str, found: str = "") -> Record:
    race = Call("race", {"of": of, "member": 1, "head_start_us": 700})
    return record(race, Expectation(pairs=pairs), Outcome(note=found))


OTHERS = [
    do("map", slot=1, slots=2),
    do("unmap", slot=1, slots=2),
    do("unmap all"),
    do("pins"),
    do("enable irqs", kind="msix", count=3),
    do("trigger irq", vector=2, times=4),
    do("mask irq"),
    do("unmask irq"),
    do("disable irqs"),
    do("reset"),
    do("read config"),
    do("remove"),
    do("rescan"),
    do("vfs", count=2),
    do(
        "bind vf",
        Expectation(
            uevents=(ExpectedUevent("vfio", "add", "7"), ExpectedUevent("pci", "bind", "0000:03:02.1"))
        ),
        vf=0,
    ),
    do("unbind vf", Expectation(uevents=(ExpectedUevent("pci", "unbind", "0000:03:02.1"),)), vf=0),
]

SCRIPTS = {kind.value: script(HEADER, found(of_kind(kind))) for kind in Kind}
SCRIPTS |= {one.call.name: script(HEADER, found(one)) for one in OTHERS}
SCRIPTS |= {f"type1 {one.call.name}": script(HEADER, found(*ready(one))) for one in OTHERS[:3]}
SCRIPTS["waits"] = script(
    OLD,
    found(record(Call("close device", {"member": 0}), released=str(UNBIND)), record(UNBIND, WAITS, EIO)),
)
SCRIPTS["at once"] = script(HEADER, found(raced("unbind, unbind", "0 and gone")))
SCRIPTS["removed and mapped"] = script(HEADER, found(raced("remove, map")))
SCRIPTS["closed and reset"] = script(HEADER, found(raced("close, reset")))
SCRIPTS["removed"] = script(HEADER, found(record(Call("remove", {"member": 1})), do("rescan")))
each = pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS.keys())


# The text of a script


@each
def test_a_script_needs_the_standard_library_alone(text: str) -> None:
    modules = {name.split(".")[0] for name in imported(ast.parse(text)).values()}
    assert modules <= sys.stdlib_module_names


def imported(tree: ast.Module) -> dict[str, str]:
    """Return the imported names, each with its module."""
    names = dict[str, str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {one.name: one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {one.name: node.module or "." for one in node.names}
    return names


@each
def test_two_empty_lines_are_around_each_function_and_class(text: str) -> None:
    lines = text.splitlines()
    for before, after in itertools.pairwise(ast.parse(text).body):
        if isinstance(before, ast.FunctionDef | ast.ClassDef) or isinstance(
            after, ast.FunctionDef | ast.ClassDef
        ):
            assert lines[after.lineno - 3 : after.lineno - 1] == ["", ""], after.lineno


@each
def test_a_script_defines_exactly_the_names_that_it_uses(text: str) -> None:
    """The compiler's symbol table tells which names of a block are global."""
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
    """Return the names in annotations, which are not in the symbol table."""
    written = [
        one
        for node in ast.walk(ast.parse(text))
        for one in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if one is not None
    ]
    return {one.id for node in written for one in ast.walk(node) if isinstance(one, ast.Name)}


def test_no_local_variable_has_the_name_of_a_part() -> None:
    """``excerpt`` finds the parts of a script by the spelling of names."""
    tables = [
        symtable.symtable(inspect.getsource(module), "parts.py", "exec") for module in (fds, script_runtime)
    ]
    top = {one.get_name() for table in tables for one in table.get_symbols()}
    for block in [block for table in tables for block in [*blocks(table)][1:]]:
        assert not {one.get_name() for one in block.get_symbols() if one.is_local()} & top, block.get_name()


def numbers() -> dict[str, int]:
    """Return the kernel's constants in the runtime of scripts."""
    found = vars(fds) | vars(script_runtime)
    return {name: number for name, number in found.items() if name.startswith(("VFIO_", "IOMMU_"))}


def known() -> dict[str, int]:
    """Return the kernel's constants in ``vfio.uapi``, which a test compares with the headers."""
    enums: dict[str, Iterable[enum.IntEnum | enum.IntFlag]] = {
        "VFIO_IRQ_SET_{}": uapi.IrqSetFlags,
        "VFIO_DMA_MAP_FLAG_{}": uapi.DmaMapFlags,
        "VFIO_DMA_UNMAP_FLAG_{}": uapi.DmaUnmapFlags,
        "VFIO_PCI_{}_REGION_INDEX": uapi.PciRegion,
        "VFIO_PCI_{}_IRQ_INDEX": uapi.PciIrq,
        "VFIO_{}_IOMMU": uapi.IommuType,
        "IOMMU_IOAS_MAP_{}": uapi.IoasMapFlags,
    }
    names = {form.format(one.name): one.value for form, kind in enums.items() for one in kind}
    ioctls = [uapi.ContainerIoctl, uapi.GroupIoctl, uapi.DeviceIoctl, uapi.IommufdIoctl]
    return names | {one.name: one.value for kind in ioctls for one in kind}


def test_constants_are_those_of_the_kernel() -> None:
    assert numbers()
    assert {name: known()[name] for name in numbers()} == numbers()
    assert script_runtime.IOVA == dma.IOVA
    assert (script_runtime.SLOTS, script_runtime.SLOT_BYTES) == (dma.SLOTS, dma.SLOT_BYTES)
    assert set(script_runtime.GONE) == race.GONE


def test_the_drivers_without_ids_are_those_that_take_any_device() -> None:
    assert all(map(takes_any_device, fds.WITHOUT_IDS))
    assert not takes_any_device("e1000e")


def test_each_constant_names_its_header() -> None:
    lines = [line for text in SCRIPTS.values() for line in text.splitlines()]
    for name in numbers():
        found = {line for line in lines if line.startswith(f"{name} =")}
        assert len(found) == 1, name  # and some script has it
        assert f"<linux/{'iommufd' if name.startswith('IOMMU') else 'vfio'}.h>" in found.pop()


def test_no_text_of_a_trace_ends_a_string() -> None:
    """A trace may come from anywhere, and root runs the script."""
    hostile = '"""\nimport evil\n"""\\'
    unit = {"group": 3, "members": PAIR[:1], "hosts": {PAIR[0]: f"'{hostile}"}}
    bind = Call("bind", {"member": 0, "to": "host", hostile: hostile})
    text = script({**HEADER, "kernel": hostile, "units": [unit]}, found(record(bind, outcome=EIO)))
    assert "evil" not in imported(ast.parse(text))
    (call,) = ast.parse(calls(text)[0], mode="eval").body.args[2:]  # type: ignore[attr-defined]
    assert ast.literal_eval(call) == f"'{hostile}"


# The steps of a script


def test_a_step_has_its_expected_results() -> None:
    text = script(
        HEADER,
        found(
            record(Call("open container", {"container": 1, "process": 1})),
            record(Call("open group")),
            record(Call("SET_CONTAINER", {"container": 1}), Expectation(frozenset((errno.EPERM,))), EIO),
        ),
    )
    assert calls(text) == [
        "step(group.open_container, 1)",
        f"step(group.open_group, '{PAIR[0]}')",
        "step(group.set_container, 1, errnos=(errno.EPERM,), found=(errno.EIO, 0))",
    ]
    assert "Two processes" in ast.get_docstring(ast.parse(text), clean=False)  # type: ignore[operator]


def test_a_script_ends_with_the_unexpected_outcome() -> None:
    status = record(Call("GET_STATUS"), Expectation(value=1), Outcome(0, 3))
    text = script(HEADER, found(record(Call("open group")), status, record(Call("close group"))))
    assert calls(text)[1:] == ["step(group.get_status, value=1, found=(0, 3))"]


@pytest.mark.parametrize(
    ("to", "driver", "modules"),
    [
        (Bound.HOST, "e1000", ["vfio-pci"]),
        (Bound.STUB, "pci-stub", ["vfio-pci", "pci-stub"]),
        (Bound.VFIO, "vfio-pci", ["vfio-pci"]),
    ],
)
def test_a_driver_is_bound_by_its_name(to: Bound, driver: str, modules: list[str]) -> None:
    text = script(HEADER, found(record(call_of(Operation(Kind.BIND, member=1, to=to)), outcome=EIO)))
    assert calls(text) == [f"step(group.bind, '{PAIR[1]}', '{driver}', found=(errno.EIO, 0))"]
    ran: list[Any] = []
    namespace = loaded(text, subprocess=SimpleNamespace(run=lambda argv, check: ran.append(argv[1])))
    namespace["main"]((), tuple(modules), lambda: None)
    assert ran == modules
    assert f"main({tuple(PAIR)!r}, ".replace("'", '"') in text


def test_an_unbind_that_blocks_begins_before_the_calls_that_unblock_it() -> None:
    release = record(Call("close device", {"member": 0}), released=str(UNBIND))
    text = script(HEADER, found(release, record(UNBIND, WAITS, EIO)))
    assert calls(text) == [
        f"step(begin_unbind, '{PAIR[0]}')",
        f"step(group.close_device, '{PAIR[0]}')",
        f"step(end_wait, '{PAIR[0]}', found=(errno.EIO, 0))",
    ]


def test_an_unbind_that_does_not_wait() -> None:
    text = script(HEADER, found(record(UNBIND, WAITS, Outcome(note="did not wait"))))
    assert calls(text) == [f"step(begin_unbind, '{PAIR[0]}', found='did not wait')"]


def test_up_to_5_15_a_node_is_waited_for() -> None:
    gone = record(UNBIND, Expectation(uevents=(ExpectedUevent("vfio", "remove"),)))
    back = record(
        Call("bind", {"member": 0, "to": "vfio"}), Expectation(uevents=(ExpectedUevent("vfio", "add"),))
    )
    last = record(Call("open group"), outcome=EIO)
    assert calls(script(OLD, found(gone, back, last)))[1::2] == [
        f"step(await_node, '{PAIR[0]}', 'gone')",
        f"step(await_node, '{PAIR[0]}', 'there')",
    ]
    assert not any("await_node" in one for one in calls(script(HEADER, found(gone, back, last))))


def test_memory_is_mapped_where_the_harness_maps_it() -> None:
    """In the container to which the group is set, if this process has it with an IOMMU, else in the IOAS."""
    mapped = record(Call("map", {"slot": 3, "slots": 2}), Expectation(frozenset((errno.EEXIST,))), EIO)
    found_so = "errnos=(errno.EEXIST,), found=(errno.EIO, 0))"
    in_ioas = f"step(map_ioas, 3, 2, {found_so}"
    unset = record(Call("UNSET_CONTAINER"))
    foreign = (record(Call("open container", {"container": 0, "process": 1})), *ready()[1:])
    assert calls(script(HEADER, found(*ready(mapped))))[-1] == f"step(map_dma, 0, 3, 2, {found_so}"
    assert calls(script(HEADER, found(*ready(unset, mapped))))[-1] == in_ioas
    assert calls(script(HEADER, found(*foreign, mapped)))[-1] == in_ioas
    assert calls(script(HEADER, found(mapped)))[-1] == in_ioas


def test_expected_results_of_dma_and_interrupts() -> None:
    text = script(
        HEADER,
        found(
            record(Call("unmap all"), Expectation(value=0x20000), Outcome(0, 0x20000)),
            record(Call("pins"), Expectation(value=0), Outcome()),
            record(Call("enable irqs", {"member": 0, "kind": "msi", "count": 2})),
            record(
                Call("enable irqs", {"member": 0, "kind": "intx", "count": 1}),
                Expectation(frozenset((errno.EINVAL,))),
                Outcome(errno.EINVAL),
            ),
            record(Call("trigger irq", {"member": 0, "vector": 1, "times": 9}), Expectation(value=9)),
        ),
    )
    assert calls(text) == [
        "step(unmap_ioas_all, value=131072)",
        "step(pins, value=0)",
        f"step(enable_irqs, '{PAIR[0]}', 1, 2, 2)",
        f"step(enable_irqs, '{PAIR[0]}', 0, 1, 0, errnos=(errno.EINVAL,))",
        f"step(trigger_irq, '{PAIR[0]}', 1, 9, value=9, found=(0, 0))",
    ]


def test_a_removed_device_is_awaited_with_its_driver() -> None:
    note = Outcome(note=f"{PAIR[1]} was not found again")
    removed = [record(Call("remove", {"member": at})) for at in range(2)]
    uevents = Expectation(uevents=(ExpectedUevent("pci", "bind", PAIR[0]),))
    assert calls(script(HEADER, found(*removed, record(Call("rescan"), uevents, note))))[2:] == [
        "step(rescan)",
        f"step(await_driver, '{PAIR[0]}', 'e1000')",
        f"step(await_driver, '{PAIR[1]}', '', found='{note.note}')",
    ]


def test_a_vf_has_the_address_of_its_uevents() -> None:
    bind, unbind = OTHERS[-2:]
    text = script(OLD, found(bind._replace(outcome=Outcome()), unbind))
    assert calls(text) == [
        "step(group.bind, '0000:03:02.1', 'vfio-pci')",
        "step(await_node, '0000:03:02.1', 'there')",
        "step(group.unbind, '0000:03:02.1', found=(errno.EIO, 0))",
    ]


@pytest.mark.parametrize(("note", "state"), [("still there", "gone"), ("not there", "there")])
def test_a_node_that_is_not_as_expected(note: str, state: str) -> None:
    late = Outcome(note=f"/dev/vfio/3 is {note} after 5 s")
    assert calls(script(OLD, found(record(Call("close group"), outcome=late)))) == [
        "step(group.close_group)",
        f"step(await_node, '{PAIR[0]}', '{state}', found='{late.note}')",
    ]


def test_two_at_once_have_the_results_of_either_order() -> None:
    text = script(
        HEADER, found(raced("bind sibling, open group", "0 and EBUSY", "EBUSY and 0", found="0 and 0"))
    )
    assert calls(text) == [
        f"step(at_once, (group.bind, '{PAIR[1]}', 'e1000'), (group.open_group, '{PAIR[0]}'), 700, "
        "'0 and EBUSY', 'EBUSY and 0', found='0 and 0')"
    ]
    assert "until python3 -I THIS_FILE;" in text


def test_two_at_once_begin_before_the_calls_that_unblock_one() -> None:
    race = raced("unbind, device fd", "waits and 0")
    race = race._replace(expected=race.expected._replace(waits_for="its fds are closed"))
    release = record(Call("close device", {"member": 1}), released=str(race.call))
    opened = (record(call_of(Operation(kind))) for kind in (Kind.OPEN_CONTAINER, Kind.OPEN_GROUP))
    assert calls(script(HEADER, found(*opened, release, race, OTHERS[3])))[2:] == [
        f"step(at_once, (group.unbind, '{PAIR[1]}'), (group.get_device_fd, '{PAIR[1]}'), 700, 'waits and 0')",
        f"step(group.close_device, '{PAIR[1]}')",
        f"step(end_wait, '{PAIR[1]}')",
        "step(pins, value=0, found=(errno.EIO, 0))",
    ]


@pytest.mark.parametrize(("came", "maps"), [("0 and 0", "map_dma, 0"), ("0 and EPERM", "map_ioas")])
def test_the_state_after_two_at_once_is_followed(came: str, maps: str) -> None:
    """Memory is mapped in the container if the group was set to it."""
    opened = (record(call_of(Operation(kind))) for kind in (Kind.OPEN_CONTAINER, Kind.OPEN_GROUP))
    race, iommu = raced("bind sibling, set container", came), record(call_of(Operation(Kind.SET_IOMMU)))
    unbound = record(call_of(Operation(Kind.UNBIND, member=1)))
    text = script(OLD, found(unbound, *opened, race, iommu, OTHERS[0]))
    assert calls(text)[-1] == f"step({maps}, 1, 2, found=(errno.EIO, 0))"


def test_an_operation_without_a_form_is_named() -> None:
    with pytest.raises(UnsupportedError, match="no script can execute 'pat member=0'"):
        script(HEADER, found(record(Call("pat", {"member": 0}), outcome=EIO)))


def test_a_finding_that_no_function_can_show_is_named() -> None:
    note = Outcome(note="VF 0 is 0000:03:02.2, and should be 0000:03:02.1")
    with pytest.raises(UnsupportedError, match="which found: VF 0 is"):
        script(HEADER, found(record(Call("vfs", {"member": 0, "count": 1}), outcome=note)))


# The exit status


def loaded(text: str, **replaced: Any) -> dict[str, Any]:
    """Return the names that a script defines, with some of them replaced."""
    namespace: dict[str, Any] = {"__name__": "script"}
    exec(compile(text, "script.py", "exec"), namespace)  # noqa: S102 - it is ours
    assert replaced.keys() <= namespace.keys()
    namespace.update(replaced, signal=Mock())  # the handlers here are pytest's
    return namespace


STATUS = script(
    HEADER, found(record(Call("GET_STATUS"), Expectation(frozenset((0, 5)), value=1), Outcome(0, 3)))
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
def test_exit_status_of_a_script(
    result: int | BaseException, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace = loaded(STATUS)
    namespace["group"].get_status = gives(result)
    namespace["subprocess"] = SimpleNamespace(run=lambda *_, check: None, SubprocessError=OSError)
    assert namespace["main"]((), (), namespace["run"]) == status
    printed = capsys.readouterr().out
    assert printed.startswith("get_status(): ")
    assert ("expected: 0 or EIO, 1" in printed) == bool(status)


def test_devices_are_given_back_after_a_finding() -> None:
    done: list[str] = []
    namespace = loaded(
        STATUS,
        driver_of=lambda device: "e1000",
        override_of=lambda device: "",
        take=lambda device: done.append(f"take {device}"),
        clean_up=lambda: done.append("clean up"),
        give_back=lambda device, driver, override: done.append(f"{device} to {driver}"),
        subprocess=SimpleNamespace(run=lambda *_, check: None, SubprocessError=OSError),
    )
    namespace["group"].get_status = gives(3)
    assert namespace["main"](PAIR[:1], ["vfio-pci"], namespace["run"]) == 1
    assert done == [f"take {PAIR[0]}", "clean up", f"{PAIR[0]} to e1000"]


def test_the_node_of_a_group_is_known_after_its_device_was_removed(tmp_path: Path) -> None:
    """Up to 5.15 the node goes a little later than the last device."""
    text = script(OLD, found(do("remove")._replace(outcome=Outcome()), record(UNBIND, WAITS, EIO)))
    device = tmp_path / PAIR[1]
    device.mkdir()
    (device / "remove").touch()
    (device / "iommu_group").symlink_to("/nowhere/iommu_groups/13")
    namespace = loaded(text, DEVICES=str(tmp_path))
    assert namespace["remove"](PAIR[1]) == 0
    (device / "iommu_group").unlink()
    assert namespace["group"].node_of(PAIR[1]) == "/dev/vfio/13"


def test_a_missing_device_is_no_finding(capsys: pytest.CaptureFixture[str]) -> None:
    namespace = loaded(STATUS, DEVICES="/nowhere")
    assert namespace["main"](PAIR, (), namespace["run"]) == 2
    assert "the script cannot run" in capsys.readouterr().err


# The arguments of ioctls


STRUCTURES: list[tuple[str, str, Sequence[int | str], str, type[ctypes.Structure]]] = [
    ("GET_STATUS", "get_status", [], "VFIO_GROUP_GET_STATUS", uapi.vfio_group_status),
    ("read config", "read_config", PAIR[1:], "VFIO_DEVICE_GET_REGION_INFO", uapi.vfio_region_info),
    ("mask irq", "mask_irq", PAIR[1:], "VFIO_DEVICE_SET_IRQS", uapi.vfio_irq_set),
    ("BIND_IOMMUFD", "bind_iommufd", PAIR[1:], "VFIO_DEVICE_BIND_IOMMUFD", uapi.vfio_device_bind_iommufd),
    (
        "ATTACH_IOMMUFD_PT",
        "attach_iommufd_pt",
        PAIR[1:],
        "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
        uapi.vfio_device_attach_iommufd_pt,
    ),
    ("BIND_IOMMUFD", "bind_iommufd", PAIR[1:], "IOMMU_IOAS_ALLOC", uapi.iommu_ioas_alloc),
    ("type1 map", "map_dma", [0, 3, 2], "VFIO_IOMMU_MAP_DMA", uapi.vfio_iommu_type1_dma_map),
    ("type1 unmap", "unmap_dma", [0, 3, 2], "VFIO_IOMMU_UNMAP_DMA", uapi.vfio_iommu_type1_dma_unmap),
    ("map", "map_ioas", [3, 2], "IOMMU_IOAS_MAP", uapi.iommu_ioas_map),
    ("unmap", "unmap_ioas", [3, 2], "IOMMU_IOAS_UNMAP", uapi.iommu_ioas_unmap),
]


@pytest.mark.parametrize(
    ("name", "function", "arguments", "request_name", "structure"),
    STRUCTURES,
    ids=[one[3] for one in STRUCTURES],
)
def test_arguments_have_the_layout_of_the_kernel(
    name: str,
    function: str,
    arguments: Sequence[int | str],
    request_name: str,
    structure: type[ctypes.Structure],
) -> None:
    """Check the first argument of each ioctl: its size, and the range of a mapping."""
    asked: dict[int, bytes] = {}

    def ioctl(_fd: int, number: int, question: bytes) -> int:
        asked.setdefault(number, bytes(question))
        return 0

    namespace = loaded(SCRIPTS[name], fcntl=SimpleNamespace(ioctl=ioctl))
    namespace["os"] = SimpleNamespace(pread=lambda *_: b"", open=lambda *_: 9, O_RDWR=os.O_RDWR)
    namespace["address_of"] = lambda slot: 0x7000 + slot
    group = namespace["group"]
    group.opened.update({"group": [7], f"cdev {PAIR[1]}": [8], "container 0": [6]})
    call = getattr(group, function) if hasattr(group, function) else namespace[function]
    call(*arguments)
    question = asked[namespace[request_name]]
    assert len(question) == ctypes.sizeof(structure)
    read = structure.from_buffer_copy(question)
    assert (read.size if request_name.startswith("IOMMU_") else read.argsz) == ctypes.sizeof(structure)
    if function in ("map_dma", "unmap_dma", "map_ioas", "unmap_ioas"):
        assert read.iova == dma.IOVA + 3 * dma.SLOT_BYTES
        assert (read.length if function.endswith("ioas") else read.size) == 2 * dma.SLOT_BYTES


# The kernel's log

LOGGED = "WARNING: CPU: 3 PID: 4711 at drivers/vfio/vfio.c:82 vfio_group_put+0x2a/0x30 (a) [b]"
ALIKE = "WARNING: CPU: 0 PID: 12 at drivers/vfio/vfio.c:82 vfio_group_put+0x1c/0x30 (a) [b]"
IN_LOG = Finding(
    (), (record(UNBIND),), MonitorFindings(("the kernel logged a line of the kind warning",), LOGGED)
)


def test_a_script_looks_for_what_the_kernel_logged() -> None:
    text = script(HEADER, IN_LOG)
    assert calls(text)[0] == "log = open_log()"
    assert calls(text)[-1].startswith("see_log(log, ")
    assert "The kernel logged a line of the kind warning." in text


@pytest.mark.parametrize(("line", "is_found"), [(ALIKE, True), (ALIKE.replace("put", "get"), False)])
def test_numbers_in_a_line_of_the_log_are_ignored(
    monkeypatch: pytest.MonkeyPatch, line: str, is_found: bool
) -> None:
    monkeypatch.setattr(script_runtime, "LOG_SECONDS", 0.2)
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    os.write(theirs, f"4,1,2,-;{line}\n SUBSYSTEM=pci\n".encode())
    pattern = ast.literal_eval(calls(script(HEADER, IN_LOG))[-1].removeprefix("see_log(log, ")[:-1])
    try:
        with pytest.raises(UnexpectedError) if is_found else contextlib.nullcontext() as raised:
            script_runtime.see_log(ours, pattern)
    finally:
        os.close(ours)
        os.close(theirs)
    assert raised is None or raised.value.as_found


def test_a_script_says_how_to_watch_a_finding_without_a_result() -> None:
    text = script(HEADER, Finding((), (record(UNBIND),), MonitorFindings(("a uevent of X did not come",))))
    assert "A uevent of X did not come." in text
    assert "udevadm monitor" in text
    assert "open_log" not in text
