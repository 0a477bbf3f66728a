"""The rules that keep vfiotool from hurting a machine: what is refused, why, and what lifts it.

Pure functions of a ``PlanContext``. Rules about what uses a device are found by ``vfiotool.host``, as claims;
rules about what the kernel would do are here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vfiotool.binding.plan_context import PlanContext
from vfiotool.errors import RefusedError
from vfiotool.host.device_state import DeviceState
from vfiotool.host.devices import Device
from vfiotool.host.groups import IommuGroup, is_bridge, is_vfio_driver
from vfiotool.host.usage.claim import some
from vfiotool.host.usage.device_usage import Usage
from vfiotool.util.text import printable

RULES: Mapping[str, str] = {
    "mounted": "Take a disk that has a mounted file system.",
    "root": "Take the disk that this machine runs from (/, /usr, /boot, /boot/efi).",
    "swap": "Take a disk that is swapped to, or is made for it.",
    "partitions": "Take a disk that has partitions.",
    "lvm": "Take a disk that is an LVM physical volume.",
    "md": "Take a disk that is a member of an md array.",
    "crypt": "Take a disk that is encrypted by dm-crypt.",
    "zfs": "Take a disk that is a member of a ZFS pool.",
    "stacked": "Take a disk that another block device is built on.",
    "claimed": "Take a disk that the kernel has in use, by whom vfiotool cannot say.",
    "opened": "Take a device that a process has open through its driver.",
    "network": "Take a network card that is up and has an address.",
    "route": "Take a network card that carries a route.",
    "member": "Take a network card that a bond, bridge or VLAN is built on.",
    "ssh": "Take the network card that carries this SSH connection.",
    "vga": "Take the graphics card that the firmware started with.",
    "console": "Take the device that shows the kernel's console.",
    "vfs": "Take a PF from its driver while its VFs are enabled.",
    "held": "Wait for a process to let go of the device, for --timeout.",
    "denylist": "Take a device that is on a denylist.",
}
"""The rules that can be lifted, each by ``--allow-NAME``, with that option's help."""

_NOUNS = {
    "net": "network interface",
    "block": "disk",
    "nvme": "NVMe controller",
    "drm": "graphics node",
    "uio": "UIO node",
}
_HARMLESS = "pci-stub"  # it does no DMA: the kernel lets it into a live group (vfio_dev_viable())


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
        super().__init__(f"refused: {'; '.join(reasons)}", reasons=reasons, hint=_hint(refusals))
        self.refusals = tuple(refusals)


def refusals(context: PlanContext, wanted: Mapping[str, DeviceState]) -> tuple[Refusal, ...]:
    """Return what forbids to bring the devices into the states wanted for them, but for lifted rules.

    What uses a device counts only where its driver is to change. For a VFIO driver the whole group
    counts: userspace gets all of it, or nothing.
    """
    moved = [address for address, state in wanted.items() if state.driver != context.devices[address].driver]
    found = [
        *(refusal for address, state in wanted.items() for refusal in _of_device(context, address, state)),
        *_of_siblings(context, wanted, moved),
        *_of_modules(context, wanted, moved),
    ]
    return tuple(one for one in dict.fromkeys(found) if one.flag is None or one.rule not in context.allowed)


def _of_device(context: PlanContext, address: str, wanted: DeviceState) -> Iterable[Refusal]:
    device = context.devices[address]
    if is_bridge(device):
        yield Refusal(address, "bridge", "it is a bridge; the devices behind it would go too", None)
    if device.driver == wanted.driver:
        return
    yield from _vfs(device, wanted)
    yield from _denied(context, device, wanted)
    yield from _in_use(context.usage.get(address, ()), address)
    yield from _live_group(context, device, wanted)


def _vfs(device: Device, wanted: DeviceState) -> Iterable[Refusal]:
    """vfio-pci does not take a PF with VFs, which other drivers leave behind (``pci_num_vf()``).

    VFs that the plan removes first have rules of their own.
    """
    if not device.vfs or wanted.numvfs not in (None, len(device.vfs)):
        return
    count = f"it has {len(device.vfs)} VFs enabled"
    if is_vfio_driver(wanted.driver):
        reason = f"{count}, with which the kernel gives no PF to {wanted.driver}: remove them first"
        yield Refusal(device.address, "vfs", reason, None)
    else:
        yield _liftable(device.address, "vfs", f"{count}, which would lose the driver that serves them")


