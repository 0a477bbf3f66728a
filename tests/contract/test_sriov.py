"""Create, bind and remove VFs, on the fake host and on the lab's kernels."""

from __future__ import annotations

import errno
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from tests.support.binding_bench import E1000E, EDU, Bench
from tests.support.interrupted_plans import is_killed as is_killed_at_moment
from tests.support.interrupted_plans import leftovers
from vfiotool.binding.operations import Binding
from vfiotool.binding.plan import Plan
from vfiotool.binding.sriov import ENABLE_SRIOV
from vfiotool.binding.steps import CLEAR
from vfiotool.errors import BindError, BlockedError, KernelError, UnsupportedError, VfioToolError
from vfiotool.host.attributes import DRIVERS, device_path
from vfiotool.host.device_state import DeviceState, read_states
from vfiotool.host.devices import PciDevice
from vfiotool.host.refusals import PlanRefusedError
from vfiotool.testing import FakeHost

PORT, PF = "0000:00:02.0", "0000:01:00.0"
VFS = tuple(f"0000:01:00.{number}" for number in range(1, 5))
NUMVFS, AUTOPROBE = (f"{device_path(PF)}/sriov_{name}" for name in ("numvfs", "drivers_autoprobe"))
NVME = f"{DRIVERS}/nvme"
VFIO = f"{DRIVERS}/vfio-pci"
KERNEL = tuple(int(number) for number in os.uname().release.split(".")[:2])

Run = Callable[[Binding], Plan]
Snapshot = tuple[list[PciDevice], dict[str, DeviceState], list[str]]


@pytest.fixture(autouse=True)
def _pf(bench: Bench) -> Iterator[None]:
    """Start with a PF on nvme without VFs, and leave it in that state."""
    host = bench.machine.machine
    if isinstance(host, FakeHost):
        host.add_device(PORT, class_code=0x060400, driver="pcieport", group=1)
        host.add_device(PF, vendor=0x1B36, device=0x0010, driver="nvme", bridge=PORT, group=12, totalvfs=4)
        host.put(ENABLE_SRIOV, "N")
    bench.machine.load_module("vfio-pci")
    yield
    bench.machine.failures.clear()
    binding = bench.binding()
    binding.recover()
    binding.restore(binding.recorded())
    bench.write(NUMVFS, "0")
    assert (count(bench), bench.machine.tree.read(AUTOPROBE)) == (0, "1")


def count(bench: Bench) -> int:
    """Return how many VFs exist, by their links."""
    return len([name for name in bench.machine.tree.names(device_path(PF)) if name.startswith("virtfn")])


def on_vfio(bench: Bench) -> list[str]:
    """Return the VFs that are bound to vfio-pci, by the driver's own links."""
    return [vf for vf in VFS if bench.machine.tree.exists(f"{VFIO}/{vf}")]


def snapshot(bench: Bench) -> Snapshot:
    """Return what the verb may change, and what is recorded."""
    wanted = [PF, *bench.device(PF).vfs]
    devices = [replace(one, power_state=None) for one in bench.devices(wanted)]
    return devices, read_states(bench.machine.tree, wanted), bench.binding().recorded()


def on_one_kernel(bench: Bench) -> None:
    """Skip a test on all kernels but one: its result does not depend on the kernel, and it is slow."""
    if not isinstance(bench.machine.machine, FakeHost) and KERNEL != (6, 12):
        pytest.skip("on the fake host and kernel 6.12 alone, for VFs take their time to go")


def written(bench: Bench) -> list[str]:
    """Return the names of the files that were written since the last call."""
    names = [path.removeprefix(f"{DRIVERS}/").rpartition("devices/")[2] for path in bench.machine.writes]
    bench.machine.writes.clear()
    return names


# The kernel


@pytest.mark.quick_on_fake
@pytest.mark.parametrize(
    ("text", "code"), [("5", errno.ERANGE), ("x", errno.EINVAL), ("-1", errno.EINVAL), ("4", errno.EBUSY)]
)
def test_errno_of_a_vf_count(bench: Bench, text: str, code: int) -> None:
    bench.write(NUMVFS, "1")
    with pytest.raises(KernelError) as failed:
        bench.write(NUMVFS, text)
    assert failed.value.errno == code
    bench.write(NUMVFS, "1")
    assert (bench.machine.tree.read(NUMVFS), count(bench)) == ("1", 1)


