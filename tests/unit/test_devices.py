from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence

import pytest

from vfiotool.errors import DeviceNotFoundError, KernelError
from vfiotool.host import bounded_reads
from vfiotool.host.attributes import addresses, device_path
from vfiotool.host.device_state import DeviceState, read_state
from vfiotool.host.devices import PciDevice, find_device, read_devices
from vfiotool.host.snapshot import snapshot
from vfiotool.host.tree import Tree
from vfiotool.pci.names import PciNames
from vfiotool.testing import FakeHost

A, B, C = "0000:00:01.0", "0000:00:02.0", "0000:00:03.0"
NAMES = PciNames(b"8086  Intel\n\t10d3  82574L\n")


def read(host: FakeHost, *wanted: str) -> list[PciDevice]:
    return read_devices(host.tree, wanted or addresses(host.tree), NAMES, state_dir=host.state_dir)


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bounded_reads.ReadResult], None]:
    """Return a function that replaces the result of a bounded read of a path."""
    read_all = bounded_reads.read_all

    def spoil(path: str, answer: bounded_reads.ReadResult) -> None:
        def spoiled(
            tree: Tree, paths: Sequence[str], *, most: Mapping[str, int] | None = None
        ) -> Mapping[str, bounded_reads.ReadResult]:
            return {**read_all(tree, paths, most=most), path: answer}

        monkeypatch.setattr(bounded_reads, "read_all", spoiled)

    return spoil


def test_every_field_is_read(host: FakeHost) -> None:
    host.add_device(
        A,
        vendor=0x8086,
        device=0x10D3,
        class_code=0x020000,
        driver="e1000e",
        group=7,
        subsystem_vendor="0x8086",
        subsystem_device="0xa01f",
        revision="0x02",
        numa_node="1",
        driver_override="vfio-pci",
        reset_method="flr bus",
        power_state="D3hot",
    )
    assert read(host) == [
        PciDevice(
            address=A,
            vendor_id=0x8086,
            device_id=0x10D3,
            subsystem_vendor_id=0x8086,
            subsystem_device_id=0xA01F,
            revision=2,
            class_code=0x020000,
            vendor="Intel",
            device="82574L",
            class_name="Class 0200",
            interface_name=None,
            subsystem_vendor="Intel",
            subsystem_device="Device a01f",
            driver="e1000e",
            driver_override="vfio-pci",
            iommu_group=7,
            numa_node=1,
            is_vf=False,
            physfn=None,
            vfs=(),
            sriov_totalvfs=None,
            sriov_numvfs=None,
            reset_methods=("flr", "bus"),
            power_state="D3hot",
            answers=None,
            cdev=None,
            blocked=False,
            unavailable=("answers",),
        )
    ]


def test_fields_that_an_old_kernel_lacks_are_unavailable(old_host: FakeHost) -> None:
    old_host.add_device(A)
    old_host.remove(f"{device_path(A)}/power_state")
    (device,) = read(old_host)
    assert (device.reset_methods, device.power_state) == (None, None)
    assert set(device.unavailable) == {"reset_methods", "power_state"}


def test_a_device_without_reset_methods(host: FakeHost) -> None:
    host.add_device(A)
    host.remove(f"{device_path(A)}/reset_method")
    (device,) = read(host)
    assert (device.reset_methods, device.unavailable) == ((), ())


def test_domains_of_more_than_four_digits_come_last(host: FakeHost) -> None:
    for address in ("10000:e1:00.0", "ffff:00:00.0", "0000:ff:1f.7"):
        host.add_device(address)
    assert [device.address for device in read(host)] == ["0000:ff:1f.7", "ffff:00:00.0", "10000:e1:00.0"]


def test_a_pf_and_its_vfs_in_order(host: FakeHost) -> None:
    vfs = [f"0000:01:{number >> 3:02x}.{number & 7}" for number in range(12)]
    host.add_device(A, totalvfs=16)
    for address in vfs:
        host.add_device(address, physfn=A)
    pf, first, *_ = read(host)
    assert (pf.vfs, pf.sriov_totalvfs, pf.sriov_numvfs) == (tuple(vfs), 16, 12)
    assert (first.is_vf, first.physfn, pf.is_vf) == (True, A, False)


def test_cdev_needs_the_node_and_not_only_its_directory(host: FakeHost) -> None:
    host.add_device(A)
    os.makedirs(host.tree.path(f"{device_path(A)}/vfio-dev/vfio0"))
    assert read(host)[0].cdev is None
    host.put("/dev/vfio/devices/vfio0", "")
    assert read(host)[0].cdev == "/dev/vfio/devices/vfio0"


def test_a_field_without_permission_is_unavailable(
    host: FakeHost, spoil: Callable[[str, bounded_reads.ReadResult], None]
) -> None:
    host.add_device(A)
    spoil(f"{device_path(A)}/driver_override", OSError(errno.EACCES, "denied"))
    (device,) = read(host)
    assert (device.driver_override, device.unavailable) == (None, ("driver_override",))
    assert not device.blocked