def _denied(context: PlanContext, device: Device, wanted: DeviceState) -> Iterable[Refusal]:
    """The owner's list keeps a device from being taken, not from being given back."""
    denial = context.denylist.get(device.address)
    if denial is None:
        return
    if is_vfio_driver(wanted.driver) or (denial.by_owner and not is_vfio_driver(device.driver)):
        yield _liftable(device.address, "denylist", denial.reason)


def _in_use(usage: Iterable[Usage], address: str, *, also: str = "") -> Iterable[Refusal]:
    for one in usage:
        thing = f"its {_NOUNS[one.kind]} {one.name}" if one.kind in _NOUNS else "it"
        for claim in one.claims:
            yield _liftable(address, claim.rule, f"{thing} {claim.text}{also}")


def _live_group(context: PlanContext, device: Device, wanted: DeviceState) -> Iterable[Refusal]:
    """A host driver in a group that is in use: up to 5.18 a BUG, and the machine is lost
    (``vfio_iommu_group_notifier()``, event BOUND_DRIVER); since 5.19 the bind gives EBUSY. And a VFIO
    driver does not let go of what is open."""
    group = context.group_of(device.address)
    if group is None or group.id not in context.open_groups:
        return
    used = f"its group {group.id} is in use by {_names(group)}"
    if is_host_driver(wanted.driver) and not context.era.has_dma_owner:
        reason = printable(f"{used}: on this kernel that ends in a kernel BUG")
        yield Refusal(device.address, "live-group", reason, None)
    elif is_vfio_driver(device.driver):
        yield _liftable(device.address, "held", f"{used}, for which {device.driver} would wait")
    elif is_host_driver(wanted.driver):
        yield _liftable(device.address, "held", f"{used}, so the kernel would not bind {wanted.driver}")


def _of_siblings(
    context: PlanContext, wanted: Mapping[str, DeviceState], moved: Iterable[str]
) -> Iterable[Refusal]:
    """Yield what uses the other devices of the groups that go to userspace, of which only all can go."""
    for address in moved:
        group = context.group_of(address)
        if group is None or not is_vfio_driver(wanted[address].driver):
            continue
        also = f"; it shares group {group.id} with {address}, and the group goes to userspace as a whole"
        for sibling in group.devices:
            if sibling not in wanted and is_host_driver(context.devices[sibling].driver):
                yield from _in_use(context.usage.get(sibling, ()), sibling, also=also)


def _of_modules(
    context: PlanContext, wanted: Mapping[str, DeviceState], moved: Iterable[str]
) -> Iterable[Refusal]:
    """Up to 5.18: a host driver that is loaded probes every device that it knows and that has no driver,
    those in live groups too."""
    if context.era.has_dma_owner:
        return
    drivers = {wanted[address].driver: address for address in moved}
    for driver, address in drivers.items():
        if driver in context.loaded_drivers or not is_host_driver(driver):
            continue
        for group, idle in _idle_in_live_groups(context, driver):
            reason = (
                f"loading the module of {driver} could bind {idle} to it, in group {group.id}, which is in "
                f"use by {_names(group)}: on this kernel that ends in a kernel BUG"
            )
            yield Refusal(address, "live-group", printable(reason), None)


def _idle_in_live_groups(context: PlanContext, driver: str | None) -> Iterable[tuple[IommuGroup, str]]:
    """Yield what such a driver could take. A bridge may have any (``vfio_dev_driver_allowed()``)."""
    for group in context.groups.values():
        for address in group.devices if group.id in context.open_groups else ():
            device = context.devices[address]
            if device.driver is None and device.driver_override in (None, driver) and not is_bridge(device):
                yield group, address


def is_host_driver(driver: str | None) -> bool:
    """Say whether a driver is one that the kernel keeps out of a group that is in use."""
    return driver is not None and driver != _HARMLESS and not is_vfio_driver(driver)


def _names(group: IommuGroup) -> str:
    names = dict.fromkeys(holder.process for holder in group.holders)
    return some(list(names)) or "a process that cannot be named"


def _liftable(address: str, rule: str, reason: str) -> Refusal:
    return Refusal(address, rule, printable(reason), f"--allow-{rule}")


def _hint(found: Sequence[Refusal]) -> str:
    firm = dict.fromkeys(refusal.address for refusal in found if refusal.flag is None)
    if firm and len(firm) < len({refusal.address for refusal in found}):
        return f"no option lifts this for {', '.join(firm)}"
    if firm:
        return "no option lifts this"
    flags = dict.fromkeys(refusal.flag for refusal in found if refusal.flag is not None)
    return f"if you mean it, add {' '.join(flags)}"
