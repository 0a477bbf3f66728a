"""Every error that vfiotool raises, and the one table that explains a kernel's errno.

An error says what failed and why in its message, and what to do in ``hint``. ``exit_status`` is what
the command line returns for it: 1 failed, 2 usage, 3 refused by a safety rule, 4 not supported here,
5 blocked by a holder.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence


class VfioToolError(Exception):
    """Base of all errors of this package; ``hint`` tells a person what to do about it."""

    exit_status = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class SelectorError(VfioToolError, ValueError):
    """An address or other selector that cannot be understood, or that matches more than was meant."""

    exit_status = 2


class UsageError(VfioToolError, ValueError):
    """An argument has no meaning here: no such name, a value out of range, two that exclude each other."""

    exit_status = 2


class DeviceNotFoundError(VfioToolError):
    """No PCI device, or no IOMMU group, answers to the given name."""


class UnsupportedError(VfioToolError):
    """This kernel or machine lacks what the operation needs."""

    exit_status = 4


class RefusedError(VfioToolError):
    """A safety rule forbids the operation; ``reasons`` has a line for each."""

    exit_status = 3

    def __init__(self, message: str, *, reasons: Sequence[str], hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reasons = tuple(reasons)


class GroupNotViableError(VfioToolError):
    """The kernel will not give the group to userspace while ``blockers`` (addresses) have their drivers."""

    def __init__(self, message: str, *, blockers: Sequence[str], hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.blockers = tuple(blockers)


class BindError(VfioToolError):
    """A step of a plan failed: ``step`` describes it, ``state`` says what became of the devices."""

    def __init__(self, message: str, *, step: str, state: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.step = step
        self.state = state


class BlockedError(VfioToolError):
    """A driver did not let go in time; ``holders`` has one line for each process that holds the device."""

    exit_status = 5

    def __init__(self, message: str, *, holders: Sequence[str], hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.holders = tuple(holders)


class ClosedError(VfioToolError, ValueError):
    """A handle was used after ``close()``."""


class AccessError(VfioToolError, ValueError):
    """An access that a region does not take: outside, misaligned, no such right; the device saw nothing."""


class RegisterError(VfioToolError):
    """A register's definition contradicts itself, or it was used against it; the device saw nothing of it."""


