"""Plans: the steps of a change, what refuses it and what it warns of. Pure functions of a ``PlanContext``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from vfiotool.binding.steps import (
    BindDriver,
    DeviceStep,
    LoadModule,
    SetVfCount,
    Step,
    WriteRule,
    steps_between,
)
from vfiotool.errors import VfioToolError
from vfiotool.host.device_state import DeviceState
from vfiotool.host.direct_regions import direct_note
from vfiotool.host.driver_ids import takes_any_device
from vfiotool.host.groups import blockers, is_vfio_driver
from vfiotool.host.pci_domains import domain_note
from vfiotool.host.plan_context import PlanContext
from vfiotool.host.refusals import Refusal, refusals


@dataclass(frozen=True, slots=True)
class DriverChange:
    """The driver of a device before and after a plan."""

    address: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps to take, in order, and the states of the devices ``before`` and ``after`` them; pure data.

    ``after`` includes VFs that the steps create. ``removed`` are the VFs that the steps remove, even if
    a later step creates them again. ``rules`` are the udev rules that are written beside the steps.
    ``failures`` are the errors of devices that could not be changed while others were.
    """

    before: Mapping[str, DeviceState]
    after: Mapping[str, DeviceState]
    steps: tuple[Step, ...]
    refusals: tuple[Refusal, ...] = ()
    warnings: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    rules: tuple[WriteRule, ...] = ()
    failures: tuple[VfioToolError, ...] = ()

    @property
    def changes(self) -> tuple[DriverChange, ...]:
        """The devices whose driver differs afterwards."""
        none = DeviceState(None, None)
        all_changes = (
            DriverChange(address, self.before.get(address, none).driver, self.after[address].driver)
            for address in {**self.before, **self.after}
        )
        return tuple(change for change in all_changes if change.before != change.after)

    @property
    def creates_vfs(self) -> bool:
        """Return True if a step creates VFs."""
        return any(isinstance(step, SetVfCount) and step.count for step in self.steps)

    @property
    def writes(self) -> tuple[Step | WriteRule, ...]:
        """All that the plan writes: its steps, then its udev rules."""
        return self.steps + self.rules

    def with_warnings(self, *texts: str) -> Plan:
        """Return the plan with further warnings."""
        return replace(self, warnings=self.warnings + texts)

    def __add__(self, other: Plan) -> Plan:
        """Return the plan that does what two plans do, one after the other."""
        return Plan(
            before={**other.before, **self.before},
            after={**self.after, **other.after},
            steps=self.steps + other.steps,
            refusals=self.refusals + other.refusals,
            warnings=self.warnings + other.warnings,
            removed=self.removed + other.removed,
            rules=self.rules + other.rules,
            failures=self.failures + other.failures,
        )


EMPTY_PLAN = Plan({}, {}, ())


def make_plan(
    context: PlanContext, now: Mapping[str, DeviceState], targets: Mapping[str, DeviceState]
) -> Plan:
    """Plan to bring each device from its state ``now`` into its target state, in the order of ``targets``."""
    steps = [step for address in targets for step in _steps(context, now[address], targets[address], address)]
    touched = {step.address: targets[step.address] for step in steps}
    return Plan(
        before={address: now[address] for address in targets},
        after=dict(targets),
        steps=(*missing_modules(context, steps), *steps),
        refusals=refusals(context, touched),
        warnings=(*context.unseen, *group_warnings(context, targets)),
    )


def missing_modules(context: PlanContext, steps: Iterable[Step]) -> list[LoadModule]:
    """Return the steps that load the drivers which ``steps`` bind to and which are not loaded yet."""
    drivers = {step.driver: step.address for step in steps if isinstance(step, BindDriver)}
    return [
        LoadModule(address, driver)
        for driver, address in drivers.items()
        if driver not in context.loaded_drivers
    ]


def bound_to(state: DeviceState, driver: str) -> DeviceState:
    """Return the state of a device that is bound to a driver.

    Only a driver that takes any device needs an override. For any other driver the override is cleared, so
    that the kernel compares the driver's ids with the device's. A device that is bound to the driver already
    keeps its state, its override included.
    """
    if state.driver == driver:
        return state
    return DeviceState(driver, driver if takes_any_device(driver) else None)


def kept_awake(state: DeviceState, now: DeviceState) -> DeviceState:
    """Return a target state with the policies that keep an idle device in D0, if the kernel has them."""
    return replace(
        state,
        power_control=None if now.power_control is None else "on",
        d3cold_allowed=None if now.d3cold_allowed is None else 0,
    )


def idle_d3_warnings(context: PlanContext, plan: Plan) -> Iterable[str]:
    """Yield a warning if vfio-pci puts devices to sleep that the plan keeps awake: see ``host.power``."""
    sleepy = [address for address, state in plan.after.items() if is_vfio_driver(state.driver)]
    if sleepy and context.sleeps_on_its_own:
        yield (
            f"this kernel's vfio-pci itself puts {', '.join(sleepy)} into D3hot while idle: only its module "
            "parameter disable_idle_d3=1 prevents that"
        )


def _steps(context: PlanContext, now: DeviceState, target: DeviceState, address: str) -> Iterable[DeviceStep]:
    group = context.devices[address].iommu_group
    node = None if group is None else f"/dev/vfio/{group}"
    return steps_between(now, target, address, node=node)


def group_warnings(context: PlanContext, targets: Mapping[str, DeviceState]) -> tuple[str, ...]:
    """Return warnings of the groups that VFIO is to have.

    They are of each device that the plan does not change and that makes its group not viable, and of direct
    regions.
    """
    warnings = []
    for number, group in sorted(context.groups.items()):
        chosen = [targets[address] for address in group.devices if address in targets]
        if not any(is_vfio_driver(target.driver) for target in chosen):
            continue
        if note := direct_note(group):
            warnings.append(f"group {number}: {note}")
        others = [context.devices[address] for address in group.devices if address not in targets]
        for blocker in blockers(others, context.era):
            domain = context.domains.get(blocker.address)
            remedy = (
                "bind it too, or use --group"
                if domain is None
                else domain_note(blocker.address, blocker.driver, domain)
            )
            warnings.append(
                f"group {number} is not viable while {blocker.address} is on {blocker.driver}: {remedy}"
            )
    return tuple(warnings)
