"""What type1 and iommufd share: mapping through the shim, and errors that are the same in all modes."""

from __future__ import annotations

import errno
from collections.abc import Callable

from vfiotool._shim import ffi, lib
from vfiotool.errors import DmaMapError, UnsupportedError
from vfiotool.vfio.iommu.ranges import Ranges
from vfiotool.vfio.uapi import ContainerIoctl, DmaMapFlags, IommufdIoctl

_END = 1 << 64


class AddressSpace:
    """The DMA part of an ``Iommu``: an open container, or an IOAS of an iommufd."""

    ioas = 0
    """The id of the IOAS; a container has none."""

    on_emptied: Callable[[], None] = staticmethod(lambda: None)
    """Called when the kernel has undone all mappings, as the last device left; ``Dma`` has its own."""

    def fileno(self) -> int:
        """Return the descriptor of the container or the iommufd; ClosedError once it is closed."""
        raise NotImplementedError

    def map(self, vaddr: int, iova: int, size: int, access: DmaMapFlags) -> None:
        """Let the devices reach ``size`` bytes of this process at ``vaddr``; the pages are pinned.

        All three must be multiples of the IOMMU's page size. ``access`` is what the devices may do.

        Raises:
            DmaMapError: EINVAL not aligned, no access, or outside of the IOVA ranges; EEXIST a part is
                mapped already; EFAULT no such memory, or not writable; EOVERFLOW past 64 bits; ENOSPC no
                more mappings; ENOMEM the memlock limit.
            ClosedError: it is closed.
        """
        if not (_in_64_bits(vaddr, size) and _in_64_bits(iova, size)):
            raise self._map_error(errno.EOVERFLOW, iova, size)
        result = lib.vt_dma_map(self.fileno(), self.ioas, vaddr, iova, size, access)
        if result < 0:
            raise self._map_error(-result, iova, size)

    @property
    def can_map_files(self) -> bool:
        """Return True if ``map_file`` works: only iommufd has it."""
        return False

    def map_file(self, fd: int, start: int, iova: int, size: int, access: DmaMapFlags) -> None:
        """Let the devices reach ``size`` bytes of a file from ``start`` on: only iommufd can.

        Raises:
            UnsupportedError: this interface of the kernel cannot.
        """
        raise map_file_unsupported()

    def map_ranges(self, ranges: Ranges, access: DmaMapFlags) -> None:
        """Map all ranges or none, in one call to the shim; neighbours become one mapping.

        Raises:
            DmaMapError: as for ``map``; its ``index`` is that of the range which cannot be mapped.
        """
        failed = ffi.new("uint64_t *")
        result = lib.vt_dma_map_ranges(self.fileno(), self.ioas, ranges.array, ranges.count, access, failed)
        if result < 0:
            _vaddr, iova, size = ranges[failed[0]]
            raise self._map_error(-result, iova, size, index=failed[0])

    def unmap(self, iova: int, size: int) -> int:
        """Undo the mappings inside a range, and return how many bytes they had.

        Raises:
            DmaMapError: ENOENT nothing is mapped there, or, through iommufd, a mapping is cut; EINVAL not
                aligned, or type1v2 would have to cut a mapping; EOVERFLOW past 64 bits.
        """
        if not _in_64_bits(iova, size):
            raise self._unmap_error(errno.EOVERFLOW, iova, size)
        unmapped = lib.vt_dma_unmap(self.fileno(), self.ioas, iova, size)
        if unmapped == 0:  # iommufd says so itself
            unmapped = -errno.ENOENT
        if unmapped < 0:
            raise self._unmap_error(-unmapped, iova, size)
        return unmapped

    def unmap_ranges(self, ranges: Ranges) -> int:
        """Undo what ``map_ranges`` did, and return how many bytes were mapped.

        Raises:
            DmaMapError: as for ``unmap``, for the first that failed; the others are undone all the same.
        """
        unmapped = lib.vt_dma_unmap_ranges(self.fileno(), self.ioas, ranges.array, ranges.count)
        if unmapped < 0:
            raise self._unmap_error(-unmapped, ranges[0][1], ranges.size)
        return unmapped

    def unmap_all(self) -> int:
        """Undo all mappings, and return how many bytes were mapped."""
        unmapped = lib.vt_dma_unmap_all(self.fileno(), self.ioas)
        if unmapped < 0:
            raise self._unmap_error(-unmapped, 0, 0)
        return unmapped

    def _map_error(self, code: int, iova: int, size: int, *, index: int | None = None) -> DmaMapError:
        operation = IommufdIoctl.IOMMU_IOAS_MAP if self.ioas else ContainerIoctl.VFIO_IOMMU_MAP_DMA
        return DmaMapError(code, operation.name, iova, size, index=index)

    def _unmap_error(self, code: int, iova: int, size: int) -> DmaMapError:
        operation = IommufdIoctl.IOMMU_IOAS_UNMAP if self.ioas else ContainerIoctl.VFIO_IOMMU_UNMAP_DMA
        return DmaMapError(code, operation.name, iova, size)


def map_file_unsupported() -> UnsupportedError:
    """Return the error of ``map_file`` if the kernel has no IOMMU_IOAS_MAP_FILE."""
    return UnsupportedError(
        "this kernel cannot map a file for DMA", hint="it came with 6.14; map its memory instead"
    )


def _in_64_bits(start: int, size: int) -> bool:
    """Say whether a range ends by 2^64; where not, 6.12 would say EINVAL and 7.2 EOVERFLOW."""
    return start >= 0 and size >= 0 and start + size <= _END
