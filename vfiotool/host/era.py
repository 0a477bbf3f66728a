"""Who guards a group on this kernel, in the four eras that a group's life cycle went through."""

from __future__ import annotations

import enum

from vfiotool.host.tree import Tree


class Era(enum.Enum):
    """The kernels that behave alike, by who owns an IOMMU group."""

    DEFERRED_PUT = "deferred-put"
    """Up to 5.15: a notifier takes a reference per event, a worker drops it later."""
    NOTIFIER = "notifier"
    """5.16 to 5.18: the same notifier without the references (commit 63b150fde7a1)."""
    DMA_OWNER = "dma-owner"
    """Since 5.19: ownership lives in the iommu_group (commit 70693f470848)."""
    CDEV = "cdev"
    """Since 6.6, where built with iommufd and device nodes: no group is needed at all."""

    @property
    def has_dma_owner(self) -> bool:
        """Say whether the kernel refuses a host driver in a live group, instead of a BUG."""
        return self in (Era.DMA_OWNER, Era.CDEV)


def kernel_release(tree: Tree) -> str:
    """Return the kernel's release, as ``uname -r`` prints it."""
    return tree.read("/proc/sys/kernel/osrelease")


def modules_folder(tree: Tree) -> str:
    """Return the folder of the running kernel's modules; a ``/`` in the release leads nowhere else."""
    return f"/lib/modules/{kernel_release(tree).rpartition('/')[2]}"


def detect_era(tree: Tree) -> Era:
    """Find the era by what is there; the release only tells apart what leaves no other trace."""
    if tree.exists("/dev/iommu") and _has_cdevs(tree):
        return Era.CDEV
    version = _version(kernel_release(tree))
    if version >= (5, 19) or _is_backported(tree):
        return Era.DMA_OWNER
    return Era.NOTIFIER if version >= (5, 16) else Era.DEFERRED_PUT


def has_noiommu(tree: Tree) -> bool:
    """Say whether VFIO was told to give out devices that no IOMMU guards (CONFIG_VFIO_NOIOMMU)."""
    return tree.find("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode") == "Y"


def _version(release: str) -> tuple[int, int]:
    major, _, rest = release.partition(".")
    minor = rest.partition(".")[0]
    digits = minor[: len(minor) - len(minor.lstrip("0123456789"))]
    return (int(major) if major.isdecimal() else 0, int(digits or 0))


def _has_cdevs(tree: Tree) -> bool:
    """Look for their major number, too: their folder is there with the first of them alone."""
    if tree.exists("/dev/vfio/devices"):
        return True
    numbers = tree.find("/proc/devices") or ""
    return any(line.split()[1:] == ["vfio-dev"] for line in numbers.splitlines())


def _is_backported(tree: Tree) -> bool:
    """Enterprise kernels carry the owner code under an older number."""
    try:
        return b" iommu_group_claim_dma_owner" in tree.read_bytes("/proc/kallsyms")
    except OSError:
        return False
