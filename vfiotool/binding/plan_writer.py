"""Write a plan to the machine: execute each step, verify it, and roll back all steps if one fails."""

from __future__ import annotations

import contextlib
import errno
import signal
from collections.abc import Callable, Iterable, Iterator

from vfiotool.binding.machine import MachineControl, UeventListener
from vfiotool.binding.plan import Plan
from vfiotool.binding.sriov import VF_SECONDS, present_vfs
from vfiotool.binding.steps import (
    BindDriver,
    DeviceStep,
    DeviceUevent,
    GrantOwner,
    LoadModule,
    SetNodeAccess,
    SetOverride,
    SetVfCount,
    Step,
    SysfsWrite,
    UnbindDriver,
    steps_between,
    without_autoprobe,
)
from vfiotool.binding.waiting import timed_out, vfs_so_far
from vfiotool.errors import BindError, KernelError, VfioToolError
from vfiotool.host.attributes import DRIVERS, device_path, parse_override
from vfiotool.host.device_state import NUMVFS, node_path, read_state
from vfiotool.host.era import Era
from vfiotool.host.holders import find_holders
from vfiotool.host.plan_context import PlanContext
from vfiotool.host.refusals import is_host_driver
from vfiotool.host.usage.openers import is_group_open
from vfiotool.util.signals import TERMINAL_SIGNALS

EVENT_SECONDS = 5.0
"""How long to wait for the kernel's uevent of a change that the kernel has made."""
UDEV_SECONDS = 20.0
"""How long to wait for udevd to run its rules for a uevent."""


