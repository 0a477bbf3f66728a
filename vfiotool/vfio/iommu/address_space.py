"""The DMA mappings of type1 and iommufd: calls to the shim, and errors that are the same in all modes."""

from __future__ import annotations

import errno
from collections.abc import Callable

from vfiotool._shim import ffi, lib
from vfiotool.errors import DmaMapError, UnsupportedError
from vfiotool.vfio.iommu.process_maps import has_registers
from vfiotool.vfio.iommu.ranges import Ranges
from vfiotool.vfio.uapi import ContainerIoctl, DmaMapFlags, IommufdIoctl

_END = 1 << 64
_REGISTERS = (
    "the range has registers of a device, and iommufd maps no registers by their address",
    "use iommu='type1v2'; or iommu='iommufd' on Linux 6.19, and pass to map() what region.map() returns",
)


class AddressSpace:
    """The DMA part of an ``Iommu``: an open container, or an IOAS of an iommufd."""

    ioas = 0
    """The id of the IOAS; 0 for a container."""

    is_iommufd = False
    """True for an IOAS, and for a container that iommufd emulates."""

    on_emptied: Callable[[], None] = staticmethod(lambda: None)
    """Called when the kernel has removed all mappings with the last device; ``Dma`` sets it."""

    def fileno(self) -> int:
        """Return the descriptor of the container or iommufd. Raises ClosedError once it is closed."""
        raise NotImplementedError

    def map(self, vaddr: int, iova: int, size: int, access: DmaMapFlags) -> None:
        """Map ``size`` bytes of this process at ``vaddr`` to ``iova``, and pin their pages.

        All three must be multiples of the IOMMU's page size. ``access`` is what the devices may do.

        Raises:
            DmaMapError: EINVAL not aligned, no access, or outside of the IOVA ranges; EEXIST a part is
                mapped already; EFAULT no such memory, or not writable; EOVERFLOW beyond 64 bits; ENOSPC no
                more mappings; ENOMEM the memlock limit.
            ClosedError: the address space is closed.
        """
        if not (_in_64_bits(vaddr, size) and _in_64_bits(iova, size)):
            raise self._map_error(errno.EOVERFLOW, vaddr, iova, size)
        result = lib.vt_dma_map(self.fileno(), self.ioas, vaddr, iova, size, access)
        if result < 0:
            raise self._map_error(-result, vaddr, iova, size)

    @property
    def can_map_files(self) -> bool:
        """Return True if ``map_file`` works: only iommufd supports it."""
        return False

    def map_file(self, fd: int, start: int, iova: int, size: int, access: DmaMapFlags) -> None:
        """Map ``size`` bytes of a file, from ``start`` on, to ``iova``: only iommufd supports it.

        Raises:
            UnsupportedError: this interface does not support it.
        """
        raise map_file_unsupported()

    def map_ranges(self, ranges: Ranges, access: DmaMapFlags) -> None:
        """Map all ranges or none, in one call to the shim; adjacent ranges become one mapping.

        Raises:
            DmaMapError: as for ``map``; ``index`` is the index of the range that cannot be mapped.
        """
        failed = ffi.new("uint64_t *")
        result = lib.vt_dma_map_ranges(self.fileno(), self.ioas, ranges.array, ranges.count, access, failed)
        if result < 0:
            vaddr, iova, size = ranges[failed[0]]
            raise self._map_error(-result, vaddr, iova, size, index=failed[0])

    def unmap(self, iova: int, size: int) -> int:
        """Remove the mappings inside a range, and return the number of bytes that they had.

        Raises:
            DmaMapError: ENOENT nothing is mapped there, or, with iommufd, the range cuts a mapping; EINVAL
                not aligned, or, with type1v2, the range cuts a mapping; EOVERFLOW beyond 64 bits.
        """
        if not _in_64_bits(iova, size):
            raise self._unmap_error(errno.EOVERFLOW, iova, size)
        unmapped = lib.vt_dma_unmap(self.fileno(), self.ioas, iova, size)
        if unmapped == 0:  # iommufd returns this errno itself
            unmapped = -errno.ENOENT
        if unmapped < 0:
            raise self._unmap_error(-unmapped, iova, size)
        return unmapped

    def unmap_ranges(self, ranges: Ranges) -> int:
        """Remove the mappings of ``map_ranges``, and return the number of bytes that were mapped.

        Raises:
            DmaMapError: as for ``unmap``, for the first range that failed; all others are unmapped.
        """
        unmapped = lib.vt_dma_unmap_ranges(self.fileno(), self.ioas, ranges.array, ranges.count)
        if unmapped < 0:
            raise self._unmap_error(-unmapped, ranges[0][1], ranges.size)
        return unmapped

    def unmap_all(self) -> int:
        """Remove all mappings, and return the number of bytes that were mapped."""
        unmapped = lib.vt_dma_unmap_all(self.fileno(), self.ioas)
        if unmapped < 0:
            raise self._unmap_error(-unmapped, 0, 0)
        return unmapped

    def _map_error(
        self, code: int, vaddr: int, iova: int, size: int, *, index: int | None = None
    ) -> DmaMapError:
        operation = IommufdIoctl.IOMMU_IOAS_MAP if self.ioas else ContainerIoctl.VFIO_IOMMU_MAP_DMA
        cause = hint = ""
        if code == errno.EFAULT and self.is_iommufd and has_registers(vaddr, size):
            cause, hint = _REGISTERS
        return DmaMapError(code, operation.name, iova, size, index=index, cause=cause, hint=hint)

    def _unmap_error(self, code: int, iova: int, size: int) -> DmaMapError:
        operation = IommufdIoctl.IOMMU_IOAS_UNMAP if self.ioas else ContainerIoctl.VFIO_IOMMU_UNMAP_DMA
        return DmaMapError(code, operation.name, iova, size)


def map_file_unsupported() -> UnsupportedError:
    """Return the error of ``map_file`` if the kernel has no IOMMU_IOAS_MAP_FILE."""
    return UnsupportedError(
        "this kernel cannot map a file for DMA", hint="it needs Linux 6.14 and iommufd; map memory instead"
    )


def _in_64_bits(start: int, size: int) -> bool:
    """Return True if a range ends by 2^64. Otherwise 6.12 would return EINVAL and 7.2 EOVERFLOW."""
    return start >= 0 and size >= 0 and start + size <= _END
