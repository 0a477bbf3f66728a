"""How a device is freed for VFIO: the advice of ``vfiotool show``."""

from __future__ import annotations

from vfiotool.host.device_details import Details
from vfiotool.host.groups import TURN_ON_IOMMU, is_vfio_driver

_UNSEEN_GROUP = "unknown: its IOMMU group is out of sight"


def how_to_free(details: Details) -> str:
    """Return the command that binds a device to vfio-pci or, if a VFIO driver has it, restores it.

    The text says so if the command would be refused, because of a use of the device that is shown.
    """
    device, group = details.device, details.group
    if group is None:
        return _UNSEEN_GROUP if "iommu_group" in device.unavailable else TURN_ON_IOMMU
    if is_vfio_driver(device.driver):
        return f"on {device.driver}; restore its driver with 'vfiotool restore {device.address}'"
    whole = len(group.devices) > 1
    option, it = (" --group", "the whole group") if whole else ("", "it")
    if any(usage.claims for usage in details.usage or ()):
        return f"'vfiotool bind{option} {device.address}' refuses it: see its uses above"
    if group.direct_regions:
        command = f"vfiotool bind{option} {device.address}"
        return f"'{command}' binds {it}, but VFIO may not open it: see its group above"
    return f"bind {it} with 'vfiotool bind{option} {device.address}'"
