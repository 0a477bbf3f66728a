"""Carry a plan out: one step, then verify it; where one fails, put back what was done."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from vfiotool.binding.machine import Events, MachineControl
from vfiotool.binding.ownership import parse_owner
from vfiotool.binding.plan import Plan
from vfiotool.binding.refusals import is_host_driver
from vfiotool.binding.steps import CLEAR, DRIVERS, MODPROBE, Step, made_quietly, parse_access, steps_between
from vfiotool.errors import BindError, BlockedError, KernelError, VfioToolError
from vfiotool.host.attributes import device_path, parse_override
from vfiotool.host.device_state import NUMVFS, OVERRIDE, node_path, read_state
from vfiotool.host.era import Era
from vfiotool.host.holders import DEVICE_DESCRIPTOR, Holder, find_holders
from vfiotool.host.usage.openers import is_group_open

EVENT_SECONDS = 30.0
"""How long an event may take to come after the kernel has done what it tells of."""

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class PlanWriter:
    """Carries plans out on a machine. ``timeout`` bounds each write, in seconds."""

    def __init__(self, machine: MachineControl, era: Era, timeout: float) -> None:
        self._machine = machine
        self._tree = machine.tree
        self._era = era
        self._timeout = timeout

    def execute(
        self,
        plan: Plan,
        about_to: Callable[[int], None],
        holders: Mapping[str, Sequence[Holder]],
    ) -> None:
        """Carry out all steps, or none: what was done before a failure is taken back.

        ``about_to`` is told the number of each step before it is begun; ``holders`` are the processes
        that hold each device's group, to be named where they do not let go.

        Raises:
            VfioToolError: a module cannot be loaded; nothing was changed.
            BindError: a step failed; its ``state`` says what became of the devices.
            BlockedError: a driver did not let go in time. That write is pending and will be done when
                its holder lets go; all other devices were put back.
        """
        for number, step in enumerate(plan.steps):
            if step.path == MODPROBE:
                about_to(number)
                self._load(step.value)
        touched: dict[str, None] = {}
        with contextlib.closing(self._machine.events()) as events:
            for number, step in enumerate(plan.steps):
                if step.path == MODPROBE:
                    continue
                try:
                    about_to(number)
                    touched[step.address] = None
                    self._carry_out(events, step)
                except TimeoutError:
                    del touched[step.address]
                    state = self._put_back(events, plan, touched)
                    raise self._blocked(step, holders.get(step.address, ()), state) from None
                except VfioToolError as error:
                    state = self._put_back(events, plan, touched)
                    raise _failed(step, error, state) from error
                except BaseException:
                    self._put_back(events, plan, touched)
                    raise

    def _load(self, driver: str) -> None:
        self._machine.load_module(driver)
        if not self._tree.exists(f"{DRIVERS}/{driver}"):
            raise VfioToolError(
                f"module {driver} is loaded, but there is no PCI driver of that name",
                hint="give the driver's name as in /sys/bus/pci/drivers",
            )

    def _carry_out(self, events: Events, step: Step) -> None:
        if step.is_access:
            self._machine.set_access(step.path, parse_access(step.value))
            return
        if step.is_rule:
            self._machine.grant(step.address, parse_owner(step.value))
            return
        if step.binds and not self._era.has_dma_owner:
            self._require_idle_group(step.address, step.binds)
        self._machine.write(step.path, step.value, address=step.address, timeout=self._timeout)
        self._verify(step)
        self._verify_presence(step)
        missing = events.missing(step.events, EVENT_SECONDS)
        if missing:
            names = ", ".join(f"'{action}' of {address}" for action, address in sorted(missing))
            raise VfioToolError(
                f"no event {names} came from {events.source}",
                hint="see 'udevadm monitor', and whether systemd-udevd is stuck",
            )

    def _require_idle_group(self, address: str, driver: str) -> None:
        """Look again, right before the write that would end in a kernel BUG: see ``refusals``."""
        node = node_path(self._tree, address)
        if node is None or not is_host_driver(driver):
            return
        holders = find_holders(self._tree).get(node, ())
        if holders or is_group_open(self._tree.path(node)):
            names = ", ".join(holder.process for holder in holders)
            raise VfioToolError(
                f"{driver} was not bound to {address}: {names or 'a process'} has just opened its group, and "
                "on this kernel that ends in a kernel BUG",
                hint="end that process, then run 'vfiotool recover'",
            )

    def _verify(self, step: Step) -> None:
        """Read back what was written: the kernel takes some writes and does nothing."""
        if step.binds or step.unbinds:
            found = self._tree.find_link(f"{device_path(step.address)}/driver")
            wanted = step.binds
        else:
            found, wanted = self._tree.find(step.path), step.value
            if os.path.basename(step.path) == OVERRIDE:
                found, wanted = parse_override(found), None if wanted == CLEAR else wanted
        if found != wanted:
            raise VfioToolError(
                f"after the kernel took the write to {step.path}, it has {found or 'none'} there and not "
                f"{wanted or 'none'}",
                hint="another program may be changing the device at the same time",
            )

    def _verify_presence(self, step: Step) -> None:
        """See whether VFs came where the PF's offset and stride foretold, or went."""
        for action, address in step.events:
            is_there = self._tree.exists(device_path(address))
            if action == "add" and not is_there:
                raise VfioToolError(
                    f"there is no VF at {address}, where the PF's sriov_offset and sriov_stride foretold one",
                    hint="this PF places its VFs by their number; see its virtfn links",
                )
            if action == "remove" and is_there:
                raise VfioToolError(
                    f"{address} is still there", hint="another program may have made VFs at the same time"
                )

    def _put_back(self, events: Events, plan: Plan, touched: Iterable[str]) -> str:
        """Bring each touched device back to where it was, the last first; return what came of it."""
        failures = []
        with _undisturbed():
            back = [address for address in reversed(list(touched)) if address in plan.before]
            pfs = [address for address in back if plan.before[address].numvfs]
            for address in [*back, *pfs]:  # a PF once more, when its VFs have their drivers
                try:
                    now = read_state(self._tree, address)
                    node = node_path(self._tree, address)
                    former = made_quietly(now, plan.before[address])
                    for step in steps_between(now, former, address, node=node):
                        self._carry_out(events, step)
                except (VfioToolError, TimeoutError) as error:
                    failures.append(f"{address} could not be put back ({error}): see 'vfiotool recover'")
        return "; ".join(failures) or "all devices are as they were before"

    def _blocked(self, step: Step, group_holders: Sequence[Holder], state: str) -> BlockedError:
        """Name who holds the device: its group's holders, else whoever holds any device's descriptor."""
        holders = group_holders or find_holders(self._tree).get(DEVICE_DESCRIPTOR, ())
        names = [f"{holder.process}, fd {holder.fd} on {holder.node}" for holder in holders]
        what = "its driver did not let go" if step.counts_vfs is None else "its VFs did not come or go"
        return BlockedError(
            f"{step.address}: {what} within {self._timeout:g} s; held by "
            f"{'; '.join(names) or 'a process that cannot be seen from here'}",
            holders=names,
            hint="end that process, then run 'vfiotool recover', which finishes what is pending. "
            f"Other devices: {state}",
        )


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no signal that ends the process come between: half a rollback helps nobody."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _failed(step: Step, error: VfioToolError, state: str) -> BindError:
    hint = error.hint
    if isinstance(error, KernelError) and error.errno == errno.ENODEV and step.binds:
        hint = f"driver {step.binds} does not serve this device; see the kernel's log (dmesg)"
    if isinstance(error, KernelError) and step.counts_vfs is not None:
        error = KernelError(error.errno or -1, NUMVFS, step.address)
        hint = error.hint
    return BindError(f"{step.address}: {error.message}; {state}", step=str(step), state=state, hint=hint)
