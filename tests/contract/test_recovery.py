"""A process that is killed, or fails, at any step leaves nothing that recovery does not put right."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.binding_bench import E1000E, EDU, NVME, SIBLINGS, TOUCHED, Bench
from tests.support.interrupted_plans import Run, is_killed, leftovers
from vfiotool.binding.operations import Binding
from vfiotool.binding.plan import Plan
from vfiotool.binding.steps import LoadModule, Step
from vfiotool.cli.signals import exit_on_signals
from vfiotool.errors import BindError, BlockedError, VfioToolError
from vfiotool.host.attributes import DRIVERS
from vfiotool.host.device_state import DeviceState
from vfiotool.host.devices import PciDevice
from vfiotool.host.pending_unbinds import pending_writer
from vfiotool.testing import FakeHost

PAIR = (NVME, E1000E)
MIXED = (E1000E, EDU)  # with and without a driver, and quick to probe
# The errnos of the kernel's functions behind each file (drivers/base/bus.c, drivers/pci/pci-sysfs.c).
ERRNOS = {
    "driver_override": (errno.EINVAL, errno.ENOMEM),
    "unbind": (errno.ENODEV, errno.EPERM),
    "bind": (errno.ENODEV, errno.EBUSY, errno.EINVAL, errno.ENOMEM),
    "control": (errno.EINVAL, errno.EIO),
}

Snapshot = tuple[list[PciDevice], dict[str, DeviceState], list[str]]


@dataclass(frozen=True)
class Scenario:
    """An operation to disturb; ``prepare`` runs before it, undisturbed."""

    name: str
    run: Run
    prepare: Run | None = None


SCENARIOS = [
    Scenario("bind one without a driver", lambda binding: binding.bind([EDU])),
    Scenario("bind two", lambda binding: binding.bind(MIXED)),
    Scenario("bind a group", lambda binding: binding.bind(SIBLINGS)),
    Scenario("bind to a stub", lambda binding: binding.bind([EDU], "pci-stub")),
    Scenario("unbind", lambda binding: binding.unbind([E1000E])),
    Scenario(
        "bind what another driver has",
        lambda binding: binding.bind([EDU]),
        lambda binding: binding.bind([EDU], "pci-stub"),
    ),
    Scenario("restore two", lambda binding: binding.restore(MIXED), lambda binding: binding.bind(MIXED)),
    Scenario(
        "restore to no driver",
        lambda binding: binding.restore([EDU]),
        lambda binding: binding.bind([EDU], "pci-stub"),
    ),
]
in_each_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)


@pytest.fixture(autouse=True)
def _loaded(bench: Bench) -> None:
    """Load the modules first: they stay loaded, and recovery does not unload them."""
    for driver in ("vfio-pci", "pci-stub"):
        bench.machine.load_module(driver)


def snapshot(bench: Bench) -> Snapshot:
    """Return all that binding may change, and what is recorded."""
    devices = bench.devices(TOUCHED)
    woken = [replace(one, power_state="D0") if one.power_state == "unknown" else one for one in devices]
    return woken, bench.states(), bench.binding().recorded()


def prepared(bench: Bench, scenario: Scenario) -> Snapshot:
    if scenario.prepare is not None:
        scenario.prepare(bench.binding())
    return snapshot(bench)


@pytest.mark.quick_on_fake
@in_each_scenario
def test_kill_at_any_moment_is_recovered(bench: Bench, scenario: Scenario) -> None:
    """A transaction that was cut off is undone; if all its steps were done, it is finished."""
    before = prepared(bench, scenario)
    plan = scenario.run(bench.binding(dry_run=True))
    finished = 0
    for moment in itertools.count():
        if not is_killed(bench, scenario.run, moment):
            break
        bench.binding().recover()
        assert leftovers(bench) == [], moment
        if snapshot(bench) == before:
            assert not finished, moment
            continue
        finished += 1
        assert drivers(bench, plan) == wanted(plan), moment
        bench.binding().restore(bench.binding().recorded())
        assert prepared(bench, scenario) == before
    assert moment - finished >= 2 * len(plan.steps)
    assert drivers(bench, plan) == wanted(plan)
    assert leftovers(bench) == []


def drivers(bench: Bench, plan: Plan) -> dict[str, str | None]:
    return {device.address: device.driver for device in bench.devices(list(plan.after))}


def wanted(plan: Plan) -> dict[str, str | None]:
    return {address: state.driver for address, state in plan.after.items()}


def errnos(bench: Bench, step: Step) -> tuple[int, ...]:
    """Return all errnos for the fake; a single one for a kernel, which never sees the write that fails."""
    known = ERRNOS[os.path.basename(step.path)]
    return known if isinstance(bench.machine.machine, FakeHost) else known[-1:]


@pytest.mark.quick_on_fake
@in_each_scenario
def test_failed_write_rolls_back_all_devices(bench: Bench, scenario: Scenario) -> None:
    if not isinstance(bench.machine.machine, FakeHost) and not scenario.name.endswith("two"):
        pytest.skip("no kernel sees a write that is made to fail: two plans show what it does then")
    before = prepared(bench, scenario)
    steps = scenario.run(bench.binding(dry_run=True)).steps
    for number, step in enumerate(steps):
        for code in errnos(bench, step):
            bench.machine.fail_once(number, code)
            with pytest.raises(BindError, match="all devices are as they were before") as failed:
                scenario.run(bench.binding())
            assert failed.value.step == str(step)
            assert snapshot(bench) == before, (step, code)
            assert leftovers(bench) == []


def test_failed_rollback_is_recovered_later(bench: Bench) -> None:
    before = snapshot(bench)
    bench.machine.failures |= {
        f"{DRIVERS}/vfio-pci/bind": errno.EIO,
        f"{DRIVERS}/nvme/bind": errno.ENOMEM,
    }
    with pytest.raises(BindError, match=f"{NVME} could not be rolled back"):
        bench.binding().bind([NVME])
    assert bench.device(NVME).driver is None
    assert bench.binding().recorded() == [NVME]
    with pytest.raises(BindError):
        bench.binding().recover()
    bench.machine.failures.clear()
    recovered = bench.binding().recover()
    assert [(change.address, change.before, change.after) for change in recovered.changes] == [
        (NVME, None, "nvme")
    ]
    assert snapshot(bench) == before
    assert leftovers(bench) == []


def killed_halfway(bench: Bench) -> None:
    """Bind two devices in a process that is killed once the first is bound."""
    bench.machine.writes.clear()
    for moment in itertools.count():
        assert is_killed(bench, lambda binding: binding.bind(PAIR), moment)
        states = bench.states()
        if states[NVME].driver == "vfio-pci":
            return
        bench.binding().recover()


@pytest.mark.quick_on_fake
@pytest.mark.parametrize(
    ("run", "after"),
    [
        (lambda binding: binding.bind([E1000E]), ("nvme", "vfio-pci")),
        (lambda binding: binding.unbind([NVME]), (None, "e1000e")),
        (lambda binding: binding.restore([NVME]), ("nvme", "e1000e")),
    ],
    ids=["bind", "unbind", "restore"],
)
def test_next_command_recovers_first(bench: Bench, run: Run, after: tuple[str | None, str | None]) -> None:
    before = snapshot(bench)
    killed_halfway(bench)
    assert bench.binding(dry_run=True).recover().steps
    run(bench.binding())
    assert (bench.device(NVME).driver, bench.device(E1000E).driver) == after
    assert leftovers(bench) == []
    bench.binding().restore(bench.binding().recorded())
    assert snapshot(bench) == before


@pytest.mark.quick_on_fake
def test_full_state_folder_changes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(bench)
    for moment in itertools.count():
        calls = itertools.count()

        def sync(fd: int, moment: int = moment, calls: Any = calls) -> None:
            if next(calls) == moment:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", sync)
            try:
                bench.binding().bind(PAIR)
            except VfioToolError as error:
                assert "No space left" in str(error)  # noqa: PT017 - until it no longer fails
            else:
                break
        bench.binding().recover()
        bench.binding().restore(bench.binding().recorded())
        assert snapshot(bench) == before, moment
    assert moment > len(PAIR) * 3
    bench.binding().restore(PAIR)


def await_pending(bench: Bench, address: str) -> None:
    deadline = time.monotonic() + 30
    while not pending_writer(bench.machine.tree, bench.state_dir, address):
        assert time.monotonic() < deadline
        time.sleep(0.01)  # no event announces a note


def await_blocked(bench: Bench, address: str) -> None:
    """Wait until the kernel has the write that was noted: a process killed before that has not written."""
    await_pending(bench, address)
    writer = pending_writer(bench.machine.tree, bench.state_dir, address)
    deadline = time.monotonic() + 30
    while "vfio_" not in Path(f"/proc/{writer}/stack").read_text("ascii"):
        assert time.monotonic() < deadline
        time.sleep(0.01)  # no event announces a task that waits in the kernel


def test_kill_while_a_holder_blocks_the_unbind_is_recovered(bench: Bench) -> None:
    if isinstance(bench.machine.machine, FakeHost):
        pytest.skip("nothing waits on the fake")
    bench.binding().bind(PAIR)
    before = snapshot(bench)
    with bench.hold(E1000E) as holder:
        pid = os.fork()
        if pid == 0:
            try:
                bench.binding(allowed=["held"]).unbind(PAIR)
            finally:
                os._exit(0)
        await_blocked(bench, E1000E)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert bench.device(E1000E).blocked
        with pytest.raises(BlockedError) as blocked:
            bench.binding(timeout=0.2).recover()
        assert any(f"pid {holder} " in line for line in blocked.value.holders)
        assert bench.device(NVME).driver is None
    bench.binding().recover()
    assert snapshot(bench) == before
    assert leftovers(bench) == []
    bench.binding().restore(PAIR)


@pytest.mark.quick_on_fake
def test_plan_that_a_holder_blocked_is_finished(bench: Bench) -> None:
    """On old kernels only unbinds are: binding a host driver in a group in use crashes them."""
    original = snapshot(bench)
    bench.binding().bind(PAIR)

    def run(binding: Binding) -> Plan:
        return binding.restore(PAIR) if bench.era.has_dma_owner else binding.unbind(PAIR)

    with bench.hold(E1000E):
        with pytest.raises(BlockedError, match="did not release it"):
            run(bench.binding(timeout=0.5, allowed=["held"]))
        assert bench.device(NVME).driver == "vfio-pci"
        assert bench.device(E1000E).blocked
        with pytest.raises(BlockedError, match="is pending"):
            bench.binding(timeout=0.2).recover()
    bench.binding().recover()
    expected = ["nvme", "e1000e"] if bench.era.has_dma_owner else [None, None]
    assert [bench.device(address).driver for address in PAIR] == expected
    assert leftovers(bench) == []
    bench.binding().restore(bench.binding().recorded())
    assert snapshot(bench) == original


@pytest.mark.quick_on_fake
def test_rollback_does_not_change_a_group_in_use(bench: Bench) -> None:
    """Up to 5.18 binding a host driver there would crash the machine, so the device waits for ``recover``."""
    one, other = SIBLINGS
    before = snapshot(bench)
    bench.machine.failures[f"{DRIVERS}/vfio-pci/bind"] = errno.EIO
    bench.binding().unbind([other])
    bench.machine.failures.clear()
    bench.binding().bind([one])
    with bench.hold(one):
        bench.machine.failures[f"{DRIVERS}/pci-stub/bind"] = errno.EIO
        with pytest.raises(BindError) as failed:
            bench.binding(allowed=["held"]).bind([other], "pci-stub")
        assert failed.value.state == "all devices are as they were before"
        bench.machine.failures.clear()
    bench.binding().restore(SIBLINGS)
    assert snapshot(bench) == before


def test_steps_are_logged_on_disk_before_they_are_done(bench: Bench) -> None:
    """Second source: the log itself, read at the moment of each write."""
    seen: list[tuple[str, str]] = []
    path = f"{bench.state_dir}/transactions/{NVME}.jsonl"

    def look(step_path: str) -> None:
        with open(path, encoding="utf-8") as file:
            seen.append((step_path, file.read().splitlines()[-1]))

    bench.machine.on_write = look
    plan = bench.binding().bind(PAIR)
    bench.machine.on_write = None
    steps = [step for step in plan.steps if not isinstance(step, LoadModule)]
    skipped = len(plan.steps) - len(steps)
    assert seen == [(step.path, f'{{"step": {number}}}') for number, step in enumerate(steps, start=skipped)]
    bench.binding().restore(PAIR)


@pytest.mark.quick_on_fake
def test_termination_signal_rolls_back_all_devices(bench: Bench) -> None:
    before = snapshot(bench)
    steps = bench.binding(dry_run=True).bind(MIXED).steps
    for number in range(len(steps)):
        pid = os.fork()
        if pid == 0:
            writes = itertools.count()

            def signal_at_step(path: str, number: int = number, writes: Any = writes) -> None:
                if next(writes) == number:
                    os.kill(os.getpid(), signal.SIGTERM)

            bench.machine.on_write = signal_at_step
            exit_on_signals()
            try:
                bench.binding().bind(MIXED)
            except SystemExit as ended:
                os._exit(int(str(ended.code)))
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGTERM
        assert snapshot(bench) == before
        assert leftovers(bench) == []