def test_an_enoent_of_numvfs_is_unavailable(
    host: FakeHost, spoil: Callable[[str, bounded_reads.ReadResult], None]
) -> None:
    host.add_device(A, totalvfs=4)
    spoil(f"{device_path(A)}/sriov_numvfs", OSError(errno.ENOENT, "no such file"))
    (device,) = read(host)
    assert (device.sriov_totalvfs, device.sriov_numvfs, device.unavailable) == (4, None, ("sriov_numvfs",))


@pytest.mark.parametrize(("driver", "blocked"), [(None, True), ("nvme", False)])
def test_a_locked_device_is_blocked_if_its_driver_is_gone(
    host: FakeHost, spoil: Callable[[str, bounded_reads.ReadResult], None], driver: str | None, blocked: bool
) -> None:
    host.add_device(A, driver=driver)
    spoil(f"{device_path(A)}/driver_override", None)
    (device,) = read(host)
    assert (device.blocked, device.unavailable) == (blocked, ("driver_override",))
    with pytest.raises(TimeoutError):
        read_state(host.tree, A)


def test_a_malformed_number_is_unavailable(host: FakeHost) -> None:
    host.add_device(A, numa_node="none")
    assert read(host)[0].unavailable == ("numa_node",)


IDENTITY = {
    "vendor": "vendor_id",
    "device": "device_id",
    "subsystem_vendor": "subsystem_vendor_id",
    "subsystem_device": "subsystem_device_id",
    "revision": "revision",
    "class": "class_code",
}
NO_NUMBERS = [
    None, b"", b"\n", b"new\n", b"0x\n", b"32902\n", b"8086\n", b"0o17\n", b"0b1\n", b"0x80_86\n", b"-0x1\n",
    b"+1\n", b" 0x1\n", b"0x1 \n", b"0x\xd9\xa1\n", b"0x80\x0086\n", b"0x8\xff\n", b"0x" + b"1" * 5000,
    b"0x1234567\n",
]  # fmt: skip


@pytest.mark.parametrize("content", NO_NUMBERS)
@pytest.mark.parametrize("attribute", IDENTITY)
def test_an_id_that_cannot_be_read_comes_from_the_registers(
    host: FakeHost, attribute: str, content: bytes | None
) -> None:
    """They are the kernel's own source (``pci_setup_device()``)."""
    registers = bytearray(64)
    registers[0x00:0x04] = bytes.fromhex("8680d310")
    registers[0x08:0x0C] = bytes.fromhex("07800902")
    registers[0x2C:0x30] = bytes.fromhex("3c101fa0")
    host.add_device(A, config=bytes(registers))
    damage(host, attribute, content)
    (device,) = read(host)
    expected = {
        "vendor": 0x8086,
        "device": 0x10D3,
        "subsystem_vendor": 0x103C,
        "subsystem_device": 0xA01F,
        "revision": 7,
        "class": 0x020980,
    }
    assert getattr(device, IDENTITY[attribute]) == expected[attribute]
    assert device.unavailable == ()


@pytest.mark.parametrize("content", NO_NUMBERS)
@pytest.mark.parametrize("attribute", IDENTITY)
@pytest.mark.parametrize("registers", [None, b"\xff" * 63, b"\xff" * 64], ids=["none", "cut off", "silent"])
def test_an_id_that_cannot_be_known_is_unavailable(
    host: FakeHost, attribute: str, content: bytes | None, registers: bytes | None
) -> None:
    host.add_device(A)
    host.add_device(B)
    damage(host, attribute, content)
    damage(host, "config", registers)
    device, other = read(host)
    named = {
        "vendor": ("vendor", "device"),
        "device": ("device",),
        "class": ("class_name", "interface_name"),
        "subsystem_vendor": ("subsystem_vendor", "subsystem_device"),
    }.get(attribute, ())
    unseen = {IDENTITY[attribute], *named, *(() if registers and len(registers) == 64 else ("answers",))}
    assert (set(device.unavailable), other.unavailable) == (unseen, ())
    assert [getattr(device, name) for name in unseen] == [None] * len(unseen)
    assert device.answers is (False if registers and len(registers) == 64 else None)


def damage(host: FakeHost, attribute: str, content: bytes | None) -> None:
    host.remove(f"{device_path(A)}/{attribute}")
    if content is not None:
        host.put(f"{device_path(A)}/{attribute}", content)


def test_the_registers_of_a_vf_have_no_ids_and_those_of_a_bridge_no_subsystem(host: FakeHost) -> None:
    """PCI Express Base section 9.3.4.1.1; PCI-to-PCI Bridge Architecture section 3.2."""
    vf, bridge = bytearray(64), bytearray(64)
    vf[0:4] = b"\xff" * 4
    bridge[0x0E] = 0x81
    for address, registers in ((A, vf), (B, bridge)):
        host.add_device(address, config=bytes(registers))
        for attribute in IDENTITY:
            host.remove(f"{device_path(address)}/{attribute}")
    function, port = read(host)
    assert set(function.unavailable) == {"vendor_id", "device_id", "vendor", "device"}
    assert (function.answers, function.revision, function.subsystem_vendor_id) == (True, 0, 0)
    names = {"subsystem_vendor", "subsystem_device"}
    assert set(port.unavailable) == {"subsystem_vendor_id", "subsystem_device_id", *names}


