"""Reserved regions of the type ``direct``: memory that must stay mapped 1:1 for a device.

The firmware describes them: an RMRR on Intel, a unity map on AMD, an RMR on ARM. The device may use them at
any time, for example as the path between a management controller and its network card. The kernel keeps a
group with such a region from VFIO, whose address spaces do not have the mapping: Intel's driver since 3.17
(commit c875d2c1b808), the IOMMU core for all since 6.6 (commit a48ce36e2786). Regions of USB controllers and
graphics cards are ``direct-relaxable``, which forbids nothing (commit 1c5c59fbad20).
"""

from __future__ import annotations

from vfiotool.host.groups import IommuGroup
from vfiotool.host.tree import Tree

_UNITS = "/sys/class/iommu"
_SHOWN = 3

NO_VFIO = "Intel's kernels, and since 6.6 all, keep the group from VFIO"
OTHER_FIRMWARE = (
    "leave the group on its host drivers, or look for a setting or an update of the machine's firmware that "
    "drops the region"
)


def direct_note(group: IommuGroup) -> str:
    """Return a sentence about the direct regions of a group; empty if it has none."""
    if not group.direct_regions:
        return ""
    ranges = [f"{region.start:#x} to {region.end:#x}" for region in group.direct_regions]
    more = f" and {len(ranges) - _SHOWN} more" if len(ranges) > _SHOWN else ""
    shown = ", ".join(ranges[:_SHOWN])
    return f"the firmware needs {shown}{more} mapped 1:1 for a device of the group (direct): {NO_VFIO}"


def is_kept_from_vfio(tree: Tree) -> bool | None:
    """Return True if this kernel keeps groups with direct regions from VFIO; ``None`` if that is not known.

    The kernel does not show which of its versions has the rule of 6.6.
    """
    return True if any(unit.startswith("dmar") for unit in tree.find_names(_UNITS)) else None