def test_vfs_are_added_and_removed_with_uevents_at_their_addresses(bench: Bench) -> None:
    events = bench.machine.events()
    bench.write(NUMVFS, "2")
    assert bench.device(PF).vfs == VFS[:2]
    assert {device.physfn for device in bench.devices(VFS[:2])} == {PF}
    assert len({device.iommu_group for device in bench.devices((PF, *VFS[:2]))}) == 3
    assert not events.missing({("add", vf) for vf in VFS[:2]}, 30)
    bench.write(NUMVFS, "0")
    assert not events.missing({("remove", vf) for vf in VFS[:2]}, 30)
    assert not any(bench.machine.tree.exists(device_path(vf)) for vf in VFS)
    events.close()


@pytest.mark.quick_on_fake
@pytest.mark.parametrize("driver", [None, "vfio-pci"])
def test_driver_without_sriov_creates_no_vfs(bench: Bench, driver: str | None) -> None:
    if driver is None:
        bench.binding().unbind([PF])
    else:
        bench.binding().bind([PF], driver)
    with pytest.raises(KernelError) as failed:
        bench.write(NUMVFS, "2")
    assert failed.value.errno == errno.ENOENT


def test_pf_with_vfs_cannot_be_bound_to_vfio_pci(bench: Bench) -> None:
    bench.write(NUMVFS, "1")
    bench.write(f"{NVME}/unbind", PF)
    assert count(bench) == 1
    bench.write(f"{device_path(PF)}/driver_override", "vfio-pci")
    with pytest.raises(KernelError) as failed:
        bench.write(f"{VFIO}/bind", PF)
    assert failed.value.errno == (errno.EBUSY if bench.era.has_dma_owner else errno.ENODEV)
    bench.write(f"{device_path(PF)}/driver_override", CLEAR)
    bench.write(f"{NVME}/bind", PF)


@pytest.fixture
def _enabled(bench: Bench) -> Iterator[None]:
    put(bench, "Y")
    yield
    put(bench, "N")


def put(bench: Bench, value: str) -> None:
    """Set a module parameter, which binding does not write."""
    with open(bench.machine.tree.path(ENABLE_SRIOV), "w", encoding="ascii") as file:
        file.write(value)


@pytest.mark.quick_on_fake
@pytest.mark.usefixtures("_enabled")
def test_pf_on_vfio_pci_binds_its_vfs_itself_and_removes_them_on_unbind(bench: Bench) -> None:
    bench.binding().bind([PF])
    written(bench)
    plan = bench.binding().sriov(PF, 2, bind=True)
    assert written(bench) == [f"{PF}/sriov_numvfs"]
    assert on_vfio(bench) == [*VFS[:2]]
    assert [(one.address, one.before, one.after) for one in plan.changes] == [
        (vf, None, "vfio-pci") for vf in VFS[:2]
    ]
    bench.binding(allowed=["vfs"]).restore([PF])
    assert written(bench)[:3] == ["vfio-pci/unbind"] * 2 + [f"{PF}/driver_override"]
    assert (bench.device(PF).driver, count(bench), bench.binding().recorded()) == ("nvme", 0, [])


# The verb


def test_vf_count_is_set_changed_and_reset(bench: Bench) -> None:
    before = snapshot(bench)
    assert bench.binding().sriov(PF, 2).after.keys() == {PF, *VFS[:2]}
    assert bench.device(PF).vfs == VFS[:2]
    assert written(bench) == [f"{PF}/sriov_numvfs"]
    bench.binding().sriov(PF, 4)
    assert (bench.device(PF).vfs, written(bench)) == (VFS, [f"{PF}/sriov_numvfs"] * 2)
    assert bench.binding().sriov(PF, 4).steps == ()
    assert bench.binding().recorded() == [PF]
    bench.binding().sriov(PF, 0)
    assert snapshot(bench) == before
    assert leftovers(bench) == []


def test_vfs_are_bound_before_host_drivers_may_probe_them(bench: Bench) -> None:
    plan = bench.binding().sriov(PF, 2, bind=True)
    assert written(bench) == [
        f"{PF}/sriov_drivers_autoprobe",
        f"{PF}/sriov_numvfs",
        *(file for vf in VFS[:2] for file in (f"{vf}/driver_override", "vfio-pci/bind")),
        f"{PF}/sriov_drivers_autoprobe",
    ]
    assert on_vfio(bench) == [*VFS[:2]]
    assert bench.machine.tree.read(AUTOPROBE) == "1"
    assert plan.warnings == ()
    groups = [device.iommu_group for device in bench.devices(VFS[:2])]
    assert all(bench.machine.tree.exists(f"/dev/vfio/{group}") for group in groups)
    assert bench.binding().recorded() == [PF], "what becomes of VFs hangs on their PF"
    bench.binding().restore([PF])
    assert (count(bench), bench.binding().recorded()) == (0, [])


