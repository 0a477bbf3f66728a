"""What would be done, and whether it may be: pure functions of a snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vfiotool.errors import RefusedError
from vfiotool.host.attributes import device_path
from vfiotool.host.devices import Device, DeviceState
from vfiotool.host.era import Era
from vfiotool.host.groups import Group, blockers, is_bridge, is_vfio_driver
from vfiotool.host.usage import Usage

DRIVERS = "/sys/bus/pci/drivers"
MODPROBE = "modprobe"
CLEAR = "\n"
"""What clears an override: an empty write does nothing, and a space names a driver of that name."""


@dataclass(frozen=True, slots=True)
class Step:
    """One change: ``value`` is written to ``path``, or given to modprobe where that is the path.

    ``event`` is the uevent that must follow for ``address``, and ``driver`` the one that the device
    must have after it.
    """

    address: str
    path: str
    value: str
    event: str | None = None
    driver: str | None = None

    def __str__(self) -> str:
        if self.path == MODPROBE:
            return f"{MODPROBE} {self.value}"
        return f"write {self.value!r} to {self.path}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a device must not be touched, by which rule, and the option that lifts it, if any may."""

    address: str
    rule: str
    reason: str
    flag: str | None


class PlanRefusedError(RefusedError):
    """Rules forbid a plan; ``refusals`` has them all."""

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        reasons = [f"{refusal.address}: {refusal.reason}" for refusal in refusals]
        flags = dict.fromkeys(refusal.flag for refusal in refusals if refusal.flag is not None)
        hint = f"if you mean it, add {' '.join(flags)}" if flags else "no option lifts this"
        super().__init__(f"refused: {'; '.join(reasons)}", reasons=reasons, hint=hint)
        self.refusals = tuple(refusals)


@dataclass(frozen=True, slots=True)
class Change:
    """A device and its drivers before and after."""

    address: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done, in order. ``before`` has each device's state now; pure data."""

    before: Mapping[str, DeviceState]
    after: Mapping[str, DeviceState]
    steps: tuple[Step, ...]
    refusals: tuple[Refusal, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def changes(self) -> tuple[Change, ...]:
        """The devices that end on another driver."""
        return tuple(
            Change(address, state.driver, self.after[address].driver)
            for address, state in self.before.items()
            if state.driver != self.after[address].driver
        )


@dataclass(frozen=True, slots=True)
class Scene:
    """What plans are made from: one moment of the machine.

    ``usage`` has what hangs on each device that may be touched; ``allowed`` the rules that the user
    lifts.
    """

    devices: Mapping[str, Device]
    groups: Mapping[int, Group]
    usage: Mapping[str, Sequence[Usage]]
    loaded_drivers: frozenset[str]
    era: Era
    allowed: frozenset[str] = field(default_factory=frozenset)


def make_plan(scene: Scene, wanted: Mapping[str, DeviceState]) -> Plan:
    """Plan to bring each device into the state that is wanted for it, in the order given."""
    before = {address: scene.devices[address].state for address in wanted}
    steps = [
        step for address, state in wanted.items() for step in steps_between(before[address], state, address)
    ]
    drivers = {step.driver: step.address for step in steps if step.event == "bind" and step.driver}
    modules = [
        Step(address, MODPROBE, driver)
        for driver, address in drivers.items()
        if driver not in scene.loaded_drivers
    ]
    touched = [address for address, state in wanted.items() if state != before[address]]
    return Plan(
        before=before,
        after=dict(wanted),
        steps=tuple(modules + steps),
        refusals=tuple(
            refusal
            for address in touched
            for refusal in _refusals(scene, scene.devices[address], wanted[address])
            if refusal.rule not in scene.allowed
        ),
        warnings=_warnings(scene, wanted),
    )


def bound_to(device: Device, driver: str) -> DeviceState:
    """Return the state in which a device is bound to a driver.

    One that is bound to it already stays as it is, its override too.
    """
    return device.state if device.driver == driver else DeviceState(driver, driver)


def steps_between(now: DeviceState, wanted: DeviceState, address: str) -> Iterable[Step]:
    """Yield what leads from one state to the other.

    The override is set before the device is let go, so that no other driver can take it between.
    """
    if now.driver_override != wanted.driver_override:
        override = f"{device_path(address)}/driver_override"
        yield Step(address, override, wanted.driver_override or CLEAR, driver=now.driver)
    if now.driver == wanted.driver:
        return
    if now.driver is not None:
        yield Step(address, f"{DRIVERS}/{now.driver}/unbind", address, event="unbind")
    if wanted.driver is not None:
        yield Step(address, f"{DRIVERS}/{wanted.driver}/bind", address, event="bind", driver=wanted.driver)


def _refusals(scene: Scene, device: Device, wanted: DeviceState) -> Iterable[Refusal]:
    """Yield each rule that forbids to touch a device; a rule's name is that of its option."""
    address = device.address
    if is_bridge(device):
        yield Refusal(address, "bridge", "it is a bridge; the devices behind it would go too", None)
    if device.vfs:
        reason = f"it has {len(device.vfs)} VFs enabled, which the kernel would not let go"
        yield Refusal(address, "vfs", reason, None)
    if device.driver == wanted.driver:
        return
    yield from _live_group(scene, device, wanted)
    for usage in scene.usage.get(address, ()):
        if usage.kind == "block" and usage.detail != "not mounted":
            reason = f"its disk {usage.name} is {usage.detail}"
            yield Refusal(address, "mounted", reason, "--allow-mounted")
        if usage.kind == "net" and usage.detail == "operstate up":
            reason = f"its network interface {usage.name} is up"
            yield Refusal(address, "network", reason, "--allow-network")


def _live_group(scene: Scene, device: Device, wanted: DeviceState) -> Iterable[Refusal]:
    """Up to 5.18 a host driver in a group that is in use is a BUG, and the machine is lost
    (``vfio_iommu_group_notifier()``, event BOUND_DRIVER); since 5.19 the bind gives EBUSY."""
    group = scene.groups.get(device.iommu_group if device.iommu_group is not None else -1)
    if scene.era.has_dma_owner or group is None or wanted.driver is None:
        return
    if group.holders and not is_vfio_driver(wanted.driver):
        who = ", ".join(f"pid {holder.pid} ({holder.comm})" for holder in group.holders)
        reason = f"its group {group.id} is in use by {who}: on this kernel that ends in a kernel BUG"
        yield Refusal(device.address, "live-group", reason, None)


def _warnings(scene: Scene, wanted: Mapping[str, DeviceState]) -> tuple[str, ...]:
    """Tell of groups that stay out of userspace's reach, because of members that are not touched."""
    warnings = []
    for number, group in sorted(scene.groups.items()):
        if not any(is_vfio_driver(wanted[address].driver) for address in group.devices if address in wanted):
            continue
        others = [scene.devices[address] for address in group.devices if address not in wanted]
        for blocker in blockers(others, scene.era):
            warnings.append(
                f"group {number} is not viable while {blocker.address} is on {blocker.driver}: "
                "bind it too, or use --group"
            )
    return tuple(warnings)