def test_zeros_after_an_attribute_are_no_part_of_it(host: FakeHost) -> None:
    """tar fills a file up to the size that sysfs gives it, which is that of a page."""
    host.add_device(A, numa_node="1")
    for attribute, text in (("vendor", b"0x8086\n"), ("device", b"0x10d3\n"), ("numa_node", b"1\n")):
        host.put(f"{device_path(A)}/{attribute}", text.ljust(4096, b"\0"))
    (device,) = read(host)
    assert (device.vendor_id, device.device_id, device.numa_node) == (0x8086, 0x10D3, 1)


@pytest.mark.parametrize("state", ["D3hot", "D3cold"])
def test_a_device_that_sleeps_is_not_woken(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    asked: list[str] = []
    read_all = bounded_reads.read_all

    def recording(
        tree: Tree, paths: Sequence[str], *, most: Mapping[str, int] | None = None
    ) -> Mapping[str, bounded_reads.ReadResult]:
        asked.extend(path for path in paths if path.endswith("/config"))
        return read_all(tree, paths, most=most)

    monkeypatch.setattr(bounded_reads, "read_all", recording)
    host.add_device(A, power_state=state)
    host.add_device(B)
    asleep, awake = read(host)
    assert asked == [f"{device_path(B)}/config"]
    assert (asleep.answers, asleep.unavailable) == (None, ("answers",))
    assert (awake.answers, awake.unavailable) == (True, ())


def test_a_device_goes_with_its_entry_and_not_with_an_attribute(host: FakeHost) -> None:
    """An entry that leads nowhere is a device, of which nothing is known."""
    host.add_device(A)
    os.rename(host.tree.path(host.devices[A].folder), host.tree.path("/sys/elsewhere"))
    (device,) = read(host)
    known = {name for name in device.__dataclass_fields__ if getattr(device, name) is not None}
    assert known == {"address", "vfs", "blocked", "unavailable"}
    unknown = set(device.__dataclass_fields__) - known - {"physfn"}
    assert set(device.unavailable) >= unknown | {"vfs"}


@pytest.mark.parametrize("moment", ["before", "after", "between"])
def test_a_device_unplugged_while_it_is_read_is_left_out(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    for address in (A, B, C):
        host.add_device(address, group=1)
    names, read_bytes = Tree.names, Tree.read_bytes

    def names_and_unplug(tree: Tree, path: str) -> list[str]:
        if path != device_path(B):
            return names(tree, path)
        found = names(tree, path) if moment == "after" else []
        host.remove_device(B)
        return found or names(tree, path)

    def read_and_unplug(tree: Tree, path: str) -> bytes:
        content = read_bytes(tree, path)
        if path == f"{device_path(B)}/vendor":
            host.remove_device(B)
        return content

    if moment == "between":
        monkeypatch.setattr(Tree, "read_bytes", read_and_unplug)
    else:
        monkeypatch.setattr(Tree, "names", names_and_unplug)
    assert [device.address for device in read(host)] == [A, C]


def test_a_machine_without_pci(host: FakeHost) -> None:
    os.rmdir(host.tree.path("/sys/bus/pci/devices"))
    assert read(host) == []


def test_find_device(host: FakeHost) -> None:
    host.add_device(A)
    assert find_device(read(host), A).address == A
    with pytest.raises(DeviceNotFoundError, match=B):
        find_device(read(host), B)


def test_read_state_has_the_settings_that_binding_changes(host: FakeHost) -> None:
    host.add_device(A, driver="nvme", driver_override="nvme")
    assert read_state(host.tree, A) == DeviceState("nvme", "nvme", power_control="on")
    with pytest.raises(KernelError) as error:
        read_state(host.tree, B)
    assert error.value.errno == errno.ENOENT


def test_a_snapshot_has_devices_and_groups(host: FakeHost) -> None:
    host.add_device(A, group=40)
    host.add_device(B, group=2)
    seen = snapshot(host.tree, state_dir=host.state_dir)
    assert [device.address for device in seen.devices] == [A, B]
    assert [(group.id, group.devices) for group in seen.groups] == [(2, (B,)), (40, (A,))]


def test_a_listing_reads_one_register_of_a_device_that_answers(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a virtual machine each register takes 20 microseconds. Ones alone need the whole header."""
    asked: list[dict[str, int]] = []
    read_all = bounded_reads.read_all

    def recording(
        tree: Tree, paths: Sequence[str], *, most: Mapping[str, int] | None = None
    ) -> Mapping[str, bounded_reads.ReadResult]:
        asked.append(dict(most or {}))
        return read_all(tree, paths, most=most)

    monkeypatch.setattr(bounded_reads, "read_all", recording)
    host.add_device(A, totalvfs=1)
    host.add_device(B, physfn=A)
    host.add_device(C, config=b"\xff" * 256)
    assert [device.answers for device in read(host)] == [True, True, False]
    configs = [f"{device_path(address)}/config" for address in (A, B, C)]
    assert asked == [dict(zip(configs, (4, 64, 4), strict=True)), {configs[2]: 64}]
