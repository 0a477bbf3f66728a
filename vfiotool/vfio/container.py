"""A VFIO container: the groups that do DMA in one IO address space."""

from __future__ import annotations

import fcntl
from functools import partial

from vfiotool._shim import lib
from vfiotool.errors import UnsupportedError
from vfiotool.vfio.handle import Handle, checked
from vfiotool.vfio.info import Type1Info, parse_type1_info
from vfiotool.vfio.info_ioctl import query_info
from vfiotool.vfio.nodes import CONTAINER, open_node
from vfiotool.vfio.uapi import (
    VFIO_API_VERSION,
    ContainerIoctl,
    Extension,
    IommuType,
    vfio_iommu_type1_info,
)


class Container(Handle):
    """An open container. Threads may share it, but see ``Handle``, and one IOVA is one thread's.

    The kernel frees a closed container, and its mappings with it, only when the groups that are set to
    it, and their devices, are closed as well.
    """

    def __init__(self, path: str = CONTAINER) -> None:
        """Open a new container; ``/dev/iommu`` gives an iommufd that plays one (since 6.2).

        Raises:
            UnsupportedError: this kernel has no VFIO, or one of an unknown version.
            KernelError: the node cannot be opened.
        """
        super().__init__(open_node(path), path)
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

    def type1_info(self) -> Type1Info:
        """Return page sizes, IOVA ranges and mappings left of a container that has its IOMMU set.

        Raises:
            KernelError: EINVAL without an IOMMU; EBADMSG for a malformed answer.
        """
        request = ContainerIoctl.VFIO_IOMMU_GET_INFO
        call = partial(fcntl.ioctl, self.fileno(), int(request))
        return parse_type1_info(query_info(call, vfio_iommu_type1_info(), request.name, self.name))

    def _require_version(self) -> None:
        version = self.api_version()
        if version != VFIO_API_VERSION:
            raise UnsupportedError(
                f"this kernel's VFIO has the unknown version {version}",
                hint="use a kernel whose VFIO has version 0",
            )
