"""VFIO's own IOMMU interface: containers and groups, of VFIO, of iommufd, or without an IOMMU."""

from __future__ import annotations

import threading
import uuid
from functools import partial

from vfiotool._shim import lib
from vfiotool.errors import UnsupportedError
from vfiotool.vfio.container import Container
from vfiotool.vfio.device_file import DeviceFile
from vfiotool.vfio.group import Group
from vfiotool.vfio.info import IovaRange
from vfiotool.vfio.iommu.address_space import AddressSpace
from vfiotool.vfio.iommu.attach_errors import explained
from vfiotool.vfio.iommu.protocol import IommuInfo, IommuMode
from vfiotool.vfio.nodes import CONTAINER, IOMMUFD, group_of, is_noiommu
from vfiotool.vfio.uapi import Extension, IommuType

_KINDS = {
    IommuMode.TYPE1: (CONTAINER, IommuType.TYPE1),
    IommuMode.TYPE1V2: (CONTAINER, IommuType.TYPE1v2),
    IommuMode.COMPAT_TYPE1: (IOMMUFD, IommuType.TYPE1),
    IommuMode.COMPAT_TYPE1V2: (IOMMUFD, IommuType.TYPE1v2),
    IommuMode.NOIOMMU: (CONTAINER, IommuType.NOIOMMU),
}
_ALL_IOVAS = (IovaRange(0, (1 << 64) - 1),)


class Type1(AddressSpace):
    """A container with the groups of the devices that were opened in it: see ``Iommu``.

    A group is opened with the first of its devices, and closed with the last.
    """

    def __init__(self, mode: IommuMode) -> None:
        """Open a container of a mode; its IOMMU is set with the first group.

        Raises:
            UnsupportedError: this kernel does not have the mode.
            KernelError: the container cannot be opened.
        """
        self.mode = mode
        self.name, self._kind = _KINDS[mode]
        self.is_iommufd = self.name == IOMMUFD
        self.container = Container(self.name)
        self._lock = threading.Lock()
        self._groups: dict[int, tuple[Group, int]] = {}  # each with the number of its open devices
        self._ready = False
        if not self.container.check_extension(self._kind):
            self.container.close()
            raise UnsupportedError(f"this kernel has no IOMMU of mode {mode.value}", hint=_hint(mode))

    @property
    def closed(self) -> bool:
        """Return True if ``close()`` was called."""
        return self.container.closed

    @property
    def attached(self) -> bool:
        """Return True if the kernel keeps mappings: VFIO keeps them while it has a group, iommufd always."""
        return bool(self._groups) or (self.is_iommufd and not self.closed)

    def fileno(self) -> int:
        """Return the container's descriptor. Raises ClosedError once it is closed."""
        return self.container.fileno()

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups that are open now."""
        return tuple(group for group, _ in self._groups.values())

    def open_device(self, address: str, vf_token: uuid.UUID | None = None) -> DeviceFile:
        """Open a device through its group.

        Raises:
            UnsupportedError, DeviceNotFoundError, GroupNotViableError, KernelError: as for ``Group`` and
                ``Group.open_device``. A failed call leaves nothing more open than before.
        """
        group_id = group_of(address)
        self._require_guard(address, group_id)
        with self._lock:
            group = self._take(group_id)
            try:
                return group.open_device(address, vf_token, let_go=partial(self._let_go, group_id))
            except BaseException:
                self._drop(group_id)
                raise

    def info(self) -> IommuInfo:
        """Return page sizes, IOVA ranges and limits of the container, which must have, or have had, a device.

        Raises:
            UnsupportedError: in no-IOMMU mode, which has no mappings.
            KernelError: EINVAL without an IOMMU; EBADMSG for a malformed reply.
        """
        if self.mode is IommuMode.NOIOMMU:
            raise UnsupportedError(
                "without an IOMMU no memory can be mapped: a device reaches all memory by physical addresses",
                hint="use only registers and interrupts, or turn the IOMMU on",
            )
        answer = self.container.type1_info()
        ranges = _ALL_IOVAS if answer.iova_ranges is None else answer.iova_ranges
        limit = None if self.is_iommufd else answer.dma_avail  # iommufd always reports 2^32 - 1
        return IommuInfo(answer.page_sizes, ranges, limit)

    def unmap_all(self) -> int:
        """Remove all mappings, and return the number of bytes that were mapped."""
        if self.container.check_extension(Extension.UNMAP_ALL):
            return super().unmap_all()
        # Kernels up to 5.11 have no flag for this. No IOMMU maps the last page of the 64-bit range.
        unmapped = lib.vt_dma_unmap(self.fileno(), 0, 0, (1 << 64) - 4096)
        if unmapped < 0:
            raise self._unmap_error(-unmapped, 0, 0)
        return unmapped

    def close(self) -> None:
        """Close the container and its groups; the kernel frees it with the last device."""
        with self._lock:
            groups, self._groups = self._groups, {}
        for group, _ in groups.values():
            group.close()
        self.container.close()

    def _require_guard(self, address: str, group_id: int) -> None:
        """Refuse a device without an IOMMU, unless the caller selected no-IOMMU mode by name."""
        unguarded = is_noiommu(group_id)
        if unguarded and self.mode is not IommuMode.NOIOMMU:
            raise UnsupportedError(
                f"no IOMMU isolates {address}: its DMA reaches all memory of this machine",
                hint="'vfiotool doctor' shows how to turn the IOMMU on; iommu='noiommu' opens it anyway",
            )
        if not unguarded and self.mode is IommuMode.NOIOMMU:
            raise UnsupportedError(
                f"an IOMMU isolates {address}: VFIO has no no-IOMMU mode for it", hint="use iommu='auto'"
            )

    def _take(self, group_id: int) -> Group:
        group, users = self._groups.get(group_id, (None, 0))
        if group is None:
            group = Group(group_id)
            try:
                with explained(group_id):
                    group.set_container(self.container)
                    if not self._ready:
                        self.container.set_iommu(self._kind)
                        self._ready = True
            except BaseException:
                group.close()
                raise
        self._groups[group_id] = (group, users + 1)
        return group

    def _let_go(self, group_id: int) -> None:
        with self._lock:
            if group_id in self._groups:
                self._drop(group_id)
        if not self.attached:
            self.on_emptied()

    def _drop(self, group_id: int) -> None:
        group, users = self._groups.pop(group_id)
        if users > 1:
            self._groups[group_id] = (group, users - 1)
            return
        group.close()
        if not self._groups:  # the kernel unsets the IOMMU of a container without groups
            self._ready = False


def _hint(mode: IommuMode) -> str:
    if mode is IommuMode.NOIOMMU:
        return (
            "it needs a kernel with CONFIG_VFIO_NOIOMMU and, as root, "
            "'echo 1 > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode'; a device's DMA then reaches "
            "all memory"
        )
    return "load it with 'modprobe vfio_iommu_type1'; 'vfiotool doctor' shows whether the IOMMU is on"
