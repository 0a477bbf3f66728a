"""The steps of a plan that create and remove VFs, and the reasons to refuse them.

Source: sriov_enable() and sriov_numvfs_store() in the kernel's drivers/pci/iov.c.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from vfiotool.binding.plan import Plan, missing_modules
from vfiotool.binding.steps import BindDriver, DeviceUevent, SetAttribute, SetOverride, SetVfCount
from vfiotool.errors import UnsupportedError
from vfiotool.host.attributes import device_path
from vfiotool.host.device_state import AUTOPROBE, DeviceState
from vfiotool.host.devices import PciDevice
from vfiotool.host.groups import is_vfio_driver
from vfiotool.host.plan_context import PlanContext
from vfiotool.host.refusals import PlanRefusedError, Refusal, use_of_group
from vfiotool.host.tree import Tree
from vfiotool.util.text import printable

VFIO_PCI = "vfio-pci"
VF_SECONDS = 1.0
"""How long a write may take more for each VF: drivers of real cards take 0.3 to 0.5 seconds."""
ENABLE_SRIOV = "/sys/module/vfio_pci/parameters/enable_sriov"
_ROUTING_IDS = 1 << 16


def vf_addresses(tree: Tree, pf: str, count: int) -> tuple[str, ...]:
    """Return the addresses that ``count`` VFs of a PF will have, by its VF offset and stride.

    Both may change with the number of VFs (PCI Express Base, section 9.3.3): after VFs are created, check
    that they are at these addresses.

    Raises:
        UnsupportedError: the PF has no offset and stride, or its VFs do not fit below it.
    """
    offset, stride = (_number(tree, pf, name) for name in ("sriov_offset", "sriov_stride"))
    domain, bus, rest = pf.rsplit(":", 2)
    device, function = rest.split(".")
    first = (int(bus, 16) << 8 | int(device, 16) << 3 | int(function, 16)) + offset
    ids = [first + stride * number for number in range(count)]
    if not offset or (count > 1 and not stride) or ids[-1] >= _ROUTING_IDS:
        raise UnsupportedError(
            f"{count} VFs of {pf} would have no addresses (offset {offset}, stride {stride})",
            hint="ask for fewer, or boot with pci=assign-busses",
        )
    return tuple(f"{domain}:{vf >> 8:02x}:{vf >> 3 & 31:02x}.{vf & 7:x}" for vf in ids)


def present_vfs(tree: Tree, pf: str) -> int:
    """Return how many VFs a PF has, also while a write to ``sriov_numvfs`` blocks its readers."""
    return sum(name.startswith("virtfn") for name in tree.find_names(device_path(pf)))


def removed_vfs(
    devices: Mapping[str, PciDevice], now: Mapping[str, DeviceState], targets: Mapping[str, DeviceState]
) -> tuple[str, ...]:
    """Return the VFs that are removed because the number of VFs of their PF is to change."""
    pfs = (pf for pf, state in targets.items() if state.numvfs not in (None, now[pf].numvfs))
    return tuple(vf for pf in pfs for vf in devices[pf].vfs)


def unbound(state: DeviceState) -> DeviceState:
    """Return the state that a VF is brought into before it is removed.

    A write that removes a bound VF blocks while a process holds that VF, and blocks every reader of the
    PF with it. A write that unbinds the VF does not block readers of the PF.
    """
    return DeviceState(None, None if state.driver is None else state.driver_override)


def with_vf_events(tree: Tree, context: PlanContext, plan: Plan, removed: tuple[str, ...]) -> Plan:
    """Add to a plan the VFs that it removes, and the uevents of all VFs that it creates and removes."""
    steps = tuple(
        replace(step, events=_events(tree, context, plan, step)) if isinstance(step, SetVfCount) else step
        for step in plan.steps
    )
    return replace(plan, steps=steps, removed=removed)


def with_bound_vfs(context: PlanContext, plan: Plan, pf: str) -> Plan:
    """Add to a plan that creates VFs the steps that bind them to vfio-pci, before any host driver can."""
    counts = ((number, step) for number, step in enumerate(plan.steps) if isinstance(step, SetVfCount))
    at, creates = next(((number, step) for number, step in counts if step.count), (0, None))
    if creates is None:
        return plan
    vfs = [address for action, address in creates.events if action == "add"]
    after = {**plan.after, **dict.fromkeys(vfs, DeviceState(VFIO_PCI, VFIO_PCI))}
    if is_vfio_driver(plan.after[pf].driver):  # vfio-pci takes the VFs by itself: vfio_pci_bus_notifier()
        return replace(plan, after=after)
    binds = [step for vf in vfs for step in (SetOverride(vf, VFIO_PCI), BindDriver(vf, VFIO_PCI))]
    probes = plan.before[pf].autoprobe
    off, on = ([SetAttribute(pf, AUTOPROBE, value)] if probes else [] for value in ("0", str(probes)))
    steps = [*plan.steps[:at], *off, creates, *binds, *on, *plan.steps[at + 1 :]]
    return replace(plan, steps=(*missing_modules(context, binds), *steps), after=after)


def check_count(tree: Tree, pf: PciDevice, now: DeviceState, count: int) -> None:
    """Check that the PF and its driver support ``count`` VFs.

    Raises:
        UnsupportedError: the device is no PF.
        RefusedError: the PF does not support so many VFs, or has no driver that creates VFs.
    """
    if not pf.sriov_totalvfs:
        raise UnsupportedError(
            f"{pf.address} can have no VFs: it is no PF with SR-IOV",
            hint="'vfiotool list --json' shows which devices are PFs (sriov_totalvfs)",
        )
    if now.numvfs != count and (found := [*_reasons(tree, pf, pf.sriov_totalvfs, count)]):
        raise PlanRefusedError([Refusal(pf.address, rule, reason, None) for rule, reason in found])


def _reasons(tree: Tree, pf: PciDevice, most: int, count: int) -> Iterable[tuple[str, str]]:
    if count > most:
        yield "totalvfs", f"it can have at most {most} VFs, not {count}"
    if pf.driver is None:
        yield "pf-driver", "it has no driver, and only a driver can create and remove VFs: bind it first"
    elif pf.driver == VFIO_PCI and count and tree.find(ENABLE_SRIOV) == "N":
        yield (
            "pf-driver",
            f"vfio-pci creates VFs only with its module parameter enable_sriov: 'echo 1 > {ENABLE_SRIOV}'",
        )


def live_group_refusals(context: PlanContext, plan: Plan, pf: str) -> tuple[Refusal, ...]:
    """Return what forbids to create VFs that could join the group of their PF while it is in use.

    Up to 5.18 it is a kernel BUG if a host driver binds a VF in a group that is in use. VFs join the group
    of their PF if the port above does not isolate them.
    """
    group = context.group_of(pf)
    after = plan.after[pf]
    binds_vfs = any(isinstance(step, BindDriver) and step.driver == VFIO_PCI for step in plan.steps)
    use = "" if group is None else use_of_group(context, group)
    if context.era.has_dma_owner or group is None or not use or binds_vfs:
        return ()
    if not plan.creates_vfs or not after.autoprobe or is_vfio_driver(after.driver):
        return ()
    reason = (
        f"its VFs could join its group {group.id}, which {use}, and a host driver could bind to them: on "
        "this kernel, that ends in a kernel BUG; --bind keeps host drivers away"
    )
    return (Refusal(pf, "live-group", printable(reason), None),)


def _events(tree: Tree, context: PlanContext, plan: Plan, step: SetVfCount) -> tuple[DeviceUevent, ...]:
    if not step.count:
        return tuple(("remove", vf) for vf in context.devices[step.address].vfs)
    actions = ("add", "bind") if is_vfio_driver(plan.after[step.address].driver) else ("add",)
    vfs = vf_addresses(tree, step.address, step.count)
    return tuple((action, vf) for vf in vfs for action in actions)


def _number(tree: Tree, address: str, name: str) -> int:
    text = tree.find(f"{device_path(address)}/{name}")
    if text is None or not text.isdecimal():
        raise UnsupportedError(f"the addresses of VFs of {address} are unknown: the device has no {name}")
    return int(text)
