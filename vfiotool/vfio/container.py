"""A VFIO container: the IO address space in which the devices of its groups do DMA."""

from __future__ import annotations

import errno
import fcntl
from functools import partial
from typing import TYPE_CHECKING

from vfiotool._shim import ffi, lib
from vfiotool.errors import DmaMapError, UnsupportedError
from vfiotool.vfio.answer import ask
from vfiotool.vfio.handle import Handle, checked
from vfiotool.vfio.info import Type1Info, type1_info
from vfiotool.vfio.uapi import (
    VFIO_API_VERSION,
    ContainerIoctl,
    DmaMapFlags,
    Extension,
    IommuType,
    vfio_iommu_type1_info,
)

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PATH = "/dev/vfio/vfio"
_NO_VFIO = "load it with 'modprobe vfio-pci'; a kernel without CONFIG_VFIO has none"


class Container(Handle):
    """An open container. Threads may share it, but see ``Handle``, and one IOVA is one thread's.

    It keeps a hold on every buffer that ``map_dma`` was given, until that is unmapped or the
    container closed. The kernel frees a closed container, and its mappings with it, only when the
    groups that are set to it, and their devices, are closed as well.
    """

    def __init__(self) -> None:
        """Open a new container.

        Raises:
            UnsupportedError: this kernel has no VFIO, or one of an unknown version.
            KernelError: the node cannot be opened.
        """
        self._held: dict[int, memoryview] = {}
        fd = lib.vt_open(PATH.encode())
        if fd in (-errno.ENOENT, -errno.ENODEV):
            raise UnsupportedError(f"this kernel has no VFIO: nothing answers at {PATH}", hint=_NO_VFIO)
        super().__init__(checked(fd, "open", PATH), PATH)
        try:
            self._require_version()
        except BaseException:
            self.close()
            raise

    def api_version(self) -> int:
        """Return the version of the kernel's VFIO interface, which is 0."""
        result = lib.vt_container_api_version(self.fileno())
        return checked(result, ContainerIoctl.VFIO_GET_API_VERSION.name, self.name)

    def check_extension(self, extension: IommuType | Extension) -> bool:
        """Say whether the kernel offers an IOMMU type or another extension to this container."""
        result = lib.vt_container_check_extension(self.fileno(), extension)
        return checked(result, ContainerIoctl.VFIO_CHECK_EXTENSION.name, self.name) > 0

    def set_iommu(self, kind: IommuType) -> None:
        """Choose how the container's devices are translated; it must have a group.

        Raises:
            KernelError: EINVAL without a group or when set already, ENODEV for an unknown type,
                EPERM where the IOMMU does not remap interrupts.
        """
        result = lib.vt_container_set_iommu(self.fileno(), kind)
        checked(result, ContainerIoctl.VFIO_SET_IOMMU.name, self.name)

    def set_type1(self) -> IommuType:
        """Choose type1v2, or type1 where the kernel has no other, and return which it is.

        Raises:
            UnsupportedError: the kernel offers neither.
            KernelError: as for ``set_iommu``.
        """
        for kind in (IommuType.TYPE1v2, IommuType.TYPE1):
            if self.check_extension(kind):
                self.set_iommu(kind)
                return kind
        raise UnsupportedError(
            "this kernel's VFIO has no type1 IOMMU driver",
            hint="load it with 'modprobe vfio_iommu_type1'; 'vfiotool groups' shows whether the IOMMU is on",
        )

    def type1_info(self) -> Type1Info:
        """Return page sizes, IOVA ranges and mappings left of a container that has its IOMMU set.

        Raises:
            KernelError: EINVAL without an IOMMU; EBADMSG for a malformed answer.
        """
        request = ContainerIoctl.VFIO_IOMMU_GET_INFO
        call = partial(fcntl.ioctl, self.fileno(), int(request))
        return type1_info(ask(call, vfio_iommu_type1_info(), request.name, self.name))

    def map_dma(
        self,
        memory: ReadableBuffer | int,
        iova: int,
        size: int,
        *,
        read: bool = True,
        write: bool = True,
    ) -> None:
        """Let the devices reach ``size`` bytes of a buffer, or from a virtual address, at ``iova``.

        ``read`` and ``write`` say what a device may do. All three numbers must be multiples of the
        IOMMU's page size, so a buffer should be an ``mmap.mmap``. The pages are pinned.

        Raises:
            DmaMapError: EINVAL not aligned or outside of the IOVA ranges, EEXIST overlap, EFAULT
                no such memory or not writable, EOVERFLOW past 64 bits, ENOSPC no more mappings,
                ENOMEM the memlock limit.
        """
        flags = DmaMapFlags.READ * read | DmaMapFlags.WRITE * write
        if isinstance(memory, int):
            self._map(memory, iova, size, flags)
            return
        view = memoryview(memory)
        try:
            if view.nbytes < size or (view.readonly and write) or not view.c_contiguous:
                raise _map_error(errno.EFAULT, iova, size)
            self._map(int(ffi.cast("uintptr_t", ffi.from_buffer(view))), iova, size, flags)
        except BaseException:
            view.release()  # else the traceback would keep the buffer from being closed
            raise
        self._held[iova] = view

    def unmap_dma(self, iova: int, size: int) -> int:
        """Undo the mappings that lie in a range, and return how many bytes they had.

        Where nothing is mapped that is 0. A type1v2 container does not split a mapping.

        Raises:
            DmaMapError: EINVAL not aligned or through the middle of a mapping, EOVERFLOW past 64
                bits; ENOENT nothing mapped, where iommufd stands in for the container.
        """
        fd = self.fileno()
        if not _in_64_bits(iova, size):
            raise _unmap_error(errno.EOVERFLOW, iova, size)
        unmapped = lib.vt_dma_unmap(fd, iova, size)
        if unmapped < 0:
            raise _unmap_error(-unmapped, iova, size)
        if unmapped:
            for start in [start for start in self._held if iova <= start < iova + size]:
                self._held.pop(start).release()
        return unmapped

    def close(self) -> None:
        """Close the container and let go of the buffers; calls after the first do nothing."""
        super().close()
        while self._held:
            self._held.popitem()[1].release()

    def _require_version(self) -> None:
        version = self.api_version()
        if version != VFIO_API_VERSION:
            raise UnsupportedError(
                f"this kernel's VFIO has the unknown version {version}",
                hint="use a kernel whose VFIO has version 0",
            )

    def _map(self, address: int, iova: int, size: int, flags: int) -> None:
        fd = self.fileno()
        if not (_in_64_bits(address, size) and _in_64_bits(iova, size)):
            raise _map_error(errno.EOVERFLOW, iova, size)
        result = lib.vt_dma_map(fd, address, iova, size, flags)
        if result < 0:
            raise _map_error(-result, iova, size)


def _in_64_bits(start: int, size: int) -> bool:
    """Say whether a range ends by 2^64; where not, 6.12 would say EINVAL and 7.2 EOVERFLOW."""
    return start >= 0 and size >= 0 and start + size <= 1 << 64


def _map_error(code: int, iova: int, size: int) -> DmaMapError:
    return _dma_error(ContainerIoctl.VFIO_IOMMU_MAP_DMA, code, iova, size)


def _unmap_error(code: int, iova: int, size: int) -> DmaMapError:
    return _dma_error(ContainerIoctl.VFIO_IOMMU_UNMAP_DMA, code, iova, size)


def _dma_error(request: ContainerIoctl, code: int, iova: int, size: int) -> DmaMapError:
    subject = f"{size:#x} bytes at IOVA {iova:#x}"
    return DmaMapError(code, request.name, subject, iova=iova, size=size)
