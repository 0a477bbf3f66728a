"""An IO address space without a kernel: its mappings, the requests that each mode refuses, and DMA.

Every behaviour here was observed on real kernels by ``tests/contract``. Left out: pinning. Do not free memory
while it is mapped: a device's access to freed memory faults, and a map of freed memory fails.
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
from vfiotool.vfio.group import Group
from vfiotool.vfio.handle import Handle
from vfiotool.vfio.info import IovaRange
from vfiotool.vfio.iommu import IommuInfo, IommuMode
from vfiotool.vfio.iommu.address_space import AddressSpace
from vfiotool.vfio.iommu.ranges import Ranges
from vfiotool.vfio.uapi import DmaMapFlags

_PAGE = 4096
_END = 1 << 64
_PAGE_SIZES = _PAGE | 2 << 20 | 1 << 30
_ALL = (IovaRange(0, (1 << 64) - 1),)
# 48 bits, without the window that x86 reserves for MSI.
_RANGES = (IovaRange(0, 0xFEDF_FFFF), IovaRange(0xFEF0_0000, (1 << 48) - 1))
_ENTRY_LIMIT = 65535

_OWN = (IommuMode.TYPE1, IommuMode.TYPE1V2)

_libc = ctypes.CDLL(None)


class FakeIommu(AddressSpace, Handle):
    """An ``Iommu`` without a kernel, which refuses the requests that the kernel refuses in the same mode.

    DMA of its devices reads and writes the memory of this process. ``faults`` lists the accesses that were
    refused. Threads may share it.
    """

    def __init__(
        self,
        mode: IommuMode | str = IommuMode.TYPE1V2,
        devices: Iterable[FakeDevice] = (),
        *,
        iova_ranges: tuple[IovaRange, ...] = _RANGES,
        dma_entry_limit: int = _ENTRY_LIMIT,
    ) -> None:
        """Create an address space in a mode (not ``NOIOMMU``) that these devices can be opened in.

        ``iova_ranges`` are the valid IOVAs while a device is open. ``dma_entry_limit`` is the maximum number
        of mappings; only type1 and type1v2 have a limit.

        Raises:
            UnsupportedError: the mode is ``NOIOMMU``, which has no mappings.
        """
        self.mode = IommuMode(mode)
        if self.mode is IommuMode.NOIOMMU:
            raise UnsupportedError(
                "there is no fake of the no-IOMMU mode", hint="that mode has no mappings: use another mode"
            )
        Handle.__init__(self, os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC), f"fake {self.mode.value}")
        self.ioas = 1 if self.mode is IommuMode.IOMMUFD else 0
        self.faults: list[DmaFault] = []
        self._devices = {device.address: device for device in devices}
        self._open: set[str] = set()
        self._ranges = iova_ranges
        self._limit = dma_entry_limit if self.mode in _OWN else None
        self._mappings = FakeMappings()
        self._failures: dict[int, int] = {}
        self._maps = 0
        self._lock = threading.RLock()

    @property
    def attached(self) -> bool:
        """True if the address space accepts mappings now."""
        return bool(self._open) if self.mode in _OWN else not self.closed

    @property
    def groups(self) -> tuple[Group, ...]:
        """Always empty: fake devices cannot be hot reset."""
        return ()

    @property
    def mappings(self) -> tuple[FakeMapping, ...]:
        """The current mappings, lowest IOVA first."""
        with self._lock:
            return tuple(self._mappings)

    def fileno(self) -> int:
        """Return the file descriptor of this process's memory.

        Raises:
            ClosedError: the address space is closed.
        """
        return Handle.fileno(self)

    def fail_at(self, number: int, code: int) -> None:
        """Let a map fail with errno ``code``: the next map is number 1.

        The count is of map requests to the kernel: ranges that are merged in a batch count as one request.
        """
        self._failures[self._maps + number] = code

    def open_device(self, address: str, vf_token: uuid.UUID | None = None) -> DeviceFile:
        """Open a device that was passed to the constructor.

        Raises:
            DeviceNotFoundError: no device has this address.
            KernelError: EBUSY, the device is open.
        """
        self.fileno()
        device = self._devices.get(address)
        if device is None:
            raise DeviceNotFoundError(f"there is no fake at {address}", hint="pass the device to FakeIommu")
        with self._lock:
            if address in self._open:
                raise KernelError(errno.EBUSY, "VFIO_GROUP_GET_DEVICE_FD", address)
            self._open.add(address)
        return FakeDeviceFile(device, self, partial(self._device_closed, address))

    def info(self) -> IommuInfo:
        """Return the page sizes, IOVA ranges and number of free mappings.

        Raises:
            KernelError: EINVAL, no device is open in type1 or type1v2.
        """
        self.fileno()
        if self.mode in _OWN and not self._open:
            raise KernelError(errno.EINVAL, "VFIO_IOMMU_GET_INFO", self.name)
        ranges = self._ranges if self._open else _ALL
        left = None if self._limit is None else self._limit - len(self._mappings)
        return IommuInfo(_PAGE_SIZES, ranges, left)

    def map(self, vaddr: int, iova: int, size: int, access: DmaMapFlags) -> None:
        """Map memory of this process for the devices."""
        self.fileno()
        with self._lock:
            code = self._map(vaddr, iova, size, access)
        if code:
            raise self._map_error(code, vaddr, iova, size)

    def map_ranges(self, ranges: Ranges, access: DmaMapFlags) -> None:
        """Map all ranges or none, merging adjacent ranges; the error's ``index`` is the range that failed."""
        self.fileno()
        done: list[int] = []
        with self._lock:
            for first, members in _runs(ranges):
                vaddr, iova, _size = members[0]
                code = self._map(vaddr, iova, sum(size for *_, size in members), access)
                if code:
                    self._mappings.remove(done)
                    at = self._find_failing(members, access)
                    raise self._map_error(code, *members[at], index=first + at)
                done.append(iova)

    def unmap(self, iova: int, size: int) -> int:
        """Unmap the mappings inside a range, and return their size in bytes."""
        self.fileno()
        with self._lock:
            result = self._unmap(iova, size)
        if result < 0:
            raise self._unmap_error(-result, iova, size)
        return result

    def unmap_ranges(self, ranges: Ranges) -> int:
        """Unmap ranges that ``map_ranges`` mapped, and return their size in bytes."""
        self.fileno()
        with self._lock:
            results = [self._unmap(iova, size) for iova, size in _spans(ranges)]
        failed = next((result for result in results if result < 0), 0)
        if failed:
            raise self._unmap_error(-failed, ranges[0][1], ranges.size)
        return sum(results)

    def unmap_all(self) -> int:
        """Unmap everything, and return the size in bytes."""
        self.fileno()
        with self._lock:
            return self._mappings.clear()

    def close(self) -> None:
        """Close the address space, and unmap everything."""
        super().close()
        self._mappings.clear()

    def read(self, iova: int, size: int) -> bytes:
        """Read ``size`` bytes as a device does.

        Raises:
            DmaFault: a byte is not mapped for reading.
        """
        data = bytearray()
        for part in self._reached(iova, size, DmaMapFlags.READ):
            with self._faulting(part.iova, DmaMapFlags.READ):
                data += os.pread(self.fileno(), part.size, part.vaddr)
        return bytes(data)

    def write(self, iova: int, data: bytes) -> None:
        """Write as a device does, up to the first byte that is not mapped for writing.

        Raises:
            DmaFault: a byte is not mapped for writing.
        """
        for part in self._reached(iova, len(data), DmaMapFlags.WRITE):
            with self._faulting(part.iova, DmaMapFlags.WRITE):
                os.pwrite(self.fileno(), data[part.iova - iova :][: part.size], part.vaddr)

    def _reached(self, iova: int, size: int, access: DmaMapFlags) -> Iterator[FakeMapping]:
        """Yield the parts of mappings that cover these IOVAs, up to the first fault."""
        end = iova + size
        while iova < end:
            with self._lock:
                found = next(self._mappings.overlapping(iova, 1), None)
            if found is None or access not in found.access:
                raise self._fault(iova, access)
            part = found.part(iova, min(end, found.end))
            yield part
            iova = part.end

    @contextlib.contextmanager
    def _faulting(self, iova: int, access: DmaMapFlags) -> Iterator[None]:
        """Turn an access to memory that was freed into a fault."""
        try:
            yield
        except (OSError, ClosedError):
            raise self._fault(iova, access) from None

    def _fault(self, iova: int, access: DmaMapFlags) -> DmaFault:
        fault = DmaFault(iova, "write" if access is DmaMapFlags.WRITE else "read")
        self.faults.append(fault)
        return fault

    def _device_closed(self, address: str) -> None:
        with self._lock:
            self._open.discard(address)
            is_emptied = self.mode in _OWN and not self._open
            if is_emptied:
                self._mappings.clear()
        if is_emptied:
            self.on_emptied()

    def _map(self, vaddr: int, iova: int, size: int, access: DmaMapFlags) -> int:
        """Map, and return 0 or an errno; the checks are in the kernel's order."""
        code = self._refusal(vaddr, iova, size, access)
        if not code:
            self._maps += 1
            code = self._failures.pop(self._maps, 0)
        if not code and not _is_memory(vaddr, size, access):
            code = errno.EFAULT
        if not code:
            self._mappings.add(FakeMapping(iova, size, vaddr, access))
        return code

    def _refusal(self, vaddr: int, iova: int, size: int, access: DmaMapFlags) -> int:
        if max(vaddr, iova) + size > _END or min(vaddr, iova, size) < 0:
            return errno.EOVERFLOW
        if not self.attached or not access or not size or (vaddr | iova | size) % _PAGE:
            return errno.EINVAL
        is_taken = next(self._mappings.overlapping(iova, size), None) is not None
        if self.mode in _OWN and is_taken:
            return errno.EEXIST
        if len(self._mappings) == self._limit:
            return errno.ENOSPC
        if not any(one.start <= iova and iova + size - 1 <= one.end for one in self.info().iova_ranges):
            return errno.EINVAL
        return errno.EEXIST if is_taken else 0

    def _find_failing(self, members: list[tuple[int, int, int]], access: DmaMapFlags) -> int:
        """Return the index of the range that fails, in a run of ranges that cannot be mapped as a whole."""
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
        """Unmap, and return the size in bytes, or a negative errno."""
        if iova < 0 or size < 0 or iova + size > _END:
            return -errno.EOVERFLOW
        if not self.attached or not size or (self.mode in _OWN and (iova | size) % _PAGE):
            return -errno.EINVAL
        if self.mode is IommuMode.COMPAT_TYPE1:
            self._mappings.cut(iova)
            self._mappings.cut(iova + size)
        met = list(self._mappings.overlapping(iova, size))
        if self.mode is IommuMode.TYPE1:
            # The kernel removes whole mappings, and none if the range starts inside a mapping.
            met = [] if met and met[0].iova < iova else met
        elif met and (met[0].iova < iova or met[-1].end > iova + size):
            return -errno.EINVAL if self.mode is IommuMode.TYPE1V2 else -errno.ENOENT
        return self._mappings.remove([one.iova for one in met]) or -errno.ENOENT


def _runs(ranges: Ranges) -> Iterator[tuple[int, list[tuple[int, int, int]]]]:
    """Yield each run of adjacent ranges: the index of its first range, and its ranges."""
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
    """Yield start and size of these ranges by IOVA, with adjacent ranges merged."""
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
    """Return True if this process has memory at the address, writable if ``access`` includes writing."""
    if DmaMapFlags.WRITE in access:
        return bool(lib.vt_prefault(vaddr, size, _PAGE, 1) == 0)
    present = ctypes.create_string_buffer(size // _PAGE)
    return bool(_libc.mincore(ctypes.c_void_p(vaddr), ctypes.c_size_t(size), present) == 0)
