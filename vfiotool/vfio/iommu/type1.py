"""VFIO's own IOMMU interface: containers and groups. iommufd can play it, and so can no IOMMU at all."""

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
        """Open a container of a mode; its IOMMU is set with its first group.

        Raises:
            UnsupportedError: this kernel does not have that mode.
            KernelError: the container cannot be opened.
        """
        self.mode = mode
        self._path, self._kind = _KINDS[mode]
        self.name = self._path
        self.container = Container(self._path)
        self._lock = threading.Lock()
        self._groups: dict[int, tuple[Group, int]] = {}  # with how many devices of it are open
        self._ready = False
        if not self.container.check_extension(self._kind):
            self.container.close()
            raise UnsupportedError(f"this kernel has no IOMMU of mode {mode.value}", hint=_hint(mode))

    @property
    def closed(self) -> bool:
        """Say whether ``close()`` was called."""
        return self.container.closed

    @property
    def attached(self) -> bool:
        """Say whether the kernel keeps mappings: type1 does while a group is there, iommufd always."""
        return bool(self._groups) or (self._path == IOMMUFD and not self.closed)

    def fileno(self) -> int:
        """Return the container's descriptor; ClosedError once it is closed."""
        return self.container.fileno()

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups that are open now."""
        return tuple(group for group, _ in self._groups.values())

    def open_device(self, address: str, vf_token: uuid.UUID | None = None) -> DeviceFile:
        """Open a device through its group.

        Raises:
            UnsupportedError, DeviceNotFoundError, GroupNotViableError, KernelError: as ``Group`` and
                ``Group.open_device`` have them. Nothing more than before is open then.
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
        """Return what the container takes; it must have a device, or have had one.

        Raises:
            UnsupportedError: in no-IOMMU mode, where there is nothing to map.
            KernelError: EINVAL without an IOMMU; EBADMSG for a malformed answer.
        """
        if self.mode is IommuMode.NOIOMMU:
            raise UnsupportedError(
                "without an IOMMU no memory can be mapped: a device reaches all of it by physical addresses",
                hint="use registers and interrupts alone, or turn the IOMMU on",
            )
        answer = self.container.type1_info()
        ranges = _ALL_IOVAS if answer.iova_ranges is None else answer.iova_ranges
        has_limit = self._path == CONTAINER  # iommufd says 2^32 - 1, whatever is mapped
        return IommuInfo(answer.page_sizes, ranges, answer.dma_avail if has_limit else None)

    def unmap_all(self) -> int:
        """Undo all mappings, and return how many bytes were mapped."""
        if self.container.check_extension(Extension.UNMAP_ALL):
            return super().unmap_all()
        # Up to 5.11 there is no flag for it; the last page of the 64 bits is in no IOMMU's range.
        unmapped = lib.vt_dma_unmap(self.fileno(), 0, 0, (1 << 64) - 4096)
        if unmapped < 0:
            raise self._unmap_error(-unmapped, 0, 0)
        return unmapped

    def close(self) -> None:
        """Close the container, and its groups; the kernel ends it with the last device."""
        with self._lock:
            groups, self._groups = self._groups, {}
        for group, _ in groups.values():
            group.close()
        self.container.close()

    def _require_guard(self, address: str, group_id: int) -> None:
        """Give out a device that no IOMMU guards only to who asked for that by its name."""
        unguarded = is_noiommu(group_id)
        if unguarded and self.mode is not IommuMode.NOIOMMU:
            raise UnsupportedError(
                f"no IOMMU guards {address}: its DMA reaches all of this machine's memory",
                hint="'vfiotool doctor' tells how to turn the IOMMU on; iommu='noiommu' takes it as it is",
            )
        if not unguarded and self.mode is IommuMode.NOIOMMU:
            raise UnsupportedError(
                f"an IOMMU guards {address}, so VFIO does not give it without", hint="use iommu='auto'"
            )

    def _take(self, group_id: int) -> Group:
        group, users = self._groups.get(group_id, (None, 0))
        if group is None:
            group = Group(group_id)
            try:
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
        if not self._groups:  # the kernel has taken the IOMMU from a container without groups
            self._ready = False


def _hint(mode: IommuMode) -> str:
    if mode is IommuMode.NOIOMMU:
        return (
            "it takes a kernel with CONFIG_VFIO_NOIOMMU and, as root, "
            "'echo 1 > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode'"
        )
    return "load it with 'modprobe vfio_iommu_type1'; 'vfiotool doctor' tells whether the IOMMU is on"