class RegisterTimeoutError(RegisterError, TimeoutError):
    """A register did not read in time as it should; ``last`` is what it last read."""

    def __init__(self, message: str, *, last: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.last = last


class IrqError(VfioToolError):
    """Interrupts were asked for that the device, the kernel or what is enabled already does not allow."""


class IrqTimeoutError(IrqError, TimeoutError):
    """No interrupt came in time."""


class LabError(VfioToolError):
    """The virtual lab could not be prepared: no kernel, no QEMU, no module."""


class GuestLostError(LabError):
    """A lab guest ended, hung or ran out of time; ``console`` has the last lines that it printed."""

    exit_status = 125

    def __init__(self, message: str, *, console: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.console = console


class KernelError(VfioToolError, OSError):
    """The kernel refused an operation.

    ``operation`` is the kernel's own name for it (``"VFIO_GROUP_SET_CONTAINER"``, ``"write"``),
    ``subject`` what it was asked of (a path, a group, an address), ``errno`` its answer.
    """

    def __init__(self, code: int, operation: str, subject: str, *, hint: str = "") -> None:
        cause, remedy = explain(operation, code)
        name = errno.errorcode.get(code, str(code))
        message = f"{operation} on {subject} failed: {cause} ({name})"
        VfioToolError.__init__(self, message, hint=hint or remedy)
        self.errno = code
        self.strerror = os.strerror(code)
        self.operation = operation
        self.subject = subject


class DmaMapError(KernelError):
    """The kernel refused to map or unmap ``size`` bytes at ``iova``.

    ``index`` tells which of many ranges it was, where many were mapped at once.
    """

    def __init__(
        self, code: int, operation: str, iova: int, size: int, *, index: int | None = None, hint: str = ""
    ) -> None:
        which = "" if index is None else f", range {index},"
        super().__init__(code, operation, f"{size:#x} bytes at IOVA {iova:#x}{which}", hint=hint)
        self.iova = iova
        self.size = size
        self.index = index


class DmaRangeError(VfioToolError, ValueError):
    """What is to be mapped is no memory, or does not fit where it is to go."""


class IovaExhaustedError(VfioToolError):
    """No IOVAs are free for ``size`` bytes, none of them above ``iova_max`` (``None``: no such limit)."""

    def __init__(self, message: str, *, size: int, iova_max: int | None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.size = size
        self.iova_max = iova_max


# (operation, errno) -> (cause, remedy). An operation of "" holds for all that have no row of their own.
# The kernels give different numbers for the same cause, so a cause can stand more than once.
_CAUSES: dict[tuple[str, int], tuple[str, str]] = {
    ("", errno.EPERM): (
        "the kernel does not permit it",
        "run it as root, or with CAP_SYS_ADMIN",
    ),
    ("", errno.EACCES): ("permission denied", "run it as root, or ask for access to the node"),
    ("", errno.ENOENT): ("it does not exist", "list what is there with 'vfiotool list'"),
    ("", errno.ENODEV): ("the device is gone, or the driver does not know it", ""),
    ("", errno.EBUSY): ("it is in use", "'vfiotool groups' names the processes that hold a group"),
    ("", errno.ENOTTY): ("this kernel does not know the operation", ""),
    ("", errno.ENOMEM): ("the kernel has no memory for it, or the memlock limit is too low", ""),
    ("VFIO_SET_IOMMU", errno.EINVAL): (
        "the container has no group yet, or its IOMMU is set already",
        "set a group's container first, and the IOMMU once",
    ),
    ("VFIO_SET_IOMMU", errno.ENODEV): (
        "this kernel's VFIO has no IOMMU driver of that type for the group",
        "load vfio_iommu_type1; 'vfiotool groups' shows whether the machine's IOMMU is on",
    ),
    ("VFIO_SET_IOMMU", errno.EPERM): (
        "the IOMMU does not remap interrupts, so a device could forge them",
        "turn interrupt remapping on, or, where the device is trusted, load vfio_iommu_type1 with "
        "allow_unsafe_interrupts=1",
    ),
    ("VFIO_GROUP_SET_CONTAINER", errno.EPERM): (
        "the group is not viable: a device of it is on a host driver",
        "'vfiotool groups' names the device",
    ),
    ("VFIO_GROUP_SET_CONTAINER", errno.EINVAL): ("the group has a container already", ""),
    ("VFIO_GROUP_UNSET_CONTAINER", errno.EBUSY): (
        "a device of the group is open",
        "close the group's devices first",
    ),
    ("VFIO_GROUP_UNSET_CONTAINER", errno.EINVAL): ("the group has no container", ""),
    ("VFIO_GROUP_GET_DEVICE_FD", errno.EINVAL): (
        "the group has no container, or the container has no IOMMU, or the device takes no VF token",
        "set the group's container, then the container's IOMMU, then open the device; give a token only "
        "for a VF whose PF is on vfio-pci too",
    ),
    ("VFIO_GROUP_GET_DEVICE_FD", errno.ENODEV): (
        "the group has no such device on a VFIO driver",
        "'vfiotool groups' shows the group's devices; 'vfiotool bind' hands one over",
    ),
    ("VFIO_GROUP_GET_DEVICE_FD", errno.EACCES): (
        "it is a VF whose PF is on vfio-pci too, or such a PF with a VF open, and this is not their token",
        "give as vf_token what the PF's owner has set",
    ),
    ("VFIO_DEVICE_FEATURE", errno.ENOTTY): ("the device, or this kernel, lacks the feature", ""),
    ("VFIO_DEVICE_FEATURE", errno.EINVAL): (
        "the feature cannot be used so, or the device is in that state already",
        "Features.probe() tells whether it can be got or set",
    ),
    ("VFIO_DEVICE_SET_IRQS", errno.EINVAL): (
        "no such interrupt is enabled, or the kernel does not let it be enabled beside another kind",
        "",
    ),
    ("VFIO_DEVICE_SET_IRQS", errno.ENOSPC): ("the kernel has no interrupt left to give", ""),
    ("VFIO_DEVICE_RESET", errno.EAGAIN): (
        "another reset or a change of the device's driver is under way",
        "try again",
    ),
    ("VFIO_DEVICE_PCI_HOT_RESET", errno.EINVAL): (
        "a device that would be reset too is in no group that was passed, or not on vfio-pci",
        "bind all devices that read_hot_reset_info() names, and pass their groups",
    ),
    ("VFIO_DEVICE_PCI_HOT_RESET", errno.EPERM): (
        "a device that would be reset too is not this process's",
        "bind all devices that read_hot_reset_info() names, and pass their groups",
    ),
    ("VFIO_DEVICE_PCI_HOT_RESET", errno.EBUSY): (
        "a device that would be reset too is on a host driver",
        "'vfiotool bind' hands it over",
    ),
    ("VFIO_DEVICE_PCI_HOT_RESET", errno.ENOTTY): (
        "the bridge above the device did not reset its bus, or nothing answered there afterwards",
        "the kernel log says more",
    ),
    ("eventfd", errno.EMFILE): ("this process has too many open files", "raise the limit ('ulimit -n')"),
    ("VFIO_IOMMU_GET_INFO", errno.EINVAL): (
        "the container has no IOMMU yet",
        "set a group's container first, then the container's IOMMU",
    ),
    ("VFIO_IOMMU_MAP_DMA", errno.EINVAL): (
        "address, IOVA and size are not whole IOMMU pages, or lie outside of the container's IOVA "
        "ranges, or the container has no IOMMU yet",
        "map whole pages (an mmap.mmap is made of them) inside of the ranges",
    ),
    ("VFIO_IOMMU_MAP_DMA", errno.EEXIST): (
        "a part of the range is mapped already",
        "choose another IOVA, or unmap first",
    ),
    ("VFIO_IOMMU_MAP_DMA", errno.EFAULT): (
        "the memory does not reach that far, or is read-only while the device may write",
        "map at most the buffer's size, or pass write=False",
    ),
    ("VFIO_IOMMU_MAP_DMA", errno.EOVERFLOW): ("the range does not fit in 64 bits", ""),
    ("VFIO_IOMMU_MAP_DMA", errno.ENOSPC): (
        "the container takes no more mappings",
        "map fewer and larger ranges, or raise vfio_iommu_type1's dma_entry_limit",
    ),
    ("VFIO_IOMMU_MAP_DMA", errno.ENOMEM): (
        "the memory that may be locked is used up",
        "raise the memlock limit ('ulimit -l')",
    ),
    ("VFIO_IOMMU_UNMAP_DMA", errno.EINVAL): (
        "IOVA and size are not whole IOMMU pages, or cut through a mapping, or the container has "
        "no IOMMU yet",
        "unmap whole mappings, as they were made",
    ),
    ("VFIO_IOMMU_UNMAP_DMA", errno.ENOENT): (
        "nothing is mapped there, or the range cuts through a mapping",
        "unmap whole mappings, as they were made",
    ),
    ("VFIO_DEVICE_BIND_IOMMUFD", errno.EINVAL): (
        "the device or its group is open already, or the fd is no iommufd",
        "'vfiotool groups' names the processes that hold a group",
    ),
    ("VFIO_DEVICE_BIND_IOMMUFD", errno.EPERM): (
        "another device of its group has another owner",
        "'vfiotool groups' shows the group's devices and who holds them",
    ),
    ("VFIO_DEVICE_ATTACH_IOMMUFD_PT", errno.EPERM): (
        "the IOMMU does not remap interrupts, so a device could forge them",
        "turn interrupt remapping on, or, where the device is trusted, load iommufd with "
        "allow_unsafe_interrupts=1",
    ),
    ("VFIO_DEVICE_ATTACH_IOMMUFD_PT", errno.EADDRINUSE): (
        "something is mapped, or is to stay valid, where this device's IOMMU reserves addresses",
        "open all devices before memory is mapped",
    ),
    ("VFIO_IOMMU_UNMAP_DMA", errno.EOVERFLOW): ("the range does not fit in 64 bits", ""),
    ("MADV_POPULATE_WRITE", errno.EFAULT): (
        "a page of it cannot be had",
        "use smaller pages, or raise the huge pages that its cgroup may have (hugetlb.*.max)",
    ),
    ("reserve", errno.EINVAL): (
        "they are not whole IOMMU pages, or lie outside of the IOVA ranges that the kernel allows",
        "choose whole pages inside of the ranges, or leave the choice to vfiotool",
    ),
    ("reserve", errno.EEXIST): ("a part of the range is in use", "choose another IOVA, or unmap first"),
    ("reserve", errno.EOVERFLOW): ("the range does not fit in 64 bits", ""),
    ("free", errno.ENOENT): ("nothing is allocated there", ""),
    ("free", errno.EINVAL): ("another size is allocated there", "free all of what was allocated at once"),
    ("set_ranges", errno.EINVAL): (
        "a further device makes the kernel allow fewer IOVAs, and these no longer",
        "unmap them before that device is attached, or give it an address space of its own",
    ),
    ("pread", errno.EIO): (
        "the device does not answer: its memory is turned off, or it is in D3hot",
        "set memory to True in its configuration space, and its power state to D0",
    ),
    ("pwrite", errno.EIO): (
        "the device does not answer: its memory is turned off, or it is in D3hot",
        "set memory to True in its configuration space, and its power state to D0",
    ),
    ("sriov_numvfs", errno.ENOENT): (
        "the PF's driver does not make VFs, or it has no driver",
        "bind it to a driver that does",
    ),
    ("sriov_numvfs", errno.ERANGE): ("the PF has not so many", "'vfiotool show' tells how many it has"),
    ("sriov_numvfs", errno.EBUSY): (
        "there are VFs already, made by somebody else meanwhile",
        "see 'vfiotool list', and try again",
    ),
    ("sriov_numvfs", errno.ENOMEM): (
        "the bridge above has too few addresses, or too few bus numbers, for so many VFs",
        "ask for fewer, turn SR-IOV on in the firmware, or boot with pci=realloc (addresses) or "
        "pci=assign-busses (bus numbers); the kernel's log says which (dmesg)",
    ),
    ("sriov_numvfs", errno.ENOSPC): (
        "the PF's driver has no room for so many VFs",
        "ask for fewer; its firmware may be set to more",
    ),
    ("sriov_numvfs", errno.EINVAL): (
        "the PF's driver does not take that number",
        "its firmware may have SR-IOV off, or allow fewer; see the kernel's log (dmesg)",
    ),
    ("sriov_numvfs", errno.EIO): (
        "the PF's SR-IOV capability contradicts itself",
        "update its firmware; 'lspci -vv' shows the capability",
    ),
    ("", errno.EBADMSG): ("its answer does not follow the kernel's own format", ""),
}


# iommufd answers as type1 does, by operations of other names.
for (_operation, _code), _row in list(_CAUSES.items()):
    if _operation == "VFIO_IOMMU_MAP_DMA":
        for _same in ("IOMMU_IOAS_MAP", "IOMMU_IOAS_MAP_FILE", "IOMMU_IOAS_COPY"):
            _CAUSES.setdefault((_same, _code), _row)
    elif _operation == "VFIO_IOMMU_UNMAP_DMA":
        _CAUSES.setdefault(("IOMMU_IOAS_UNMAP", _code), _row)


def explain(operation: str, code: int) -> tuple[str, str]:
    """Return ``(cause, remedy)`` for an errno of an operation; the remedy may be empty."""
    known = _CAUSES.get((operation, code)) or _CAUSES.get(("", code))
    return known or (os.strerror(code), "")
