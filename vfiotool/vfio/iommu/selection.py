"""Select the kernel's IOMMU interface for a device."""

from __future__ import annotations

import os

from vfiotool.errors import UnsupportedError, UsageError
from vfiotool.vfio.container import Container
from vfiotool.vfio.iommu.iommufd import Iommufd
from vfiotool.vfio.iommu.protocol import Iommu, IommuMode
from vfiotool.vfio.iommu.type1 import Type1
from vfiotool.vfio.nodes import IOMMUFD, cdev_of
from vfiotool.vfio.uapi import IommuType

AUTO = "auto"


def open_iommu(mode: str = AUTO, *, address: str | None = None) -> Iommu:
    """Open an IO address space of a mode: the value of an ``IommuMode``, or "auto".

    "auto" selects the best mode that the kernel offers, for a device if its ``address`` is given: iommufd if
    the device has a cdev, else type1v2, else type1. It never selects no-IOMMU mode.

    Raises:
        UsageError: there is no such mode.
        UnsupportedError: this kernel does not have the mode, or no mode at all.
        KernelError: the node of the mode cannot be opened.
    """
    chosen = _best(address) if mode == AUTO else _named(mode)
    return Iommufd() if chosen is IommuMode.IOMMUFD else Type1(chosen)


def offered_modes(address: str) -> tuple[IommuMode, ...]:
    """Return the modes in which a device on a VFIO driver can be opened on this machine, the best first.

    No-IOMMU mode is never among them.
    """
    modes = [IommuMode.IOMMUFD] if cdev_of(address) and os.path.exists(IOMMUFD) else []
    modes += [mode for mode in (IommuMode.TYPE1V2, IommuMode.TYPE1) if _offers_type1()]
    if os.path.exists(IOMMUFD):
        modes += [IommuMode.COMPAT_TYPE1V2, IommuMode.COMPAT_TYPE1]
    return tuple(modes)


def best_with_token(address: str) -> IommuMode:
    """Return the mode in which a device is best opened with a VF token: type1v2, which all kernels support.

    Raises:
        UnsupportedError: this kernel has no mode at all.
        KernelError: the node of the container cannot be opened.
    """
    return IommuMode.TYPE1V2 if _offers_type1() else _best(address)


def _offers_type1() -> bool:
    try:
        with Container() as container:
            return container.check_extension(IommuType.TYPE1v2)
    except UnsupportedError:
        return False


def _best(address: str | None) -> IommuMode:
    if os.path.exists(IOMMUFD) and (address is None or cdev_of(address)):
        return IommuMode.IOMMUFD
    with Container() as container:
        has_v2 = container.check_extension(IommuType.TYPE1v2)
    return IommuMode.TYPE1V2 if has_v2 else IommuMode.TYPE1


def _named(mode: str) -> IommuMode:
    try:
        return IommuMode(mode)
    except ValueError:
        names = ", ".join([AUTO, *(one.value for one in IommuMode)])
        raise UsageError(f"there is no IOMMU mode '{mode}'", hint=f"use one of {names}") from None
