from __future__ import annotations

import os

import pytest

from vfiotool.errors import DeviceNotFoundError, VfioToolError
from vfiotool.host.attributes import addresses
from vfiotool.host.devices import read_devices
from vfiotool.host.era import Era, detect_era, find_era, find_release
from vfiotool.host.groups import IommuGroup, ReservedRegion, group_ids, read_group, read_groups
from vfiotool.host.holders import DEVICE_DESCRIPTOR, Holder, find_holders
from vfiotool.pci.names import PciNames
from vfiotool.testing import FakeHost, config_space

PORT, A, B = "0000:00:01.0", "0000:01:00.0", "0000:01:00.1"
ROOT_PORT, SWITCH_PORT, PCIE_TO_PCI, ENDPOINT = (bytes([kind << 4]) for kind in (4, 6, 7, 0))
ACS = [(0x0D, 0x100)]


def groups(host: FakeHost) -> list[IommuGroup]:
    devices = read_devices(host.tree, addresses(host.tree), PciNames(b""))
    return read_groups(host.tree, group_ids(host.tree), devices)


def group(host: FakeHost) -> IommuGroup:
    (found,) = groups(host)
    return found


def express(kind: bytes, extended: list[tuple[int, int]]) -> bytes:
    return config_space(capabilities=[(0x10, 0x40, kind)], extended=extended)


def test_groups_can_be_sparse_and_are_ordered_as_numbers(host: FakeHost) -> None:
    host.add_device(A, group=100)
    host.add_device(B, group=9)
    assert [(found.id, found.devices) for found in groups(host)] == [(9, (B,)), (100, (A,))]


def test_the_fields_of_a_group(host: FakeHost) -> None:
    host.add_device(A, group=3)
    host.add_group(3, type="DMA-FQ", reserved_regions="0x0 0xfff direct\n0xfee00000 0xfeefffff msi\nnonsense")
    found = group(host)
    assert found.type == "DMA-FQ"
    assert found.reserved_regions == (
        ReservedRegion(0, 0xFFF, "direct"),
        ReservedRegion(0xFEE00000, 0xFEEFFFFF, "msi"),
    )
    assert (found.viable, found.node, found.holders, found.why, found.unavailable) == (True, None, (), (), ())


def test_unreadable_fields_of_a_group_are_unavailable(host: FakeHost) -> None:
    host.add_device(A, group=3)
    host.remove("/sys/kernel/iommu_groups/3/type")
    assert (group(host).type, group(host).unavailable) == (None, ("type",))


def test_a_missing_group_is_an_error(host: FakeHost) -> None:
    with pytest.raises(DeviceNotFoundError, match="group 7"):
        read_group(host.tree, 7, [])


@pytest.mark.parametrize(
    ("driver", "class_code", "since_5_19", "before"),
    [
        (None, 0x020000, True, True),
        ("vfio-pci", 0x020000, True, True),
        ("mlx5_vfio_pci", 0x020000, True, True),
        ("pci-stub", 0x020000, True, True),
        ("e1000e", 0x020000, False, False),
        ("pcieport", 0x060400, True, True),
        ("shpchp", 0x060400, False, True),
    ],
)
def test_viability_by_era(
    host: FakeHost,
    old_host: FakeHost,
    driver: str | None,
    class_code: int,
    since_5_19: bool,
    before: bool,
) -> None:
    for machine, viable in ((host, since_5_19), (old_host, before)):
        machine.add_device(A, group=3, driver=driver, class_code=class_code)
        found = group(machine)
        assert found.viable == viable
        blockers = [] if viable else [(A, driver)]
        assert [(blocker.address, blocker.driver) for blocker in found.blockers] == blockers


@pytest.mark.parametrize(
    ("kernel", "era"),
    [
        ("5.10.0-46-amd64", Era.DEFERRED_PUT),
        ("5.15.0", Era.DEFERRED_PUT),
        ("5.16-rc1", Era.NOTIFIER),
        ("5.18.19", Era.NOTIFIER),
        ("5.19.0", Era.DMA_OWNER),
        ("7.2.1+deb14-amd64", Era.DMA_OWNER),
    ],
)
def test_eras(host: FakeHost, kernel: str, era: Era) -> None:
    host.put("/proc/sys/kernel/osrelease", kernel)
    assert detect_era(host.tree) is era


@pytest.mark.parametrize("release", [None, "", "unknown", "6", "6.12\x1b[2J"])
def test_an_unknown_release_has_no_era_unless_the_kernel_shows_it(
    host: FakeHost, release: str | None
) -> None:
    host.remove("/proc/sys/kernel/osrelease")
    if release is not None:
        host.put("/proc/sys/kernel/osrelease", release)
    assert (find_release(host.tree), find_era(host.tree)) == (None, None)
    with pytest.raises(VfioToolError, match="the release of the kernel is unknown"):
        detect_era(host.tree)
    host.put("/proc/kallsyms", "0000000000000000 T iommu_group_claim_dma_owner")
    assert find_era(host.tree) is Era.DMA_OWNER


def test_the_release_is_in_the_version_too(host: FakeHost) -> None:
    host.remove("/proc/sys/kernel/osrelease")
    host.put("/proc/version", "Linux version 5.17.0-8-generic (buildd@lcy02) (gcc 11) #8-Ubuntu SMP")
    assert (find_release(host.tree), find_era(host.tree)) == ("5.17.0-8-generic", Era.NOTIFIER)


