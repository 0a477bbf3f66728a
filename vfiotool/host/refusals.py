"""The safety rules: which changes are refused, why, and which option lifts a rule.

Pure functions of a ``PlanContext``. They are in ``vfiotool.host`` because every advice that names a command
follows them, too. ``host.usage`` finds what uses a device, as claims; the rules about what the kernel would
do are here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vfiotool.errors import RefusedError
from vfiotool.host.device_state import DeviceState
from vfiotool.host.devices import PciDevice
from vfiotool.host.direct_regions import direct_note
from vfiotool.host.groups import IommuGroup, is_bridge, is_vfio_driver
from vfiotool.host.pci_domains import domain_note, domains_text
from vfiotool.host.plan_context import PlanContext
from vfiotool.host.usage.claim import some
from vfiotool.host.usage.device_usage import Usage
from vfiotool.util.text import printable

LIFTABLE_RULES: Mapping[str, str] = {
    "mounted": "Allow a disk or a shared folder (9p, virtiofs) with a mounted file system.",
    "root": "Allow the disk or the shared folder that this machine runs from (/, /usr, /boot, /boot/efi).",
    "swap": "Allow a disk that is used or formatted as swap.",
    "partitions": "Allow a disk with partitions.",
    "lvm": "Allow a disk that is an LVM physical volume.",
    "md": "Allow a disk that is a member of an md array.",
    "crypt": "Allow a disk that is encrypted by dm-crypt.",
    "zfs": "Allow a disk that is a member of a ZFS pool.",
    "stacked": "Allow a disk that another block device is built on.",
    "claimed": "Allow a disk that the kernel has in use by an unknown user.",
    "opened": "Allow a device that a process has open through its driver.",
    "network": "Allow a network card that is up and has an address, a packet socket or a PPPoE session.",
    "route": "Allow a network card that carries a route.",
    "member": "Allow a network card that a bond, bridge or VLAN is built on.",
    "namespace": "Allow a network card with an interface in another network namespace, or out of sight.",
    "ssh": "Allow the network card that carries this SSH connection.",
    "vga": "Allow the graphics card that the firmware started with.",
    "console": "Allow the device that shows the kernel's console.",
    "domain": "Allow a device that makes a PCI domain (Intel VMD) to take it away, or a device of it to go.",
    "silent": "Allow a device that does not answer.",
    "direct": "Allow a device of a group that this kernel keeps from VFIO (a direct reserved region).",
    "vfs": "Allow a PF to lose its driver while its VFs are enabled.",
    "held": "Wait up to --timeout for a process to release the device.",
    "denylist": "Allow a device that is on a denylist.",
    "ids": "Try a driver whose module does not declare the device's ids; the kernel decides.",
}
"""The rules that ``--allow-NAME`` lifts, by name, with the help text of that option."""

_NOUNS = {
    "net": "network interface",
    "block": "disk",
    "nvme": "NVMe controller",
    "drm": "graphics node",
    "uio": "UIO node",
    "node": "node",
    "folder": "shared folder",
    "ieee80211": "wireless PHY",
    "infiniband": "InfiniBand device",
}
_HARMLESS = "pci-stub"  # it does no DMA: the kernel lets it into a live group (vfio_dev_viable())


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a device must not be changed: the rule, and the option that lifts the rule, if any."""

    address: str
    rule: str
    reason: str
    flag: str | None


class PlanRefusedError(RefusedError):
    """Rules forbid a plan; ``refusals`` has all of them."""

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        reasons = [f"{refusal.address}: {refusal.reason}" for refusal in refusals]
        super().__init__(f"refused: {'; '.join(reasons)}", reasons=reasons, hint=_hint(refusals))
        self.refusals = tuple(refusals)


def refusals(context: PlanContext, targets: Mapping[str, DeviceState]) -> tuple[Refusal, ...]:
    """Return what forbids to bring the devices into their target states; lifted rules are left out.

    What uses a device counts only if its driver is to change. For a VFIO driver the whole group counts:
    userspace gets all of it, or nothing.
    """
    moved = [address for address, state in targets.items() if state.driver != context.devices[address].driver]
    found = [
        *(refusal for address, state in targets.items() for refusal in _of_device(context, address, state)),
        *_of_domains(context, targets, moved),
        *_of_siblings(context, targets, moved),
        *_of_modules(context, targets, moved),
    ]
    return tuple(
        refusal
        for refusal in dict.fromkeys(found)
        if refusal.flag is None or refusal.rule not in context.allowed
    )


