"""The interfaces that a locked down kernel takes away, and those that it leaves."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.group_device import GroupDevice
from tests.support.guest import EDU, as_before, driver, group, needs_iommu, output, path, read, to_vfio, write
from vfiotool.vfio.device_info import read_region_info
from vfiotool.vfio.uapi import PciRegion

INTERRUPT_LINE = 0x3C  # means nothing to the device
EDU_IDENTITY = bytes.fromhex("ed000001")


@contextlib.contextmanager
def opened(file: str) -> Iterator[int]:
    fd = os.open(file, os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


def write_config(fd: int, offset: int = 0) -> None:
    position = offset + INTERRUPT_LINE
    assert os.pwrite(fd, os.pread(fd, 1, position), position) == 1


def identity(fd: int, offset: int = 0) -> bytes:
    with mmap.mmap(fd, mmap.PAGESIZE, offset=offset) as bar:
        return bar[:4]


@pytest.fixture
def lockdown(tmp_path: Path) -> Iterator[str]:
    """The file that locks the kernel down, and cannot undo it."""
    output("mount", "-t", "securityfs", "securityfs", str(tmp_path))
    yield str(tmp_path / "lockdown")
    output("umount", str(tmp_path))


@pytest.mark.full
@pytest.mark.needs_guest
@pytest.mark.for_good
@needs_iommu
@pytest.mark.usefixtures("vfio_pci")
def test_lockdown_closes_config_and_resources_in_sysfs_and_leaves_vfio(lockdown: str) -> None:
    number = group(EDU)
    assert number is not None
    with as_before(EDU), opened(path(EDU, "config")) as config, opened(path(EDU, "resource0")) as resource:
        write_config(config)
        assert identity(resource) == EDU_IDENTITY
        write(lockdown, "integrity")
        assert read(lockdown) == "none [integrity] confidentiality"
        with pytest.raises(PermissionError):
            write_config(config)
        with pytest.raises(PermissionError):
            identity(resource)
        assert os.pread(config, 2, 0) == bytes.fromhex("3412"), "reading goes on"
        to_vfio(EDU)
        with GroupDevice(EDU, number) as held:
            fd = held.file.fileno()
            write_config(fd, read_region_info(held.file, PciRegion.CONFIG).offset)
            assert identity(fd, read_region_info(held.file, PciRegion.BAR0).offset) == EDU_IDENTITY
    assert driver(EDU) is None
