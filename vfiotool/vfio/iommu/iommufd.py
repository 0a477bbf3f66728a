"""iommufd: IO address spaces, and devices that are attached to them by cdevs (since 6.6)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import uuid
from functools import cached_property
from typing import TypeVar

from vfiotool._shim import lib
from vfiotool.errors import DmaMapError, DmaRangeError, KernelError, UnsupportedError
from vfiotool.host.attributes import device_path, find_group
from vfiotool.host.tree import Tree
from vfiotool.vfio.device_file import DeviceFile, KernelDeviceFile
from vfiotool.vfio.group import Group
from vfiotool.vfio.handle import Handle, checked
from vfiotool.vfio.info import IovaRange
from vfiotool.vfio.iommu.address_space import AddressSpace, map_file_unsupported
from vfiotool.vfio.iommu.attach_errors import explained
from vfiotool.vfio.iommu.protocol import IommuInfo, IommuMode
from vfiotool.vfio.nodes import IOMMUFD, cdev_of, group_of, open_node
from vfiotool.vfio.uapi import (
    BindFlags,
    DeviceIoctl,
    DmaMapFlags,
    IoasMapFlags,
    IommufdIoctl,
    iommu_ioas_alloc,
    iommu_ioas_allow_iovas,
    iommu_ioas_copy,
    iommu_ioas_iova_ranges,
    iommu_ioas_map_file,
    iommu_iova_range,
    vfio_device_attach_iommufd_pt,
    vfio_device_bind_iommufd,
)

Q = TypeVar(
    "Q",
    iommu_ioas_alloc,
    iommu_ioas_allow_iovas,
    iommu_ioas_copy,
    iommu_ioas_iova_ranges,
    iommu_ioas_map_file,
)

_MAX_RANGES = 4096  # no machine comes near this limit


class Iommufd(AddressSpace, Handle):
    """An iommufd with one IOAS: see ``Iommu``. Threads may share it, with the limits of ``Handle``."""

    mode = IommuMode.IOMMUFD
    is_iommufd = True

    def __init__(self, fd: int | None = None) -> None:
        """Create an IO address space in a new iommufd, or in ``fd``, which it then owns.

        Raises:
            UnsupportedError: this kernel has no iommufd.
            KernelError: the node cannot be opened.
        """
        Handle.__init__(self, open_node(IOMMUFD) if fd is None else fd, IOMMUFD)
        try:
            self.ioas = self.ask(IommufdIoctl.IOMMU_IOAS_ALLOC, iommu_ioas_alloc()).out_ioas_id
        except BaseException:
            self.close()
            raise

    @property
    def attached(self) -> bool:
        """Return True if the kernel keeps mappings: an IOAS keeps them without an attached device."""
        return not self.closed

    @property
    def groups(self) -> tuple[Group, ...]:
        """Empty: devices are opened by cdevs."""
        return ()

    def fileno(self) -> int:
        """Return the iommufd. Raises ClosedError once it is closed."""
        return Handle.fileno(self)

    def open_device(self, address: str, vf_token: uuid.UUID | None = None) -> DeviceFile:
        """Open a device's cdev, bind it to the iommufd and attach it to the address space.

        Raises:
            UnsupportedError: the kernel has no cdevs; a VF token is given, which the kernel (before 6.18) or
                the driver of the device does not take through a cdev.
            DeviceNotFoundError: there is no such device.
            KernelError: ENODEV, the device is not on a VFIO driver; EBUSY, another process has the device or
                its group; EPERM, another device of its group has another owner, or the IOMMU does not remap
                interrupts; EACCES, the VF token is missing or wrong (since 6.18); EINVAL, a mapping lies in
                IOVAs that the device's IOMMU reserves, or the device has no VF token.
        """
        file = _open_cdev(address)
        try:
            self._bind(file, vf_token)
            self._attach(file)
        except BaseException:
            file.close()
            raise
        return file

    def info(self) -> IommuInfo:
        """Return page sizes and IOVA ranges that are valid now."""
        ranges, alignment = self._iova_ranges()
        return IommuInfo(alignment, ranges, None)

    @cached_property
    def can_map_files(self) -> bool:
        """Return True if the kernel has IOMMU_IOAS_MAP_FILE (since 6.14)."""
        question = iommu_ioas_map_file(flags=_flags(DmaMapFlags.READ), ioas_id=self.ioas, fd=-1, length=1)
        try:
            self.ask(IommufdIoctl.IOMMU_IOAS_MAP_FILE, question)
        except KernelError as error:
            return error.errno != errno.ENOTTY
        return True

    def map_file(self, fd: int, start: int, iova: int, size: int, access: DmaMapFlags) -> None:
        """Map ``size`` bytes of a memfd, from ``start`` on, to ``iova`` (since 6.14).

        The kernel pins whole folios, which is faster than to pin memory by its address.

        Raises:
            UnsupportedError: this kernel does not support it.
            DmaMapError: as for ``map``.
        """
        question = iommu_ioas_map_file(
            flags=_flags(access), ioas_id=self.ioas, fd=fd, start=start, length=size, iova=iova
        )
        try:
            self.ask(IommufdIoctl.IOMMU_IOAS_MAP_FILE, question)
        except KernelError as error:
            if error.errno == errno.ENOTTY:
                raise map_file_unsupported() from None
            raise DmaMapError(error.errno or errno.EIO, error.operation, iova, size) from None

    def copy(self, source: Iommufd, source_iova: int, iova: int, size: int, access: DmaMapFlags) -> None:
        """Map here what another address space of the same iommufd has mapped, without pinning it again.

        Raises:
            DmaMapError: ENOENT, nothing is mapped there; else as for ``map``.
        """
        question = iommu_ioas_copy(
            flags=_flags(access),
            dst_ioas_id=self.ioas,
            src_ioas_id=source.ioas,
            length=size,
            dst_iova=iova,
            src_iova=source_iova,
        )
        try:
            self.ask(IommufdIoctl.IOMMU_IOAS_COPY, question)
        except KernelError as error:
            raise DmaMapError(error.errno or errno.EIO, error.operation, iova, size) from None

    def allow_iovas(self, *ranges: IovaRange) -> None:
        """Keep these ranges valid: the kernel then refuses a device that would narrow them.

        Raises:
            DmaRangeError: the ranges overlap, or a part of them is not valid now.
        """
        array = (iommu_iova_range * len(ranges))(*[iommu_iova_range(r.start, r.end) for r in ranges])
        question = iommu_ioas_allow_iovas(
            ioas_id=self.ioas, num_iovas=len(ranges), allowed_iovas=ctypes.addressof(array)
        )
        try:
            self.ask(IommufdIoctl.IOMMU_IOAS_ALLOW_IOVAS, question)
        except KernelError as error:
            if error.errno not in (errno.EINVAL, errno.EADDRINUSE):
                raise
            raise DmaRangeError(
                "these IOVAs cannot be kept valid: they overlap, or a device reserves some of them",
                hint="info().iova_ranges has the ranges that are valid now",
            ) from None

    def another(self) -> Iommufd:
        """Create a further IO address space in the same iommufd, for ``copy`` between the two."""
        return Iommufd(os.dup(self.fileno()))

    def ask(self, request: IommufdIoctl, question: Q) -> Q:
        """Call an ioctl of the iommufd; the reply is written into ``question``.

        Raises:
            KernelError: the kernel's errno.
        """
        question.size = ctypes.sizeof(question)
        try:
            fcntl.ioctl(self.fileno(), int(request), question)
        except OSError as error:
            raise KernelError(error.errno or errno.EIO, request.name, self.name) from None
        return question

    def _iova_ranges(self) -> tuple[tuple[IovaRange, ...], int]:
        """Return the ranges that are valid now, and the alignment of IOVAs."""
        room = 16
        while True:
            array = (iommu_iova_range * room)()
            question = iommu_ioas_iova_ranges(
                ioas_id=self.ioas, num_iovas=room, allowed_iovas=ctypes.addressof(array)
            )
            try:
                self.ask(IommufdIoctl.IOMMU_IOAS_IOVA_RANGES, question)
            except KernelError as error:
                if error.errno != errno.EMSGSIZE or not room < question.num_iovas <= _MAX_RANGES:
                    raise
                room = question.num_iovas
                continue
            found = array[: min(question.num_iovas, room)]
            return tuple(IovaRange(one.start, one.last) for one in found), question.out_iova_alignment

    def _bind(self, file: DeviceFile, vf_token: uuid.UUID | None) -> None:
        token = None if vf_token is None else token_bytes(vf_token)
        try:
            _ask_device(file, DeviceIoctl.VFIO_DEVICE_BIND_IOMMUFD, bind_question(self.fileno(), token))
        except KernelError as error:
            if token is not None and not self._takes_token(file, error):
                raise UnsupportedError(
                    f"the cdev of {file.name} takes no VF token",
                    hint="it needs Linux 6.18.3 and a driver that supports it; open the VF in mode type1v2",
                ) from None
            raise

    def _takes_token(self, file: DeviceFile, error: KernelError) -> bool:
        """Return False if a bind with a token failed because kernel or driver know no tokens of cdevs."""
        if error.errno == errno.E2BIG:  # 6.18 before 6.18.3 (kernel commit 2f03f21fe751)
            return False
        if error.errno != errno.EINVAL:
            return True
        try:
            _ask_device(file, DeviceIoctl.VFIO_DEVICE_BIND_IOMMUFD, token_probe(self.fileno()))
        except KernelError as answer:
            return answer.errno != errno.EINVAL
        return True

    def _attach(self, file: DeviceFile) -> None:
        question = vfio_device_attach_iommufd_pt(pt_id=self.ioas)
        _ask_device(file, DeviceIoctl.VFIO_DEVICE_ATTACH_IOMMUFD_PT, question)


def token_bytes(vf_token: uuid.UUID) -> ctypes.Array[ctypes.c_char]:
    """Return a VF token in memory that ``bind_question`` can point to."""
    return ctypes.create_string_buffer(vf_token.bytes, len(vf_token.bytes))


def bind_question(iommufd: int, token: ctypes.Array[ctypes.c_char] | None) -> vfio_device_bind_iommufd:
    """Return the argument of VFIO_DEVICE_BIND_IOMMUFD; keep ``token`` until the ioctl has returned."""
    question = vfio_device_bind_iommufd(argsz=ctypes.sizeof(vfio_device_bind_iommufd), iommufd=iommufd)
    if token is not None:
        question.flags, question.token_uuid_ptr = BindFlags.TOKEN, ctypes.addressof(token)
    return question


def token_probe(iommufd: int) -> vfio_device_bind_iommufd:
    """Return an argument of VFIO_DEVICE_BIND_IOMMUFD that never binds: its token is at address 0 (EFAULT).

    The kernel answers EINVAL if it, or the driver of the device, takes no token through a cdev.

    Source: ``vfio_df_check_token`` (kernel commit 86624ba3b522, Linux 6.18).
    """
    question = bind_question(iommufd, None)
    question.flags = BindFlags.TOKEN
    return question


def _ask_device(
    file: DeviceFile,
    request: DeviceIoctl,
    question: vfio_device_bind_iommufd | vfio_device_attach_iommufd_pt,
) -> None:
    question.argsz = ctypes.sizeof(question)
    with explained(find_group(Tree(), file.name)):
        file.ioctl(request, bytearray(question))


def _open_cdev(address: str) -> KernelDeviceFile:
    group_of(address)  # raises the error for a missing device or IOMMU
    path = cdev_of(address)
    if path is None:
        raise _no_cdev(address)
    return KernelDeviceFile(checked(lib.vt_open(path.encode()), "open", path), address)


def _no_cdev(address: str) -> Exception:
    tree = Tree()
    if tree.exists(f"{device_path(address)}/vfio-dev"):
        return UnsupportedError(
            "this kernel has no VFIO device cdevs",
            hint="they need CONFIG_VFIO_DEVICE_CDEV (since 6.6); use iommu='type1v2'",
        )
    hint = f"{address} is on no VFIO driver: 'vfiotool show {address}' says how to free it"
    return KernelError(errno.ENODEV, "open", f"the cdev of {address}", hint=hint)


def _flags(access: DmaMapFlags) -> IoasMapFlags:
    flags = IoasMapFlags.FIXED_IOVA
    if DmaMapFlags.READ in access:
        flags |= IoasMapFlags.READABLE
    if DmaMapFlags.WRITE in access:
        flags |= IoasMapFlags.WRITEABLE
    return flags