def test_without_an_era_a_group_is_judged_by_what_all_eras_share(host: FakeHost) -> None:
    """A bridge on a driver other than pcieport blocks its group since 5.19 alone."""
    host.remove("/proc/sys/kernel/osrelease")
    host.add_device(A, driver="nvme", group=1)
    host.add_device(B, driver="vfio-pci", group=2)
    host.add_device(PORT, driver="shpchp", group=3, class_code=0x060400)
    verdicts = {group.id: (group.viable, group.unavailable) for group in groups(host)}
    assert verdicts == {1: (False, ()), 2: (True, ()), 3: (None, ("viable",))}


def test_an_era_is_detected_by_what_the_kernel_has(host: FakeHost, old_host: FakeHost) -> None:
    old_host.put("/proc/kallsyms", "0000000000000000 T iommu_group_claim_dma_owner")
    assert detect_era(old_host.tree) is Era.DMA_OWNER
    host.put("/dev/iommu", "")
    assert detect_era(host.tree) is Era.DMA_OWNER
    host.put("/dev/vfio/devices/vfio0", "")
    assert detect_era(host.tree) is Era.CDEV


def test_the_cdev_era_is_detected_before_the_first_node(host: FakeHost) -> None:
    host.put("/dev/iommu", "")
    host.put("/proc/devices", "Character devices:\n  1 mem\n241 vfio\n\nBlock devices:\n259 blkext\n")
    assert detect_era(host.tree) is Era.DMA_OWNER
    host.put("/proc/devices", "Character devices:\n  1 mem\n250 vfio-dev\n251 vfio\n")
    assert detect_era(host.tree) is Era.CDEV


def test_the_holders_of_a_group(host: FakeHost) -> None:
    host.add_driver("vfio-pci")
    host.add_device(A, group=3, driver="vfio-pci")
    host.add_process(20, "qemu (one)", {0: "/dev/null", 11: "/dev/vfio/3", 12: DEVICE_DESCRIPTOR})
    host.add_process(30, "bystander", {3: "/dev/vfio/vfio", 4: "/dev/vfio/33"})
    assert (group(host).node, group(host).holders) == (
        "/dev/vfio/3",
        (Holder(20, "qemu (one)", 11, "/dev/vfio/3"),),
    )
    assert find_holders(host.tree)[DEVICE_DESCRIPTOR] == (Holder(20, "qemu (one)", 12, DEVICE_DESCRIPTOR),)


def test_a_descriptor_opened_with_o_path_is_not_a_holder(host: FakeHost) -> None:
    """udevd opens nodes with O_PATH while it sets their owner."""
    host.add_driver("vfio-pci")
    host.add_device(A, group=3, driver="vfio-pci")
    host.add_process(20, "(udev-worker)", {11: "/dev/vfio/3"}, os.O_PATH | os.O_CLOEXEC)
    assert find_holders(host.tree) == {}


@pytest.mark.parametrize("fdinfo", ["", "flags:", "flags: none", "flags:\t99", "pos:\t0", "\0"])
def test_a_descriptor_with_unreadable_flags_counts_as_open(host: FakeHost, fdinfo: str) -> None:
    host.add_driver("vfio-pci")
    host.add_device(A, group=3, driver="vfio-pci")
    host.add_process(20, "qemu", {11: "/dev/vfio/3"}, os.O_PATH)
    host.put("/proc/20/fdinfo/11", fdinfo)
    assert group(host).holders == (Holder(20, "qemu", 11, "/dev/vfio/3"),)


def test_a_removed_node_still_has_its_holders(host: FakeHost) -> None:
    host.add_driver("vfio-pci")
    host.add_device(A, group=3)
    host.add_process(20, "qemu", {11: "/dev/vfio/3 (deleted)"})
    assert group(host).holders == (Holder(20, "qemu", 11, "/dev/vfio/3"),)


def test_without_vfio_no_process_is_inspected(host: FakeHost) -> None:
    host.add_process(20, "qemu", {11: "/dev/vfio/3"})
    assert find_holders(host.tree) == {}


_ALONE = "e1000e is a host driver"
_SHARED = f"{_ALONE}, and its group shares one address space"
_MOVE = "in a slot whose port has ACS the card gets a group of its own"


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ([], _ALONE),
        ([(PORT, 0x060400)], _ALONE),
        ([(B, 0x020000)], _SHARED),
        (
            [("0000:02:00.0", 0x020000)],
            f"{_SHARED}: {_MOVE}",
        ),
    ],
    ids=["alone", "below a port", "function", "card"],
)
def test_the_reason_for_a_blocker(host: FakeHost, others: list[tuple[str, int]], reason: str) -> None:
    host.add_device(A, group=3, driver="e1000e", class_code=0x020000)
    for address, class_code in others:
        host.add_device(address, group=3, class_code=class_code)
    assert [blocker.reason for blocker in group(host).blockers] == [reason]


def test_the_remedy_for_the_driver_of_a_bridge(host: FakeHost) -> None:
    host.add_device(PORT, group=3, driver="shpchp", class_code=0x060400)
    (blocker,) = group(host).blockers
    assert f"'echo {PORT} > /sys/bus/pci/devices/{PORT}/driver/unbind'" in blocker.reason


def test_the_reason_for_the_maker_of_a_domain(host: FakeHost) -> None:
    host.add_device(PORT, group=3, driver="vmd", class_code=0x010400)
    host.add_device("10000:e1:00.0", group=3, driver="nvme", domain_of=PORT)
    maker, disk = group(host).blockers
    assert maker.reason == "vmd makes PCI domain 10000, which goes with it, and all of its devices"
    assert disk.reason == f"nvme is a host driver of a device in PCI domain 10000, which goes with {PORT}"
