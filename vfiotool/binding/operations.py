"""Bind, unbind, restore and recover: from addresses to a plan that has been carried out.

Each looks, plans, and, unless the plan is refused or is only to be shown, writes to the journal and
executes, while it holds the locks of the devices' groups. What a killed process left of the devices is
put right first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from vfiotool.binding.binder import Binder
from vfiotool.binding.journal import Journal, debris
from vfiotool.binding.locks import lock_keys, locked
from vfiotool.binding.machine import LiveMachine, Machine
from vfiotool.binding.ownership import Owner
from vfiotool.binding.plan import NOTHING, Plan, bound_to, group_warnings, make_plan
from vfiotool.binding.refusals import PlanRefusedError
from vfiotool.binding.scene import Scene, read_scene
from vfiotool.binding.sriov import (
    about_to_leave,
    check_count,
    leaving,
    live_group_refusals,
    with_bound_vfs,
    with_vfs,
)
from vfiotool.binding.state_dir import remove_own
from vfiotool.binding.steps import grant_to, made_quietly
from vfiotool.binding.stored import Stored, boot_id, is_driver_name
from vfiotool.binding.transaction import Transaction, TransactionLog, unfinished
from vfiotool.errors import BlockedError, SelectorError, UnsupportedError, VfioToolError
from vfiotool.host.attributes import addresses, device_path
from vfiotool.host.devices import Device, find_device, read_devices
from vfiotool.host.groups import TURN_ON_IOMMU, is_bridge, is_vfio_driver
from vfiotool.host.holders import Holder
from vfiotool.host.pending import STATE_DIR, pending_writer
from vfiotool.host.state import DeviceState, read_states
from vfiotool.pci.names import PciNames

UNBIND_SECONDS = 30.0
AUTO = "auto"

Wish = Callable[[Device, DeviceState], DeviceState]
"""From a device and its state to the state that it is to be in."""

Shape = Callable[[Scene, Plan], Plan]
"""What an operation adds to a plan that states alone do not say."""


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
        machine: Machine | None = None,
    ) -> None:
        self.state_dir, self.dry_run, self.timeout = state_dir, dry_run, timeout
        self._allowed = frozenset(allowed)
        self._machine = machine or LiveMachine(state_dir)
        self._tree = self._machine.tree
        self._journal = Journal(state_dir, boot=boot_id(self._tree))
        self._mended: set[str] = set()

    def bind(self, wanted: Sequence[str], driver: str = "vfio-pci", owner: Owner | None = None) -> Plan:
        """Hand devices to a driver; all of them, or none.

        The driver ``auto`` is the VFIO driver that serves each device best. ``owner`` may open their
        nodes, until they are restored.

        Raises:
            RefusedError: a rule forbids it; nothing was changed.
            UnsupportedError: a device has no IOMMU group, or the kernel has no such driver.
            BindError, BlockedError: see ``Binder.execute``; also where another vfiotool is at work on
                a device's group, or what one left of it cannot be put right.
        """
        if not is_driver_name(driver):
            raise SelectorError(f"{driver!r} is not a driver's name", hint="see /sys/bus/pci/drivers")

        def wish(device: Device, state: DeviceState) -> DeviceState:
            chosen = self._best_driver(device) if driver == AUTO else driver
            if is_vfio_driver(chosen) and device.iommu_group is None:
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
        device = find_device(self._read_devices(), pf)
        if bind and device.iommu_group is None:
            raise _no_group(pf)
        if bind and count and count == len(device.vfs):
            return self.bind(device.vfs)

        def wish(device: Device, state: DeviceState) -> DeviceState:
            check_count(self._tree, device, state, count)
            return replace(state, numvfs=count)

        def shape(scene: Scene, plan: Plan) -> Plan:
            plan = with_bound_vfs(scene, plan, pf) if bind else plan
            return replace(plan, refusals=plan.refusals + live_group_refusals(scene, plan, pf))

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
        found, broken = unfinished(self._journal)
        done, errors = NOTHING, list(broken.values())
        for transaction in found:
            try:
                done += self._recover(transaction)
            except VfioToolError as error:
                errors.append(error)
        if not self.dry_run:
            self._sweep()
        if errors:
            raise errors[0]
        return done

    def recorded(self) -> list[str]:
        """Return the addresses of the devices that can be restored."""
        return [address for address in self._journal.addresses() if self._is_recorded(address)]

    def group_members(self, wanted: Iterable[str]) -> list[str]:
        """Return the endpoints of the groups that the devices are in, bridges left out.

        Raises:
            UnsupportedError: a device has no IOMMU group.
        """
        devices = self._read_devices()
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
            return self._plan(wanted, wish, self._allowed, owner, shape)[0]
        with self._locked(wanted):
            self._mend(wanted)
            plan, scene = self._plan(wanted, wish, self._allowed, owner, shape)
            self._carry_out(plan, scene, forget=wanted if forget else ())
        return plan

    def _plan(
        self,
        wanted: Sequence[str],
        wish: Wish,
        allowed: frozenset[str],
        owner: Owner | None = None,
        shape: Shape | None = None,
    ) -> tuple[Plan, Scene]:
        devices = self._read_devices()
        scene, now = self._look(devices, wanted, allowed)
        states = {address: wish(scene.devices[address], now[address]) for address in wanted}
        removed = leaving(scene.devices, now, states)
        if removed:
            stay = {address: state for address, state in states.items() if address not in removed}
            scene, now = self._look(devices, [*removed, *stay], allowed)
            states = {vf: about_to_leave(now[vf]) for vf in removed} | stay
        plan = with_vfs(self._tree, scene, make_plan(scene, now, states), removed)
        plan = plan if shape is None else shape(scene, plan)
        if plan.refusals:
            raise PlanRefusedError(plan.refusals)
        if owner is not None:
            grants = tuple(grant_to(address, owner) for address in wanted)
            plan = replace(plan, steps=plan.steps + grants)
        return plan, scene

    def _look(
        self, devices: Sequence[Device], wanted: Sequence[str], allowed: frozenset[str]
    ) -> tuple[Scene, dict[str, DeviceState]]:
        scene = read_scene(self._tree, devices, wanted, allowed=allowed)
        for address in wanted:
            if scene.devices[address].blocked:
                raise _waiting(scene, address)
        try:
            return scene, read_states(self._tree, wanted)
        except TimeoutError as error:
            raise _waiting(scene, error.filename) from None

    def _with_vfs_now(self, plan: Plan, pf: str, *, warn: bool) -> Plan:
        """Tell of the VFs as they came, be it on a host driver or in a group with others."""
        devices = self._read_devices()
        vfs = find_device(devices, pf).vfs
        scene, now = self._look(devices, vfs, self._allowed)
        warnings = group_warnings(scene, now) if warn else ()
        return replace(plan, after={**plan.after, **now}, warnings=plan.warnings + warnings)

    def _carry_out(self, plan: Plan, scene: Scene, *, forget: Iterable[str]) -> None:
        """Execute a plan, from the first line of its transaction to the last."""
        forget = [*dict.fromkeys([*forget, *plan.removed, *self._as_recorded(plan)])]
        if not plan.steps:
            self._forget(forget)
            return
        before = [Stored.of(scene.devices[address], state) for address, state in plan.before.items()]
        fresh = [stored.address for stored in before if not self._is_recorded_of(stored)]
        log = TransactionLog(self._journal, plan, before, fresh=fresh, forget=forget, allowed=scene.allowed)
        try:
            for stored in before:
                if stored.address in fresh:
                    self._journal.record(stored)
            self._binder(scene).execute(plan, log.about_to, _holders(scene))
        except BaseException:
            self._leave(log, plan, fresh)
            raise
        log.done()
        self._forget(forget)
        log.end()

    def _binder(self, scene: Scene) -> Binder:
        return Binder(self._machine, scene.era, self.timeout)

    def _leave(self, log: TransactionLog, plan: Plan, fresh: Iterable[str]) -> None:
        """After a failure: end the transaction where all is as it was, else leave it for ``recover``."""
        changed = {
            address for address in log.touched & plan.before.keys() if not self._is_back(plan, address)
        }
        self._forget(address for address in fresh if address not in changed)
        if not changed:
            log.end()
            return
        pending = [address for address in changed if pending_writer(self._tree, self.state_dir, address)]
        if changed == set(pending) and plan.can_be_finished:
            log.blocked(pending[0])
        log.close()

    def _is_back(self, plan: Plan, address: str) -> bool:
        if pending_writer(self._tree, self.state_dir, address):
            return False
        try:
            return read_states(self._tree, [address])[address] == plan.before[address]
        except (VfioToolError, TimeoutError):
            return False

    @contextlib.contextmanager
    def _locked(self, wanted: Iterable[str]) -> Iterator[None]:
        """Hold the locks of the devices, and of those that a killed process had together with them."""
        self._journal.prepare()
        while True:
            keys = self._lock_keys(wanted)
            with locked(self._journal.locks, keys):
                if self._lock_keys(wanted) <= keys:
                    yield
                    return

    def _lock_keys(self, wanted: Iterable[str]) -> frozenset[str]:
        together = {*wanted, *self._pfs_of(wanted)}
        for transaction in unfinished(self._journal)[0]:
            if transaction.addresses & together:
                together |= transaction.addresses
        return lock_keys(self._tree, together)

    def _mend(self, wanted: Collection[str]) -> None:
        """Put right what is unfinished of these devices: whoever began it is dead, or it had the locks."""
        found, broken = unfinished(self._journal)
        wanted = {*wanted, *self._pfs_of(wanted)}
        for address in wanted:
            if address in broken:
                raise broken[address]
        for transaction in found:
            if not transaction.addresses.isdisjoint(wanted):
                if transaction.blocked is None:
                    self._undo_or_end(transaction)
                elif not pending_writer(self._tree, self.state_dir, transaction.blocked):
                    transaction.end()  # its record is there still, and the device has no driver
                self._mended |= transaction.addresses

    def _recover(self, transaction: Transaction) -> Plan:
        if self.dry_run:
            return self._plan_recovery(transaction)[0]
        with self._locked(transaction.addresses):
            for now in unfinished(self._journal)[0]:
                if now.path == transaction.path:
                    return self._undo_or_end(now) if now.blocked is None else self._finish(now)
        return NOTHING

    def _sweep(self) -> None:
        """Remove what killed processes left in the state folder that says nothing."""
        for path, address in debris(self._tree, self._journal):
            with self._locked([address]):
                if (path, address) in debris(self._tree, self._journal):
                    remove_own(path)

    def _undo_or_end(self, transaction: Transaction) -> Plan:
        if transaction.is_done:
            self._forget(transaction.forget)
            transaction.end()
            return NOTHING
        self._await_writers(transaction)
        plan = self._undo(transaction)
        if not plan.can_be_finished:
            plan += self._undo(transaction)  # VFs that were made anew get their drivers back
        self._forget(transaction.fresh)
        transaction.end()
        return plan

    def _undo(self, transaction: Transaction) -> Plan:
        plan, scene = self._plan_recovery(transaction)
        if plan.steps:
            self._binder(scene).execute(plan, lambda _: None, _holders(scene))
        return plan

    def _finish(self, transaction: Transaction) -> Plan:
        self._await_writers(transaction)
        plan, scene = self._plan_recovery(transaction)
        self._carry_out(plan, scene, forget=transaction.forget)
        if not plan.steps:
            transaction.end()
        return plan

    def _plan_recovery(self, transaction: Transaction) -> tuple[Plan, Scene]:
        """Plan back to what was, the last device first; where a driver did not let go, on to the end."""
        if transaction.blocked is None:
            former = {address: stored.state for address, stored in transaction.before.items()}
            wanted, chosen = former, transaction.touched[::-1]
        else:
            wanted, chosen = dict(transaction.after), tuple(transaction.after)
        there = {device.address: device for device in self._read_devices()}
        same = [one for one in chosen if one in there and transaction.before[one].is_of(there[one])]

        def wish(device: Device, now: DeviceState) -> DeviceState:
            return made_quietly(now, wanted[device.address])

        return self._plan(same, wish, self._allowed | transaction.allowed)

    def _await_writers(self, transaction: Transaction) -> None:
        """Wait for the writes that whoever began the plan left behind."""
        pfs = [device for device in self._read_devices() if device.address in transaction.addresses]
        for address in {*transaction.addresses, *(vf for pf in pfs for vf in pf.vfs)}:
            if not self._machine.await_writer(address, self.timeout):
                raise _waiting(read_scene(self._tree, self._read_devices(), [address]), address)

    def _best_driver(self, device: Device) -> str:
        from vfiotool.host.variants import best_vfio_driver

        return best_vfio_driver(self._tree, device)

    def _forget(self, wanted: Iterable[str]) -> None:
        for address in wanted:
            self._machine.revoke(address)
            self._journal.forget(address)

    def _as_recorded(self, plan: Plan) -> list[str]:
        """Return the devices that a plan brings back to just what is recorded of them."""
        records = {address: self._journal.find(address) for address in plan.before}
        return [one for one, record in records.items() if record and record.state == plan.after[one]]

    def _pfs_of(self, wanted: Iterable[str]) -> set[str]:
        links = (self._tree.find_link(f"{device_path(address)}/physfn") for address in wanted)
        return {pf for pf in links if pf is not None}

    def _read_devices(self) -> list[Device]:
        return read_devices(self._tree, addresses(self._tree), PciNames(b""), state_dir=self.state_dir)

    def _is_recorded(self, address: str) -> bool:
        """Say whether there is a record of this boot, or one that cannot be understood."""
        try:
            return self._journal.find(address) is not None
        except VfioToolError:
            return True

    def _is_recorded_of(self, stored: Stored) -> bool:
        record = self._journal.find(stored.address)
        ids = (stored.vendor_id, stored.device_id)
        return record is not None and (record.vendor_id, record.device_id) == ids

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


def _holders(scene: Scene) -> Mapping[str, Sequence[Holder]]:
    groups = {address: scene.group_of(address) for address in scene.devices}
    return {address: group.holders for address, group in groups.items() if group is not None}


def _waiting(scene: Scene, address: str) -> BlockedError:
    """What is not known of a device could not be recorded, and a write to it would wait as well."""
    group = scene.group_of(address)
    names = [f"pid {holder.pid} ({holder.comm})" for holder in (group.holders if group else ())]
    who = ", ".join(names) or "a process"
    return BlockedError(
        f"an unbind of {address} is pending: its driver waits for {who} to let go",
        holders=names,
        hint="end the process that holds it, then run 'vfiotool recover'",
    )


def _no_group(address: str) -> UnsupportedError:
    return UnsupportedError(f"{address} is in no IOMMU group, so VFIO cannot have it", hint=TURN_ON_IOMMU)
