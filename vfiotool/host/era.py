"""The kernel's release, and its era: which of four implementations of the group life cycle it has."""

from __future__ import annotations

import enum
import re

from vfiotool.errors import VfioToolError
from vfiotool.host.tree import Tree

_RELEASE = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})")
_VERSION = re.compile(r"Linux version (\S+)")


class Era(enum.Enum):
    """A range of kernels that handle the ownership of an IOMMU group alike."""

    DEFERRED_PUT = "deferred-put"
    """Up to 5.15: a notifier takes a group reference per event, and a workqueue drops it later."""
    NOTIFIER = "notifier"
    """5.16 to 5.18: the same notifier, without the references (commit 63b150fde7a1)."""
    DMA_OWNER = "dma-owner"
    """Since 5.19: the iommu_group records its DMA owner (commit 70693f470848)."""
    CDEV = "cdev"
    """Since 6.6, if built with iommufd and device nodes: a device can be opened without its group."""

    @property
    def has_dma_owner(self) -> bool:
        """Return True if the kernel refuses a host driver in a group in use; older kernels run into a BUG."""
        return self in (Era.DMA_OWNER, Era.CDEV)


def find_release(tree: Tree) -> str | None:
    """Return the kernel's release, as ``uname -r`` prints it, or ``None`` if it is not in sight."""
    release = tree.find("/proc/sys/kernel/osrelease") or _of_version(tree.find("/proc/version") or "")
    return release if release.isprintable() and _version(release) else None


def kernel_release(tree: Tree) -> str:
    """Return the kernel's release, as ``uname -r`` prints it.

    Raises:
        VfioToolError: it is not in sight.
    """
    release = find_release(tree)
    if release is None:
        raise _unknown()
    return release


def modules_folder(tree: Tree) -> str:
    """Return the folder of the running kernel's modules; a ``/`` in the release leads nowhere else."""
    return f"/lib/modules/{kernel_release(tree).rpartition('/')[2]}"


def detect_era(tree: Tree) -> Era:
    """Detect the era from what the kernel has. The release decides only between eras that look the same.

    Raises:
        VfioToolError: the kernel's release is not in sight, and nothing else tells.
    """
    era = find_era(tree)
    if era is None:
        raise _unknown()
    return era


def find_era(tree: Tree) -> Era | None:
    """Return the era as ``detect_era`` does, or ``None`` if it is unknown."""
    if tree.exists("/dev/iommu") and _has_cdevs(tree):
        return Era.CDEV
    version = _version(find_release(tree) or "")
    if (version or (0, 0)) >= (5, 19) or _is_backported(tree):
        return Era.DMA_OWNER
    if version is None:
        return None
    return Era.NOTIFIER if version >= (5, 16) else Era.DEFERRED_PUT


def has_noiommu(tree: Tree) -> bool:
    """Return True if VFIO may open devices that no IOMMU isolates (CONFIG_VFIO_NOIOMMU)."""
    return tree.find("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode") == "Y"


def _version(release: str) -> tuple[int, int] | None:
    found = _RELEASE.match(release)
    return None if found is None else (int(found[1]), int(found[2]))


def _unknown() -> VfioToolError:
    return VfioToolError(
        "the release of the kernel is unknown: neither /proc/sys/kernel/osrelease nor /proc/version has it",
        hint="mount /proc; to a copy of a machine, add its /proc/version",
    )


def _of_version(text: str) -> str:
    """Return the release in ``/proc/version``: ``Linux version RELEASE (…``; empty if it has none."""
    found = _VERSION.match(text)
    return found[1] if found else ""


def _has_cdevs(tree: Tree) -> bool:
    """Return True if the kernel has VFIO device nodes.

    Their directory appears only with the first node; their major number is registered before.
    """
    if tree.exists("/dev/vfio/devices"):
        return True
    numbers = tree.find("/proc/devices") or ""
    return any(line.split()[1:] == ["vfio-dev"] for line in numbers.splitlines())


def _is_backported(tree: Tree) -> bool:
    """Return True if an older release has the DMA owner code, as enterprise kernels do."""
    try:
        return b" iommu_group_claim_dma_owner" in tree.read_bytes("/proc/kallsyms")
    except OSError:
        return False
