"""The errors for a write that has not returned: what it waits for, as far as that is known.

VFIO waits for the processes that have the device open. Why another driver waits, only that driver knows: the
functions of the kernel in which it waits tell, and the processes that had nodes of the device open may be the
reason.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from vfiotool.binding.sriov import present_vfs
from vfiotool.binding.steps import BindDriver, DeviceStep, SetVfCount, UnbindDriver
from vfiotool.errors import BlockedError
from vfiotool.host.devices import PciDevice
from vfiotool.host.groups import is_vfio_driver
from vfiotool.host.holders import find_device_holders
from vfiotool.host.pending_unbinds import waiting_functions, waiting_seconds
from vfiotool.host.plan_context import PlanContext
from vfiotool.host.tree import Tree

_MINUTE, _HOUR = 60, 3600


def timed_out(
    tree: Tree, state_dir: str, step: DeviceStep, context: PlanContext, *, seconds: float, state: str
) -> BlockedError:
    """Return the error for a step whose write has not returned after some seconds.

    ``context`` is what the plan was made from, ``state`` how the other devices were left.
    """
    change = "bind it" if isinstance(step, BindDriver) else "release it"
    if isinstance(step, SetVfCount):
        change = f"create {step.count} VFs" if step.count else "remove its VFs"
    lines, cause, remedy = _why(tree, step, context)
    place = _place(tree, state_dir, step.address)
    return BlockedError(
        f"{step.address}: its driver did not {change} within {seconds:g} s; {cause}"
        + (f"; the write waits {place}" if place else ""),
        holders=lines,
        hint=f"{remedy}, then run 'vfiotool recover', which finishes what is pending. Other devices: {state}",
    )


def still_pending(tree: Tree, state_dir: str, address: str, nodes: Collection[str]) -> BlockedError:
    """Return the error for a device to which an earlier write has not returned; ``nodes`` are those of VFIO.

    Its state cannot be read, so it could not be recorded, and a further write would block.
    """
    held = find_device_holders(tree, [address], nodes)
    waited, place = waiting_seconds(tree, state_dir, address), _place(tree, state_dir, address)
    since = "" if waited is None else f" for {_duration(waited)}"
    waits = f"; the write waits{since}{' ' + place if place else ''}" if since or place else ""
    return BlockedError(
        f"a change of {address} is pending: {held.cause or 'the kernel has not finished it'}{waits}",
        holders=held.lines,
        hint=f"{held.remedy or 'stop what uses the device, or wait'}, then run 'vfiotool recover'",
    )


def vfs_pending(tree: Tree, state_dir: str, pf: PciDevice) -> BlockedError:
    """Return the error for a PF whose driver has not finished a change of the number of VFs."""
    waited, place = waiting_seconds(tree, state_dir, pf.address), _place(tree, state_dir, pf.address)
    since = "" if waited is None else f" for {_duration(waited)}"
    return BlockedError(
        f"{pf.driver} has not finished creating or removing VFs of {pf.address}{since}"
        + (f"; the write waits {place}" if place else ""),
        holders=[],
        hint="run 'vfiotool recover', which waits for it and finishes it; '--timeout S' waits longer",
    )


def vfs_so_far(tree: Tree, step: SetVfCount) -> str:
    """Return how many of the VFs that a step creates or removes there are now."""
    there = present_vfs(tree, step.address)
    return f"{there} of {step.count} VFs are there" if step.count else f"{there} VFs are still there"


def nodes_of(context: PlanContext, addresses: Iterable[str]) -> set[str]:
    """Return the VFIO nodes of devices and of their groups, also those that an unbind has removed since."""
    nodes = set()
    for address in addresses:
        if address in context.devices:
            group = context.group_of(address)
            nodes |= {context.devices[address].cdev, None if group is None else group.node}
            nodes |= {holder.node for holder in (() if group is None else group.holders)}
    return {node for node in nodes if node is not None}


def _why(tree: Tree, step: DeviceStep, context: PlanContext) -> tuple[list[str], str, str]:
    """Return a line for each holder, the cause, and the remedy."""
    if isinstance(step, BindDriver):
        return [], f"{step.driver} has not finished its probe", "wait until it has"
    if isinstance(step, UnbindDriver) and not is_vfio_driver(step.driver):
        opened = _opened(context, step.address)
        named = f"; {' and '.join(opened)} when it began" if opened else ""
        remedy = "end what has the device open" if opened else "stop what uses the device"
        return [], f"{step.driver} has not finished its removal{named}", remedy
    wait = "wait until it has, or longer with '--timeout S'"
    if isinstance(step, SetVfCount) and step.count:
        return [], vfs_so_far(tree, step), wait
    addresses = [step.address]
    if isinstance(step, SetVfCount):
        addresses += context.devices[step.address].vfs
    held = find_device_holders(tree, addresses, nodes_of(context, addresses))
    if held.cause:
        return held.lines, held.cause, held.remedy
    if isinstance(step, SetVfCount):
        return [], vfs_so_far(tree, step), wait
    return [], "no process that holds it can be seen from here", "end the process that holds it"


def _opened(context: PlanContext, address: str) -> list[str]:
    """Return which nodes of a device were open, and in which processes, when the plan was made."""
    return [
        f"{usage.name} was open{claim.text.removeprefix('is open')}"
        for usage in context.usage.get(address, ())
        for claim in usage.claims
        if claim.rule == "opened"
    ]


def _place(tree: Tree, state_dir: str, address: str) -> str:
    inner, *outer = waiting_functions(tree, state_dir, address) or ("",)
    if not inner:
        return ""
    return f"in {inner}()" + (f", called by {', '.join(f'{one}()' for one in outer)}" if outer else "")


def _duration(seconds: float) -> str:
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / _MINUTE:.0f} min" if seconds < 2 * _HOUR else f"{seconds / _HOUR:.0f} h"
