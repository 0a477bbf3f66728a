"""Carry a plan out: one step, then verify it; where one fails, put back what was done."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable, Mapping, Sequence

from vfiotool.binding.machine import Events, Machine
from vfiotool.binding.plan import DRIVERS, MODPROBE, Plan, Step, steps_between
from vfiotool.errors import BindError, BlockedError, KernelError, VfioToolError
from vfiotool.host.attributes import device_path
from vfiotool.host.devices import read_state
from vfiotool.host.holders import DEVICE_DESCRIPTOR, Holder, find_holders

EVENT_SECONDS = 30.0
"""How long an event may take to come after the kernel has done what it tells of."""


def execute(machine: Machine, plan: Plan, *, holders: Mapping[str, Sequence[Holder]], timeout: float) -> None:
    """Carry out all steps, or none: what was done before a failure is taken back.

    ``timeout`` bounds each write, in seconds; ``holders`` are the processes that hold each device's
    group, to be named where they do not let go.

    Raises:
        VfioToolError: a module cannot be loaded; nothing was changed.
        BindError: a step failed; its ``state`` says what became of the devices.
        BlockedError: a driver did not let go in time. That unbind is pending and will be done when
            its holder lets go; all other devices were put back.
    """
    for step in plan.steps:
        if step.path == MODPROBE:
            _load(machine, step.value)
    touched: dict[str, None] = {}
    with contextlib.closing(machine.events()) as events:
        for step in plan.steps:
            if step.path == MODPROBE:
                continue
            touched[step.address] = None
            try:
                _carry_out(machine, events, step, timeout)
            except TimeoutError:
                del touched[step.address]
                state = _put_back(machine, events, plan, touched, timeout)
                raise _blocked(machine, step, holders[step.address], timeout, state) from None
            except VfioToolError as error:
                state = _put_back(machine, events, plan, touched, timeout)
                raise _failed(step, error, state) from error
            except KeyboardInterrupt:
                _put_back(machine, events, plan, touched, timeout)
                raise


def _load(machine: Machine, driver: str) -> None:
    machine.load_module(driver)
    if not machine.tree.exists(f"{DRIVERS}/{driver}"):
        raise VfioToolError(
            f"module {driver} is loaded, but there is no PCI driver of that name",
            hint="give the driver's name as in /sys/bus/pci/drivers",
        )


def _carry_out(machine: Machine, events: Events, step: Step, timeout: float) -> None:
    machine.write(step.path, step.value, address=step.address, timeout=timeout)
    driver = machine.tree.find_link(f"{device_path(step.address)}/driver")
    if driver != step.driver:
        raise VfioToolError(
            f"after the kernel took the write to {step.path}, the driver is "
            f"{driver or 'none'} and not {step.driver or 'none'}",
            hint="another program may be binding the device at the same time",
        )
    if step.event is not None and not events.wait(step.event, step.address, EVENT_SECONDS):
        raise VfioToolError(
            f"no '{step.event}' event of {step.address} came from {events.source}",
            hint="see 'udevadm monitor', and whether systemd-udevd is stuck",
        )


def _put_back(machine: Machine, events: Events, plan: Plan, touched: Iterable[str], timeout: float) -> str:
    """Bring each touched device back to where it was, the last first; return what came of it."""
    failures = []
    for address in reversed(list(touched)):
        try:
            now = read_state(machine.tree, address)
            for step in steps_between(now, plan.before[address], address):
                _carry_out(machine, events, step, timeout)
        except (VfioToolError, TimeoutError) as error:
            failures.append(f"{address} could not be put back ({error})")
    return "; ".join(failures) or "all devices are as they were before"


def _failed(step: Step, error: VfioToolError, state: str) -> BindError:
    hint = error.hint
    if isinstance(error, KernelError) and error.errno == errno.ENODEV and step.event == "bind":
        hint = f"driver {step.driver} does not serve this device; see the kernel's log (dmesg)"
    return BindError(f"{step.address}: {error.message}; {state}", step=str(step), state=state, hint=hint)


def _blocked(
    machine: Machine, step: Step, group_holders: Sequence[Holder], timeout: float, state: str
) -> BlockedError:
    """Name who holds the device: its group's holders, else whoever holds any device's descriptor."""
    holders = group_holders or find_holders(machine.tree).get(DEVICE_DESCRIPTOR, ())
    names = [f"pid {holder.pid} ({holder.comm}), fd {holder.fd} on {holder.node}" for holder in holders]
    return BlockedError(
        f"{step.address}: its driver did not let go within {timeout:g} s; held by "
        f"{'; '.join(names) or 'a process that cannot be seen from here'}",
        holders=names,
        hint=f"end that process: then the unbind, which is pending, completes. Other devices: {state}",
    )
