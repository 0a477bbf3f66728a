"""Carry plans out under the locks of their devices, with all on disk that it takes to mend them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from vfiotool.binding.device_record import DeviceRecord
from vfiotool.binding.journal import Journal
from vfiotool.binding.locks import lock_keys, locked
from vfiotool.binding.machine import MachineControl
from vfiotool.binding.plan import Plan
from vfiotool.binding.plan_context import PlanContext
from vfiotool.binding.plan_writer import PlanWriter
from vfiotool.binding.transaction_log import TransactionLog, unfinished
from vfiotool.errors import VfioToolError
from vfiotool.host.attributes import device_path
from vfiotool.host.device_state import read_states
from vfiotool.host.holders import Holder
from vfiotool.host.pending_unbinds import pending_writer
from vfiotool.host.tree import Tree


class TransactionRunner:
    """Carries plans out on a machine; ``timeout`` bounds each write, in seconds."""

    def __init__(self, machine: MachineControl, journal: Journal, timeout: float) -> None:
        self._machine, self._journal, self._timeout = machine, journal, timeout
        self._tree = machine.tree

    def carry_out(self, plan: Plan, context: PlanContext, *, forget: Iterable[str]) -> None:
        """Execute a plan, from the first line of its transaction to the last; the locks must be held.

        The records of the devices in ``forget`` end with it. Raises as ``PlanWriter.execute`` does.
        """
        forget = [*dict.fromkeys([*forget, *plan.removed, *self._as_recorded(plan)])]
        if not plan.steps:
            self.forget(forget)
            return
        before = [DeviceRecord.of(context.devices[address], state) for address, state in plan.before.items()]
        fresh = [stored.address for stored in before if not self._is_recorded(stored)]
        log = TransactionLog(self._journal, plan, before, fresh=fresh, forget=forget, allowed=context.allowed)
        try:
            for stored in before:
                if stored.address in fresh:
                    self._journal.record(stored)
            self.execute(plan, context, log.about_to)
        except BaseException:
            self._leave(log, plan, fresh)
            raise
        log.done()
        self.forget(forget)
        log.end()

    def execute(self, plan: Plan, context: PlanContext, about_to: Callable[[int], None]) -> None:
        """Do the steps of a plan, or none; raises as ``PlanWriter.execute`` does."""
        PlanWriter(self._machine, context.era, self._timeout).execute(plan, about_to, _holders(context))

    def _leave(self, log: TransactionLog, plan: Plan, fresh: Iterable[str]) -> None:
        """After a failure: end the transaction where all is as it was, else leave it for ``recover``."""
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
        if changed == set(pending) and plan.can_be_finished:
            log.blocked(pending[0])
        log.close()

    def _is_back(self, plan: Plan, address: str) -> bool:
        if pending_writer(self._tree, self._journal.state_dir, address):
            return False
        try:
            return read_states(self._tree, [address])[address] == plan.before[address]
        except (VfioToolError, TimeoutError):
            return False

    @contextlib.contextmanager
    def locked(self, wanted: Iterable[str]) -> Iterator[None]:
        """Hold the locks of the devices, and of those that a killed process had together with them."""
        self._journal.prepare()
        while True:
            keys = self._keys(wanted)
            with locked(self._journal.locks, keys):
                if self._keys(wanted) <= keys:
                    yield
                    return

    def _keys(self, wanted: Iterable[str]) -> frozenset[str]:
        together = {*wanted, *pfs_of(self._tree, wanted)}
        for transaction in unfinished(self._journal)[0]:
            if transaction.addresses & together:
                together |= transaction.addresses
        return lock_keys(self._tree, together)

    def forget(self, wanted: Iterable[str]) -> None:
        """End the records of devices, and what goes with them."""
        for address in wanted:
            self._machine.revoke(address)
            self._journal.forget(address)

    def _as_recorded(self, plan: Plan) -> list[str]:
        """Return the devices that a plan brings back to just what is recorded of them."""
        records = {address: self._journal.find(address) for address in plan.before}
        return [one for one, record in records.items() if record and record.state == plan.after[one]]

    def _is_recorded(self, stored: DeviceRecord) -> bool:
        record = self._journal.find(stored.address)
        ids = (stored.vendor_id, stored.device_id)
        return record is not None and (record.vendor_id, record.device_id) == ids


def pfs_of(tree: Tree, wanted: Iterable[str]) -> set[str]:
    """Return the PFs of those devices that are VFs."""
    links = (tree.find_link(f"{device_path(address)}/physfn") for address in wanted)
    return {pf for pf in links if pf is not None}


def _holders(context: PlanContext) -> Mapping[str, Sequence[Holder]]:
    groups = {address: context.group_of(address) for address in context.devices}
    return {address: group.holders for address, group in groups.items() if group is not None}
