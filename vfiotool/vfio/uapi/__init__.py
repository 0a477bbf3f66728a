"""The kernel's interface, written once as ctypes structures, one flag type an ioctl, and ioctl numbers.

tests/unit/test_uapi.py compares every size, offset and number with the C headers.
"""

from vfiotool.vfio.uapi.iommufd import *  # noqa: F403 - all of the kernel's names
from vfiotool.vfio.uapi.vfio import *  # noqa: F403
