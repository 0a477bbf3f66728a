"""Put right what killed processes left, and finish what waited for a holder."""

from __future__ import annotations

from collections.abc import Iterable

from vfiotool.binding.journal import Journal, debris
from vfiotool.binding.machine import MachineControl
from vfiotool.binding.plan import NOTHING, Plan
from vfiotool.binding.plan_context import PlanContext, read_plan_context
from vfiotool.binding.planner import Planner, waiting
from vfiotool.binding.state_dir import remove_own
from vfiotool.binding.steps import made_quietly
from vfiotool.binding.transaction_log import Transaction, unfinished
from vfiotool.binding.transaction_runner import TransactionRunner, pfs_of
from vfiotool.errors import VfioToolError
from vfiotool.host.device_state import DeviceState
from vfiotool.host.devices import Device
from vfiotool.host.pending_unbinds import pending_writer


class Recovery:
    """Mends the transactions of a journal; ``allowed`` names rules that are lifted."""

    def __init__(
        self,
        machine: MachineControl,
        journal: Journal,
        planner: Planner,
        executor: TransactionRunner,
        *,
        allowed: frozenset[str],
        dry_run: bool,
        timeout: float,
    ) -> None:
        self._machine, self._journal, self._planner, self._executor = machine, journal, planner, executor
        self._allowed, self._dry_run, self._timeout = allowed, dry_run, timeout
        self._tree = machine.tree

    def recover(self) -> Plan:
        """Mend all; see ``Binding.recover``."""
        found, broken = unfinished(self._journal)
        done, errors = NOTHING, list(broken.values())
        for transaction in found:
            try:
                done += self._recover(transaction)
            except VfioToolError as error:
                errors.append(error)
        if not self._dry_run:
            self._sweep()
        if errors:
            raise errors[0]
        return done

    def mend(self, wanted: Iterable[str]) -> frozenset[str]:
        """Put right what is unfinished of these devices, whose locks are held, and return which it was.

        Whoever began it is dead, or it had the locks.
        """
        mended: set[str] = set()
        found, broken = unfinished(self._journal)
        wanted = {*wanted, *pfs_of(self._tree, wanted)}
        for address in wanted:
            if address in broken:
                raise broken[address]
        for transaction in found:
            if not transaction.addresses.isdisjoint(wanted):
                if transaction.blocked is None:
                    self._undo_or_end(transaction)
                elif not pending_writer(self._tree, self._journal.state_dir, transaction.blocked):
                    transaction.end()  # its record is there still, and the device has no driver
                mended |= transaction.addresses
        return frozenset(mended)

    def _recover(self, transaction: Transaction) -> Plan:
        if self._dry_run:
            return self._plan_recovery(transaction)[0]
        with self._executor.locked(transaction.addresses):
            for now in unfinished(self._journal)[0]:
                if now.path == transaction.path:
                    return self._undo_or_end(now) if now.blocked is None else self._finish(now)
        return NOTHING

    def _sweep(self) -> None:
        """Remove what killed processes left in the state folder that says nothing."""
        for path, address in debris(self._tree, self._journal):
            with self._executor.locked([address]):
                if (path, address) in debris(self._tree, self._journal):
                    remove_own(path)

    def _undo_or_end(self, transaction: Transaction) -> Plan:
        if transaction.is_done:
            self._executor.forget(transaction.forget)
            transaction.end()
            return NOTHING
        self._await_writers(transaction)
        plan = self._undo(transaction)
        if not plan.can_be_finished:
            plan += self._undo(transaction)  # VFs that were made anew get their drivers back
        self._executor.forget(transaction.fresh)
        transaction.end()
        return plan

    def _undo(self, transaction: Transaction) -> Plan:
        plan, context = self._plan_recovery(transaction)
        if plan.steps:
            self._executor.execute(plan, context, lambda _: None)
        return plan

    def _finish(self, transaction: Transaction) -> Plan:
        self._await_writers(transaction)
        plan, context = self._plan_recovery(transaction)
        self._executor.carry_out(plan, context, forget=transaction.forget)
        if not plan.steps:
            transaction.end()
        return plan

    def _plan_recovery(self, transaction: Transaction) -> tuple[Plan, PlanContext]:
        """Plan back to what was, the last device first; where a driver did not let go, on to the end."""
        if transaction.blocked is None:
            former = {address: stored.state for address, stored in transaction.before.items()}
            wanted, chosen = former, transaction.touched[::-1]
        else:
            wanted, chosen = dict(transaction.after), tuple(transaction.after)
        there = {device.address: device for device in self._planner.devices()}
        same = [one for one in chosen if one in there and transaction.before[one].is_of(there[one])]

        def wish(device: Device, now: DeviceState) -> DeviceState:
            return made_quietly(now, wanted[device.address])

        return self._planner.plan(same, wish, self._allowed | transaction.allowed)

    def _await_writers(self, transaction: Transaction) -> None:
        """Wait for the writes that whoever began the plan left behind."""
        pfs = [device for device in self._planner.devices() if device.address in transaction.addresses]
        for address in {*transaction.addresses, *(vf for pf in pfs for vf in pf.vfs)}:
            if not self._machine.await_writer(address, self._timeout):
                raise waiting(read_plan_context(self._tree, self._planner.devices(), [address]), address)
