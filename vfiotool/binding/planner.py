"""Plan changes of this machine's devices: read the machine, and make a plan or raise what refuses it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from vfiotool.binding.ownership import Owner
from vfiotool.binding.plan import Plan, make_plan
from vfiotool.binding.sriov import removed_vfs, unbound, with_vf_events
from vfiotool.binding.steps import GrantOwner
from vfiotool.binding.waiting import nodes_of, still_pending, vfs_pending
from vfiotool.errors import BlockedError
from vfiotool.host.attributes import addresses as all_addresses
from vfiotool.host.device_state import DeviceState, read_states
from vfiotool.host.devices import PciDevice, read_devices
from vfiotool.host.plan_context import PlanContext, read_plan_context
from vfiotool.host.refusals import PlanRefusedError
from vfiotool.host.tree import Tree
from vfiotool.pci.names import PciNames

TargetState = Callable[[PciDevice, DeviceState], DeviceState]
"""Returns the state that a device is to reach, from the device and its state now."""

PlanAmendment = Callable[[PlanContext, Plan], Plan]
"""Adds to a plan what the states of devices alone do not say."""


class Planner:
    """Reads a machine and makes plans; changes nothing."""

    def __init__(self, tree: Tree, state_dir: str) -> None:
        self._tree = tree
        self._state_dir = state_dir

    def devices(self) -> list[PciDevice]:
        """Read all devices, without vendor and device names, which no plan needs."""
        return read_devices(self._tree, all_addresses(self._tree), PciNames(b""), state_dir=self._state_dir)

    def plan(
        self,
        addresses: Sequence[str],
        target: TargetState,
        allowed: frozenset[str],
        owner: Owner | None = None,
        amend: PlanAmendment | None = None,
    ) -> tuple[Plan, PlanContext]:
        """Plan to bring each device into its target state; return the plan and what it was made from.

        Raises:
            PlanRefusedError: a rule that is not ``allowed`` forbids it.
            BlockedError: an unbind of a device is pending.
            DeviceNotFoundError: there is no device at an address.
        """
        devices = self.devices()
        context, now = self.read(devices, addresses, allowed)
        targets = {address: target(context.devices[address], now[address]) for address in addresses}
        removed = removed_vfs(context.devices, now, targets)
        if removed:
            others = {address: state for address, state in targets.items() if address not in removed}
            context, now = self.read(devices, [*removed, *others], allowed)
            targets = {vf: unbound(now[vf]) for vf in removed} | others
        plan = with_vf_events(self._tree, context, make_plan(context, now, targets), removed)
        plan = plan if amend is None else amend(context, plan)
        if plan.refusals:
            raise PlanRefusedError(plan.refusals)
        if owner is not None:
            grants = tuple(GrantOwner(address, owner) for address in addresses)
            plan = replace(plan, steps=plan.steps + grants)
        return plan, context

    def read(
        self, devices: Sequence[PciDevice], addresses: Sequence[str], allowed: frozenset[str]
    ) -> tuple[PlanContext, dict[str, DeviceState]]:
        """Read what a plan for these addresses is made from, and the devices' states.

        Raises as ``plan`` does.
        """
        context = read_plan_context(self._tree, devices, addresses, allowed=allowed)
        for address in addresses:
            if context.devices[address].blocked:
                raise self.pending(context, address)
        try:
            return context, read_states(self._tree, addresses)
        except TimeoutError as error:
            raise self.pending(context, error.filename) from None

    def pending(self, context: PlanContext, address: str) -> BlockedError:
        """Return the error for a device to which a write has not returned."""
        device = context.devices[address]
        is_unbound = device.driver is None  # an unbind begins with the link to the driver
        if device.sriov_totalvfs and not is_unbound:
            return vfs_pending(self._tree, self._state_dir, device)
        return still_pending(self._tree, self._state_dir, address, nodes_of(context, [address]))
