"""vfiotool.vfio.reset: which devices are reset, and whose they are, with IrqDevice in place of the kernel."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.irq_device import ADDRESS, INFO_PCI, IrqDevice
from tests.support.strategies import examples
from vfiotool.errors import KernelError, RefusedError, UnsupportedError, VfioToolError
from vfiotool.vfio.handle import Handle
from vfiotool.vfio.reset import hot_reset, read_hot_reset_info, reset_function
from vfiotool.vfio.uapi import DeviceIoctl, HotResetInfoFlags

INFO = DeviceIoctl.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO
DEV_ID, DEV_ID_OWNED = 1, 2
NOT_OWNED = (1 << 32) - 1
PAIR = [(13, 0, 3, 0x08), (13, 0, 3, 0x10)]


class OpenGroup(Handle):
    """An open group."""

    def __init__(self, number: int) -> None:
        super().__init__(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), f"group {number}")
        self.id = number


@pytest.fixture
def device() -> Iterator[IrqDevice]:
    with IrqDevice() as opened:
        yield opened


@pytest.fixture
def groups() -> Iterator[tuple[OpenGroup, OpenGroup]]:
    """Groups 13 and 14."""
    with OpenGroup(13) as first, OpenGroup(14) as second:
        yield first, second


def test_a_function_is_reset(device: IrqDevice) -> None:
    reset_function(device)
    assert device.resets == 1


def test_a_function_without_reset_is_not_reset(device: IrqDevice) -> None:
    device.info_flags = INFO_PCI
    with pytest.raises(UnsupportedError, match=f"{ADDRESS} has no function reset"):
        reset_function(device)
    assert device.resets == 0


def test_a_concurrent_reset_is_named(device: IrqDevice) -> None:
    device.answers[DeviceIoctl.VFIO_DEVICE_RESET] = lambda data: -errno.EAGAIN
    with pytest.raises(KernelError, match="another reset") as caught:
        reset_function(device)
    assert caught.value.errno == errno.EAGAIN


def test_the_devices_of_a_hot_reset_are_listed(device: IrqDevice) -> None:
    device.dependents = [(13, 0xFFFF, 0x3A, 0xFF), (14, 0, 0, 0)]
    info = read_hot_reset_info(device)
    assert [(one.address, one.group, one.owned) for one in info.devices] == [
        ("ffff:3a:1f.7", 13, None),
        ("0000:00:00.0", 14, None),
    ]
    assert info.flags == HotResetInfoFlags(0)


def test_devices_of_an_iommufd_are_owned_or_not(device: IrqDevice) -> None:
    device.hot_reset_flags = DEV_ID
    device.dependents = [(1, 0, 3, 0x08), (0, 0, 3, 0x10), (NOT_OWNED, 0, 3, 0x18)]
    info = read_hot_reset_info(device)
    assert [(one.group, one.owned) for one in info.devices] == [(None, True), (None, True), (None, False)]


def test_a_device_on_a_root_bus_has_no_hot_reset(device: IrqDevice) -> None:
    for use in (read_hot_reset_info, hot_reset):
        with pytest.raises(UnsupportedError, match="no bridge above it"):
            use(device)


def test_a_hot_reset_passes_each_affected_group_once(
    device: IrqDevice, groups: tuple[OpenGroup, OpenGroup]
) -> None:
    device.dependents = PAIR
    hot_reset(device, [groups[0], groups[1], groups[0]])
    assert device.hot_resets == [(groups[0].fileno(),)]


def test_a_hot_reset_of_several_groups(device: IrqDevice, groups: tuple[OpenGroup, OpenGroup]) -> None:
    device.dependents = [(14, 0, 3, 0x08), (13, 0, 3, 0x10)]
    hot_reset(device, groups)
    assert [sorted(fds) for fds in device.hot_resets] == [sorted(group.fileno() for group in groups)]


def test_devices_of_others_are_named_before_the_ioctl(
    device: IrqDevice, groups: tuple[OpenGroup, OpenGroup]
) -> None:
    device.dependents = [*PAIR, (15, 0, 3, 0x18), (16, 0, 3, 0x19)]
    with pytest.raises(RefusedError) as caught:
        hot_reset(device, groups)
    assert caught.value.reasons == ("0000:03:03.0 of group 15", "0000:03:03.1 of group 16")
    assert all(reason in str(caught.value) for reason in caught.value.reasons)
    assert device.hot_resets == []


def test_a_device_of_an_iommufd_is_hot_reset_without_groups(device: IrqDevice) -> None:
    device.hot_reset_flags = DEV_ID | DEV_ID_OWNED
    device.dependents = [(1, 0, 3, 0x08), (0, 0, 3, 0x10)]
    hot_reset(device)
    assert device.hot_resets == [()]


def test_a_device_of_another_iommufd_is_named(device: IrqDevice) -> None:
    device.hot_reset_flags = DEV_ID
    device.dependents = [(1, 0, 3, 0x08), (NOT_OWNED, 0, 3, 0x10)]
    with pytest.raises(RefusedError, match=r"this process does not own: 0000:03:02\.0"):
        hot_reset(device)
    assert device.hot_resets == []


def test_the_buffer_grows_for_devices_that_appear(device: IrqDevice) -> None:
    device.dependents = PAIR[:1]
    asked: list[int] = []

    def answer(data: bytearray) -> int:
        asked.append(len(data))
        if len(asked) == 2:
            device.dependents = PAIR
        return device._vfio_device_get_pci_hot_reset_info(data)

    device.answers[INFO] = answer
    assert len(read_hot_reset_info(device).devices) == 2
    assert asked == [12, 20, 28]


@pytest.mark.parametrize("count", [0, 3, (1 << 16) + 1, (1 << 32) - 1])
def test_a_buffer_that_is_never_large_enough_is_an_error(device: IrqDevice, count: int) -> None:
    def answer(data: bytearray) -> int:
        assert len(data) <= 12 + 8 * (1 << 16)
        struct.pack_into("=I", data, 8, count)
        return -errno.ENOSPC

    device.answers[INFO] = answer
    with pytest.raises(KernelError) as caught:
        read_hot_reset_info(device)
    assert caught.value.errno == errno.EBADMSG
    assert f"{count} devices never fit" in caught.value.hint


def test_devices_beyond_the_reply_are_not_read(device: IrqDevice) -> None:
    def answer(data: bytearray) -> int:
        struct.pack_into("=3I", data, 0, len(data), 0, 1 << 31)
        return 0

    device.answers[INFO] = answer
    with pytest.raises(KernelError) as caught:
        read_hot_reset_info(device)
    assert caught.value.errno == errno.EBADMSG


@examples(300)
@given(st.lists(st.tuples(st.binary(max_size=80), st.sampled_from([0, 0, errno.ENOSPC, errno.ENODEV]))))
def test_any_reply_gives_a_reset_or_a_named_error(answers: list[tuple[bytes, int]]) -> None:
    remaining = iter(answers)

    def answer(data: bytearray) -> int:
        written, code = next(remaining, (b"", errno.ENOSPC))
        room = min(len(written), len(data))
        data[:room] = written[:room]
        return -code

    with IrqDevice() as device, OpenGroup(0) as group:
        device.answers[INFO] = answer
        try:
            hot_reset(device, [group])
        except VfioToolError:
            assert device.hot_resets == []
        else:
            assert device.hot_resets in ([()], [(group.fileno(),)])
