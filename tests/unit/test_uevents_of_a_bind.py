"""Uevents that do not come undo no bind: the driver of the device is read back."""

from __future__ import annotations

import pytest

from vfiotool.binding.operations import Binding
from vfiotool.testing import FakeHost
from vfiotool.testing.fake_host import FakeEvents

NIC = "0000:00:12.0"


@pytest.fixture
def machine(host: FakeHost) -> FakeHost:
    host.add_device(NIC, driver="e1000e", group=1)
    host.add_driver("vfio-pci")
    return host


def test_a_late_udevd_is_waited_for_once(machine: FakeHost, state_dir: str) -> None:
    machine.udevd_is_late = True
    plan = Binding(machine=machine, state_dir=state_dir).bind([NIC])
    assert machine.driver(NIC) == "vfio-pci"
    (warning,) = plan.warnings
    assert warning.startswith(f"udevd did not report 'unbind' of {NIC} within")


def test_a_udevd_out_of_sight_is_not_waited_for(machine: FakeHost, state_dir: str) -> None:
    machine.udevd_is_out_of_sight = "udevd is in another network namespace"
    plan = Binding(machine=machine, state_dir=state_dir).bind([NIC])
    assert machine.driver(NIC) == "vfio-pci"
    (warning,) = plan.warnings
    assert warning.startswith("udevd is in another network namespace, so ")


def test_a_uevent_that_the_kernel_does_not_send_here_undoes_nothing(
    machine: FakeHost, state_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEvents, "missing", lambda _, expected, timeout: frozenset(expected))
    plan = Binding(machine=machine, state_dir=state_dir).bind([NIC])
    assert machine.driver(NIC) == "vfio-pci"
    assert [warning.partition(" uevent ")[2].partition(" that")[0] for warning in plan.warnings] == [
        f"'unbind' of {NIC}",
        f"'bind' of {NIC}",
    ]
    assert Binding(machine=machine, state_dir=state_dir).restore([NIC]).warnings != ()
    assert machine.driver(NIC) == "e1000e"


def test_all_is_well_without_a_warning(machine: FakeHost, state_dir: str) -> None:
    assert Binding(machine=machine, state_dir=state_dir).bind([NIC]).warnings == ()