def _of_device(context: PlanContext, address: str, target: DeviceState) -> Iterable[Refusal]:
    device = context.devices[address]
    if is_bridge(device) or address in context.bridge_headers:
        yield Refusal(address, "bridge", "it is a bridge; the devices behind it would be affected too", None)
    if device.class_code is None:
        yield Refusal(address, "bridge", "its class cannot be read, so it may be a bridge", None)
    if device.driver == target.driver:
        return
    yield from _vfs(device, target)
    yield from _denied(context, device, target)
    if is_vfio_driver(target.driver):
        yield from _unusable(context, address)
    yield from _in_use(context.usage.get(address, ()), address)
    yield from _live_group(context, device, target)


def _vfs(device: PciDevice, target: DeviceState) -> Iterable[Refusal]:
    """Yield what forbids to change the driver of a PF that has VFs.

    vfio-pci does not bind to a PF with VFs (``pci_num_vf()``), and other drivers leave the VFs enabled when
    they are unbound. VFs that the plan removes first have their own rules.
    """
    if not device.vfs or target.numvfs not in (None, len(device.vfs)):
        return
    count = f"it has {len(device.vfs)} VFs enabled"
    if is_vfio_driver(target.driver):
        reason = f"{count}, and the kernel does not bind {target.driver} to a PF with VFs: remove them first"
        yield Refusal(device.address, "vfs", reason, None)
    else:
        yield liftable(device.address, "vfs", f"{count}, which would lose the driver that serves them")


def _denied(context: PlanContext, device: PciDevice, target: DeviceState) -> Iterable[Refusal]:
    """Yield the denylist's refusal. The owner's list forbids to take a device, not to give it back."""
    denial = context.denylist.get(device.address)
    if denial is None:
        return
    if is_vfio_driver(target.driver) or (denial.by_owner and not is_vfio_driver(device.driver)):
        yield liftable(device.address, "denylist", denial.reason)


def _unusable(context: PlanContext, address: str) -> Iterable[Refusal]:
    """Yield why VFIO could not open a device that its driver would take."""
    if address in context.silent:
        yield liftable(
            address,
            "silent",
            "nothing answers there: its configuration space reads as ones, so VFIO could not use it",
        )
    group = context.group_of(address)
    if group is not None and context.keeps_direct_regions and group.direct_regions:
        yield liftable(address, "direct", f"group {group.id}: {direct_note(group)}")


def _in_use(usage: Iterable[Usage], address: str, *, also: str = "") -> Iterable[Refusal]:
    for use in usage:
        thing = f"its {_NOUNS[use.kind]} {use.name}" if use.kind in _NOUNS else "it"
        for claim in use.claims:
            yield liftable(address, claim.rule, f"{thing} {claim.text}{also}")


def _live_group(context: PlanContext, device: PciDevice, target: DeviceState) -> Iterable[Refusal]:
    """Yield what forbids to change a driver in a group that is in use, or may be.

    Binding a host driver there is a kernel BUG up to 5.18, and the machine is lost
    (``vfio_iommu_group_notifier()``, event BOUND_DRIVER); since 5.19 the bind fails with EBUSY. Unbinding
    a VFIO driver blocks while the device is open.
    """
    group = context.group_of(device.address)
    use = "" if group is None else use_of_group(context, group)
    if group is None or not use:
        return
    used = f"its group {group.id} {use}"
    if is_host_driver(target.driver) and not context.era.has_dma_owner:
        reason = printable(f"{used}: on this kernel, binding {target.driver} there ends in a kernel BUG")
        yield Refusal(device.address, "live-group", reason, None)
    elif is_vfio_driver(device.driver):
        yield liftable(device.address, "held", f"{used}, and an unbind from {device.driver} would block")
    elif is_host_driver(target.driver):
        yield liftable(device.address, "held", f"{used}, so the kernel would not bind {target.driver}")


