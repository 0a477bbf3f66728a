"""Reset of a device: its function alone, or all devices on its bus or slot."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from ctypes import sizeof
from dataclasses import dataclass
from typing import Protocol

from vfiotool.errors import KernelError, RefusedError, UnsupportedError
from vfiotool.pci.address import address_text
from vfiotool.vfio.device_file import DeviceFile
from vfiotool.vfio.device_info import read_device_info
from vfiotool.vfio.info_ioctl import InfoReply
from vfiotool.vfio.uapi import (
    DeviceInfoFlags,
    DeviceIoctl,
    HotResetInfoFlags,
    vfio_pci_dependent_device,
    vfio_pci_hot_reset,
    vfio_pci_hot_reset_info,
)

_NOT_OWNED = (1 << 32) - 1  # VFIO_PCI_DEVID_NOT_OWNED
_MOST_DEVICES = 1 << 16  # the most functions that a PCI segment can have
_ATTEMPTS = 4


class OpenGroup(Protocol):
    """A group that this process has open, for example a ``Group``."""

    id: int

    def fileno(self) -> int:
        """Return the file descriptor of the group."""


@dataclass(frozen=True, slots=True)
class DependentDevice:
    """A device that a hot reset also resets; ``group`` is its IOMMU group.

    If the hot reset device was opened by its cdev (since 6.6), ``group`` is None, and ``owned`` is True if
    the reset may include this device: it belongs to the same iommufd, or to nobody.
    """

    address: str
    group: int | None
    owned: bool | None


@dataclass(frozen=True, slots=True)
class HotResetInfo:
    """VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: the devices that a hot reset resets, the device itself included."""

    flags: HotResetInfoFlags
    devices: tuple[DependentDevice, ...]


def reset_function(file: DeviceFile) -> None:
    """Reset the function alone. The kernel restores its configuration space, but not its registers.

    Raises:
        UnsupportedError: the device has no function reset.
        KernelError: EAGAIN, another reset is running; any other errno, the reset failed.
    """
    if DeviceInfoFlags.RESET not in read_device_info(file).flags:
        raise UnsupportedError(
            f"{file.name} has no function reset", hint="hot_reset() resets all devices of its bus or slot"
        )
    file.ioctl(DeviceIoctl.VFIO_DEVICE_RESET, bytearray())


def read_hot_reset_info(file: DeviceFile) -> HotResetInfo:
    """Return the devices that a hot reset would reset.

    Raises:
        UnsupportedError: no bridge above the device can reset its bus or slot.
        KernelError: EBADMSG for a malformed reply.
    """
    return _hot_reset_info(_ask(file))


def hot_reset(file: DeviceFile, groups: Iterable[OpenGroup] = ()) -> None:
    """Reset the bus or slot of the device, and with it all devices there.

    ``groups`` are the groups that this process has open; they must contain all of these devices. A device
    that was opened by its cdev needs no groups: its iommufd must own all of these devices.

    Raises:
        UnsupportedError: as for ``read_hot_reset_info``.
        RefusedError: this process does not own a device: ``reasons`` names each such device and its group.
        KernelError: the reset failed.
    """
    info = read_hot_reset_info(file)
    affected = {device.group for device in info.devices}
    passed = {group.id: group for group in groups if group.id in affected}
    _require_owned(file, info, frozenset(passed))
    fds = [group.fileno() for group in passed.values()]
    size = sizeof(vfio_pci_hot_reset) + 4 * len(fds)
    question = bytes(vfio_pci_hot_reset(argsz=size, count=len(fds)))
    file.ioctl(
        DeviceIoctl.VFIO_DEVICE_PCI_HOT_RESET, bytearray(question + struct.pack(f"={len(fds)}i", *fds))
    )


def _ask(file: DeviceFile) -> InfoReply:
    """Query the devices of a hot reset, with a larger buffer if there are more."""
    request = DeviceIoctl.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO
    size = sizeof(vfio_pci_hot_reset_info)
    for _ in range(_ATTEMPTS):  # more than two only if devices appear meanwhile
        data = bytearray(bytes(vfio_pci_hot_reset_info(argsz=size)).ljust(size, b"\0"))
        try:
            file.ioctl(request, data)
        except KernelError as error:
            if error.errno == errno.ENODEV:
                raise _no_bridge(file) from None
            if error.errno != errno.ENOSPC:
                raise
        else:
            return InfoReply(bytes(data), request.name, file.name)
        count = InfoReply(bytes(data), request.name, file.name).read(vfio_pci_hot_reset_info).count
        if count > _MOST_DEVICES:
            break
        size = sizeof(vfio_pci_hot_reset_info) + count * sizeof(vfio_pci_dependent_device)
    raise InfoReply(bytes(data), request.name, file.name).malformed(f"{count} devices never fit")


def _no_bridge(file: DeviceFile) -> UnsupportedError:
    return UnsupportedError(
        f"{file.name} cannot be hot reset: no bridge above it can reset its bus or slot",
        hint="a device on a root bus can only be reset alone, with reset()",
    )


def _hot_reset_info(answer: InfoReply) -> HotResetInfo:
    head = answer.read(vfio_pci_hot_reset_info)
    flags = HotResetInfoFlags(head.flags)
    found = answer.read_array(vfio_pci_dependent_device, sizeof(vfio_pci_hot_reset_info), head.count)
    by_id = HotResetInfoFlags.DEV_ID in flags
    return HotResetInfo(flags, tuple(_dependent(device, by_id) for device in found))


def _dependent(device: vfio_pci_dependent_device, by_id: bool) -> DependentDevice:
    slot, function = device.devfn >> 3, device.devfn & 7
    address = address_text(device.segment, device.bus, slot, function)
    if by_id:
        return DependentDevice(address, None, device.group_id != _NOT_OWNED)
    return DependentDevice(address, device.group_id, None)


def _require_owned(file: DeviceFile, info: HotResetInfo, groups: frozenset[int]) -> None:
    reasons = [
        f"{device.address} of group {device.group}" if device.owned is None else device.address
        for device in info.devices
        if not (device.group in groups if device.owned is None else device.owned)
    ]
    if reasons:
        raise RefusedError(
            f"a hot reset of {file.name} would reset devices that this process does not own: "
            f"{', '.join(reasons)}",
            reasons=reasons,
            hint="bind these devices to vfio-pci as well, and open and pass their groups",
        )
