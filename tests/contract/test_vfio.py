"""The life cycle of VFIO containers, groups and devices on a real kernel.

Runs in a lab guest of the default machine: edu is alone in its group, the two e1000 share a group.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

import vfiotool
from tests.support.group_device import GroupDevice
from vfiotool._shim import ffi, lib
from vfiotool.errors import GroupNotViableError, KernelError, UnsupportedError
from vfiotool.host.era import detect_era
from vfiotool.host.tree import Tree
from vfiotool.vfio import Container, Extension, Group, GroupFlags, IommuType, KernelDeviceFile
from vfiotool.vfio.device_info import read_device_info, read_irq_info, read_region_info
from vfiotool.vfio.features import Features
from vfiotool.vfio.uapi import (
    DeviceInfoFlags,
    DmaMapFlags,
    IrqInfoFlags,
    PciIrq,
    PciRegion,
    RegionInfoFlags,
)

pytestmark = pytest.mark.needs_guest

EDU = "0000:00:10.0"
PAIR = ("0000:03:01.0", "0000:03:02.0")
PAGE = mmap.PAGESIZE
TOP = 1 << 64
EDU_BYTES = 2048

VfioBound = Callable[..., AbstractContextManager[int]]


def open_fds() -> dict[str, str]:
    """Return the target of each open fd, except that of the directory that is read."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
    return found


def fails(code: int, action: Callable[[], object]) -> KernelError:
    """Run a call that must fail with this errno, and return the error."""
    with pytest.raises(KernelError) as caught:
        action()
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[code]
    return caught.value


def group_of(address: str) -> int:
    return int(os.readlink(f"/sys/bus/pci/devices/{address}/iommu_group").rpartition("/")[2])


@pytest.fixture(scope="module")
def edu_bound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The number of edu's group, with edu on vfio-pci for all of these tests: binding takes time."""
    with vfiotool.bound(EDU, state_dir=str(tmp_path_factory.mktemp("state"))):
        yield group_of(EDU)


@pytest.fixture
def group_id(edu_bound: int) -> Iterator[int]:
    """The number of edu's group; the test must leave no fd open."""
    before = open_fds()
    yield edu_bound
    assert open_fds() == before


@pytest.fixture
def container(group_id: int) -> Iterator[Container]:
    with Container() as opened:
        yield opened


@pytest.fixture
def group(group_id: int) -> Iterator[Group]:
    with Group(group_id) as opened:
        yield opened


@pytest.fixture
def edu(group_id: int) -> Iterator[GroupDevice]:
    with GroupDevice(EDU, group_id) as opened:
        yield opened


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    mapped = mmap.mmap(-1, 64 * PAGE)
    yield mapped
    mapped.close()


# Containers and groups


def test_the_container_is_of_version_0_and_offers_type1(container: Container) -> None:
    assert container.api_version() == 0
    assert container.check_extension(IommuType.TYPE1)
    assert container.check_extension(IommuType.TYPE1v2)
    assert not container.check_extension(IommuType.NOIOMMU)
    assert lib.vt_container_check_extension(container.fileno(), 999) == 0


def test_unmap_all_came_with_5_12(container: Container) -> None:
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    assert container.check_extension(Extension.UNMAP_ALL) == (release >= (5, 12))


def test_status_follows_the_container(container: Container, group: Group) -> None:
    assert group.status() == GroupFlags.VIABLE
    group.set_container(container)
    assert group.status() == GroupFlags.VIABLE | GroupFlags.CONTAINER_SET
    group.unset_container()
    assert group.status() == GroupFlags.VIABLE


def test_a_second_container_is_refused(container: Container, group: Group) -> None:
    group.set_container(container)
    with Container() as other:
        error = fails(errno.EINVAL, lambda: group.set_container(other))
    assert (error.operation, error.subject) == ("VFIO_GROUP_SET_CONTAINER", f"group {group.id}")
    fails(errno.EINVAL, lambda: group.set_container(container))


def test_an_iommu_is_set_once_and_after_the_group(container: Container, group: Group) -> None:
    error = fails(errno.EINVAL, lambda: container.set_iommu(IommuType.TYPE1v2))
    assert error.operation == "VFIO_SET_IOMMU"
    fails(errno.EINVAL, container.type1_info)
    group.set_container(container)
    container.set_iommu(IommuType.TYPE1v2)
    fails(errno.EINVAL, lambda: container.set_iommu(IommuType.TYPE1v2))


def test_an_iommu_of_another_architecture_is_refused(container: Container, group: Group) -> None:
    group.set_container(container)
    assert lib.vt_container_set_iommu(container.fileno(), 2) == -errno.ENODEV


