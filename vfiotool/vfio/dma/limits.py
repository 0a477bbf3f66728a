"""The kernel's limits on DMA, checked before a call, so that the error can say what to raise."""

from __future__ import annotations

import errno
import resource

from vfiotool.errors import DmaMapError

_CAP_IPC_LOCK = 14  # include/uapi/linux/capability.h
_STATUS = "/proc/self/status"


def has_memlock_limit() -> bool:
    """Return True if RLIMIT_MEMLOCK applies to this process: CAP_IPC_LOCK lifts it."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return soft != resource.RLIM_INFINITY and not _status("CapEff", 16) >> _CAP_IPC_LOCK & 1


def require_memlock(operation: str, iova: int, size: int) -> None:
    """Raise the error that the kernel would return for pinning ``size`` more bytes.

    type1 and iommufd charge pinned memory to RLIMIT_MEMLOCK, together with locked memory.

    Raises:
        DmaMapError: ENOMEM, with the limit, its current use, and the limit that is needed.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return
    used = (_status("VmLck") + _status("VmPin")) << 10
    if used + size <= soft:
        return
    needed = -(-(used + size) // 1024)
    way = (
        f"'ulimit -l {needed}'"
        if hard == resource.RLIM_INFINITY or hard >= needed << 10
        else (
            f"as root, 'prlimit --memlock={needed << 10} --pid {_status('Pid')}', or a line in "
            "/etc/security/limits.d"
        )
    )
    hint = f"{used} bytes are locked or pinned, {soft} are allowed, {used + size} are needed: {way}"
    raise DmaMapError(errno.ENOMEM, operation, iova, size, hint=hint)


def require_dma_entries(operation: str, available: int | None, count: int, iova: int, size: int) -> None:
    """Raise the error that the kernel would return for ``count`` more mappings.

    Raises:
        DmaMapError: ENOSPC, with the number that is left and how to raise it.
    """
    if available is None or count <= available:
        return
    hint = (
        f"{count} mappings are needed and {available} are left: map ranges that are adjacent in memory and "
        "in IOVA, or, as root, raise /sys/module/vfio_iommu_type1/parameters/dma_entry_limit"
    )
    raise DmaMapError(errno.ENOSPC, operation, iova, size, hint=hint)


def _status(field: str, base: int = 10) -> int:
    with open(_STATUS, encoding="ascii", errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0], base)
    return 0
