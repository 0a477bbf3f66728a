"""Run plans as transactions: under locks, with a log on disk from which ``recovery`` can undo them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from vfiotool.binding.device_record import DeviceRecord
from vfiotool.binding.journal import Journal
from vfiotool.binding.locks import lock_keys, locked, pfs_of
from vfiotool.binding.machine import MachineControl
from vfiotool.binding.plan import Plan
from vfiotool.binding.plan_writer import PlanWriter
from vfiotool.binding.transaction_log import TransactionLog, read_unfinished
from vfiotool.errors import BlockedError, VfioToolError
from vfiotool.host.device_state import read_states
from vfiotool.host.pending_unbinds import pending_writer
from vfiotool.host.plan_context import PlanContext


class TransactionRunner:
    """Runs plans as transactions. Threads must not share it."""

    def __init__(self, machine: MachineControl, journal: Journal, writer: PlanWriter) -> None:
        self._machine, self._journal, self._writer = machine, journal, writer
        self._tree = machine.tree

    @contextlib.contextmanager
    def locked(self, addresses: Iterable[str]) -> Iterator[None]:
        """Hold the locks of the devices, and of all devices in an unfinished transaction with them."""
        self._journal.prepare()
        while True:
            keys = self._keys(addresses)
            with locked(self._journal.locks, keys):
                if self._keys(addresses) <= keys:
                    yield
                    return

    def _keys(self, addresses: Iterable[str]) -> frozenset[str]:
        together = {*addresses, *pfs_of(self._tree, addresses)}
        for transaction in read_unfinished(self._journal)[0]:
            if transaction.addresses & together:
                together |= transaction.addresses
        return lock_keys(self._tree, together)

    def run(self, plan: Plan, context: PlanContext, *, forget: Iterable[str]) -> tuple[str, ...]:
        """Write a plan to the machine within a transaction; the caller holds the locks.

        The records of the devices in ``forget`` are removed at its end. Returns and raises as
        ``PlanWriter.write`` does.
        """
        forget = [*dict.fromkeys([*forget, *plan.removed, *self._back_as_recorded(plan)])]
        if not plan.steps:
            self.forget(forget)
            return ()
        before = [DeviceRecord.of(context.devices[address], state) for address, state in plan.before.items()]
        fresh = [record.address for record in before if not self._is_recorded(record)]
        log = TransactionLog(self._journal, plan, before, fresh=fresh, forget=forget, allowed=context.allowed)
        try:
            for record in before:
                if record.address in fresh:
                    self._journal.record(record)
            warnings = self._writer.write(plan, context, log.begin_step)
        except BaseException as error:
            self._end_failed(log, plan, fresh, is_blocked=isinstance(error, BlockedError))
            raise
        log.mark_done()
        self.forget(forget)
        log.end()
        return warnings

    def forget(self, addresses: Iterable[str]) -> None:
        """Remove the records of devices, and revoke the grants of their nodes."""
        for address in addresses:
            self._machine.revoke(address)
            self._journal.forget(address)

    def _end_failed(self, log: TransactionLog, plan: Plan, fresh: Iterable[str], *, is_blocked: bool) -> None:
        """After a failure: end the transaction if all devices are back, else leave it for ``recover``.

        If a step was not done in time (``is_blocked``), and not a write of the rollback, ``recover`` finishes
        a change of the number of VFs.
        """
        changed = {
            address for address in log.touched & plan.before.keys() if not self._is_back(plan, address)
        }
        self.forget(address for address in fresh if address not in changed)
        if not changed:
            log.end()
            return
        pending = [
            address for address in changed if pending_writer(self._tree, self._journal.state_dir, address)
        ]
        sets_vfs = is_blocked and any(
            plan.after[pf].numvfs not in (None, plan.before[pf].numvfs) for pf in pending
        )
        waiting = changed - {*plan.removed} if sets_vfs else changed
        if waiting == {*pending} and (sets_vfs or not plan.creates_vfs):
            log.mark_blocked(pending[0])
        log.close()

    def _is_back(self, plan: Plan, address: str) -> bool:
        """Return True if a device is in the state that it had before the plan."""
        if pending_writer(self._tree, self._journal.state_dir, address):
            return False
        try:
            return read_states(self._tree, [address])[address] == plan.before[address]
        except (VfioToolError, TimeoutError):
            return False

    def _back_as_recorded(self, plan: Plan) -> list[str]:
        """Return the devices that the plan brings back to exactly the recorded state."""
        records = {address: self._journal.find(address) for address in plan.before}
        return [
            address
            for address, record in records.items()
            if record is not None and record.state == plan.after[address]
        ]

    def _is_recorded(self, device: DeviceRecord) -> bool:
        """Return True if the journal has a record of this device, not of another one at its address."""
        record = self._journal.find(device.address)
        return record is not None and record.ids == device.ids