@pytest.mark.quick_on_fake
def test_existing_vfs_are_only_bound(bench: Bench) -> None:
    on_one_kernel(bench)
    bench.binding().sriov(PF, 2)
    written(bench)
    bench.binding().sriov(PF, 2, bind=True)
    assert f"{PF}/sriov_numvfs" not in written(bench)
    assert on_vfio(bench) == [*VFS[:2]]
    assert bench.binding().recorded() == [PF, *VFS[:2]]
    bench.binding().restore(bench.binding().recorded())
    assert (count(bench), bench.binding().recorded()) == (0, [])


@pytest.mark.quick_on_fake
def test_restore_brings_back_the_former_vf_count(bench: Bench) -> None:
    on_one_kernel(bench)
    bench.write(NUMVFS, "1")
    bench.binding().sriov(PF, 3, bind=True)
    bench.binding().restore([PF])
    assert (count(bench), on_vfio(bench), bench.binding().recorded()) == (1, [], [])


@pytest.mark.quick_on_fake
def test_vf_that_is_held_is_not_removed(bench: Bench) -> None:
    runs: list[Run] = [
        lambda binding: binding.sriov(PF, 1),
        lambda binding: binding.sriov(PF, 0),
        lambda binding: binding.restore([PF]),
    ]
    bench.binding().sriov(PF, 2, bind=True)
    before = snapshot(bench)
    written(bench)
    with bench.hold(VFS[1]) as pid:
        for run in runs:
            with pytest.raises(PlanRefusedError, match=rf"{VFS[1]}: .*pid {pid} \(") as refused:
                run(bench.binding())
            assert [one.flag for one in refused.value.refusals] == ["--allow-held"]
        assert written(bench) == []
        assert snapshot(bench) == before


@pytest.mark.quick_on_fake
def test_removal_that_a_held_vf_blocked_is_finished_by_recover(bench: Bench) -> None:
    before = snapshot(bench)
    bench.binding().sriov(PF, 2, bind=True)
    with bench.hold(VFS[1]) as pid:
        with pytest.raises(BlockedError) as blocked:
            bench.binding(timeout=1.0, allowed=["held"]).sriov(PF, 0)
        assert any(f"pid {pid} " in holder for holder in blocked.value.holders)
        assert (count(bench), on_vfio(bench), bench.device(VFS[1]).blocked) == (2, [VFS[0]], True)
        with pytest.raises(BlockedError, match="is pending"):
            bench.binding(timeout=1.0).sriov(PF, 0)
    bench.binding().recover()
    assert leftovers(bench) == []
    assert count(bench) == 0
    binding = bench.binding()
    binding.restore(binding.recorded())
    assert snapshot(bench) == before


@pytest.mark.quick_on_fake
def test_held_vf_gets_its_driver_back_after_a_blocked_count_change(bench: Bench) -> None:
    on_one_kernel(bench)
    bench.binding().sriov(PF, 2, bind=True)
    before = snapshot(bench)
    with bench.hold(VFS[1]), pytest.raises(BlockedError):
        bench.binding(timeout=1.0, allowed=["held"]).sriov(PF, 3, bind=True)
    bench.binding().recover()
    assert (snapshot(bench), leftovers(bench)) == (before, [])


def test_impossible_vf_count_is_refused_before_any_write(bench: Bench) -> None:
    with pytest.raises(UnsupportedError, match=f"{EDU} can have no VFs"):
        bench.binding().sriov(EDU, 1)
    with pytest.raises(UnsupportedError, match=f"{E1000E} can have no VFs"):
        bench.binding().sriov(E1000E, 0)
    with pytest.raises(PlanRefusedError, match="it can have at most 4 VFs, not 65535"):
        bench.binding().sriov(PF, 65535)
    assert written(bench) == []
    bench.binding().unbind([PF])
    with pytest.raises(PlanRefusedError, match="it has no driver"):
        bench.binding().sriov(PF, 2)
    bench.binding().bind([PF])
    with pytest.raises(PlanRefusedError, match="module parameter enable_sriov"):
        bench.binding().sriov(PF, 2)


