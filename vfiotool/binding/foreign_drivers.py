"""Refuse to bind a device to a driver that is made for other devices."""

from __future__ import annotations

from vfiotool.binding.plan import Plan
from vfiotool.binding.plan_context import PlanContext
from vfiotool.binding.refusals import Refusal, liftable
from vfiotool.host.driver_ids import serves, takes_any_device
from vfiotool.host.tree import Tree
from vfiotool.host.variant_drivers import modalias

RULE = "ids"


def foreign_drivers(tree: Tree, context: PlanContext, plan: Plan) -> tuple[Refusal, ...]:
    """Return a refusal for each device whose new driver declares the ids of other devices alone.

    The kernel would refuse the bind too, but only after the device has lost its former driver.
    """
    if RULE in context.allowed:
        return ()
    found = []
    for change in plan.changes:
        device, driver = context.devices[change.address], change.after
        if driver is None or takes_any_device(driver) or serves(tree, driver, modalias(device)) is not False:
            continue
        ids = f"{device.vendor_id:04x}:{device.device_id:04x}"
        reason = f"{driver} does not serve this device: the ids of its module do not include {ids}"
        found.append(liftable(device.address, RULE, reason))
    return tuple(found)
