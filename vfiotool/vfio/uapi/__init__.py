"""The kernel's interface, written once as ctypes structures, one flag type per ioctl, and ioctl numbers.

tests/unit/test_uapi.py compares every size, offset and number with the C headers.
"""

from vfiotool.vfio.uapi import iommufd, vfio
from vfiotool.vfio.uapi.iommufd import *  # noqa: F403 - all of the kernel's names
from vfiotool.vfio.uapi.vfio import *  # noqa: F403

__all__: list[str] = []
__all__ += iommufd.__all__
__all__ += vfio.__all__