def test_a_group_has_one_owner(group: Group) -> None:
    error = fails(errno.EBUSY, lambda: Group(group.id))
    assert (error.operation, error.subject) == ("open", f"/dev/vfio/{group.id}")
    assert "vfiotool groups" in error.hint


def test_a_group_stays_taken_while_its_device_is_open(edu: GroupDevice) -> None:
    edu.group.close()
    fails(errno.EBUSY, lambda: Group(edu.group.id))
    edu.file.close()
    Group(edu.group.id).close()


def test_unset_waits_for_the_devices(edu: GroupDevice) -> None:
    error = fails(errno.EBUSY, edu.group.unset_container)
    assert error.operation == "VFIO_GROUP_UNSET_CONTAINER"
    edu.file.close()
    edu.group.unset_container()
    fails(errno.EINVAL, edu.group.unset_container)


def test_a_device_needs_container_and_iommu(container: Container, group: Group) -> None:
    error = fails(errno.EINVAL, lambda: group.open_device(EDU))
    assert (error.operation, error.subject) == ("VFIO_GROUP_GET_DEVICE_FD", f"{EDU} of group {group.id}")
    group.set_container(container)
    fails(errno.EINVAL, lambda: group.open_device(EDU))
    container.set_iommu(IommuType.TYPE1v2)
    group.open_device(EDU).close()


def test_a_group_has_only_its_own_devices(container: Container, group: Group) -> None:
    group.set_container(container)
    container.set_iommu(IommuType.TYPE1v2)
    fails(errno.ENODEV, lambda: group.open_device("0000:00:1f.0"))
    fails(errno.ENODEV, lambda: group.open_device("no device at all"))


def test_a_device_that_is_no_pf_has_no_token(edu: GroupDevice) -> None:
    """tests/lab/test_traps_sriov.py tests PFs with tokens."""
    with pytest.raises(UnsupportedError, match="no VF token"):
        Features(edu.file).set_vf_token(uuid.uuid4())
    edu.file.close()
    error = fails(errno.EINVAL, lambda: edu.group.open_device(EDU, uuid.uuid4()))
    assert "takes no VF token" in str(error)
    edu.group.open_device(EDU).close()


def test_two_devices_of_a_group_are_open_at_once(vfio_bound: VfioBound) -> None:
    with vfio_bound(*PAIR) as number:
        before = open_fds()
        with GroupDevice(PAIR[0], number) as first, first.group.open_device(PAIR[1]) as second:
            assert DeviceInfoFlags.PCI in read_device_info(second).flags
            first.file.close()
            fails(errno.EBUSY, first.group.unset_container)
        assert open_fds() == before


def test_a_group_without_a_vfio_driver_has_no_node() -> None:
    error = fails(errno.ENOENT, lambda: Group(group_of("0000:00:1f.0")))
    assert "'vfiotool show'" in error.hint


# Viability


@pytest.mark.full
def test_a_group_that_is_not_viable_is_refused_the_same_in_every_era(vfio_bound: VfioBound) -> None:
    assert os.readlink(f"/sys/bus/pci/devices/{PAIR[1]}/driver").endswith("/e1000")
    with vfio_bound(PAIR[0]) as number:
        before = open_fds()
        with Container() as container, Group(number) as group:
            assert group.status() == GroupFlags(0)
            with pytest.raises(GroupNotViableError) as caught:
                group.set_container(container)
            assert caught.value.blockers == (PAIR[1],)
            assert f"{PAIR[1]} (e1000)" in str(caught.value)
            assert group.status() == GroupFlags(0)
        with pytest.raises(GroupNotViableError):
            GroupDevice(PAIR[0], number)
        assert open_fds() == before


def test_a_group_that_is_not_viable_in_each_era(vfio_bound: VfioBound) -> None:
    """Up to 5.18 the group accepts a container but opens no device; since 5.19 it does neither."""
    with vfio_bound(PAIR[0]) as number, Container() as container, Group(number) as group:
        result = lib.vt_group_set_container(group.fileno(), container.fileno())
        if detect_era(Tree()).has_dma_owner:
            assert result == -errno.EPERM
            return
        assert result == 0
        assert group.status() == GroupFlags.CONTAINER_SET
        container.set_iommu(IommuType.TYPE1v2)
        assert lib.vt_group_device_fd(group.fileno(), PAIR[0].encode()) == -errno.EINVAL
        with pytest.raises(GroupNotViableError):
            group.open_device(PAIR[0])


