from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from vfiotool.binding.plan import Plan, PlanRefusedError, Scene, bound_to, make_plan
from vfiotool.host.devices import Device, DeviceState, read_devices
from vfiotool.host.era import Era
from vfiotool.host.groups import Group, read_groups
from vfiotool.host.holders import Holder
from vfiotool.host.usage import Usage
from vfiotool.pci.names import PciNames
from vfiotool.testing import FakeHost

A, B, BRIDGE = "0000:00:12.0", "0000:00:13.0", "0000:00:14.0"
LOADED = frozenset({"vfio-pci", "e1000e"})
MOUNTED = Usage("block", "sda1", "mounted on /")
UP = Usage("net", "eth0", "operstate up")


@pytest.fixture
def scene(host: FakeHost) -> Scene:
    """A NIC on its driver and an idle device, in one group with a bridge."""
    host.add_device(A, driver="e1000e", group=1)
    host.add_device(B, group=1)
    host.add_device(BRIDGE, class_code=0x060400, driver="pcieport", group=1)
    devices = read_devices(host.tree, [A, B, BRIDGE], PciNames(b""))
    groups = {group.id: group for group in read_groups(host.tree, [1], devices)}
    named = {device.address: device for device in devices}
    return Scene(named, groups, usage={}, loaded_drivers=LOADED, era=Era.DMA_OWNER)


def bind(scene: Scene, *wanted: str, driver: str = "vfio-pci") -> Plan:
    return make_plan(scene, {address: bound_to(scene.devices[address], driver) for address in wanted})


def changed(scene: Scene, address: str, **fields: object) -> Scene:
    device: Device = replace(scene.devices[address], **fields)  # type: ignore[arg-type]
    return replace(scene, devices={**scene.devices, address: device})


def held(scene: Scene, era: Era) -> Scene:
    group: Group = replace(scene.groups[1], holders=(Holder(9, "qemu", 3, "/dev/vfio/1"),))
    return replace(scene, groups={1: group}, era=era)


def lines(plan: Plan) -> list[str]:
    return [str(step) for step in plan.steps]


def rules(plan: Plan) -> list[tuple[str, str, str | None]]:
    return [(refusal.address, refusal.rule, refusal.flag) for refusal in plan.refusals]


def test_the_override_is_set_before_the_device_is_let_go(scene: Scene) -> None:
    plan = bind(scene, A)
    assert lines(plan) == [
        f"write 'vfio-pci' to /sys/bus/pci/devices/{A}/driver_override",
        f"write '{A}' to /sys/bus/pci/drivers/e1000e/unbind",
        f"write '{A}' to /sys/bus/pci/drivers/vfio-pci/bind",
    ]
    assert [(step.event, step.driver) for step in plan.steps] == [
        (None, "e1000e"),
        ("unbind", None),
        ("bind", "vfio-pci"),
    ]
    assert [(change.address, change.before, change.after) for change in plan.changes] == [
        (A, "e1000e", "vfio-pci")
    ]


def test_a_device_without_a_driver_is_only_bound(scene: Scene) -> None:
    assert lines(bind(scene, B)) == [
        f"write 'vfio-pci' to /sys/bus/pci/devices/{B}/driver_override",
        f"write '{B}' to /sys/bus/pci/drivers/vfio-pci/bind",
    ]


def test_an_override_is_cleared_by_a_newline(scene: Scene) -> None:
    plan = make_plan(changed(scene, B, driver_override="vfio-pci"), {B: DeviceState(None, None)})
    assert lines(plan) == [f"write '\\n' to /sys/bus/pci/devices/{B}/driver_override"]
    assert plan.changes == ()


def test_modules_come_first_and_each_once(scene: Scene) -> None:
    plan = bind(replace(scene, loaded_drivers=frozenset()), A, B)
    assert lines(plan)[0] == "modprobe vfio-pci"
    assert not any(line.startswith("modprobe") for line in lines(plan)[1:])


def test_devices_are_changed_in_the_order_given(scene: Scene) -> None:
    touched = [step.address for step in bind(scene, B, A).steps]
    assert touched == [B, B, A, A, A]


def test_a_device_that_is_bound_already_stays_with_its_override(scene: Scene) -> None:
    plan = bind(scene, A, driver="e1000e")
    assert (plan.steps, plan.refusals, plan.changes) == ((), (), ())


@pytest.mark.parametrize(
    ("fields", "usage", "refused"),
    [
        ({}, {}, []),
        ({}, {A: [MOUNTED]}, [(A, "mounted", "--allow-mounted")]),
        ({}, {A: [UP]}, [(A, "network", "--allow-network")]),
        ({}, {A: [replace(MOUNTED, detail="not mounted"), replace(UP, detail="operstate down")]}, []),
        ({}, {B: [MOUNTED]}, []),
        ({"vfs": ("0000:00:12.1",)}, {}, [(A, "vfs", None)]),
        ({"class_code": 0x060400}, {}, [(A, "bridge", None)]),
    ],
    ids=["free", "mounted", "up", "idle", "another's", "vfs", "bridge"],
)
def test_refusals_and_the_flags_that_lift_them(
    scene: Scene,
    fields: Mapping[str, object],
    usage: Mapping[str, Sequence[Usage]],
    refused: list[tuple[str, str, str | None]],
) -> None:
    scene = replace(changed(scene, A, **fields), usage=usage)
    assert rules(bind(scene, A)) == refused
    lifted = replace(scene, allowed=frozenset(rule for _, rule, flag in refused if flag is not None))
    assert rules(bind(lifted, A)) == [refusal for refusal in refused if refusal[2] is None]


def test_a_device_that_is_not_touched_is_not_refused(scene: Scene) -> None:
    assert bind(replace(scene, usage={A: [UP]}), A, driver="e1000e").refusals == ()


@pytest.mark.parametrize("era", Era)
@pytest.mark.parametrize(("driver", "is_host_driver"), [("e1000e", True), ("vfio-pci", False), (None, False)])
def test_a_host_driver_in_a_live_group(
    scene: Scene, era: Era, driver: str | None, is_host_driver: bool
) -> None:
    scene = held(changed(scene, A, driver="other"), era)
    plan = make_plan(scene, {A: DeviceState(driver, None)})
    is_bug = is_host_driver and era in (Era.DEFERRED_PUT, Era.NOTIFIER)
    assert rules(plan) == ([(A, "live-group", None)] if is_bug else [])


def test_a_group_that_stays_out_of_reach_is_warned_of(scene: Scene) -> None:
    (warning,) = bind(scene, B).warnings
    assert warning.startswith(f"group 1 is not viable while {A} is on e1000e")
    assert bind(scene, A, B).warnings == ()
    assert bind(scene, B, driver="uio_pci_generic").warnings == ()


def test_a_refusal_tells_the_flags(scene: Scene) -> None:
    both = replace(scene, usage={A: [MOUNTED, UP]})
    error = PlanRefusedError(bind(both, A).refusals)
    assert error.hint == "if you mean it, add --allow-mounted --allow-network"
    assert str(error) == (
        f"refused: {A}: its disk sda1 is mounted on /; {A}: its network interface eth0 is up"
    )
    assert PlanRefusedError(bind(scene, BRIDGE).refusals).hint == "no option lifts this"