class PlanWriter:
    """Writes plans to a machine. ``timeout`` bounds each write, in seconds.

    ``state_dir`` has the notes of pending writes. ``progress`` gets a line about once a second while VFs
    are created or removed, and an empty text at the end.
    """

    def __init__(
        self,
        machine: MachineControl,
        state_dir: str,
        timeout: float,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self._progress = progress
        self._machine = machine
        self._state_dir = state_dir
        self._tree = machine.tree
        self._timeout = timeout
        self._warnings: dict[str, None] = {}

    def write(self, plan: Plan, context: PlanContext, before_step: Callable[[int], None]) -> tuple[str, ...]:
        """Execute all steps of a plan, or none: steps before a failure are rolled back.

        ``context`` is what the plan was made from. ``before_step`` is called with the number of each
        step before that step begins. Returns warnings of uevents that did not come: they undo nothing, since
        the driver and the other attributes are read back.

        Raises:
            VfioToolError: a module cannot be loaded; nothing was changed.
            BindError: a step failed; its ``state`` says how the devices were left.
            BlockedError: a driver did not release its device in time. That write stays pending and
                completes when the device's holder releases it; all other devices were rolled back.
        """
        for number, step in enumerate(plan.steps):
            if isinstance(step, LoadModule):
                before_step(number)
                self._load(step.driver)
        touched: dict[str, None] = {}
        self._warnings.clear()
        with contextlib.closing(self._machine.events()) as events:
            for number, step in enumerate(plan.steps):
                if isinstance(step, LoadModule):
                    continue
                seconds = self._seconds(step)
                try:
                    before_step(number)
                    touched[step.address] = None
                    self._execute(events, step, context.era, seconds)
                except TimeoutError:
                    for address in (step.address, *_vfs_in_motion(step, context)):
                        touched.pop(address, None)
                    state = self._roll_back(events, plan, touched, context.era)
                    raise timed_out(
                        self._tree, self._state_dir, step, context, seconds=seconds, state=state
                    ) from None
                except VfioToolError as error:
                    state = self._roll_back(events, plan, touched, context.era)
                    raise _failed(step, error, state) from error
                except BaseException:
                    self._roll_back(events, plan, touched, context.era)
                    raise
        return tuple(self._warnings)

    def _execute(self, events: UeventListener, step: DeviceStep, era: Era, seconds: float) -> None:
        """Take a step and verify it. A write that is not done in ``seconds`` raises TimeoutError."""
        if isinstance(step, SetNodeAccess):
            self._machine.set_access(step.path, step.access)
        elif isinstance(step, GrantOwner):
            self._machine.grant(step.address, step.owner)
        else:
            self._write(events, step, era, seconds)

    def _load(self, driver: str) -> None:
        self._machine.load_module(driver)
        if not self._tree.exists(f"{DRIVERS}/{driver}"):
            raise VfioToolError(
                f"module {driver} is loaded, but there is no PCI driver of that name",
                hint=f"give the driver's name as in {DRIVERS}",
            )

    def _write(self, events: UeventListener, step: SysfsWrite, era: Era, seconds: float) -> None:
        if isinstance(step, BindDriver) and not era.has_dma_owner:
            self._require_idle_group(step)
        if isinstance(step, SetVfCount):
            self._set_vf_count(step, seconds)
        else:
            self._machine.write(step.path, step.value, address=step.address, timeout=seconds)
        self._verify(step)
        self._verify_presence(step)
        self._await_events(events, step)

    def _set_vf_count(self, step: SetVfCount, seconds: float) -> None:
        """Write the number of VFs, which takes its time for each VF, and report how many there are."""

        def report() -> None:
            if self._progress is not None:
                self._progress(f"{step.address}: {vfs_so_far(self._tree, step)}")

        try:
            self._machine.write(step.path, step.value, address=step.address, timeout=seconds, waiting=report)
        finally:
            if self._progress is not None:
                self._progress("")

    def _seconds(self, step: DeviceStep) -> float:
        """Return how long a step may take, in seconds, from the VFs that there are before it."""
        if not isinstance(step, SetVfCount):
            return self._timeout
        return self._timeout + VF_SECONDS * (step.count or present_vfs(self._tree, step.address))

    def _await_events(self, events: UeventListener, step: SysfsWrite) -> None:
        """Wait for the kernel's uevents of a step, and for udevd; warn of those that do not come."""
        seconds = UDEV_SECONDS + VF_SECONDS * (step.count if isinstance(step, SetVfCount) else 0)
        missing = events.missing(step.events, EVENT_SECONDS)
        if missing:
            self._warn(f"the kernel sent no uevent {_named(missing)} that can be received here")
        elif late := events.unprocessed(step.events, seconds):
            self._warn(
                f"udevd did not report {_named(late)} within {seconds:g} s: its rules may not have run; "
                "see 'udevadm monitor'"
            )
        elif step.events and events.out_of_sight:
            self._warn(f"{events.out_of_sight}, so vfiotool did not wait until its rules had run")

    def _warn(self, text: str) -> None:
        self._warnings[text] = None

    def _require_idle_group(self, step: BindDriver) -> None:
        """Check the group again, right before a write that could end in a kernel BUG: see ``refusals``."""
        node = node_path(self._tree, step.address)
        if node is None or not is_host_driver(step.driver):
            return
        holders = find_holders(self._tree).get(node, ())
        is_open = True if holders else is_group_open(self._tree.path(node))
        if is_open is False:
            return
        names = ", ".join(holder.process for holder in holders) or "a process"
        cause = f"{names} has just opened its group" if is_open else f"{node} cannot be opened to see its use"
        raise VfioToolError(
            f"{step.driver} was not bound to {step.address}: {cause}, and on this kernel a bind in a group "
            "that is in use ends in a kernel BUG",
            hint="end the processes that use the group, then run 'vfiotool recover'",
        )

    def _verify(self, step: SysfsWrite) -> None:
        """Read back what was written: the kernel accepts some writes without any effect."""
        wanted: str | None
        if isinstance(step, BindDriver | UnbindDriver):
            found = self._tree.find_link(f"{device_path(step.address)}/driver")
            wanted = step.driver if isinstance(step, BindDriver) else None
        elif isinstance(step, SetOverride):
            found, wanted = parse_override(self._tree.find(step.path)), step.driver
        else:
            found, wanted = self._tree.find(step.path), step.value
        if found != wanted:
            raise VfioToolError(
                f"the kernel accepted the write to {step.path}, but the value is {found or 'none'} and not "
                f"{wanted or 'none'}",
                hint="another program may be changing the device at the same time",
            )

    def _verify_presence(self, step: SysfsWrite) -> None:
        """Check that VFs are at the addresses that the PF's offset and stride give, or are gone."""
        for action, address in step.events:
            is_there = self._tree.exists(device_path(address))
            if action == "add" and not is_there:
                raise VfioToolError(
                    f"no VF is at {address}, where the PF's sriov_offset and sriov_stride place one",
                    hint="this PF places its VFs by their number; see its virtfn links",
                )
            if action == "remove" and is_there:
                raise VfioToolError(
                    f"{address} is still there", hint="another program may have created VFs at the same time"
                )

    def _roll_back(self, events: UeventListener, plan: Plan, touched: Iterable[str], era: Era) -> str:
        """Bring each touched device back to its former state, the last one first; describe the outcome."""
        failures = []
        with _ending_signals_blocked():
            back = [address for address in reversed(list(touched)) if address in plan.before]
            pfs = [address for address in back if plan.before[address].numvfs]
            for address in [*back, *pfs]:  # a PF again, after its VFs have their drivers back
                try:
                    now = read_state(self._tree, address)
                    node = node_path(self._tree, address)
                    former = without_autoprobe(now, plan.before[address])
                    for step in steps_between(now, former, address, node=node):
                        self._execute(events, step, era, self._seconds(step))
                except (VfioToolError, TimeoutError) as error:
                    failures.append(f"{address} could not be rolled back ({error}): see 'vfiotool recover'")
        return "; ".join(failures) or "all devices are as they were before"


def _vfs_in_motion(step: DeviceStep, context: PlanContext) -> tuple[str, ...]:
    """Return the former VFs of the PF whose number of VFs a step sets: they cannot go back meanwhile."""
    return context.devices[step.address].vfs if isinstance(step, SetVfCount) else ()


def _named(events: Iterable[DeviceUevent]) -> str:
    return ", ".join(f"'{action}' of {address}" for action, address in sorted(events))


@contextlib.contextmanager
def _ending_signals_blocked() -> Iterator[None]:
    """Block the signals that end the process, so that a rollback is not left half done."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _failed(step: Step, error: VfioToolError, state: str) -> BindError:
    hint = error.hint
    if isinstance(error, KernelError) and error.errno == errno.ENODEV and isinstance(step, BindDriver):
        hint = f"driver {step.driver} does not serve this device; see the kernel's log (dmesg)"
    if isinstance(error, KernelError) and isinstance(step, SetVfCount):
        error = KernelError(error.errno or -1, NUMVFS, step.address)
        hint = error.hint
    return BindError(f"{step.address}: {error.message}; {state}", step=str(step), state=state, hint=hint)
