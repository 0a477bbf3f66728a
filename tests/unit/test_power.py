"""The power of devices: shown, judged by doctor, kept on by bind, and restored."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from tests.unit.conftest import Run
from vfiotool.binding.device_record import parse_state, state_document
from vfiotool.binding.operations import Binding
from vfiotool.binding.steps import steps_between
from vfiotool.errors import BindError
from vfiotool.host.attributes import device_path
from vfiotool.host.checks.devices import judge_power
from vfiotool.host.device_state import DeviceState, read_state
from vfiotool.host.doctor import Check, examine
from vfiotool.host.power import IDLE_D3, Power, read_power
from vfiotool.testing import FakeHost

NIC = "0000:00:12.0"
AWAKE = Power("D0", "on", "active", True, False)
SUSPENDED = Power("D3hot", "auto", "suspended", True, False)
STUCK_HOT = Power("D3hot", "on", "active", True, False)
STUCK_COLD = Power("D3cold", "on", "active", False, False)
FAILED = Power("D0", "auto", "error", None, None)
UNKNOWN = Power("error", "on", "active", None, None)
OLD = Power(None, "on", "active", True, False)


def add(host: FakeHost, driver: str = "e1000e", power_state: str = "D0") -> None:
    host.add_driver("vfio-pci")
    host.put(IDLE_D3, "N")
    host.add_device(
        NIC,
        vendor=0x8086,
        device=0x10D3,
        driver=driver,
        group=7,
        power_state=power_state,
        d3cold_allowed="1",
    )
    host.put(f"{device_path(NIC)}/power/runtime_status", "active")


@pytest.fixture
def machine(host: FakeHost) -> FakeHost:
    add(host)
    return host


@pytest.fixture
def binding(machine: FakeHost, state_dir: str) -> Binding:
    return Binding(machine=machine, state_dir=state_dir)


def policies(host: FakeHost) -> tuple[str, str]:
    folder = device_path(NIC)
    return host.tree.read(f"{folder}/power/control"), host.tree.read(f"{folder}/d3cold_allowed")


def test_the_power_of_a_device_is_read_from_sysfs(machine: FakeHost) -> None:
    assert read_power(machine.tree, [NIC]) == {NIC: AWAKE}
    for name, text in (
        ("power_state", "D3cold"),
        ("power/control", "auto"),
        ("power/runtime_status", "suspended"),
    ):
        machine.put(f"{device_path(NIC)}/{name}", text)
    machine.put(f"{device_path(NIC)}/d3cold_allowed", "0")
    machine.put(IDLE_D3, "Y")
    assert read_power(machine.tree, [NIC]) == {NIC: Power("D3cold", "auto", "suspended", False, True)}


def test_what_a_kernel_does_not_have_is_unknown(host: FakeHost) -> None:
    host.add_device(NIC)
    for name in ("power_state", "power/control"):
        host.remove(f"{device_path(NIC)}/{name}")
    (power,) = read_power(host.tree, [NIC]).values()
    assert (power, str(power), power.is_asleep) == (Power(None, None, None, None, None), "-", False)


def test_show_has_the_power_with_its_policies(machine: FakeHost, vfiotool: Run) -> None:
    machine.put(IDLE_D3, "Y")
    shown = " ".join(vfiotool("show", NIC).stdout.split())
    assert "power D0 (control on, active, D3cold allowed, kept awake by vfio-pci's disable_idle_d3)" in shown
    document = vfiotool("show", NIC, "--json").document
    assert document["power"] == {
        "state": "D0",
        "control": "on",
        "runtime_status": "active",
        "d3cold_allowed": True,
        "disable_idle_d3": True,
    }
    assert document["device"]["power_state"] == "D0"


@pytest.mark.parametrize(
    ("power", "held", "by_policy", "ok"),
    [
        (AWAKE, False, True, True),
        (SUSPENDED, False, True, True),
        (STUCK_HOT, False, True, False),
        (STUCK_HOT, True, True, True),
        (STUCK_HOT, False, False, True),
        (STUCK_COLD, False, True, False),
        (STUCK_COLD, True, False, False),
        (FAILED, False, True, False),
        (UNKNOWN, False, True, False),
        (OLD, False, False, True),
        (Power("D3cold", "auto", "suspended", True, False), False, True, True),
        (Power("unknown", "on", "active", None, None), False, True, True),
    ],
)
def test_doctor_tells_a_device_that_sleeps_from_one_that_does_not_wake(
    power: Power, held: bool, by_policy: bool, ok: bool
) -> None:
    verdict = judge_power({NIC: power}, held=[NIC] if held else [], by_policy=by_policy)
    assert verdict.ok is ok
    assert (str(power) in verdict.detail) == (power.is_asleep or not ok)
    if not ok:
        advised = "'vfiotool bind --power on 0000:00:12.0'" if by_policy else "disable_idle_d3=1"
        assert advised in (verdict.remedy or "")
        may_be_a_user = "unless a program" in verdict.detail
        assert may_be_a_user == (power.state == "D3hot")


def verdict(machine: FakeHost) -> Check:
    (found,) = [one for one in examine(machine.tree) if one.name == "power"]
    return found


def test_doctor_looks_at_the_devices_on_vfio_and_at_who_has_them_open(host: FakeHost) -> None:
    add(host, power_state="D3hot")
    assert verdict(host).ok is True, "it is on a host driver"
    host.set_driver(NIC, "vfio-pci")
    assert verdict(host).ok is False
    host.add_process(77, "qemu", {3: "/dev/vfio/7"})
    assert verdict(host).ok is True
    host.put(f"{device_path(NIC)}/power_state", "D3cold")
    assert verdict(host).ok is False, "no program can turn the power off and leave the device active"


def test_up_to_5_18_an_idle_device_sleeps_without_a_policy(old_host: FakeHost) -> None:
    add(old_host, driver="vfio-pci", power_state="D3hot")
    assert verdict(old_host).ok is True


def test_power_on_is_two_steps_that_are_recorded_and_restored(
    machine: FakeHost, binding: Binding, state_dir: str
) -> None:
    machine.put(f"{device_path(NIC)}/power/control", "auto")
    before = read_state(machine.tree, NIC)
    plan = binding.bind([NIC], awake=True)
    assert [str(step) for step in plan.steps][-2:] == [
        f"write '0' to /sys/bus/pci/devices/{NIC}/d3cold_allowed",
        f"write 'on' to /sys/bus/pci/devices/{NIC}/power/control",
    ]
    assert (policies(machine), plan.warnings) == (("on", "0"), ())
    record = json.loads(Path(state_dir, "journal", f"{NIC}.json").read_text())
    assert (record["power_control"], record["d3cold_allowed"]) == ("auto", 1)
    assert binding.bind([NIC], awake=True).steps == (), "they are on already"
    binding.restore([NIC])
    assert (policies(machine), read_state(machine.tree, NIC)) == (("auto", "1"), before)
    assert binding.recorded() == []


def test_a_device_that_is_bound_already_is_only_kept_awake(machine: FakeHost, binding: Binding) -> None:
    binding.bind([NIC])
    assert policies(machine) == ("auto", "1")
    plan = binding.bind([NIC], awake=True)
    assert [step.value for step in plan.steps] == ["0", "on"]
    assert plan.changes == ()
    binding.restore([NIC])
    assert policies(machine) == ("on", "1")


def test_a_policy_that_cannot_be_set_undoes_the_bind(machine: FakeHost, binding: Binding) -> None:
    before = read_state(machine.tree, NIC)
    machine.fail(f"{device_path(NIC)}/d3cold_allowed", errno.EPERM)
    with pytest.raises(BindError, match="all devices are as they were"):
        binding.bind([NIC], awake=True)
    assert read_state(machine.tree, NIC) == before
    assert binding.recorded() == []


def test_a_device_that_does_not_wake_is_named(machine: FakeHost, binding: Binding) -> None:
    machine.put(f"{device_path(NIC)}/power_state", "D3cold")
    (warning,) = binding.bind([NIC], awake=True).warnings
    assert warning.startswith(f"{NIC} is in D3cold (control on, active, D3cold not allowed), and not awake")


def test_a_device_that_sleeps_as_it_does_up_to_5_18_is_named_once(old_host: FakeHost, state_dir: str) -> None:
    add(old_host, power_state="D3hot")
    (warning,) = Binding(machine=old_host, state_dir=state_dir).bind([NIC], awake=True).warnings
    assert "this kernel's vfio-pci itself puts 0000:00:12.0 into D3hot" in warning


@pytest.mark.parametrize(("parameter", "warns"), [("N", True), ("Y", False)])
def test_up_to_5_18_only_the_parameter_keeps_a_device_awake(
    old_host: FakeHost, state_dir: str, parameter: str, warns: bool
) -> None:
    add(old_host)
    old_host.put(IDLE_D3, parameter)
    binding = Binding(machine=old_host, state_dir=state_dir, dry_run=True)
    assert (
        any("disable_idle_d3=1" in warning for warning in binding.bind([NIC], awake=True).warnings) is warns
    )
    assert binding.bind([NIC]).warnings == ()
    assert binding.bind([NIC], "e1000e", awake=True).warnings == ()


def test_a_kernel_without_the_policies_has_nothing_to_set(host: FakeHost, state_dir: str) -> None:
    add(host)
    for name in ("power/control", "d3cold_allowed"):
        host.remove(f"{device_path(NIC)}/{name}")
    steps = Binding(machine=host, state_dir=state_dir, dry_run=True).bind([NIC], awake=True).steps
    assert not any("power" in step.path or "d3cold" in step.path for step in steps)


@pytest.mark.parametrize(
    ("now", "wanted", "values"), [(1, 0, ["0"]), (0, 1, ["1"]), (0, 0, []), (1, None, []), (None, 0, [])]
)
def test_d3cold_is_written_if_it_differs(now: int | None, wanted: int | None, values: list[str]) -> None:
    state = DeviceState("vfio-pci", None)
    steps = steps_between(
        DeviceState("vfio-pci", None, d3cold_allowed=now),
        DeviceState("vfio-pci", None, d3cold_allowed=wanted),
        NIC,
    )
    assert [step.value for step in steps] == values
    assert parse_state(state_document(state)) == state


@pytest.mark.parametrize("value", [2, -1, True, "1", [0]])
def test_a_record_with_another_value_is_damaged(value: object) -> None:
    with pytest.raises(ValueError, match="is not a number up to 1"):
        parse_state({**state_document(DeviceState(None, None)), "d3cold_allowed": value})


def test_a_record_of_0_1_0_leaves_d3cold_as_it_is() -> None:
    document = state_document(DeviceState("e1000e", None, power_control="on"))
    assert "d3cold_allowed" not in document, "0.1.0 reads it too"
    assert parse_state(document).d3cold_allowed is None


def test_bind_takes_power_on_and_refuses_to_persist_it(machine: FakeHost, vfiotool: Run) -> None:
    result = vfiotool("bind", "--power", "on", "--persist", NIC)
    assert (result.status, "--persist does not keep --power" in result.stderr) == (2, True)
    assert vfiotool("bind", "--power", "off", NIC).status == 2
    lines = vfiotool("bind", "--dry-run", "--power", "on", NIC).stdout
    assert "d3cold_allowed" in lines
    assert vfiotool("bind", "--power", "on", NIC).status == 0
    assert policies(machine) == ("on", "0")
    assert vfiotool("restore", NIC).status == 0
    assert policies(machine) == ("on", "1")
