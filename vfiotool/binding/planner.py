"""From wishes to a plan and the context that it is made from: where plans meet the machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from vfiotool.binding.ownership import Owner
from vfiotool.binding.plan import Plan, make_plan
from vfiotool.binding.plan_context import PlanContext, read_plan_context
from vfiotool.binding.refusals import PlanRefusedError
from vfiotool.binding.sriov import about_to_leave, leaving, with_vfs
from vfiotool.binding.steps import grant_to
from vfiotool.errors import BlockedError
from vfiotool.host.attributes import addresses
from vfiotool.host.device_state import DeviceState, read_states
from vfiotool.host.devices import Device, read_devices
from vfiotool.host.tree import Tree
from vfiotool.pci.names import PciNames

Wish = Callable[[Device, DeviceState], DeviceState]
"""From a device and its state to the state that it is to be in."""

Shape = Callable[[PlanContext, Plan], Plan]
"""What an operation adds to a plan that states alone do not say."""


class Planner:
    """Looks at a machine and plans; changes nothing."""

    def __init__(self, tree: Tree, state_dir: str) -> None:
        self.tree = tree
        self._state_dir = state_dir

    def devices(self) -> list[Device]:
        """Read all devices, without the names that no plan needs."""
        return read_devices(self.tree, addresses(self.tree), PciNames(b""), state_dir=self._state_dir)

    def plan(
        self,
        wanted: Sequence[str],
        wish: Wish,
        allowed: frozenset[str],
        owner: Owner | None = None,
        shape: Shape | None = None,
    ) -> tuple[Plan, PlanContext]:
        """Plan for each device what is wished for it, and return the context that the plan is made from.

        Raises:
            PlanRefusedError: a rule that is not ``allowed`` forbids it.
            BlockedError: an unbind of a device is pending.
            DeviceNotFoundError: there is no such device.
        """
        devices = self.devices()
        context, now = self.look(devices, wanted, allowed)
        states = {address: wish(context.devices[address], now[address]) for address in wanted}
        removed = leaving(context.devices, now, states)
        if removed:
            stay = {address: state for address, state in states.items() if address not in removed}
            context, now = self.look(devices, [*removed, *stay], allowed)
            states = {vf: about_to_leave(now[vf]) for vf in removed} | stay
        plan = with_vfs(self.tree, context, make_plan(context, now, states), removed)
        plan = plan if shape is None else shape(context, plan)
        if plan.refusals:
            raise PlanRefusedError(plan.refusals)
        if owner is not None:
            grants = tuple(grant_to(address, owner) for address in wanted)
            plan = replace(plan, steps=plan.steps + grants)
        return plan, context

    def look(
        self, devices: Sequence[Device], wanted: Sequence[str], allowed: frozenset[str]
    ) -> tuple[PlanContext, dict[str, DeviceState]]:
        """Return the context, and the states of the wanted devices; raises as ``plan`` does."""
        context = read_plan_context(self.tree, devices, wanted, allowed=allowed)
        for address in wanted:
            if context.devices[address].blocked:
                raise waiting(context, address)
        try:
            return context, read_states(self.tree, wanted)
        except TimeoutError as error:
            raise waiting(context, error.filename) from None


def waiting(context: PlanContext, address: str) -> BlockedError:
    """Return the error for a device whose unbind is pending.

    What is not known of a device could not be recorded, and a write to it would wait as well.
    """
    group = context.group_of(address)
    names = [holder.process for holder in (group.holders if group else ())]
    who = ", ".join(names) or "a process"
    return BlockedError(
        f"an unbind of {address} is pending: its driver waits for {who} to let go",
        holders=names,
        hint="end the process that holds it, then run 'vfiotool recover'",
    )
