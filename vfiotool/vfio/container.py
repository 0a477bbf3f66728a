"""A VFIO container: groups whose devices share an IO address space."""

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
    """An open container. Threads may share it, with the limits of ``Handle``; a single thread uses each IOVA.

    The kernel frees a closed container and its mappings only when all groups set to it, and the devices of
    these groups, are closed as well.
    """

    def __init__(self, path: str = CONTAINER) -> None:
        """Open a new container. ``/dev/iommu`` opens an iommufd that emulates a container (since 6.2).

        Raises:
            UnsupportedError: this kernel has no VFIO, or a VFIO of an unknown version.
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
        """Return True if the kernel offers an IOMMU type or another extension to this container."""
        result = lib.vt_container_check_extension(self.fileno(), extension)
        return checked(result, ContainerIoctl.VFIO_CHECK_EXTENSION.name, self.name) > 0

    def set_iommu(self, kind: IommuType) -> None:
        """Set the IOMMU type of the container, which must have a group.

        Raises:
            KernelError: EINVAL if the container has no group or its IOMMU is set already, ENODEV for an
                unknown type, EPERM if the IOMMU does not remap interrupts or the group has a direct region.
        """
        result = lib.vt_container_set_iommu(self.fileno(), kind)
        checked(result, ContainerIoctl.VFIO_SET_IOMMU.name, self.name)

    def type1_info(self) -> Type1Info:
        """Return page sizes, IOVA ranges and the number of mappings left; the container's IOMMU must be set.

        Raises:
            KernelError: EINVAL without an IOMMU; EBADMSG for a malformed reply.
        """
        request = ContainerIoctl.VFIO_IOMMU_GET_INFO
        call = partial(fcntl.ioctl, self.fileno(), int(request))
        return parse_type1_info(query_info(call, vfio_iommu_type1_info(), request.name, self.name))

    def _require_version(self) -> None:
        version = self.api_version()
        if version != VFIO_API_VERSION:
            raise UnsupportedError(
                f"this kernel's VFIO has the unknown API version {version}",
                hint="use a kernel with VFIO API version 0",
            )
