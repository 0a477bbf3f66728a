"""The info ioctls of a device's file. Each returns a frozen snapshot."""

from __future__ import annotations

import ctypes
import errno
from functools import partial

from vfiotool.errors import KernelError
from vfiotool.vfio.device_file import DeviceFile
from vfiotool.vfio.info import (
    DeviceInfo,
    IrqInfo,
    RegionInfo,
    parse_device_info,
    parse_irq_info,
    parse_region_info,
)
from vfiotool.vfio.info_ioctl import InfoReply, query_info
from vfiotool.vfio.uapi import DeviceIoctl, vfio_device_info, vfio_irq_info, vfio_region_info


def read_device_info(file: DeviceFile) -> DeviceInfo:
    """Return the type of the device and the numbers of its regions and interrupt indexes.

    Raises:
        KernelError: EBADMSG for a malformed reply.
    """
    return parse_device_info(_ask(file, DeviceIoctl.VFIO_DEVICE_GET_INFO, vfio_device_info()))


def read_region_info(file: DeviceFile, index: int) -> RegionInfo:
    """Return offset, size and access rights of a region; the index may be a ``PciRegion``.

    Raises:
        KernelError: EINVAL, there is no such region; EBADMSG for a malformed reply.
    """
    return parse_region_info(
        _ask_of(file, DeviceIoctl.VFIO_DEVICE_GET_REGION_INFO, vfio_region_info(), index)
    )


def read_irq_info(file: DeviceFile, index: int) -> IrqInfo:
    """Return the number of interrupts of an index, which may be a ``PciIrq``.

    Raises:
        KernelError: EINVAL, there is no such index.
    """
    return parse_irq_info(_ask_of(file, DeviceIoctl.VFIO_DEVICE_GET_IRQ_INFO, vfio_irq_info(), index))


def _ask_of(
    file: DeviceFile, request: DeviceIoctl, question: vfio_region_info | vfio_irq_info, index: int
) -> InfoReply:
    if not 0 <= index < 1 << 32:  # ctypes would truncate it to another index
        raise KernelError(errno.EINVAL, request.name, file.name)
    question.index = index
    return _ask(file, request, question)


def _ask(file: DeviceFile, request: DeviceIoctl, question: ctypes.Structure) -> InfoReply:
    return query_info(partial(file.ioctl, request), question, request.name, file.name)
