from __future__ import annotations

from dataclasses import replace

import pytest

from vfiotool.binding.plan import EMPTY_PLAN, Plan, bound_to, make_plan
from vfiotool.binding.steps import (
    BindDriver,
    SetNodeAccess,
    SetOverride,
    SysfsWrite,
    UnbindDriver,
    steps_between,
)
from vfiotool.host.device_state import ROOTS_ALONE, DeviceState, NodeAccess, read_states
from vfiotool.host.devices import read_devices
from vfiotool.host.plan_context import PlanContext, read_plan_context
from vfiotool.pci.names import PciNames
from vfiotool.testing import FakeHost

A, B, BRIDGE = "0000:00:12.0", "0000:00:13.0", "0000:00:14.0"
LOADED = frozenset({"vfio-pci", "e1000e"})
NODE = "/dev/vfio/1"
ALICES = NodeAccess(1000, 1001, 0o660)


@pytest.fixture
def context(host: FakeHost) -> PlanContext:
    """A NIC on its driver and an idle device, in one group with a bridge."""
    host.add_device(A, driver="e1000e", group=1)
    host.add_device(B, group=1)
    host.add_device(BRIDGE, class_code=0x060400, driver="pcieport", group=1)
    seen = read_plan_context(host.tree, read_devices(host.tree, [A, B, BRIDGE], PciNames(b"")), [A, B])
    return replace(seen, loaded_drivers=LOADED)


@pytest.fixture
def now(host: FakeHost, context: PlanContext) -> dict[str, DeviceState]:
    return read_states(host.tree, [A, B, BRIDGE])


def bind(context: PlanContext, now: dict[str, DeviceState], *wanted: str, driver: str = "vfio-pci") -> Plan:
    return make_plan(context, now, {address: bound_to(now[address], driver) for address in wanted})


def lines(plan: Plan) -> list[str]:
    return [str(step) for step in plan.steps]


def between(now: DeviceState, wanted: DeviceState) -> list[str]:
    return [str(step) for step in steps_between(now, wanted, A, node=NODE)]


def write(name: str, value: str) -> str:
    return f"write {value!r} to /sys/bus/pci/devices/{A}/{name}"


def driver_file(driver: str, name: str) -> str:
    return f"write '{A}' to /sys/bus/pci/drivers/{driver}/{name}"


def test_override_is_set_before_the_unbind(context: PlanContext, now: dict[str, DeviceState]) -> None:
    plan = bind(context, now, A)
    assert lines(plan) == [
        write("driver_override", "vfio-pci"),
        driver_file("e1000e", "unbind"),
        driver_file("vfio-pci", "bind"),
    ]
    assert plan.steps == (SetOverride(A, "vfio-pci"), UnbindDriver(A, "e1000e"), BindDriver(A, "vfio-pci"))
    assert [step.events for step in plan.steps if isinstance(step, SysfsWrite)] == [
        (),
        (("unbind", A),),
        (("bind", A),),
    ]
    assert [(change.address, change.before, change.after) for change in plan.changes] == [
        (A, "e1000e", "vfio-pci")
    ]


def test_device_without_a_driver_is_only_bound(context: PlanContext, now: dict[str, DeviceState]) -> None:
    assert [step.path.rpartition("/")[2] for step in bind(context, now, B).steps] == [
        "driver_override",
        "bind",
    ]


def test_override_is_cleared_by_a_newline() -> None:
    assert between(DeviceState(None, "vfio-pci"), DeviceState(None, None)) == [write("driver_override", "\n")]


def test_modules_are_loaded_first_and_once(context: PlanContext, now: dict[str, DeviceState]) -> None:
    plan = bind(replace(context, loaded_drivers=frozenset()), now, A, B)
    assert lines(plan)[0] == "modprobe vfio-pci"
    assert not any(line.startswith("modprobe") for line in lines(plan)[1:])


def test_devices_are_changed_in_the_given_order(context: PlanContext, now: dict[str, DeviceState]) -> None:
    touched = [step.address for step in bind(context, now, B, A).steps]
    assert touched == [B, B, A, A, A]


def test_device_that_is_already_bound_keeps_its_override(
    context: PlanContext, now: dict[str, DeviceState]
) -> None:
    plan = bind(context, now, A, driver="e1000e")
    assert (plan.steps, plan.refusals, plan.changes) == ((), (), ())


def test_power_policy_is_set_after_the_driver_change() -> None:
    wanted = DeviceState("e1000e", None, power_control="auto")
    assert between(DeviceState("vfio-pci", None, power_control="auto"), wanted) == [
        driver_file("vfio-pci", "unbind"),
        driver_file("e1000e", "bind"),
        write("power/control", "auto"),
    ]
    assert between(wanted, wanted) == []
    assert between(replace(wanted, power_control="on"), wanted) == [write("power/control", "auto")]


@pytest.mark.parametrize(
    ("now", "wanted", "values"),
    [(0, 2, ["2"]), (2, 0, ["0"]), (4, 2, ["0", "2"]), (2, 2, []), (2, None, []), (None, 2, ["2"])],
)
def test_vf_count_is_set_to_zero_before_another_count(
    now: int | None, wanted: int | None, values: list[str]
) -> None:
    state = DeviceState("igb", None)
    steps = between(replace(state, numvfs=now), replace(state, numvfs=wanted))
    assert steps == [write("sriov_numvfs", value) for value in values]


def test_vfs_are_removed_before_the_driver_change_and_created_after_it() -> None:
    bare, full = DeviceState(None, None, numvfs=2), DeviceState("igb", None, numvfs=4)
    assert between(bare, full) == [
        write("sriov_numvfs", "0"),
        driver_file("igb", "bind"),
        write("sriov_numvfs", "4"),
    ]


def test_autoprobe_is_set_if_it_differs() -> None:
    off, on = DeviceState("igb", None, autoprobe=0), DeviceState("igb", None, autoprobe=1)
    assert between(off, on) == [write("sriov_drivers_autoprobe", "1")]
    assert between(off, replace(on, autoprobe=None)) == []


def test_node_access_is_set_again_after_a_bind_creates_the_node() -> None:
    on_host, on_vfio = DeviceState("e1000e", None), DeviceState("vfio-pci", None, node=ALICES)
    (*_, last) = steps_between(on_host, on_vfio, A, node=NODE)
    assert last == SetNodeAccess(A, NODE, ALICES)
    assert last.value == "1000:1001 0660"
    assert str(last) == f"give {NODE} to 1000:1001 0660"
    assert len(between(on_host, replace(on_vfio, node=ROOTS_ALONE))) == 2
    assert between(on_vfio, on_vfio) == []


def test_group_that_is_not_viable_gives_a_warning(context: PlanContext, now: dict[str, DeviceState]) -> None:
    (warning,) = bind(context, now, B).warnings
    assert warning.startswith(f"group 1 is not viable while {A} is on e1000e")
    assert bind(context, now, A, B).warnings == ()
    assert bind(context, now, B, driver="uio_pci_generic").warnings == ()


def test_plans_can_be_added(context: PlanContext, now: dict[str, DeviceState]) -> None:
    first, second = bind(context, now, A), bind(context, now, B)
    both = EMPTY_PLAN + first + second
    assert both.steps == first.steps + second.steps
    assert {change.address for change in both.changes} == {A, B}
