"""Binding, on the fake host and on the lab's kernels: the fake must behave as the kernels do."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from dataclasses import replace

import pytest

from tests.support.binding_bench import BRIDGE, E1000E, EDU, NVME, SIBLINGS, TOUCHED, Bench
from vfiotool.binding.steps import CLEAR
from vfiotool.errors import BindError, BlockedError, KernelError, VfioToolError
from vfiotool.host.attributes import DRIVERS, device_path
from vfiotool.host.device_state import read_state
from vfiotool.host.devices import PciDevice
from vfiotool.host.refusals import PlanRefusedError

OVERRIDE = f"{device_path(EDU)}/driver_override"


def settled(devices: Iterable[PciDevice]) -> list[PciDevice]:
    """A device without power management is in an unknown power state until its first bind, then in D0."""
    return [replace(one, power_state="D0") if one.power_state == "unknown" else one for one in devices]


def test_devices_start_on_their_own_drivers(bench: Bench) -> None:
    drivers = [device.driver for device in bench.devices(TOUCHED)]
    assert drivers == [None, "e1000e", "nvme", None, "e1000", "e1000"]


@pytest.mark.quick_on_fake
@pytest.mark.parametrize("wanted", [(EDU,), (E1000E,), (NVME,), SIBLINGS], ids=lambda wanted: wanted[0])
def test_restore_brings_back_exactly_the_state_before_bind(bench: Bench, wanted: tuple[str, ...]) -> None:
    before, group_before = settled(bench.devices(wanted)), bench.group_of(wanted[0])
    binding = bench.binding()

    binding.bind(wanted)
    assert [(one.driver, one.driver_override) for one in bench.devices(wanted)] == [
        ("vfio-pci", "vfio-pci") for _ in wanted
    ]
    group = bench.group_of(wanted[0])
    assert (group.viable, group.node) == (True, f"/dev/vfio/{group.id}")
    assert binding.recorded() == sorted(wanted)

    binding.restore(wanted)
    assert settled(bench.devices(wanted)) == before
    assert bench.group_of(wanted[0]) == group_before
    assert binding.recorded() == []


def test_unbind_leaves_no_driver_and_restore_brings_it_back(bench: Bench) -> None:
    before = bench.device(E1000E)
    bench.binding().unbind([E1000E])
    assert (bench.device(E1000E).driver, bench.device(E1000E).driver_override) == (None, None)
    bench.binding().restore([E1000E])
    assert bench.device(E1000E) == before


@pytest.mark.parametrize(
    ("written", "override"),
    [
        ("", "pci-stub"),
        ("\n", None),
        ("\0", None),
        (" ", " "),
        ("vfio-pci\n", "vfio-pci"),
        ("vfio-pci\0more", "vfio-pci"),
    ],
)
def test_override_after_a_write(bench: Bench, written: str, override: str | None) -> None:
    bench.write(OVERRIDE, "pci-stub")
    bench.write(OVERRIDE, written)
    assert read_state(bench.machine.tree, EDU).driver_override == override


def test_cleared_override_reads_as_a_null_pointer(bench: Bench) -> None:
    bench.write(OVERRIDE, "pci-stub")
    bench.write(OVERRIDE, CLEAR)
    assert bench.machine.tree.read(OVERRIDE) == "(null)"


@pytest.mark.parametrize("override", ["no-such-driver", "virtio-pci"], ids=["unknown", "probe fails"])
def test_drivers_probe_succeeds_with_no_driver_bound(bench: Bench, override: str) -> None:
    bench.write(OVERRIDE, override)
    bench.write("/sys/bus/pci/drivers_probe", EDU)
    assert bench.device(EDU).driver is None


def test_drivers_probe_binds_the_driver_of_the_override(bench: Bench) -> None:
    bench.machine.load_module("vfio-pci")
    bench.write(OVERRIDE, "vfio-pci")
    bench.write("/sys/bus/pci/drivers_probe", EDU)
    assert bench.device(EDU).driver == "vfio-pci"


@pytest.mark.parametrize(
    ("address", "override", "driver", "code"),
    [
        pytest.param("ffff:00:00.0", None, "vfio-pci", errno.ENODEV, id="no device"),
        pytest.param(EDU, None, "vfio-pci", errno.ENODEV, id="no match"),
        pytest.param(EDU, "pci-stub", "vfio-pci", errno.ENODEV, id="override of another"),
        pytest.param(EDU, "virtio-pci", "virtio-pci", errno.ENODEV, id="probe fails"),
        pytest.param(E1000E, None, "e1000e", errno.EBUSY, id="bound already"),
        pytest.param(BRIDGE, "vfio-pci", "vfio-pci", errno.EINVAL, id="bridge"),
    ],
)
def test_errno_of_a_bind(bench: Bench, address: str, override: str | None, driver: str, code: int) -> None:
    bench.machine.load_module(driver)
    if override is not None:
        bench.write(f"{device_path(address)}/driver_override", override)
    with pytest.raises(KernelError) as failed:
        bench.write(f"{DRIVERS}/{driver}/bind", address)
    # Up to 5.13 bind_store() has one errno for all causes.
    assert failed.value.errno == (code if bench.era.has_dma_owner else errno.ENODEV)


@pytest.mark.parametrize(
    "address", ["ffff:00:00.0", EDU, E1000E], ids=["no device", "no driver", "another's"]
)
def test_driver_unbinds_only_its_own_devices(bench: Bench, address: str) -> None:
    with pytest.raises(KernelError) as failed:
        bench.write(f"{DRIVERS}/nvme/unbind", address)
    assert failed.value.errno == errno.ENODEV


def test_failure_of_one_device_rolls_back_the_others(bench: Bench) -> None:
    before = bench.states()
    bench.machine.failures[f"{DRIVERS}/nvme/unbind"] = errno.EIO
    with pytest.raises(BindError, match="all devices are as they were before") as failed:
        bench.binding().bind([E1000E, NVME])
    assert failed.value.step == f"write '{NVME}' to {DRIVERS}/nvme/unbind"
    assert f"{DRIVERS}/vfio-pci/bind" in bench.machine.writes
    assert bench.states() == before
    assert bench.binding().recorded() == []


def test_device_that_the_new_driver_does_not_serve_is_rolled_back(bench: Bench) -> None:
    before = bench.states()
    with pytest.raises(BindError) as failed:
        bench.binding(allowed=["ids"]).bind([NVME], "virtio-pci")
    assert isinstance(failed.value.__cause__, KernelError)
    assert failed.value.__cause__.errno == errno.ENODEV
    assert failed.value.hint.startswith("driver virtio-pci does not serve this device")
    assert bench.states() == before
    assert bench.binding().recorded() == []


def test_dry_run_writes_nothing(bench: Bench) -> None:
    plan = bench.binding(dry_run=True).bind([E1000E])
    assert [change.after for change in plan.changes] == ["vfio-pci"]
    assert plan.steps
    assert bench.machine.writes == []
    assert not os.path.exists(bench.state_dir)


@pytest.mark.quick_on_fake
def test_second_bind_keeps_the_first_record(bench: Bench) -> None:
    before = bench.device(NVME)
    bench.binding().bind([NVME])
    bench.binding().bind([NVME], "pci-stub")
    assert bench.device(NVME).driver == "pci-stub"
    bench.binding().restore([NVME])
    assert bench.device(NVME) == before


def test_bind_to_the_current_driver_writes_nothing(bench: Bench) -> None:
    plan = bench.binding().bind([E1000E], "e1000e")
    assert (plan.steps, bench.machine.writes, bench.binding().recorded()) == ((), [], [])


def test_restore_without_a_record_is_an_error(bench: Bench) -> None:
    with pytest.raises(VfioToolError, match=f"nothing is recorded of {EDU}"):
        bench.binding().restore([EDU])
    assert bench.machine.writes == []


def test_unknown_driver_is_an_error(bench: Bench) -> None:
    before = bench.states()
    with pytest.raises(VfioToolError, match="no-such-driver"):
        bench.binding().bind([E1000E], "no-such-driver")
    assert bench.machine.writes == []
    assert bench.states() == before
    assert bench.binding().recorded() == []


def test_bridge_is_refused(bench: Bench) -> None:
    with pytest.raises(PlanRefusedError) as refused:
        bench.binding().bind([*SIBLINGS, BRIDGE])
    assert [(reason.address, reason.rule) for reason in refused.value.refusals] == [(BRIDGE, "bridge")]
    assert bench.machine.writes == []


def test_sibling_on_a_host_driver_makes_the_group_not_viable(bench: Bench) -> None:
    one, other = SIBLINGS
    plan = bench.binding().bind([one])
    group = bench.group_of(one)
    assert [(blocker.address, blocker.driver) for blocker in group.blockers] == [(other, "e1000")]
    assert not group.viable
    assert len(plan.warnings) == 1
    bench.binding().unbind([other])
    assert bench.group_of(one).viable


def test_group_members_leave_out_bridges(bench: Bench) -> None:
    assert bench.binding().group_members([SIBLINGS[0]]) == list(SIBLINGS)


def test_blocked_unbind_names_its_holder_and_completes_after_its_release(bench: Bench) -> None:
    wanted = [NVME, E1000E]
    before = bench.devices(wanted)
    bench.binding().bind(wanted)
    events = bench.machine.events()
    with bench.hold(E1000E) as pid:
        with pytest.raises(BlockedError) as blocked:
            bench.binding(timeout=1.0, allowed=["held"]).unbind(wanted)
        assert any(f"pid {pid} " in holder for holder in blocked.value.holders)
        assert bench.device(NVME).driver == "vfio-pci"
        pending = bench.device(E1000E)
        assert (pending.driver, pending.blocked) == (None, True)
        assert pid in [holder.pid for holder in bench.group_of(E1000E).holders]
        with pytest.raises(
            BlockedError, match=f"a change of {E1000E} is pending: held by pid {pid} "
        ) as later:
            bench.binding().restore(wanted)
        if bench.machine.tree.is_live:
            assert re.search(
                r"the write waits for \d+ s in \w+\(\), called by .*vfio_pci_remove\(\)", str(later.value)
            )
        assert bench.binding().recorded() == wanted[::-1]
    assert not events.missing({("unbind", E1000E)}, 30)
    assert not bench.device(E1000E).blocked
    bench.binding().restore(wanted)
    assert bench.devices(wanted) == before
    events.close()


@pytest.mark.quick_on_fake
def test_host_driver_is_kept_out_of_a_group_in_use(bench: Bench) -> None:
    held, other = SIBLINGS
    bench.binding().bind(SIBLINGS)
    with bench.hold(held):
        if bench.era.has_dma_owner:
            with pytest.raises(BindError) as failed:
                bench.binding(allowed=["held"]).restore([other])
            assert isinstance(failed.value.__cause__, KernelError)
            assert failed.value.__cause__.errno == errno.EBUSY
        else:  # a kernel BUG would crash the machine
            with pytest.raises(PlanRefusedError) as refused:
                bench.binding().restore([other])
            assert [reason.rule for reason in refused.value.refusals] == ["live-group"]
        assert bench.device(other).driver == "vfio-pci"
    bench.binding().restore(SIBLINGS)
    assert [device.driver for device in bench.devices(SIBLINGS)] == ["e1000", "e1000"]
