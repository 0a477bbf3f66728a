"""An IO address space without a kernel: what is mapped, what each mode refuses, what a device reaches.

It has no behaviour but what ``tests/contract`` has seen on real kernels. What it leaves out: it does not pin.
Memory that is mapped should stay where it is; what is there no longer faults, for a device as for a map.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
import uuid
from collections.abc import Iterable, Iterator
from functools import partial

from vfiotool._shim import lib
from vfiotool.errors import ClosedError, DeviceNotFoundError, KernelError, UnsupportedError
from vfiotool.testing.dma_space import DmaFault
from vfiotool.testing.fake_device import FakeDevice
from vfiotool.testing.fake_device_file import FakeDeviceFile
from vfiotool.testing.fake_mappings import FakeMapping, FakeMappings
from vfiotool.vfio.device_file import DeviceFile
from vfiotool.vfio.dma.ranges import Ranges
from vfiotool.vfio.group import Group
from vfiotool.vfio.handle import Handle
from vfiotool.vfio.info import IovaRange
from vfiotool.vfio.iommu import IommuInfo, IommuMode
from vfiotool.vfio.iommu.address_space import AddressSpace
from vfiotool.vfio.uapi import DmaMapFlags

_PAGE = 4096
_END = 1 << 64
_PAGE_SIZES = _PAGE | 2 << 20 | 1 << 30
_ALL = (IovaRange(0, (1 << 64) - 1),)
# 48 bits, without the window that x86 keeps for MSI.
_RANGES = (IovaRange(0, 0xFEDF_FFFF), IovaRange(0xFEF0_0000, (1 << 48) - 1))
_ENTRY_LIMIT = 65535

_OWN = (IommuMode.TYPE1, IommuMode.TYPE1V2)

_libc = ctypes.CDLL(None)


class FakeIommu(AddressSpace, Handle):
    """An ``Iommu`` that keeps its mappings itself, and refuses what the kernel does in the same mode.

    What its devices read and write is this process's own memory. ``faults`` are the accesses that it did
    not let through. Threads may share it.
    """

    def __init__(
        self,
        mode: IommuMode | str = IommuMode.TYPE1V2,
        devices: Iterable[FakeDevice] = (),
        *,
        iova_ranges: tuple[IovaRange, ...] = _RANGES,
        dma_entry_limit: int = _ENTRY_LIMIT,
    ) -> None:
        """Make one of a mode (not ``NOIOMMU``), for these devices.

        ``iova_ranges`` are what is valid once there is a device in it; ``dma_entry_limit`` is that of the
        two modes that have one, type1 and type1v2.

        Raises:
            UnsupportedError: there is nothing to fake in that mode.
        """
        self.mode = IommuMode(mode)
        if self.mode is IommuMode.NOIOMMU:
            raise UnsupportedError(
                "there is no fake of the no-IOMMU mode", hint="it has no mappings: use another"
            )
        Handle.__init__(self, os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC), f"fake {self.mode.value}")
        self.ioas = 1 if self.mode is IommuMode.IOMMUFD else 0
        self.faults: list[DmaFault] = []
        self._known = {device.address: device for device in devices}
        self._open: set[str] = set()
        self._ranges = iova_ranges
        self._limit = dma_entry_limit if self.mode in _OWN else None
        self._mappings = FakeMappings()
        self._failures: dict[int, int] = {}
        self._asked = 0
        self._lock = threading.RLock()

    @property
    def attached(self) -> bool:
        """Say whether mappings are kept now."""
        return bool(self._open) if self.mode in _OWN else not self.closed

    @property
    def groups(self) -> tuple[Group, ...]:
        """No groups: fake devices cannot be hot reset."""
        return ()

    @property
    def mappings(self) -> tuple[FakeMapping, ...]:
        """What is mapped now, lowest IOVA first."""
        with self._lock:
            return tuple(self._mappings)

    def fileno(self) -> int:
        """Return the descriptor of this process's memory; ClosedError once it is closed."""
        return Handle.fileno(self)

    def fail_at(self, number: int, code: int) -> None:
        """Have one map fail with an errno, as if no memory were left: the next (1), the one after it (2), …

        What counts is what the kernel would be asked: neighbours in a batch are one.
        """
        self._failures[self._asked + number] = code

    def open_device(self, address: str, vf_token: uuid.UUID | None = None) -> DeviceFile:
        """Open one of the devices that it was made with.

        Raises:
            DeviceNotFoundError: there is no such device.
            KernelError: EBUSY, it is open.
        """
        self.fileno()
        device = self._known.get(address)
        if device is None:
            raise DeviceNotFoundError(f"there is no fake at {address}", hint="make the FakeIommu with it")
        with self._lock:
            if address in self._open:
                raise KernelError(errno.EBUSY, "VFIO_GROUP_GET_DEVICE_FD", address)
            self._open.add(address)
        return FakeDeviceFile(device, self, partial(self._left, address))

    def info(self) -> IommuInfo:
        """Return what it takes now.

        Raises:
            KernelError: EINVAL, in the modes of containers, without a device.
        """
        self.fileno()
        if self.mode in _OWN and not self._open:
            raise KernelError(errno.EINVAL, "VFIO_IOMMU_GET_INFO", self.name)
        ranges = self._ranges if self._open else _ALL
        left = None if self._limit is None else self._limit - len(self._mappings)
        return IommuInfo(_PAGE_SIZES, ranges, left)

    def map(self, vaddr: int, iova: int, size: int, access: DmaMapFlags) -> None:
        """Let the devices reach memory of this process."""
        self.fileno()
        with self._lock:
            code = self._map(vaddr, iova, size, access)
        if code:
            raise self._map_error(code, iova, size)

    def map_ranges(self, ranges: Ranges, access: DmaMapFlags) -> None:
        """Map all ranges or none, neighbours as one; the error's ``index`` is the one that failed."""
        self.fileno()
        done: list[int] = []
        with self._lock:
            for first, members in _runs(ranges):
                vaddr, iova, _size = members[0]
                code = self._map(vaddr, iova, sum(size for *_, size in members), access)
                if code:
                    self._mappings.remove(done)
                    at = self._find_failing(members, access)
                    raise self._map_error(code, members[at][1], members[at][2], index=first + at)
                done.append(iova)

    def unmap(self, iova: int, size: int) -> int:
        """Undo the mappings inside a range, and return how many bytes they had."""
        self.fileno()
        with self._lock:
            result = self._unmap(iova, size)
        if result < 0:
            raise self._unmap_error(-result, iova, size)
        return result

    def unmap_ranges(self, ranges: Ranges) -> int:
        """Undo what ``map_ranges`` did, and return how many bytes were mapped."""
        self.fileno()
        with self._lock:
            results = [self._unmap(iova, size) for iova, size in _spans(ranges)]
        failed = next((result for result in results if result < 0), 0)
        if failed:
            raise self._unmap_error(-failed, ranges[0][1], ranges.size)
        return sum(results)

    def unmap_all(self) -> int:
        """Undo all mappings, and return how many bytes were mapped."""
        self.fileno()
        with self._lock:
            return self._mappings.clear()

    def close(self) -> None:
        """Close it, and undo all mappings."""
        super().close()
        self._mappings.clear()

    def read(self, iova: int, size: int) -> bytes:
        """Read as a device does.

        Raises:
            DmaFault: a byte is not mapped for that.
        """
        data = bytearray()
        for part in self._reached(iova, size, DmaMapFlags.READ):
            with self._faulting(part.iova, DmaMapFlags.READ):
                data += os.pread(self.fileno(), part.size, part.vaddr)
        return bytes(data)

    def write(self, iova: int, data: bytes) -> None:
        """Write as a device does, up to the first byte that is not mapped for that.

        Raises:
            DmaFault: there was one.
        """
        for part in self._reached(iova, len(data), DmaMapFlags.WRITE):
            with self._faulting(part.iova, DmaMapFlags.WRITE):
                os.pwrite(self.fileno(), data[part.iova - iova :][: part.size], part.vaddr)

    def _reached(self, iova: int, size: int, access: DmaMapFlags) -> Iterator[FakeMapping]:
        """Yield the parts of mappings that these IOVAs are, up to the first that faults."""
        end = iova + size
        while iova < end:
            with self._lock:
                found = next(self._mappings.meeting(iova, 1), None)
            if found is None or access not in found.access:
                raise self._fault(iova, access)
            part = found.part(iova, min(end, found.end))
            yield part
            iova = part.end

    @contextlib.contextmanager
    def _faulting(self, iova: int, access: DmaMapFlags) -> Iterator[None]:
        """Have memory fault that is no longer there."""
        try:
            yield
        except (OSError, ClosedError):
            raise self._fault(iova, access) from None

    def _fault(self, iova: int, access: DmaMapFlags) -> DmaFault:
        fault = DmaFault(iova, "write" if access is DmaMapFlags.WRITE else "read")
        self.faults.append(fault)
        return fault

    def _left(self, address: str) -> None:
        with self._lock:
            self._open.discard(address)
            is_emptied = self.mode in _OWN and not self._open
            if is_emptied:
                self._mappings.clear()
        if is_emptied:
            self.on_emptied()

    def _map(self, vaddr: int, iova: int, size: int, access: DmaMapFlags) -> int:
        """Map, or return the errno; the checks are in the kernel's order."""
        code = self._why_not(vaddr, iova, size, access)
        if not code:
            self._asked += 1
            code = self._failures.pop(self._asked, 0)
        if not code and not _is_memory(vaddr, size, access):
            code = errno.EFAULT
        if not code:
            self._mappings.add(FakeMapping(iova, size, vaddr, access))
        return code

    def _why_not(self, vaddr: int, iova: int, size: int, access: DmaMapFlags) -> int:
        if max(vaddr, iova) + size > _END or min(vaddr, iova, size) < 0:
            return errno.EOVERFLOW
        if not self.attached or not access or not size or (vaddr | iova | size) % _PAGE:
            return errno.EINVAL
        is_taken = next(self._mappings.meeting(iova, size), None) is not None
        if self.mode in _OWN and is_taken:
            return errno.EEXIST
        if len(self._mappings) == self._limit:
            return errno.ENOSPC
        if not any(one.start <= iova and iova + size - 1 <= one.end for one in self.info().iova_ranges):
            return errno.EINVAL
        return errno.EEXIST if is_taken else 0

    def _find_failing(self, members: list[tuple[int, int, int]], access: DmaMapFlags) -> int:
        """Say which of the ranges it is, of a run that cannot be mapped."""
        done: list[int] = []
        for at, (vaddr, iova, size) in enumerate(members):
            if len(members) > 1 and not self._map(vaddr, iova, size, access):
                done.append(iova)
                continue
            self._mappings.remove(done)
            return at
        self._mappings.remove(done)
        return 0

    def _unmap(self, iova: int, size: int) -> int:
        """Return how many bytes were unmapped, or a negative errno."""
        if iova < 0 or size < 0 or iova + size > _END:
            return -errno.EOVERFLOW
        if not self.attached or not size or (self.mode in _OWN and (iova | size) % _PAGE):
            return -errno.EINVAL
        if self.mode is IommuMode.COMPAT_TYPE1:
            self._mappings.cut(iova)
            self._mappings.cut(iova + size)
        met = list(self._mappings.meeting(iova, size))
        if self.mode is IommuMode.TYPE1:  # an unmap takes whole mappings, or none where it cuts the first
            met = [] if met and met[0].iova < iova else met
        elif met and (met[0].iova < iova or met[-1].end > iova + size):
            return -errno.EINVAL if self.mode is IommuMode.TYPE1V2 else -errno.ENOENT
        return self._mappings.remove([one.iova for one in met]) or -errno.ENOENT


