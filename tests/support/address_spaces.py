"""An open edu in an address space of a mode: fake, or of the kernel in a lab guest."""

from __future__ import annotations

import os
import re
import select
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.conftest import GUEST_KERNEL
from tests.support.binding_bench import E1000E, EDU
from vfiotool.testing.fake_edu import FakeEdu
from vfiotool.testing.fake_iommu import FakeIommu
from vfiotool.vfio.device import Device, open_device
from vfiotool.vfio.dma.dma import Dma
from vfiotool.vfio.info import IovaRange
from vfiotool.vfio.iommu import Iommu, IommuMode, open_iommu
from vfiotool.vfio.irqs.irqs import Vector
from vfiotool.vfio.mmio.mmio import Mmio
from vfiotool.vfio.nodes import IOMMUFD

PAGE = 4096
OTHER = E1000E
MSI_WINDOW = (0xFEE0_0000, 0xFEEF_FFFF)
EDU_MASK = (1 << 28) - 1
EDU_BUFFER = 0x40000
FAULT = re.compile(rb"fault addr (?:0x)?([0-9a-f]+)")  # DMAR's

CONTAINERS = (IommuMode.TYPE1, IommuMode.TYPE1V2)
LIMITED = CONTAINERS  # modes with a limit on the number of mappings
MODES = (*CONTAINERS, IommuMode.COMPAT_TYPE1, IommuMode.COMPAT_TYPE1V2, IommuMode.IOMMUFD)
OFFERED = MODES if GUEST_KERNEL is None or os.path.exists(IOMMUFD) else CONTAINERS


def params(*modes: IommuMode) -> list[ParameterSet]:
    """The parameters of a test for the fakes of these modes, and for the modes of this kernel."""
    return [*(pytest.param((mode, True), id=f"fake-{mode.value}") for mode in modes), *kernel_params(*modes)]


def kernel_params(*modes: IommuMode) -> list[ParameterSet]:
    """The parameters of a test for the modes among these that this kernel has."""
    return [
        pytest.param((mode, False), id=mode.value, marks=pytest.mark.needs_guest)
        for mode in modes
        if mode in OFFERED
    ]


@dataclass(frozen=True)
class Footprint:
    """Resources that a mapping may leak."""

    mapped: tuple[int, ...]
    free: tuple[IovaRange, ...]
    dma_avail: int | None
    locked: int
    pinned: int
    faked: int


class Space:
    """An address space of a mode, with edu open in it as ``device``; ``close()`` closes both."""

    def __init__(self, mode: IommuMode, *, fake: bool, limit: int = 65535) -> None:
        self.mode = mode
        self.is_fake = fake
        self.limit = limit if mode in LIMITED else None
        self.edu = FakeEdu(EDU)
        self.iommu: Iommu = (
            FakeIommu(mode, [self.edu, FakeEdu(OTHER)], dma_entry_limit=limit) if fake else open_iommu(mode)
        )
        self.dma = Dma(self.iommu)
        self.device = self.open(EDU)

    def open(self, address: str) -> Device:
        """Open a device in it."""
        return open_device(address, iommu=self.dma)

    @property
    def reserved(self) -> list[tuple[int, int]]:
        """The reserved regions of edu's group."""
        return [MSI_WINDOW] if self.is_fake else reserved_windows(EDU)

    def fault_of(self, action: Callable[[], object]) -> int:
        """Run an action that faults, and return the page that the IOMMU's driver logs."""
        if isinstance(self.iommu, FakeIommu):
            action()
            return self.iommu.faults[-1].iova & -PAGE
        with open("/dev/kmsg", "rb", buffering=0) as log:
            log.seek(0, os.SEEK_END)
            for _ in range(20):  # DMAR logs three faults in five seconds
                action()
                found = next_fault(log.fileno())
                if found is not None:
                    return found
        raise AssertionError("the kernel logged no fault")

    @property
    def ranges(self) -> tuple[IovaRange, ...]:
        """The valid ranges, lowest first."""
        return self.iommu.info().iova_ranges

    def footprint(self) -> Footprint:
        """Record the current resources."""
        return Footprint(
            mapped=tuple(id(one) for one in self.dma.mapped),
            free=self.dma._allocator.free_ranges,
            dma_avail=self.iommu.info().dma_avail,
            locked=status("VmLck"),
            pinned=status("VmPin"),
            faked=len(self.iommu.mappings) if isinstance(self.iommu, FakeIommu) else 0,
        )

    def close(self) -> None:
        """Close device and address space."""
        self.device.close()
        self.iommu.close()


class Edu:
    """edu's DMA, with the interrupt that signals its end."""

    def __init__(self, bar: Mmio, vector: Vector) -> None:
        self._bar = bar
        self._vector = vector

    def fetch(self, iova: int, size: int, at: int = 0) -> None:
        """Make edu read memory into its buffer."""
        self._run(iova, EDU_BUFFER + at, size, 0b101)

    def store(self, iova: int, size: int, at: int = 0) -> None:
        """Make edu write its buffer to memory."""
        self._run(EDU_BUFFER + at, iova, size, 0b111)

    def copy(self, source: int, destination: int, size: int) -> None:
        """Make edu copy memory."""
        self.fetch(source, size)
        self.store(destination, size)

    def _run(self, source: int, destination: int, size: int, command: int) -> None:
        self._bar.write64(0x80, source)
        self._bar.write64(0x88, destination)
        self._bar.write64(0x90, size)
        self._bar.write64(0x98, command)
        assert self._vector.wait(10.0) == 1
        self._bar.write32(0x64, self._bar.read32(0x24))
        assert not self._bar.read64(0x98) & 1


def status(field: str) -> int:
    """Return a field of this process's status, in kilobytes."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def open_fds() -> dict[int, str]:
    """Return the target of each open fd, except that of the directory that is read."""
    found = {}
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
    return found


def reserved_windows(address: str) -> list[tuple[int, int]]:
    """The reserved regions of a device's group in sysfs, without those that may be mapped."""
    path = Path(f"/sys/bus/pci/devices/{address}/iommu_group/reserved_regions")
    rows = [line.split() for line in path.read_text().splitlines()]
    return [(int(start, 16), int(end, 16)) for start, end, kind in rows if kind != "direct-relaxable"]


def next_fault(log: int) -> int | None:
    """Return the page of the next DMA fault in the kernel's log, if there is one within a second."""
    while select.select([log], [], [], 1)[0]:
        found = FAULT.search(os.read(log, 8192))
        if found is not None:
            return int(found[1], 16)
    return None


def opened_space(request: pytest.FixtureRequest, **options: int) -> Iterator[Space]:
    """Yield a space for the fixture's parameter; the test must leave no fd open and no memory pinned."""
    mode, is_fake = request.param
    if not is_fake:
        request.getfixturevalue("vfio_devices")
    before = open_fds(), status("VmLck"), status("VmPin")
    opened = Space(mode, fake=is_fake, **options)
    yield opened
    opened.close()
    assert (open_fds(), status("VmLck"), status("VmPin")) == before


def child_says(action: Callable[[], object]) -> str:
    """Return the result of an action in a forked child, or its error."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            result = str(action())
        except BaseException as error:
            result = repr(error)
        os.write(writer, result.encode())
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as answer:
        result = answer.read()
    os.waitpid(pid, 0)
    return result


def write(path: str, value: str) -> None:
    """Write to a kernel's attribute."""
    with open(path, "w") as attribute:
        attribute.write(value)