def test_dry_run_writes_nothing(bench: Bench) -> None:
    plan = bench.binding(dry_run=True).sriov(PF, 4, bind=True)
    assert len(plan.steps) == 3 + 2 * 4
    assert [change.after for change in plan.changes] == ["vfio-pci"] * 4
    assert (count(bench), bench.machine.writes) == (0, [])


# Failures and kills at any step


@dataclass(frozen=True)
class Scenario:
    """An operation to disturb; ``prepare`` runs before it, undisturbed."""

    name: str
    run: Run
    prepare: Run | None = None


MAKE = Scenario("make and bind", lambda binding: binding.sriov(PF, 1, bind=True))
CHANGE = Scenario(
    "change and bind",
    lambda binding: binding.sriov(PF, 2, bind=True),
    lambda binding: binding.sriov(PF, 1, bind=True),
)
SCENARIOS = [
    MAKE,
    CHANGE,
    Scenario("make", lambda binding: binding.sriov(PF, 2)),
    Scenario("change", lambda binding: binding.sriov(PF, 3), CHANGE.run),
    Scenario("remove", lambda binding: binding.sriov(PF, 0), CHANGE.run),
    Scenario("restore", lambda binding: binding.restore([PF]), CHANGE.run),
]
in_each_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)


def prepared(bench: Bench, scenario: Scenario) -> Snapshot:
    if scenario.prepare is not None:
        scenario.prepare(bench.binding())
    return snapshot(bench)


def skip_where_slow(bench: Bench, scenario: Scenario) -> None:
    """A kernel waits for a second whenever it removes VFs: see ``sriov_disable()``."""
    if scenario is CHANGE:
        on_one_kernel(bench)
    elif scenario is not MAKE and not isinstance(bench.machine.machine, FakeHost):
        pytest.skip("on the fake host alone, for VFs take their time to go")


@pytest.mark.quick_on_fake
@in_each_scenario
def test_failed_write_rolls_back_all_vfs(bench: Bench, scenario: Scenario) -> None:
    skip_where_slow(bench, scenario)
    before = prepared(bench, scenario)
    steps = scenario.run(bench.binding(dry_run=True)).steps
    assert steps
    for number, step in enumerate(steps):
        bench.machine.fail_once(number, errno.ENOMEM)
        with pytest.raises(BindError, match="all devices are as they were before") as failed:
            scenario.run(bench.binding())
        assert failed.value.step == str(step)
        assert snapshot(bench) == before, step
        assert leftovers(bench) == []


def is_killed_at_write(bench: Bench, run: Run, number: int) -> bool:
    """Run an operation in a process that is killed before its n-th write; return True if it got that far."""
    pid = os.fork()
    if pid == 0:
        writes = itertools.count()
        bench.machine.on_write = lambda _: (
            os.kill(os.getpid(), signal.SIGKILL) if next(writes) == number else None
        )
        status = 1
        try:
            run(bench.binding())
            status = 0
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.quick_on_fake
@in_each_scenario
def test_kill_at_any_step_is_recovered(bench: Bench, scenario: Scenario) -> None:
    """On the fake at each moment that leaves a trace; on kernels before each write."""
    skip_where_slow(bench, scenario)
    is_killed = is_killed_at_moment if isinstance(bench.machine.machine, FakeHost) else is_killed_at_write
    before = prepared(bench, scenario)
    steps = len(scenario.run(bench.binding(dry_run=True)).steps)
    moments = 0
    while is_killed(bench, scenario.run, moments):
        moments += 1
        bench.binding().recover()
        assert leftovers(bench) == [], moments
        if snapshot(bench) != before:  # all was done
            break
    assert moments >= steps
    after = snapshot(bench)
    if scenario.prepare is None and bench.binding().recorded():
        bench.binding().restore([PF])
        assert snapshot(bench) == before
        scenario.run(bench.binding())
        assert snapshot(bench) == after


@pytest.mark.quick_on_fake
def test_next_command_on_a_vf_recovers_its_pf(bench: Bench) -> None:
    assert is_killed_at_write(bench, lambda binding: binding.sriov(PF, 2, bind=True), 5)
    assert (count(bench), bench.machine.tree.read(AUTOPROBE)) == (2, "0")
    with pytest.raises(VfioToolError, match=f"no PCI device at {VFS[0]}"):
        bench.binding().bind([VFS[0]])
    assert (count(bench), bench.machine.tree.read(AUTOPROBE)) == (0, "1")