def _runs(ranges: Ranges) -> Iterator[tuple[int, list[tuple[int, int, int]]]]:
    """Yield each run of neighbours, after the index of its first range."""
    members: list[tuple[int, int, int]] = []
    for at, (vaddr, iova, size) in enumerate(ranges):
        if members:
            last_vaddr, last_iova, last_size = members[-1]
            if not (size and last_size and (last_vaddr + last_size, last_iova + last_size) == (vaddr, iova)):
                yield at - len(members), members
                members = []
        members.append((vaddr, iova, size))
    if members:
        yield len(ranges) - len(members), members


def _spans(ranges: Ranges) -> Iterator[tuple[int, int]]:
    """Yield the IOVAs of these ranges, those that follow each other as one."""
    start = end = 0
    for _vaddr, iova, size in ranges:
        if iova != end and start != end:
            yield start, end - start
        if iova != end:
            start = iova
        end = iova + size
    if start != end:
        yield start, end - start


def _is_memory(vaddr: int, size: int, access: DmaMapFlags) -> bool:
    """Say whether this process has memory there, which it may write if a device may."""
    if DmaMapFlags.WRITE in access:
        return bool(lib.vt_prefault(vaddr, size, _PAGE, 1) == 0)
    present = ctypes.create_string_buffer(size // _PAGE)
    return bool(_libc.mincore(ctypes.c_void_p(vaddr), ctypes.c_size_t(size), present) == 0)