def _of_domains(
    context: PlanContext, targets: Mapping[str, DeviceState], moved: Sequence[str]
) -> Iterable[Refusal]:
    """Yield what forbids to take away a PCI domain with its maker, or a device of it alone.

    The domain lives as long as its maker's driver, and the DMA of its devices is that of the maker: see
    ``pci_domains``.
    """
    for maker, devices in context.domains.items():
        driver = context.devices[maker].driver
        if driver is None:
            continue
        goes = f"{domains_text(devices)} goes with it: {some(devices)}"
        if maker in moved and not targets.keys().isdisjoint(devices):
            yield Refusal(maker, "domain", f"{goes}; name it without the devices of the domain", None)
        elif maker in moved:
            yield liftable(maker, "domain", f"it is on {driver}, and {goes}")
        elif is_host_driver(driver):
            reason = f"VFIO cannot use it: {domain_note(maker, driver, devices)}"
            for address in moved:
                if address in devices and is_vfio_driver(targets[address].driver):
                    yield liftable(address, "domain", reason)


def _of_siblings(
    context: PlanContext, targets: Mapping[str, DeviceState], moved: Iterable[str]
) -> Iterable[Refusal]:
    """Yield what uses the other devices of groups that go to userspace: a group goes as a whole."""
    for address in moved:
        group = context.group_of(address)
        if group is None or not is_vfio_driver(targets[address].driver):
            continue
        counted = {address, *context.domains.get(address, ())}  # their uses are those of the maker, too
        also = f"; it shares group {group.id} with {address}, and the group goes to userspace as a whole"
        for sibling in group.devices:
            if sibling not in (targets.keys() | counted) and is_host_driver(context.devices[sibling].driver):
                yield from _in_use(context.usage.get(sibling, ()), sibling, also=also)


def _of_modules(
    context: PlanContext, targets: Mapping[str, DeviceState], moved: Iterable[str]
) -> Iterable[Refusal]:
    """Yield what forbids to load the modules of host drivers.

    Up to 5.18 a host driver whose module is loaded probes every device that it serves and that has no
    driver, in groups that are in use too.
    """
    if context.era.has_dma_owner:
        return
    drivers = {targets[address].driver: address for address in moved}
    for driver, address in drivers.items():
        if driver in context.loaded_drivers or not is_host_driver(driver):
            continue
        for group, idle in _idle_in_live_groups(context, driver):
            reason = (
                f"loading the module of {driver} could bind {idle} to it, in group {group.id}, which "
                f"{use_of_group(context, group)}: on this kernel, that bind ends in a kernel BUG"
            )
            yield Refusal(address, "live-group", printable(reason), None)


def _idle_in_live_groups(context: PlanContext, driver: str | None) -> Iterable[tuple[IommuGroup, str]]:
    """Yield the devices without a driver that ``driver`` could bind to, in groups that are in use.

    Bridges are left out: any driver may bind to them (``vfio_dev_driver_allowed()``).
    """
    for group in context.groups.values():
        for address in group.devices if use_of_group(context, group) else ():
            device = context.devices[address]
            if device.driver is None and device.driver_override in (None, driver) and not is_bridge(device):
                yield group, address


def is_host_driver(driver: str | None) -> bool:
    """Return True if the kernel keeps this driver out of a group that is in use."""
    return driver is not None and driver != _HARMLESS and not is_vfio_driver(driver)


def use_of_group(context: PlanContext, group: IommuGroup) -> str:
    """Return who has a group open, or why it may be open, as the end of a sentence; empty if it is not."""
    if group.id in context.unseen_groups:
        return f"may be in use ({context.unseen_groups[group.id]})"
    if group.id not in context.open_groups:
        return ""
    names = dict.fromkeys(holder.process for holder in group.holders)
    return f"is in use by {some(list(names)) or 'an unknown process'}"


def liftable(address: str, rule: str, reason: str) -> Refusal:
    """Return a refusal that the option of its rule lifts."""
    return Refusal(address, rule, printable(reason), f"--allow-{rule}")


def _hint(found: Sequence[Refusal]) -> str:
    firm = dict.fromkeys(refusal.address for refusal in found if refusal.flag is None)
    if firm and len(firm) < len({refusal.address for refusal in found}):
        return f"no option lifts this for {', '.join(firm)}"
    if firm:
        return "no option lifts this"
    flags = dict.fromkeys(refusal.flag for refusal in found if refusal.flag is not None)
    return f"to do it anyway, add {' '.join(flags)}"