# The device


def test_edus_info_agrees_with_sysfs(edu: GroupDevice) -> None:
    info = read_device_info(edu.file)
    assert (info.num_regions, info.num_irqs) == (9, 5)
    assert DeviceInfoFlags.PCI in info.flags
    with open(f"/sys/bus/pci/devices/{EDU}/resource", encoding="ascii") as lines:
        for index, line in enumerate(itertools.islice(lines, 6)):
            start, end, _ = (int(word, 16) for word in line.split())
            assert read_region_info(edu.file, index).size == (end - start + 1 if end else 0)


def test_edus_regions_have_their_flags(edu: GroupDevice) -> None:
    bar0 = read_region_info(edu.file, PciRegion.BAR0)
    assert bar0.flags & ~RegionInfoFlags.CAPS == 7
    assert [(area.offset, area.size) for area in bar0.mmap_areas] == [(0, 1 << 20)]
    config = read_region_info(edu.file, PciRegion.CONFIG)
    assert config.mmap_areas == ()
    assert os.pread(edu.file.fileno(), 4, config.offset) == bytes.fromhex("3412e811")
    with pytest.raises(KernelError):
        read_region_info(edu.file, PciRegion.VGA)


def test_edus_interrupts(edu: GroupDevice) -> None:
    counts = {
        index: read_irq_info(edu.file, index).count
        for index in (PciIrq.INTX, PciIrq.MSI, PciIrq.MSIX, PciIrq.REQ)
    }
    assert counts == {PciIrq.INTX: 1, PciIrq.MSI: 1, PciIrq.MSIX: 0, PciIrq.REQ: 1}
    fails(errno.EINVAL, lambda: read_irq_info(edu.file, PciIrq.ERR))  # it is not PCIe
    intx = read_irq_info(edu.file, PciIrq.INTX).flags
    assert intx == IrqInfoFlags.EVENTFD | IrqInfoFlags.MASKABLE | IrqInfoFlags.AUTOMASKED


@pytest.mark.parametrize("index", [9, 1000, (1 << 32) - 1, 1 << 32, -1])
def test_a_missing_index_is_refused(edu: GroupDevice, index: int) -> None:
    assert fails(errno.EINVAL, lambda: read_region_info(edu.file, index)).subject == EDU
    fails(errno.EINVAL, lambda: read_irq_info(edu.file, index))


# Limits of the container


def test_iova_ranges_exclude_reserved_regions_of_sysfs(edu: GroupDevice) -> None:
    info = edu.container.type1_info()
    assert info.page_sizes & PAGE
    ranges = info.iova_ranges
    assert ranges
    assert all(a.end < b.start for a, b in itertools.pairwise(ranges))
    path = f"/sys/kernel/iommu_groups/{edu.group.id}/reserved_regions"
    with open(path, encoding="ascii") as lines:
        for line in lines:
            start, end = (int(word, 16) for word in line.split()[:2])
            assert not any(one.start <= end and start <= one.end for one in ranges), line


# Closing


@pytest.mark.parametrize(
    "order", list(itertools.permutations(("container", "group", "device"))), ids="-".join
)
def test_closing_in_any_order_leaves_nothing(
    edu: GroupDevice, memory: mmap.mmap, order: tuple[str, ...]
) -> None:
    address = int(ffi.cast("uintptr_t", ffi.from_buffer(memory)))
    assert lib.vt_dma_map(edu.container.fileno(), 0, address, 0, PAGE, DmaMapFlags.READ) == 0
    handles: dict[str, Container | Group | KernelDeviceFile] = {
        "container": edu.container,
        "group": edu.group,
        "device": edu.file,
    }
    for name in order:
        handles[name].close()
    assert not [path for path in open_fds().values() if "vfio" in path]
    with GroupDevice(EDU, edu.group.id) as again:
        assert lib.vt_dma_unmap(again.container.fileno(), 0, 0, 1 << 30) == 0


def test_a_device_outlives_its_group_and_container(edu: GroupDevice) -> None:
    edu.group.close()
    edu.container.close()
    assert read_device_info(edu.file).num_regions == 9


def test_a_failed_open_closes_the_group(group_id: int) -> None:
    before = open_fds()
    fails(errno.ENODEV, lambda: GroupDevice("0000:00:1f.0", group_id))
    assert open_fds() == before
    Group(group_id).close()


def test_no_child_inherits_the_fds(edu: GroupDevice) -> None:
    for handle in (edu.container, edu.group, edu.file):
        assert not os.get_inheritable(handle.fileno())
