"""The driver of an 82576 on QEMU's igb; skipped if QEMU is older than version 8."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

import vfiotool
from tests.support.address_spaces import MODES, kernel_params, next_fault, open_fds, status
from tests.support.guest import IGB, kernel_complaints, path
from vfiotool.drivers.igb import Igb
from vfiotool.vfio.device import Device, open_device
from vfiotool.vfio.dma.mapping import Buffer
from vfiotool.vfio.iommu import IommuMode

pytestmark = [
    pytest.mark.needs_guest,
    pytest.mark.skipif(not os.path.exists(path(IGB)), reason="QEMU before 8 has no igb"),
]

PAGE = 4096
SIZE = 1 << 20
VECTORS = 10
UNMAPPED = 0x0123_4000
RNG = random.Random(13)  # noqa: S311 - the test must be repeatable


@pytest.fixture(scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = kernel_complaints()
    with vfiotool.bound(IGB, state_dir=str(tmp_path_factory.mktemp("state"))):
        yield
    assert kernel_complaints() == before


@pytest.fixture(params=kernel_params(*MODES))
def device(request: pytest.FixtureRequest, bound: None) -> Iterator[Device]:
    mode: IommuMode = request.param[0]
    before = open_fds(), status("VmLck"), status("VmPin")
    with open_device(IGB, iommu=mode) as opened:
        yield opened
    assert (open_fds(), status("VmLck"), status("VmPin")) == before


@pytest.fixture
def source(device: Device) -> Iterator[Buffer]:
    """Random bytes, in scattered pages of memory."""
    with device.dma.alloc(SIZE, pages="4K") as buffer:
        buffer[:] = RNG.randbytes(SIZE)
        yield buffer


@pytest.fixture
def target(device: Device) -> Iterator[Buffer]:
    with device.dma.alloc(SIZE, pages="4K") as buffer:
        yield buffer


COPIES = [(0, 0, 1), (3, 5, 60), (PAGE - 1, 7, 2), (0, 0, PAGE), (17, 4000, 100_000), (0, 0, SIZE)]


@pytest.mark.parametrize("vectors", [0, 1])
def test_any_bytes_are_copied(device: Device, source: Buffer, target: Buffer, vectors: int) -> None:
    with Igb(device, vectors=vectors) as igb:
        for from_, to, size in COPIES:
            target[:] = bytes(SIZE)
            igb.copy(source.iova + from_, target.iova + to, size)
            assert target[:] == bytes(to) + source[from_ : from_ + size] + bytes(SIZE - to - size)


def test_data_that_looks_like_a_header_is_copied(device: Device, source: Buffer, target: Buffer) -> None:
    """A broken IP packet, a VLAN tag, a multicast address: the device must ignore them all."""
    headers = [
        b"\xff" * 12 + kind + bytes(50) for kind in (b"\x08\x00", b"\x81\x00", b"\x88\xa8", b"\x86\xdd")
    ]
    with Igb(device) as igb:
        for at, header in enumerate(headers):
            source[at * 64 : at * 64 + 64] = header
            igb.copy(source.iova + at * 64, target.iova + at * 64, 64)
    assert target[: 64 * len(headers)] == b"".join(headers)


@pytest.mark.parametrize("vectors", [0, 1])
def test_thousands_of_copies_are_in_flight(
    device: Device, source: Buffer, target: Buffer, vectors: int
) -> None:
    order = RNG.sample(range(SIZE // 256), SIZE // 256)
    with Igb(device, vectors=vectors) as igb:
        igb.copy_many((source.iova + at * 256, target.iova + at * 256, 256) for at in order)
    assert target[:] == source[:]


def test_a_storm_of_interrupts_is_counted_exactly(device: Device) -> None:
    with Igb(device, vectors=VECTORS) as igb:
        counts = [0] * VECTORS
        for _ in range(100):
            counts = [sum(pair) for pair in zip(counts, igb.interrupt(range(VECTORS)), strict=True)]
        assert counts == [100] * VECTORS
        for vector in range(VECTORS):
            assert [igb.interrupt([vector]) for _ in range(20)] == [[1]] * 20


def test_only_requested_vectors_are_raised(device: Device, source: Buffer, target: Buffer) -> None:
    with Igb(device, vectors=VECTORS) as igb:
        igb.copy(source.iova, target.iova, SIZE)
        assert igb.interrupt(range(1, VECTORS)) == [1] * (VECTORS - 1)


def test_memory_that_is_not_mapped_is_not_written(device: Device, source: Buffer, target: Buffer) -> None:
    """The kernel logs the fault. All other memory is unchanged, and further copies work."""
    before = source[:]
    target[:] = RNG.randbytes(SIZE)
    kept = target[:]
    with Igb(device) as igb:
        assert fault_of(igb, source.iova, UNMAPPED, 64) == UNMAPPED
        assert (source[:], target[:]) == (before, kept)
        igb.copy(source.iova, target.iova, SIZE)
    assert target[:] == before


def test_memory_that_is_not_mapped_is_not_read(device: Device, target: Buffer) -> None:
    """The bytes that QEMU sends instead go to the destination of that copy, and nowhere else."""
    target[:] = RNG.randbytes(SIZE)
    kept = target[:]
    with Igb(device) as igb:
        assert fault_of(igb, UNMAPPED, target.iova + 128, 64) == UNMAPPED
    assert (target[:128], target[192:]) == (kept[:128], kept[192:])


def fault_of(igb: Igb, source: int, destination: int, size: int) -> int:
    """Make the device copy, and return the refused page in the kernel's log."""
    with open("/dev/kmsg", "rb", buffering=0) as log:
        log.seek(0, os.SEEK_END)
        for _ in range(20):  # DMAR logs three faults in five seconds
            igb.copy(source, destination, size)
            found = next_fault(log.fileno())
            if found is not None:
                return found
    raise AssertionError("the kernel logged no fault")
