"""What would be done, and whether it may be: pure functions of a snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vfiotool.binding.plan_context import PlanContext
from vfiotool.binding.refusals import Refusal, refusals
from vfiotool.binding.steps import MODPROBE, Step, steps_between
from vfiotool.host.device_state import DeviceState
from vfiotool.host.groups import blockers, is_vfio_driver


@dataclass(frozen=True, slots=True)
class DriverChange:
    """A device and its drivers before and after."""

    address: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done, in order. ``before`` has each device's state now; pure data.

    ``after`` has that to come, of VFs that are not there yet too. ``removed`` are the VFs that go on the
    way, be they made anew or not.
    """

    before: Mapping[str, DeviceState]
    after: Mapping[str, DeviceState]
    steps: tuple[Step, ...]
    refusals: tuple[Refusal, ...] = ()
    warnings: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    @property
    def changes(self) -> tuple[DriverChange, ...]:
        """The devices that end on another driver."""
        none = DeviceState(None, None)
        all_changes = (
            DriverChange(address, self.before.get(address, none).driver, self.after[address].driver)
            for address in {**self.before, **self.after}
        )
        return tuple(change for change in all_changes if change.before != change.after)

    @property
    def can_be_finished(self) -> bool:
        """Say whether what ``after`` has of the devices that are there now is all that there is to it."""
        return not any(step.counts_vfs for step in self.steps)

    def __add__(self, other: Plan) -> Plan:
        """What two plans do, one after the other."""
        return Plan(
            before={**other.before, **self.before},
            after={**self.after, **other.after},
            steps=self.steps + other.steps,
            refusals=self.refusals + other.refusals,
            warnings=self.warnings + other.warnings,
            removed=self.removed + other.removed,
        )


NOTHING = Plan({}, {}, ())


def make_plan(
    context: PlanContext, now: Mapping[str, DeviceState], wanted: Mapping[str, DeviceState]
) -> Plan:
    """Plan to bring each device from its state ``now`` into the one ``wanted``, in the order given."""
    steps = [step for address in wanted for step in _steps(context, now[address], wanted[address], address)]
    touched = {step.address: wanted[step.address] for step in steps}
    return Plan(
        before={address: now[address] for address in wanted},
        after=dict(wanted),
        steps=(*modules(context, steps), *steps),
        refusals=refusals(context, touched),
        warnings=group_warnings(context, wanted),
    )


def modules(context: PlanContext, steps: list[Step]) -> list[Step]:
    """Return what loads the drivers that steps bind to, where they are not there."""
    drivers = {step.binds: step.address for step in steps if step.binds}
    return [
        Step(address, MODPROBE, driver)
        for driver, address in drivers.items()
        if driver not in context.loaded_drivers
    ]


def bound_to(state: DeviceState, driver: str) -> DeviceState:
    """Return the state in which a device is bound to a driver.

    One that is bound to it already stays as it is, its override too.
    """
    return state if state.driver == driver else DeviceState(driver, driver)


def _steps(context: PlanContext, now: DeviceState, wanted: DeviceState, address: str) -> list[Step]:
    group = context.devices[address].iommu_group
    node = None if group is None else f"/dev/vfio/{group}"
    return list(steps_between(now, wanted, address, node=node))


def group_warnings(context: PlanContext, wanted: Mapping[str, DeviceState]) -> tuple[str, ...]:
    """Tell of groups that stay out of userspace's reach, because of members that are not touched."""
    warnings = []
    for number, group in sorted(context.groups.items()):
        if not any(is_vfio_driver(wanted[address].driver) for address in group.devices if address in wanted):
            continue
        others = [context.devices[address] for address in group.devices if address not in wanted]
        for blocker in blockers(others, context.era):
            warnings.append(
                f"group {number} is not viable while {blocker.address} is on {blocker.driver}: "
                "bind it too, or use --group"
            )
    return tuple(warnings)
