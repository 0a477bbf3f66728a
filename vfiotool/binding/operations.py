"""Bind, unbind, restore, create VFs, recover: from addresses to a plan that has been carried out.

``Binding`` makes a plan (``planner``) and, unless a rule refuses it or it is a dry run, runs it as a
transaction (``transaction_runner``, ``plan_writer``), all under the locks of the devices' groups. Before
that it recovers what a killed process left of the devices (``recovery``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from vfiotool.binding.device_record import is_driver_name
from vfiotool.binding.foreign_drivers import foreign_drivers, native_driver, nothing_recorded, way_home
from vfiotool.binding.journal import Journal, boot_id
from vfiotool.binding.machine import LiveMachine, MachineControl
from vfiotool.binding.ownership import Owner
from vfiotool.binding.plan import EMPTY_PLAN, Plan, bound_to, group_warnings, idle_d3_warnings, kept_awake
from vfiotool.binding.plan_writer import PlanWriter
from vfiotool.binding.planner import PlanAmendment, Planner, TargetState
from vfiotool.binding.recovery import Recovery
from vfiotool.binding.sriov import check_count, live_group_refusals, with_bound_vfs
from vfiotool.binding.transaction_runner import TransactionRunner
from vfiotool.errors import SelectorError, UnsupportedError, VfioToolError
from vfiotool.host.attributes import device_path
from vfiotool.host.checks.iommu import why_no_group
from vfiotool.host.device_state import DeviceState
from vfiotool.host.devices import PciDevice, find_device, read_devices
from vfiotool.host.era import has_noiommu
from vfiotool.host.groups import is_bridge, is_vfio_driver
from vfiotool.host.pending_unbinds import STATE_DIR
from vfiotool.host.plan_context import PlanContext
from vfiotool.host.power import read_power, sleeps_by_policy
from vfiotool.host.tree import Tree
from vfiotool.host.variant_drivers import best_vfio_driver
from vfiotool.pci.ids import ids_text
from vfiotool.pci.names import PciNames

UNBIND_SECONDS = 30.0
AUTO, NATIVE = "auto", "native"


class Binding:
    """Changes which driver devices are bound to, and records what they were.

    ``state_dir`` is the folder of the journal. ``allowed`` are the rules that are lifted (see
    ``refusals.LIFTABLE_RULES``). With ``dry_run`` the methods return their plan and change nothing.
    ``timeout`` bounds each write to sysfs, in seconds, and a write that creates or removes VFs may take a
    second more for each VF. ``progress`` is called about once a second during this write, with a line that
    says how many VFs there are, and with an empty text after it. Threads must not share it.
    """

    def __init__(
        self,
        *,
        state_dir: str = STATE_DIR,
        allowed: Collection[str] = (),
        dry_run: bool = False,
        timeout: float = UNBIND_SECONDS,
        progress: Callable[[str], None] | None = None,
        machine: MachineControl | None = None,
    ) -> None:
        self.state_dir, self.dry_run, self.timeout = state_dir, dry_run, timeout
        self.allowed = frozenset(allowed)
        machine = machine or LiveMachine(state_dir)
        self._tree = machine.tree
        self._journal = Journal(state_dir, boot=boot_id(self._tree))
        self._planner = Planner(self._tree, state_dir)
        writer = PlanWriter(machine, state_dir, timeout, progress)
        self._transactions = TransactionRunner(machine, self._journal, writer)
        self._recovery = Recovery(
            machine,
            self._journal,
            self._planner,
            writer,
            self._transactions,
            allowed=self.allowed,
            dry_run=dry_run,
            timeout=timeout,
        )
        self._just_recovered: frozenset[str] = frozenset()

    def bind(
        self,
        addresses: Sequence[str],
        driver: str = "vfio-pci",
        owner: Owner | None = None,
        *,
        awake: bool = False,
    ) -> Plan:
        """Bind devices to a driver; all of them, or none.

        The driver ``auto`` is the VFIO driver that serves each device best, and ``native`` the host driver
        whose ids match it best; ``native`` also clears the override. ``owner`` may open the devices' nodes
        until the devices are restored. With ``awake`` the devices stay in D0 while they are idle, until they
        are restored; a warning names a device that is not in D0 afterwards.

        Raises:
            RefusedError: a rule forbids it; nothing was changed.
            UnsupportedError: a device has no IOMMU group, or the kernel has no such driver.
            BindError, BlockedError: see ``PlanWriter.write``; also if another vfiotool is changing a
                device's group, or what a killed one left of it cannot be recovered.
        """
        if not is_driver_name(driver):
            raise SelectorError(f"{driver!r} is not a driver's name", hint="see /sys/bus/pci/drivers")

        def target(device: PciDevice, now: DeviceState) -> DeviceState:
            state = on_driver(device, now)
            return kept_awake(state, now) if awake else state

        def on_driver(device: PciDevice, now: DeviceState) -> DeviceState:
            if driver == NATIVE:
                return DeviceState(native_driver(self._tree, device), None)
            chosen = best_vfio_driver(self._tree, device) if driver == AUTO else driver
            if is_vfio_driver(chosen) and device.iommu_group is None and not has_noiommu(self._tree):
                raise _no_group(self._tree, device.address)
            return bound_to(now, chosen)

        def amend(context: PlanContext, plan: Plan) -> Plan:
            plan = plan.with_warnings(*idle_d3_warnings(context, plan)) if awake else plan
            return replace(plan, refusals=plan.refusals + foreign_drivers(self._tree, context, plan))

        plan = self._change(addresses, target, owner=owner, amend=amend)
        return plan.with_warnings(*self._asleep(plan.after)) if awake and not self.dry_run else plan

    def unbind(self, addresses: Sequence[str]) -> Plan:
        """Unbind devices from their drivers; their former state is recorded. Raises as ``bind`` does."""
        return self._change(addresses, lambda _, now: DeviceState(None, now.driver_override))

    def restore(self, addresses: Sequence[str]) -> Plan:
        """Bring devices back to their state before vfiotool's first change.

        Raises:
            VfioToolError: nothing is recorded of a device, or another device is at its address now; the
                record of the former device is removed then.
            Others as ``bind`` does.
        """
        for address, former in self._former(addresses).items():
            self._forget(address)
            raise former
        plan = self._change(addresses, self._recorded_state, forget=True)
        return plan.with_warnings(*_already_there(plan, addresses))

    def restore_all(self) -> Plan:
        """Restore every recorded device that can be restored; the plan's ``failures`` are of the others.

        A warning names each device that is not present, and whose record stays, and each record that was
        removed because another device is at its address now.
        """
        plan, wanted = EMPTY_PLAN, list[str]()
        for address in self._journal.addresses():
            try:
                if self._journal.find(address) is None:
                    continue  # of an earlier boot
            except VfioToolError as error:
                plan += replace(EMPTY_PLAN, failures=(error,))
                continue
            if self._tree.exists(device_path(address)):
                wanted.append(address)
            else:
                plan = plan.with_warnings(
                    f"{address} is not present; its record stays until the machine stops"
                )
        for address, former in self._former(wanted).items():
            self._forget(address)
            wanted.remove(address)
            plan = plan.with_warnings(f"{former.message}; {former.hint}")
        return plan + self._restore_each(wanted)

    def _restore_each(self, addresses: Sequence[str]) -> Plan:
        """Restore devices together or, if that fails, each by itself."""
        try:
            return self.restore(addresses) if addresses else EMPTY_PLAN
        except VfioToolError as error:
            if len(addresses) == 1:
                return replace(EMPTY_PLAN, failures=(error,))
        plan = EMPTY_PLAN
        for address in addresses:
            if self._is_recorded(address):  # a VF's record is removed with the VF
                plan += self._restore_each([address])
        return plan

    def sriov(self, pf: str, count: int, *, bind: bool = False) -> Plan:
        """Set how many VFs a PF has, and bind them to vfio-pci if ``bind`` is set.

        If the PF has another number of VFs, all of those are removed first; a process that holds a VF,
        or a host that uses a VF, forbids that. Returns what was done; the plan's ``after`` has the VFs
        as they are then.

        Raises:
            UnsupportedError: the device is no PF, or has no IOMMU group and its VFs are to be bound.
            RefusedError: the PF or its driver does not support so many, or a rule forbids it.
            Others as ``bind`` does.
        """
        device = find_device(self._planner.devices(), pf)
        if bind and device.iommu_group is None:
            raise _no_group(self._tree, pf)
        if bind and count and count == len(device.vfs):
            return self.bind(device.vfs)

        def target(device: PciDevice, now: DeviceState) -> DeviceState:
            check_count(self._tree, device, now, count)
            return replace(now, numvfs=count)

        def amend(context: PlanContext, plan: Plan) -> Plan:
            plan = with_bound_vfs(context, plan, pf) if bind else plan
            return replace(plan, refusals=plan.refusals + live_group_refusals(context, plan, pf))

        plan = self._change([pf], target, amend=amend)
        is_done = plan.steps and not self.dry_run
        return self._with_vfs_now(plan, pf, warn=bind) if is_done else plan

    def recover(self) -> Plan:
        """Undo what killed processes left unfinished, and finish what waited for a holder.

        A plan that was cut off is undone. A plan whose driver did not release its device in time is
        finished. If one transaction fails, the others are still recovered.

        Raises:
            BlockedError: a driver still does not release its device.
            Others as ``bind`` does; the first of them.
        """
        return self._recovery.recover()

    def recorded(self) -> list[str]:
        """Return the addresses of the devices that are present and can be restored."""
        return [
            address
            for address in self._journal.addresses()
            if self._tree.exists(device_path(address)) and self._is_recorded(address)
        ]

    def group_members(self, addresses: Iterable[str]) -> list[str]:
        """Return the endpoints of the devices' groups, without bridges.

        Raises:
            UnsupportedError: a device has no IOMMU group.
        """
        devices = self._planner.devices()
        chosen: dict[str, None] = {}
        for address in addresses:
            device = find_device(devices, address)
            if device.iommu_group is None:
                raise _no_group(self._tree, address)
            members = [other for other in devices if other.iommu_group == device.iommu_group]
            chosen.update(dict.fromkeys(other.address for other in members if not is_bridge(other)))
        return list(chosen)

    def _change(
        self,
        addresses: Sequence[str],
        target: TargetState,
        *,
        forget: bool = False,
        owner: Owner | None = None,
        amend: PlanAmendment | None = None,
    ) -> Plan:
        """Plan the devices' way to their target states and, unless this is a dry run, take it."""
        if self.dry_run:
            return self._planner.plan(addresses, target, self.allowed, owner, amend)[0]
        with self._transactions.locked(addresses):
            self._just_recovered = self._recovery.recover_devices(addresses)
            plan, context = self._planner.plan(addresses, target, self.allowed, owner, amend)
            warnings = self._transactions.run(plan, context, forget=addresses if forget else ())
        return plan.with_warnings(*warnings)

    def _with_vfs_now(self, plan: Plan, pf: str, *, warn: bool) -> Plan:
        """Add the VFs' states as they are now, and warn of those that share a group with other devices."""
        devices = self._planner.devices()
        vfs = find_device(devices, pf).vfs
        context, now = self._planner.read(devices, vfs, self.allowed)
        warnings = group_warnings(context, now) if warn else ()
        return replace(plan, after={**plan.after, **now}, warnings=plan.warnings + warnings)

    def _asleep(self, addresses: Iterable[str]) -> Iterator[str]:
        """Yield a warning for each device that should be awake and is not."""
        by_policy = sleeps_by_policy(self._tree)
        for address, power in read_power(self._tree, addresses).items():
            if power.does_not_wake(by_policy=by_policy):
                yield f"{address} is in {power}, and not awake: 'vfiotool doctor' says more"

    def _is_recorded(self, address: str) -> bool:
        """Return True if there is a record of this boot, or a record that cannot be parsed."""
        try:
            return self._journal.find(address) is not None
        except VfioToolError:
            return True

    def _former(self, addresses: Sequence[str]) -> dict[str, VfioToolError]:
        """Return an error for each address whose record is that of a former device there."""
        records = {address: self._journal.find(address) for address in addresses}
        present = [address for address in addresses if self._tree.exists(device_path(address))]
        devices = read_devices(self._tree, present, PciNames(b""), state_dir=self.state_dir)
        found = {}
        for device in devices:
            record = records[device.address]
            if record is not None and not record.matches(device):
                then, now = (ids_text(one.vendor_id, one.device_id) for one in (record, device))
                found[device.address] = VfioToolError(
                    f"{device.address} was {then} when it was recorded, and is {now} now: the record of the "
                    "former device is removed",
                    hint=way_home(self._tree, device),
                )
        return found

    def _forget(self, address: str) -> None:
        if not self.dry_run:
            with self._transactions.locked([address]):
                self._transactions.forget([address])

    def _recorded_state(self, device: PciDevice, now: DeviceState) -> DeviceState:
        record = self._journal.find(device.address)
        if record is None and device.address in self._just_recovered:
            return now  # the recovery has brought it back, and removed its record
        if record is None:
            raise nothing_recorded(self._tree, device)
        return record.state


def _already_there(plan: Plan, addresses: Sequence[str]) -> Iterator[str]:
    """Yield a text for each device that was on its former driver already: it came back by hotplug, say."""
    for address in addresses:
        before, after = plan.before[address].driver, plan.after[address].driver
        if after is not None and before == after:
            yield f"{address} was on {after} already"


@contextlib.contextmanager
def bound(*addresses: str, driver: str = "vfio-pci", state_dir: str = STATE_DIR) -> Iterator[None]:
    """Bind devices to a driver for the duration of a ``with`` block, and restore them after it.

    Raises as ``Binding.bind`` and ``Binding.restore`` do.
    """
    binding = Binding(state_dir=state_dir)
    binding.bind(addresses, driver)
    try:
        yield
    finally:
        binding.restore([address for address in addresses if address in binding.recorded()])


def _no_group(tree: Tree, address: str) -> UnsupportedError:
    return UnsupportedError(f"{address} is in no IOMMU group, so VFIO cannot use it", hint=why_no_group(tree))
