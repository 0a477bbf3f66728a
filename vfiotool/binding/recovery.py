"""Undo what killed processes left unfinished, and finish what waited for a holder."""

from __future__ import annotations

from collections.abc import Iterable

from vfiotool.binding.journal import Journal, stale_files
from vfiotool.binding.locks import pfs_of
from vfiotool.binding.machine import MachineControl
from vfiotool.binding.plan import EMPTY_PLAN, Plan
from vfiotool.binding.plan_writer import PlanWriter
from vfiotool.binding.planner import Planner
from vfiotool.binding.sriov import VF_SECONDS
from vfiotool.binding.state_dir import remove_own
from vfiotool.binding.steps import without_autoprobe
from vfiotool.binding.transaction_log import UnfinishedTransaction, read_unfinished
from vfiotool.binding.transaction_runner import TransactionRunner
from vfiotool.errors import VfioToolError
from vfiotool.host.device_state import DeviceState
from vfiotool.host.devices import PciDevice
from vfiotool.host.groups import is_vfio_driver
from vfiotool.host.pending_unbinds import pending_writer
from vfiotool.host.plan_context import PlanContext, read_plan_context


class Recovery:
    """Recovers the unfinished transactions of a journal.

    ``allowed`` are the lifted rules. ``timeout`` is how long to wait for a pending write, in seconds.
    """

    def __init__(
        self,
        machine: MachineControl,
        journal: Journal,
        planner: Planner,
        writer: PlanWriter,
        transactions: TransactionRunner,
        *,
        allowed: frozenset[str],
        dry_run: bool,
        timeout: float,
    ) -> None:
        self._machine, self._journal, self._planner = machine, journal, planner
        self._writer, self._transactions = writer, transactions
        self._allowed, self._dry_run, self._timeout = allowed, dry_run, timeout
        self._tree = machine.tree

    def recover(self) -> Plan:
        """Recover all transactions; see ``Binding.recover``."""
        found, broken = read_unfinished(self._journal)
        done, errors = EMPTY_PLAN, list(broken.values())
        for transaction in found:
            try:
                done += self._recover(transaction)
            except VfioToolError as error:
                errors.append(error)
        if not self._dry_run:
            self._remove_stale_files()
        if errors:
            raise errors[0]
        return done

    def recover_devices(self, addresses: Iterable[str]) -> frozenset[str]:
        """Recover the transactions of these devices, whose locks the caller holds.

        The processes that began them are dead: a live one would hold the locks. Returns the addresses of
        all devices in those transactions.
        """
        recovered: set[str] = set()
        found, broken = read_unfinished(self._journal)
        addresses = {*addresses, *pfs_of(self._tree, addresses)}
        for address in addresses:
            if address in broken:
                raise broken[address]
        for transaction in found:
            if not transaction.addresses.isdisjoint(addresses):
                if transaction.blocked is None:
                    self._undo_or_end(transaction)
                elif not pending_writer(self._tree, self._journal.state_dir, transaction.blocked):
                    if transaction.sets_vfs:
                        self._finish(transaction)
                    else:
                        transaction.end()  # the device has no driver now, and its record is still there
                recovered |= transaction.addresses
        return frozenset(recovered)

    def _recover(self, transaction: UnfinishedTransaction) -> Plan:
        if self._dry_run:
            return self._plan(transaction)[0]
        with self._transactions.locked(transaction.addresses):
            for now in read_unfinished(self._journal)[0]:
                if now.path == transaction.path:
                    return self._undo_or_end(now) if now.blocked is None else self._finish(now)
        return EMPTY_PLAN

    def _remove_stale_files(self) -> None:
        for path, address in stale_files(self._tree, self._journal):
            with self._transactions.locked([address]):
                if (path, address) in stale_files(self._tree, self._journal):
                    remove_own(path)

    def _undo_or_end(self, transaction: UnfinishedTransaction) -> Plan:
        if transaction.is_done:
            self._transactions.forget(transaction.forget)
            transaction.end()
            return EMPTY_PLAN
        self._await_writers(transaction)
        plan = self._undo(transaction)
        if plan.creates_vfs:
            plan += self._undo(transaction)  # the VFs that were created again get their drivers back
        self._transactions.forget(transaction.fresh)
        transaction.end()
        return plan

    def _undo(self, transaction: UnfinishedTransaction) -> Plan:
        plan, context = self._plan(transaction)
        if not plan.steps:
            return plan
        return plan.with_warnings(*self._writer.write(plan, context, lambda _: None))

    def _finish(self, transaction: UnfinishedTransaction) -> Plan:
        self._await_writers(transaction)
        plan, context = self._plan(transaction)
        plan = plan.with_warnings(*self._transactions.run(plan, context, forget=transaction.forget))
        if plan.creates_vfs:  # the write failed after all, and its VFs are there only now
            rest, context = self._plan(transaction)
            plan += rest.with_warnings(*self._transactions.run(rest, context, forget=()))
        transaction.end()
        return plan

    def _plan(self, transaction: UnfinishedTransaction) -> tuple[Plan, PlanContext]:
        """Plan the way back, the last device first; if a driver was waited for, plan the way on."""
        if transaction.blocked is None:
            former = {address: record.state for address, record in transaction.before.items()}
            targets, chosen = former, transaction.touched[::-1]
        else:
            targets, chosen = dict(transaction.after), tuple(transaction.after)
        present = {device.address: device for device in self._planner.devices()}
        same = [
            address
            for address in chosen
            if address in present and _is_of(transaction, present[address], targets[address])
        ]

        is_undo = transaction.blocked is None
        keeps_drivers_away = is_undo or any(is_vfio_driver(state.driver) for state in targets.values())

        def target(device: PciDevice, now: DeviceState) -> DeviceState:
            state = targets[device.address]
            return without_autoprobe(now, state) if keeps_drivers_away else state

        return self._planner.plan(same, target, self._allowed | transaction.allowed)

    def _await_writers(self, transaction: UnfinishedTransaction) -> None:
        """Wait for the writes that the process which began the transaction left pending."""
        pfs = [device for device in self._planner.devices() if device.address in transaction.addresses]
        for address in {*transaction.addresses, *(vf for pf in pfs for vf in pf.vfs)}:
            timeout = self._timeout + VF_SECONDS * _most_vfs(transaction, address)
            if not self._machine.await_writer(address, timeout):
                context = read_plan_context(self._tree, self._planner.devices(), [address])
                raise self._planner.pending(context, address)


def _is_of(transaction: UnfinishedTransaction, device: PciDevice, target: DeviceState) -> bool:
    """Return True if a device is one that the transaction was about, or a VF that it is to bind."""
    if transaction.sets_vfs and device.physfn == transaction.blocked:
        return target.driver is not None  # a former VF at the address had to lose its driver, and is gone
    record = transaction.before.get(device.address)
    return record is not None and record.matches(device)


def _most_vfs(transaction: UnfinishedTransaction, address: str) -> int:
    """Return how many VFs of a device the transaction may have created or removed at once."""
    record, after = transaction.before.get(address), transaction.after.get(address)
    states = (None if record is None else record.state, after)
    return max((state.numvfs or 0 for state in states if state is not None), default=0)
