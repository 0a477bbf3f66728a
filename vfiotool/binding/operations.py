"""Bind, unbind, restore, make VFs and recover: from addresses to a plan that has been carried out.

Each looks, plans, and, unless the plan is refused or is only to be shown, executes it, while it holds
the locks of the devices' groups. What a killed process left of the devices is put right first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from vfiotool.binding.device_record import is_driver_name
from vfiotool.binding.journal import Journal, boot_id
from vfiotool.binding.machine import LiveMachine, MachineControl
from vfiotool.binding.ownership import Owner
from vfiotool.binding.plan import Plan, bound_to, group_warnings
from vfiotool.binding.plan_context import PlanContext
from vfiotool.binding.planner import Planner, Shape, Wish
from vfiotool.binding.recovery import Recovery
from vfiotool.binding.sriov import check_count, live_group_refusals, with_bound_vfs
from vfiotool.binding.transaction_runner import TransactionRunner
from vfiotool.errors import SelectorError, UnsupportedError, VfioToolError
from vfiotool.host.attributes import device_path
from vfiotool.host.device_state import DeviceState
from vfiotool.host.devices import Device, find_device
from vfiotool.host.era import has_noiommu
from vfiotool.host.groups import TURN_ON_IOMMU, is_bridge, is_vfio_driver
from vfiotool.host.pending_unbinds import STATE_DIR
from vfiotool.host.variant_drivers import best_vfio_driver

UNBIND_SECONDS = 30.0
AUTO = "auto"


class Binding:
    """How devices are to be changed: where the journal is, and what the user allows.

    ``allowed`` names rules that are lifted (see ``refusals.RULES``). ``timeout`` bounds each write
    to sysfs, in seconds. Threads must not share it.
    """

    def __init__(
        self,
        *,
        state_dir: str = STATE_DIR,
        allowed: Collection[str] = (),
        dry_run: bool = False,
        timeout: float = UNBIND_SECONDS,
        machine: MachineControl | None = None,
    ) -> None:
        self.state_dir, self.dry_run, self.timeout = state_dir, dry_run, timeout
        self._allowed = frozenset(allowed)
        machine = machine or LiveMachine(state_dir)
        self._tree = machine.tree
        self._journal = Journal(state_dir, boot=boot_id(self._tree))
        self._planner = Planner(self._tree, state_dir)
        self._executor = TransactionRunner(machine, self._journal, timeout)
        self._recovery = Recovery(
            machine,
            self._journal,
            self._planner,
            self._executor,
            allowed=self._allowed,
            dry_run=dry_run,
            timeout=timeout,
        )
        self._mended: frozenset[str] = frozenset()

    def bind(self, wanted: Sequence[str], driver: str = "vfio-pci", owner: Owner | None = None) -> Plan:
        """Hand devices to a driver; all of them, or none.

        The driver ``auto`` is the VFIO driver that serves each device best. ``owner`` may open their
        nodes, until they are restored.

        Raises:
            RefusedError: a rule forbids it; nothing was changed.
            UnsupportedError: a device has no IOMMU group, or the kernel has no such driver.
            BindError, BlockedError: see ``PlanWriter.execute``; also where another vfiotool is at work on
                a device's group, or what one left of it cannot be put right.
        """
        if not is_driver_name(driver):
            raise SelectorError(f"{driver!r} is not a driver's name", hint="see /sys/bus/pci/drivers")

        def wish(device: Device, state: DeviceState) -> DeviceState:
            chosen = best_vfio_driver(self._tree, device) if driver == AUTO else driver
            if is_vfio_driver(chosen) and device.iommu_group is None and not has_noiommu(self._tree):
                raise _no_group(device.address)
            return bound_to(state, chosen)

        return self._run(wanted, wish, owner=owner)

    def unbind(self, wanted: Sequence[str]) -> Plan:
        """Leave devices without a driver; what they were is recorded. Raises as ``bind`` does."""
        return self._run(wanted, lambda _, state: DeviceState(None, state.driver_override))

    def restore(self, wanted: Sequence[str]) -> Plan:
        """Bring devices back to what they were before vfiotool's first change.

        Raises:
            VfioToolError: nothing is recorded of a device, or another one is at its address now.
            Others as ``bind`` does.
        """
        return self._run(wanted, self._recorded_state, forget=True)

    def sriov(self, pf: str, count: int, *, bind: bool = False) -> Plan:
        """Give a PF a number of VFs, each of them bound to vfio-pci where that is wished for.

        VFs that it has are removed first, where their number is another; a process that holds one, or
        a host that uses one, forbids that. Returns what was done, with the VFs as they are after it.

        Raises:
            UnsupportedError: the device is no PF, or has no IOMMU group and its VFs are to be bound.
            RefusedError: the PF or its driver has not so many, or a rule forbids it.
            Others as ``bind`` does.
        """
        device = find_device(self._planner.devices(), pf)
        if bind and device.iommu_group is None:
            raise _no_group(pf)
        if bind and count and count == len(device.vfs):
            return self.bind(device.vfs)

        def wish(device: Device, state: DeviceState) -> DeviceState:
            check_count(self._tree, device, state, count)
            return replace(state, numvfs=count)

        def shape(context: PlanContext, plan: Plan) -> Plan:
            plan = with_bound_vfs(context, plan, pf) if bind else plan
            return replace(plan, refusals=plan.refusals + live_group_refusals(context, plan, pf))

        plan = self._run([pf], wish, shape=shape)
        is_done = plan.steps and not self.dry_run
        return self._with_vfs_now(plan, pf, warn=bind) if is_done else plan

    def recover(self) -> Plan:
        """Put right what killed processes left, and finish what waited for a holder.

        A plan that was cut off is undone; one whose driver did not let go in time is carried out now.
        Where one cannot be, the others still are.

        Raises:
            BlockedError: a driver still does not let go.
            Others as ``bind`` does; the first of them.
        """
        return self._recovery.recover()

    def recorded(self) -> list[str]:
        """Return the addresses of the devices that can be restored: those that are there."""
        found = self._journal.addresses()
        return [one for one in found if self._tree.exists(device_path(one)) and self._is_recorded(one)]

    def group_members(self, wanted: Iterable[str]) -> list[str]:
        """Return the endpoints of the groups that the devices are in, bridges left out.

        Raises:
            UnsupportedError: a device has no IOMMU group.
        """
        devices = self._planner.devices()
        chosen: dict[str, None] = {}
        for address in wanted:
            device = find_device(devices, address)
            if device.iommu_group is None:
                raise _no_group(address)
            members = [other for other in devices if other.iommu_group == device.iommu_group]
            chosen.update(dict.fromkeys(other.address for other in members if not is_bridge(other)))
        return list(chosen)

    def _run(
        self,
        wanted: Sequence[str],
        wish: Wish,
        *,
        forget: bool = False,
        owner: Owner | None = None,
        shape: Shape | None = None,
    ) -> Plan:
        if self.dry_run:
            return self._planner.plan(wanted, wish, self._allowed, owner, shape)[0]
        with self._executor.locked(wanted):
            self._mended = self._recovery.mend(wanted)
            plan, context = self._planner.plan(wanted, wish, self._allowed, owner, shape)
            self._executor.carry_out(plan, context, forget=wanted if forget else ())
        return plan

    def _with_vfs_now(self, plan: Plan, pf: str, *, warn: bool) -> Plan:
        """Tell of the VFs as they came, be it on a host driver or in a group with others."""
        devices = self._planner.devices()
        vfs = find_device(devices, pf).vfs
        context, now = self._planner.look(devices, vfs, self._allowed)
        warnings = group_warnings(context, now) if warn else ()
        return replace(plan, after={**plan.after, **now}, warnings=plan.warnings + warnings)

    def _is_recorded(self, address: str) -> bool:
        """Say whether there is a record of this boot, or one that cannot be understood."""
        try:
            return self._journal.find(address) is not None
        except VfioToolError:
            return True

    def _recorded_state(self, device: Device, now: DeviceState) -> DeviceState:
        record = self._journal.find(device.address)
        if record is None and device.address in self._mended:
            return now  # what was left of it has just been undone
        if record is None:
            raise VfioToolError(
                f"nothing is recorded of {device.address}: vfiotool has not changed it",
                hint="to give it to a driver of your choice: 'vfiotool bind --driver NAME'",
            )
        if not record.is_of(device):
            raise VfioToolError(
                f"{device.address} was {record.vendor_id:04x}:{record.device_id:04x} when it was recorded, "
                f"and is {device.vendor_id:04x}:{device.device_id:04x} now",
                hint="another device has taken the address; bind it as you wish it",
            )
        return record.state


@contextlib.contextmanager
def bound(*wanted: str, driver: str = "vfio-pci", state_dir: str = STATE_DIR) -> Iterator[None]:
    """Have devices bound to a driver for the time of a ``with`` block, and restored after it.

    Raises as ``Binding.bind`` and ``Binding.restore`` do.
    """
    binding = Binding(state_dir=state_dir)
    binding.bind(wanted, driver)
    try:
        yield
    finally:
        binding.restore([address for address in wanted if address in binding.recorded()])


def _no_group(address: str) -> UnsupportedError:
    return UnsupportedError(f"{address} is in no IOMMU group, so VFIO cannot have it", hint=TURN_ON_IOMMU)
