"""Every error that vfiotool raises, and the table that explains the kernel's errno values.

The message of an error says what failed and why; ``hint`` says what to do. The command line exits with
the error's ``exit_status``: 1 failed, 2 usage, 3 refused by a safety rule, 4 not supported here,
5 blocked by a holder, 125 lab guest lost.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence


class VfioToolError(Exception):
    """Base class of all errors of this package. ``hint`` says what the user can do; it may be empty."""

    exit_status = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class SelectorError(VfioToolError, ValueError):
    """A selector (address, glob, ``vendor:device``, name) is malformed, or matches several devices."""

    exit_status = 2


class UsageError(VfioToolError, ValueError):
    """An argument is invalid: an unknown name, a value out of range, or two that exclude each other."""

    exit_status = 2


class DeviceNotFoundError(VfioToolError):
    """No PCI device or IOMMU group has the given name."""


class UnsupportedError(VfioToolError):
    """This kernel or machine does not support the operation."""

    exit_status = 4


class RefusedError(VfioToolError):
    """A safety rule forbids the operation. ``reasons`` has a line for each rule."""

    exit_status = 3

    def __init__(self, message: str, *, reasons: Sequence[str], hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reasons = tuple(reasons)


class GroupNotViableError(VfioToolError):
    """The group is not viable: the devices ``blockers`` (addresses) are on host drivers."""

    def __init__(self, message: str, *, blockers: Sequence[str], hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.blockers = tuple(blockers)


class BindError(VfioToolError):
    """A step of a plan failed. ``step`` describes the step, ``state`` the devices' state afterwards."""

    def __init__(self, message: str, *, step: str, state: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.step = step
        self.state = state


class BlockedError(VfioToolError):
    """A driver did not release the device in time. ``holders`` has a line for each process that holds it."""

    exit_status = 5

    def __init__(self, message: str, *, holders: Sequence[str], hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.holders = tuple(holders)


class ClosedError(VfioToolError, ValueError):
    """A handle was used after ``close()``."""


class AccessError(VfioToolError, ValueError):
    """An access to a region is out of range, misaligned or not permitted. No access reached the device."""


class RegisterError(VfioToolError):
    """A register's definition is inconsistent, or the access violates it. No access reached the device."""


class RegisterTimeoutError(RegisterError, TimeoutError):
    """A register did not reach the expected value in time. ``last`` is the value that was read last."""

    def __init__(self, message: str, *, last: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.last = last


class IrqError(VfioToolError):
    """The device, the kernel or the interrupts already enabled do not allow the requested interrupts."""


class IrqTimeoutError(IrqError, TimeoutError):
    """No interrupt arrived within the timeout."""


class LabError(VfioToolError):
    """The virtual lab cannot be prepared: a kernel, QEMU or a module is missing."""


class GuestLostError(LabError):
    """A lab guest exited, hung or timed out. ``console`` has the last lines of its console."""

    exit_status = 125

    def __init__(self, message: str, *, console: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.console = console


class KernelError(VfioToolError, OSError):
    """The kernel refused an operation.

    ``operation`` is the kernel's name of the operation (``"VFIO_GROUP_SET_CONTAINER"``, ``"write"``),
    ``subject`` the object of the operation (a path, a group, an address), ``errno`` the error number.
    ``cause`` replaces the usual explanation of the errno.
    """

    def __init__(self, code: int, operation: str, subject: str, *, cause: str = "", hint: str = "") -> None:
        known, remedy = explain(operation, code)
        name = errno.errorcode.get(code, str(code))
        message = f"{operation} on {subject} failed: {cause or known} ({name})"
        VfioToolError.__init__(self, message, hint=hint or remedy)
        self.errno = code
        self.strerror = os.strerror(code)
        self.operation = operation
        self.subject = subject


class DmaMapError(KernelError):
    """The kernel refused to map or unmap ``size`` bytes at ``iova``.

    ``index`` is the index of the failed range if several were mapped at once, else ``None``.
    """

    def __init__(
        self,
        code: int,
        operation: str,
        iova: int,
        size: int,
        *,
        index: int | None = None,
        cause: str = "",
        hint: str = "",
    ) -> None:
        which = "" if index is None else f", range {index},"
        subject = f"{size:#x} bytes at IOVA {iova:#x}{which}"
        super().__init__(code, operation, subject, cause=cause, hint=hint)
        self.iova = iova
        self.size = size
        self.index = index


class DmaRangeError(VfioToolError, ValueError):
    """The object to map is not memory, or does not fit at the requested address."""


class IovaExhaustedError(VfioToolError):
    """No free IOVA range of ``size`` bytes ends at or below ``iova_max`` (``None``: no limit)."""

    def __init__(self, message: str, *, size: int, iova_max: int | None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.size = size
        self.iova_max = iova_max


_NO_TOKEN = (
    "the VF token is missing or wrong: a VF whose PF is on vfio-pci needs it, and so does a PF on "
    "vfio-pci while a VF is open",
    "pass the token that the PF's owner has set: --vf-token, or vf_token= in Python",
)

_NOT_ATTACHED = (
    "the IOMMU does not remap interrupts, or the firmware needs memory mapped 1:1 for a device of the group "
    "(a direct reserved region, an RMRR)",
    "'vfiotool doctor' checks interrupts, and 'vfiotool groups' shows direct regions",
)

# (operation, errno) -> (cause, remedy). A row with the operation "" applies to every operation that has no
# row for that errno. Kernel versions return different errno values for the same cause, so causes repeat.
_CAUSES: dict[tuple[str, int], tuple[str, str]] = {
    ("", errno.EPERM): (
        "operation not permitted",
        "run as root, or with CAP_SYS_ADMIN",
    ),
    ("", errno.EACCES): ("permission denied", "run as root, or get access to the device node"),
    ("", errno.ENOENT): ("no such file or device", "'vfiotool list' shows the devices of this machine"),
    ("", errno.ENODEV): ("the device is gone, or the driver does not know the device", ""),
    ("", errno.EBUSY): ("already in use", "'vfiotool groups' shows the processes that hold a group"),
    ("", errno.ENOTTY): ("this kernel does not support the operation", ""),
    ("", errno.ENOMEM): ("the kernel is out of memory, or the memlock limit is too low", ""),
    ("VFIO_SET_IOMMU", errno.EINVAL): (
        "the container has no group yet, or its IOMMU is already set",
        "add a group to the container first, and set the IOMMU only once",
    ),
    ("VFIO_SET_IOMMU", errno.ENODEV): (
        "this kernel's VFIO has no IOMMU driver of that type for the group",
        "load vfio_iommu_type1; 'vfiotool groups' shows if the machine's IOMMU is on",
    ),
    ("VFIO_SET_IOMMU", errno.EPERM): _NOT_ATTACHED,
    ("VFIO_GROUP_SET_CONTAINER", errno.EPERM): (
        "the group is not viable: a device of the group is on a host driver",
        "'vfiotool groups' shows the device",
    ),
    ("VFIO_GROUP_SET_CONTAINER", errno.EINVAL): ("the group already has a container", ""),
    ("VFIO_GROUP_UNSET_CONTAINER", errno.EBUSY): (
        "a device of the group is open",
        "close the group's devices first",
    ),
    ("VFIO_GROUP_UNSET_CONTAINER", errno.EINVAL): ("the group has no container", ""),
    ("VFIO_GROUP_GET_DEVICE_FD", errno.EINVAL): (
        "the group has no container, the container has no IOMMU, or the device takes no VF token",
        "set the group's container, then the container's IOMMU, then open the device; pass a token only "
        "for a VF whose PF is also on vfio-pci",
    ),
    ("VFIO_GROUP_GET_DEVICE_FD", errno.ENODEV): (
        "no device of that name in the group is on a VFIO driver",
        "'vfiotool groups' shows the group's devices; 'vfiotool show' says how to free one",
    ),
    ("VFIO_GROUP_GET_DEVICE_FD", errno.EACCES): _NO_TOKEN,
    ("VFIO_DEVICE_BIND_IOMMUFD", errno.EACCES): _NO_TOKEN,
    ("VFIO_DEVICE_FEATURE", errno.ENOTTY): ("the device or this kernel does not have the feature", ""),
    ("VFIO_DEVICE_FEATURE", errno.EINVAL): (
        "the feature does not support this operation, or the device is already in that state",
        "Features.probe() returns the operations that the feature supports",
    ),
    ("VFIO_DEVICE_SET_IRQS", errno.EINVAL): (
        "the interrupt is not enabled, or the kernel does not allow it beside another kind of interrupt",
        "",
    ),
    ("VFIO_DEVICE_SET_IRQS", errno.ENOSPC): ("the kernel has no free interrupt left", ""),
    ("VFIO_DEVICE_RESET", errno.EAGAIN): (
        "another reset or a driver change of the device is in progress",
        "try again",
    ),
    ("VFIO_DEVICE_PCI_HOT_RESET", errno.EINVAL): (
        "the reset affects a device that is in none of the passed groups, or not on vfio-pci",
        "bind every device that read_hot_reset_info() lists, and pass their groups",
    ),
    ("VFIO_DEVICE_PCI_HOT_RESET", errno.EPERM): (
        "the reset affects a device that this process does not own",
        "bind every device that read_hot_reset_info() lists, and pass their groups",
    ),
    ("VFIO_DEVICE_PCI_HOT_RESET", errno.EBUSY): (
        "the reset affects a device that is on a host driver",
        "'vfiotool show' says how to free that device",
    ),
    ("VFIO_DEVICE_PCI_HOT_RESET", errno.ENOTTY): (
        "the bridge above the device did not reset its bus, or no device answered after the reset",
        "see the kernel log (dmesg)",
    ),
    ("eventfd", errno.EMFILE): ("this process has too many open files", "raise the limit with 'ulimit -n'"),
    ("VFIO_IOMMU_GET_INFO", errno.EINVAL): (
        "the container has no IOMMU yet",
        "add a group to the container first, then set the container's IOMMU",
    ),
    ("VFIO_IOMMU_MAP_DMA", errno.EINVAL): (
        "address, IOVA or size is not a multiple of the IOMMU page size, or the IOVAs lie outside the "
        "container's IOVA ranges, or the container has no IOMMU yet",
        "map whole pages (an mmap.mmap has whole pages) inside the IOVA ranges",
    ),
    ("VFIO_IOMMU_MAP_DMA", errno.EEXIST): (
        "part of the range is already mapped",
        "choose another IOVA, or unmap the range first",
    ),
    ("VFIO_IOMMU_MAP_DMA", errno.EFAULT): (
        "the range extends beyond the memory, or the memory is read-only and the mapping is writable",
        "map at most the buffer's size, or pass write=False",
    ),
    ("VFIO_IOMMU_MAP_DMA", errno.EOVERFLOW): ("the range does not fit in 64 bits", ""),
    ("VFIO_IOMMU_MAP_DMA", errno.ENOSPC): (
        "the container has reached its limit of mappings",
        "map fewer and larger ranges, or raise vfio_iommu_type1's dma_entry_limit",
    ),
    ("VFIO_IOMMU_MAP_DMA", errno.ENOMEM): (
        "the limit of locked memory is reached",
        "raise the memlock limit with 'ulimit -l'",
    ),
    ("IOMMU_IOAS_MAP_FILE", errno.ENODEV): (
        "the BAR was revoked: its device is being reset, or its memory is off",
        "set memory to True in the device's configuration space, and map the BAR again",
    ),
    ("IOMMU_IOAS_MAP_FILE", errno.EOPNOTSUPP): (
        "iommufd cannot map this dma-buf",
        "it maps the BARs of vfio-pci, if the kernel has CONFIG_VFIO_PCI_DMABUF",
    ),
    ("VFIO_IOMMU_UNMAP_DMA", errno.EINVAL): (
        "IOVA or size is not a multiple of the IOMMU page size, or the range splits a mapping, or the "
        "container has no IOMMU yet",
        "unmap whole mappings",
    ),
    ("VFIO_IOMMU_UNMAP_DMA", errno.ENOENT): (
        "the range has no mapping, or splits a mapping",
        "unmap whole mappings",
    ),
    ("VFIO_DEVICE_BIND_IOMMUFD", errno.EINVAL): (
        "the device or its group is already open, or the device takes no VF token, or the file descriptor is "
        "not an iommufd",
        "'vfiotool groups' shows the processes that hold a group; pass a token only for a VF whose PF is "
        "also on vfio-pci",
    ),
    ("VFIO_DEVICE_BIND_IOMMUFD", errno.EPERM): (
        "another device of the group has another owner",
        "'vfiotool groups' shows the group's devices and their holders",
    ),
    ("VFIO_DEVICE_ATTACH_IOMMUFD_PT", errno.EPERM): _NOT_ATTACHED,
    ("VFIO_DEVICE_ATTACH_IOMMUFD_PT", errno.EADDRINUSE): (
        "mapped or allowed IOVAs overlap the reserved regions of this device",
        "open all devices before you map memory",
    ),
    ("VFIO_IOMMU_UNMAP_DMA", errno.EOVERFLOW): ("the range does not fit in 64 bits", ""),
    ("MADV_POPULATE_WRITE", errno.EFAULT): (
        "the kernel cannot allocate a page of the memory",
        "use smaller pages, or raise the huge page limit of the process's cgroup (hugetlb.*.max)",
    ),
    ("reserve", errno.EINVAL): (
        "IOVA or size is not a multiple of the IOMMU page size, or outside the kernel's IOVA ranges",
        "choose whole pages inside the ranges, or let vfiotool choose",
    ),
    ("reserve", errno.EEXIST): (
        "part of the range is in use",
        "choose another IOVA, or unmap the range first",
    ),
    ("reserve", errno.EOVERFLOW): ("the range does not fit in 64 bits", ""),
    ("free", errno.ENOENT): ("no range is allocated at that IOVA", ""),
    ("free", errno.EINVAL): (
        "the allocated range has another size",
        "free the whole range that was allocated",
    ),
    ("set_ranges", errno.EINVAL): (
        "with the added device the kernel no longer allows these IOVAs",
        "unmap them before you attach the device, or give the device a separate address space",
    ),
    ("pread", errno.EIO): (
        "the device does not answer: its memory space is disabled, or the device is in D3hot",
        "set memory to True in its configuration space, and its power state to D0; 'vfiotool show' shows its "
        "power",
    ),
    ("pwrite", errno.EIO): (
        "the device does not answer: its memory space is disabled, or the device is in D3hot",
        "set memory to True in its configuration space, and its power state to D0; 'vfiotool show' shows its "
        "power",
    ),
    ("sriov_numvfs", errno.ENOENT): (
        "the PF's driver cannot create VFs, or the PF has no driver",
        "bind the PF to a driver that can create VFs",
    ),
    ("sriov_numvfs", errno.ERANGE): (
        "the PF does not have that many VFs",
        "'vfiotool show' shows how many VFs the PF can have",
    ),
    ("sriov_numvfs", errno.EBUSY): (
        "the PF already has VFs, which another program created in the meantime",
        "see 'vfiotool list', and try again",
    ),
    ("sriov_numvfs", errno.ENOMEM): (
        "the bridge above the PF has too few addresses or bus numbers for that many VFs",
        "create fewer VFs, enable SR-IOV in the firmware, or boot with pci=realloc (addresses) or "
        "pci=assign-busses (bus numbers); the kernel log (dmesg) shows which are missing",
    ),
    ("sriov_numvfs", errno.ENOSPC): (
        "the PF's driver does not support that many VFs",
        "create fewer VFs, or raise the limit in the device's firmware settings",
    ),
    ("sriov_numvfs", errno.EINVAL): (
        "the PF's driver refused that number of VFs",
        "the device's firmware may have SR-IOV disabled or allow fewer VFs; see the kernel log (dmesg)",
    ),
    ("sriov_numvfs", errno.EIO): (
        "the PF's SR-IOV capability is inconsistent",
        "update the device's firmware; 'lspci -vv' shows the capability",
    ),
    ("", errno.EBADMSG): ("the kernel's answer does not have the documented format", ""),
}


# iommufd returns the same errno values as type1, for operations with other names.
for (_operation, _code), _row in list(_CAUSES.items()):
    if _operation == "VFIO_IOMMU_MAP_DMA":
        for _same in ("IOMMU_IOAS_MAP", "IOMMU_IOAS_MAP_FILE", "IOMMU_IOAS_COPY"):
            _CAUSES.setdefault((_same, _code), _row)
    elif _operation == "VFIO_IOMMU_UNMAP_DMA":
        _CAUSES.setdefault(("IOMMU_IOAS_UNMAP", _code), _row)


def explain(operation: str, code: int) -> tuple[str, str]:
    """Return ``(cause, remedy)`` for the errno of an operation. The remedy may be empty."""
    known = _CAUSES.get((operation, code)) or _CAUSES.get(("", code))
    return known or (os.strerror(code), "")
