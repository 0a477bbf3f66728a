"""The host drivers that serve a device, and the refusal of those that do not."""

from __future__ import annotations

from vfiotool.binding.plan import Plan
from vfiotool.errors import UnsupportedError, VfioToolError
from vfiotool.host.device_state import DeviceState
from vfiotool.host.devices import PciDevice
from vfiotool.host.driver_ids import native_drivers, serves, takes_any_device
from vfiotool.host.plan_context import PlanContext
from vfiotool.host.refusals import Refusal, liftable
from vfiotool.host.taking import offer
from vfiotool.host.tree import Tree
from vfiotool.host.variant_drivers import modalias
from vfiotool.pci.ids import ids_text

RULE = "ids"


def native_driver(tree: Tree, device: PciDevice) -> str:
    """Return the host driver whose ids match a device best.

    Raises:
        UnsupportedError: the ids of no module, or of several modules alike, match the device; or the ids of
            the device are unknown.
    """
    alias = modalias(device)
    if alias is None:
        raise UnsupportedError(
            f"the ids of {device.address} cannot be read, so its own driver is unknown",
            hint=f"name a driver: 'vfiotool bind --driver NAME {device.address}'",
        )
    drivers = native_drivers(tree, alias)
    if len(drivers) == 1:
        return drivers[0]
    if device.driver in drivers:
        return device.driver
    if drivers:
        raise UnsupportedError(
            f"several drivers serve {device.address}: {', '.join(drivers)}",
            hint=_bind_to(tree, device.address, drivers[0], "name one of them"),
        )
    ids = ids_text(device.vendor_id, device.device_id)
    raise UnsupportedError(
        f"no driver of this kernel serves {device.address}: no module declares the ids {ids}",
        hint=_leave_alone(tree, device),
    )


def nothing_recorded(tree: Tree, device: PciDevice) -> VfioToolError:
    """Return the error of a restore without a record."""
    own = native_drivers(tree, modalias(device))
    if modalias(device) is None:
        reason = "its ids cannot be read"
    elif not _is_home(device, own):
        reason = "vfiotool has not changed it since this machine started"
    elif device.driver is None:
        reason = "it has no driver, and no module declares its ids"
    else:
        reason = f"it is on {device.driver}, its own driver"
    return VfioToolError(
        f"nothing is recorded of {device.address}: {reason}", hint=_way_home(tree, device, own)
    )


def way_home(tree: Tree, device: PciDevice) -> str:
    """Return the command that brings a device without a record to its own driver, if that is needed."""
    return _way_home(tree, device, native_drivers(tree, modalias(device)))


def _way_home(tree: Tree, device: PciDevice, own: list[str]) -> str:
    address = device.address
    if modalias(device) is None:
        return f"its own driver is unknown; to bind it to one: 'vfiotool bind --driver NAME {address}'"
    if _is_home(device, own):
        return "there is nothing to restore"
    if own:
        state = DeviceState(own[0], None)
        offered = offer(
            tree, address, state, f"vfiotool bind --driver native {address}", "to bind it to its own driver"
        )
        return f"{offered}; 'vfiotool persist list' shows whether it is bound to another driver at each boot"
    return f"no module declares its ids; {_leave_alone(tree, device)}"


def _bind_to(tree: Tree, address: str, driver: str, does: str) -> str:
    command = f"vfiotool bind --driver {driver} {address}"
    return offer(tree, address, DeviceState(driver, None), command, does)


def _leave_alone(tree: Tree, device: PciDevice) -> str:
    if device.driver is None:
        return "it can stay as it is, without a driver"
    command = f"vfiotool unbind {device.address}"
    return offer(tree, device.address, DeviceState(None, None), command, "to leave it without a driver")


def _is_home(device: PciDevice, own: list[str]) -> bool:
    """Return True if a device is on a driver of its own, or has none and no driver is its own."""
    return not own if device.driver is None else device.driver in own


def foreign_drivers(tree: Tree, context: PlanContext, plan: Plan) -> tuple[Refusal, ...]:
    """Return a refusal for each device whose new driver declares the ids of other devices alone.

    The kernel would refuse the bind too, but only after the device has lost its former driver.
    """
    if RULE in context.allowed:
        return ()
    found = []
    for change in plan.changes:
        device, driver = context.devices[change.address], change.after
        if driver is None or takes_any_device(driver):
            continue
        alias = modalias(device)
        if alias is None:
            reason = f"its ids cannot be read, so {driver} may not serve this device"
            found.append(liftable(device.address, RULE, reason))
        elif serves(tree, driver, alias) is False:
            ids = ids_text(device.vendor_id, device.device_id)
            reason = f"{driver} does not serve this device: the ids of its module do not include {ids}"
            found.append(liftable(device.address, RULE, reason))
    return tuple(found)
