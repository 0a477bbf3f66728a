"""VFs come and go with the number that their PF is given: what that adds to a plan, and what forbids it.

Source: sriov_enable() and sriov_numvfs_store() in the kernel's drivers/pci/iov.c.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from vfiotool.binding.plan import Plan, modules
from vfiotool.binding.plan_context import PlanContext
from vfiotool.binding.refusals import PlanRefusedError, Refusal
from vfiotool.binding.steps import Event, Step, bind_to, set_attribute, set_override
from vfiotool.errors import UnsupportedError
from vfiotool.host.attributes import device_path
from vfiotool.host.device_state import AUTOPROBE, DeviceState
from vfiotool.host.devices import Device
from vfiotool.host.groups import is_vfio_driver
from vfiotool.host.tree import Tree

VFIO_PCI = "vfio-pci"
ENABLE_SRIOV = "/sys/module/vfio_pci/parameters/enable_sriov"
_ROUTING_IDS = 1 << 16


def vf_addresses(tree: Tree, pf: str, count: int) -> tuple[str, ...]:
    """Return where the VFs of a PF will be, by the offset and stride of its SR-IOV capability.

    Both may change with the number of VFs (PCI Express Base, section 9.3.3), so whoever makes them
    looks whether they came there.

    Raises:
        UnsupportedError: the PF does not say, or its VFs do not fit below it.
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
    return tuple(f"{domain}:{one >> 8:02x}:{one >> 3 & 31:02x}.{one & 7:x}" for one in ids)


def leaving(
    devices: Mapping[str, Device], now: Mapping[str, DeviceState], wanted: Mapping[str, DeviceState]
) -> tuple[str, ...]:
    """Return the VFs that go because their PF is to have another number of them."""
    pfs = (pf for pf, state in wanted.items() if state.numvfs not in (None, now[pf].numvfs))
    return tuple(vf for pf in pfs for vf in devices[pf].vfs)


def about_to_leave(state: DeviceState) -> DeviceState:
    """Return the state in which a VF can go without having anybody wait.

    The write that removes a VF waits for whoever holds it, and with it all who look at the PF; that
    which unbinds the VF leaves the PF alone.
    """
    return DeviceState(None, None if state.driver is None else state.driver_override)


def with_vfs(tree: Tree, context: PlanContext, plan: Plan, removed: tuple[str, ...]) -> Plan:
    """Add to a plan that changes numbers of VFs which of them come and go, and their events."""
    steps = tuple(
        step if step.counts_vfs is None else replace(step, events=_events(tree, context, plan, step))
        for step in plan.steps
    )
    return replace(plan, steps=steps, removed=removed)


def with_bound_vfs(context: PlanContext, plan: Plan, pf: str) -> Plan:
    """Add to a plan that makes VFs that vfio-pci gets them, and no host driver sees them before."""
    made = next((number for number, step in enumerate(plan.steps) if step.counts_vfs), None)
    if made is None:
        return plan
    vfs = [address for action, address in plan.steps[made].events if action == "add"]
    after = {**plan.after, **dict.fromkeys(vfs, DeviceState(VFIO_PCI, VFIO_PCI))}
    if is_vfio_driver(plan.after[pf].driver):  # it takes its VFs by itself: vfio_pci_bus_notifier()
        return replace(plan, after=after)
    binds = [step for vf in vfs for step in (set_override(vf, VFIO_PCI), bind_to(vf, VFIO_PCI))]
    probes = plan.before[pf].autoprobe
    quiet, loud = ([set_attribute(pf, AUTOPROBE, value)] if probes else [] for value in ("0", str(probes)))
    steps = [*plan.steps[:made], *quiet, plan.steps[made], *binds, *loud, *plan.steps[made + 1 :]]
    return replace(plan, steps=(*modules(context, binds), *steps), after=after)


def check_count(tree: Tree, pf: Device, now: DeviceState, count: int) -> None:
    """See whether the kernel can give a PF so many VFs.

    Raises:
        UnsupportedError: it is no PF.
        RefusedError: it can not have so many, or has no driver that makes them.
    """
    if not pf.sriov_totalvfs:
        raise UnsupportedError(
            f"{pf.address} can have no VFs: it is no PF with SR-IOV",
            hint="'vfiotool list --json' tells which are (sriov_totalvfs)",
        )
    if now.numvfs != count and (found := [*_reasons(tree, pf, pf.sriov_totalvfs, count)]):
        raise PlanRefusedError([Refusal(pf.address, rule, reason, None) for rule, reason in found])


def _reasons(tree: Tree, pf: Device, most: int, count: int) -> Iterable[tuple[str, str]]:
    if count > most:
        yield "totalvfs", f"it can have at most {most} VFs, not {count}"
    if pf.driver is None:
        yield "pf-driver", "it has no driver, which would make and remove its VFs: bind it to one first"
    elif pf.driver == VFIO_PCI and count and tree.find(ENABLE_SRIOV) == "N":
        yield (
            "pf-driver",
            f"vfio-pci makes VFs only with its module parameter enable_sriov: 'echo 1 > {ENABLE_SRIOV}'",
        )


def live_group_refusals(context: PlanContext, plan: Plan, pf: str) -> tuple[Refusal, ...]:
    """Up to 5.18 a host driver that takes a VF in a group that is in use is a kernel BUG: where the PF's
    port does not keep them apart, its VFs join its group."""
    group = context.group_of(pf)
    after, is_quiet = plan.after[pf], any(step.binds == VFIO_PCI for step in plan.steps)
    if context.era.has_dma_owner or group is None or not group.holders or is_quiet:
        return ()
    if plan.can_be_finished or not after.autoprobe or is_vfio_driver(after.driver):
        return ()
    reason = (
        f"its VFs could join its group {group.id}, which is in use, and a host driver take them: on this "
        "kernel that ends in a kernel BUG; --bind keeps host drivers away"
    )
    return (Refusal(pf, "live-group", reason, None),)


def _events(tree: Tree, context: PlanContext, plan: Plan, step: Step) -> tuple[Event, ...]:
    if not step.counts_vfs:
        return tuple(("remove", vf) for vf in context.devices[step.address].vfs)
    actions = ("add", "bind") if is_vfio_driver(plan.after[step.address].driver) else ("add",)
    vfs = vf_addresses(tree, step.address, step.counts_vfs)
    return tuple((action, vf) for vf in vfs for action in actions)


def _number(tree: Tree, address: str, name: str) -> int:
    text = tree.find(f"{device_path(address)}/{name}")
    if text is None or not text.isdecimal():
        raise UnsupportedError(f"{address} does not say where its VFs will be: it has no {name}")
    return int(text)
