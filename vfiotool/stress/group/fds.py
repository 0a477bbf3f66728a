"""The open fds of a group, and the system calls that open, use and close them.

A run executes these calls, and scripts copy those that they need. So the module uses Python's standard
library alone. The comment of each constant names the kernel's header.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

DEVICES = "/sys/bus/pci/devices"
DRIVERS = "/sys/bus/pci/drivers"
WITHOUT_IDS = ("vfio-pci", "pci-stub", "uio_pci_generic", "igb_uio", "pciback")  # they need an override

VFIO_SET_IOMMU = 0x3B66  # _IO(';', 100 + 2), <linux/vfio.h>
VFIO_GROUP_GET_STATUS = 0x3B67  # _IO(';', 100 + 3), <linux/vfio.h>
VFIO_GROUP_SET_CONTAINER = 0x3B68  # _IO(';', 100 + 4), <linux/vfio.h>
VFIO_GROUP_UNSET_CONTAINER = 0x3B69  # _IO(';', 100 + 5), <linux/vfio.h>
VFIO_GROUP_GET_DEVICE_FD = 0x3B6A  # _IO(';', 100 + 6), <linux/vfio.h>
VFIO_DEVICE_BIND_IOMMUFD = 0x3B76  # _IO(';', 100 + 18), <linux/vfio.h>
VFIO_DEVICE_ATTACH_IOMMUFD_PT = 0x3B77  # _IO(';', 100 + 19), <linux/vfio.h>
IOMMU_IOAS_ALLOC = 0x3B81  # _IO(';', 0x81), <linux/iommufd.h>
VFIO_TYPE1v2_IOMMU = 3  # <linux/vfio.h>


def write(path: str, text: str) -> int:
    """Write to a file of sysfs in a single system call."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
    return 0


class GroupFds:
    """The open fds of a group, of its devices, its containers and its iommufd. Not thread-safe.

    A method is a bare system call: nothing is refused here, and a call that blocks in the kernel blocks the
    caller. It returns the value of the call, or 0; OSError has the kernel's errno. Devices are named by their
    addresses, containers by numbers.
    """

    def __init__(self) -> None:
        self.opened: dict[str, list[int]] = {}  # of each object; the last fd is used
        self.nodes: dict[str, str] = {}  # the node of each device's group
        self.ioas_id = 0

    def open_container(self, number: int) -> int:
        """Open a container."""
        return self.open_node(f"container {number}", "/dev/vfio/vfio")

    def close_container(self, number: int) -> int:
        """Close a container; a group that is set to it keeps it."""
        return self.close_last(f"container {number}")

    def set_iommu(self, number: int) -> int:
        """Give a container its IOMMU."""
        fcntl.ioctl(self.last(f"container {number}"), VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU)
        return 0

    def open_group(self, device: str) -> int:
        """Open the group of a device. The kernel opens no second fd: if it does, close that fd."""
        self.open_node("group", self.node_of(device))
        if len(self.opened["group"]) > 1:
            self.close_group()
        return 0

    def close_group(self) -> int:
        """Close the group."""
        return self.close_last("group")

    def get_status(self) -> int:
        """Return the flags of the group: 1 viable, 2 a container is set."""
        status = bytearray(struct.pack("=II", 8, 0))  # struct vfio_group_status: argsz, flags
        fcntl.ioctl(self.last("group"), VFIO_GROUP_GET_STATUS, status)
        return int(struct.unpack("=II", status)[1])

    def set_container(self, number: int) -> int:
        """Set the group to a container."""
        container = struct.pack("=i", self.last(f"container {number}"))
        fcntl.ioctl(self.last("group"), VFIO_GROUP_SET_CONTAINER, container)
        return 0

    def unset_container(self) -> int:
        """Unset the group's container."""
        fcntl.ioctl(self.last("group"), VFIO_GROUP_UNSET_CONTAINER)
        return 0

    def get_device_fd(self, device: str) -> int:
        """Get an fd of a device from the group."""
        name = bytearray(self.opening_name(device) + b"\0")
        fd = fcntl.ioctl(self.last("group"), VFIO_GROUP_GET_DEVICE_FD, name)
        self.opened.setdefault(f"device {device}", []).append(fd)
        return 0

    def close_device(self, device: str) -> int:
        """Close the last fd of a device."""
        return self.close_last(f"device {device}")

    def open_cdev(self, device: str) -> int:
        """Open a device's own node."""
        for name in os.listdir(f"{DEVICES}/{device}/vfio-dev"):
            return self.open_node(f"cdev {device}", f"/dev/vfio/devices/{name}")
        raise FileNotFoundError(errno.ENOENT, "the device has no node of its own")

    def close_cdev(self, device: str) -> int:
        """Close a device's own node."""
        return self.close_last(f"cdev {device}")

    def bind_iommufd(self, device: str) -> int:
        """Bind a device to the iommufd."""
        self.ioas()
        argument = struct.pack("=IIiIQ", 24, 0, self.last("iommufd"), 0, 0)  # struct vfio_device_bind_iommufd
        fcntl.ioctl(self.last(f"cdev {device}"), VFIO_DEVICE_BIND_IOMMUFD, argument)
        return 0

    def attach_iommufd_pt(self, device: str) -> int:
        """Attach a device to the IO address space."""
        argument = struct.pack("=III", 12, 0, self.ioas())  # struct vfio_device_attach_iommufd_pt
        fcntl.ioctl(self.last(f"cdev {device}"), VFIO_DEVICE_ATTACH_IOMMUFD_PT, argument)
        return 0

    def bind(self, device: str, driver: str) -> int:
        """Bind a device without a driver. A driver with ids gets no override: the kernel compares the ids."""
        write(f"{DEVICES}/{device}/driver_override", driver if driver in WITHOUT_IDS else "\n")
        return write(f"{DRIVERS}/{driver}/bind", device)

    def unbind(self, device: str) -> int:
        """Unbind a device from its driver."""
        return write(f"{DEVICES}/{device}/driver/unbind", device)

    def opening_name(self, device: str) -> bytes:
        """Return the name by which the group opens a device."""
        return device.encode("ascii")

    def node_of(self, device: str) -> str:
        """Return the node of a device's group, also after the device was removed."""
        link = f"{DEVICES}/{device}/iommu_group"
        if os.path.islink(link):
            self.nodes[device] = "/dev/vfio/" + os.path.basename(os.readlink(link))
        return self.nodes[device]

    def ioas(self) -> int:
        """Return the id of the IO address space; the first call allocates it, with its iommufd."""
        if not self.opened.get("iommufd"):
            self.open_node("iommufd", "/dev/iommu")
            alloc = bytearray(struct.pack("=III", 12, 0, 0))  # struct iommu_ioas_alloc: size, flags, id
            fcntl.ioctl(self.last("iommufd"), IOMMU_IOAS_ALLOC, alloc)
            self.ioas_id = struct.unpack("=III", alloc)[2]
        return self.ioas_id

    def last_of(self, device: str) -> int:
        """Return the last fd of a device from the group, or else the fd of its own node."""
        return (self.opened.get(f"device {device}") or self.opened[f"cdev {device}"])[-1]

    def last(self, name: str) -> int:
        """Return the last fd of an object."""
        return self.opened[name][-1]

    def open_node(self, name: str, path: str) -> int:
        """Open a node."""
        self.opened.setdefault(name, []).append(os.open(path, os.O_RDWR))
        return 0

    def close_last(self, name: str) -> int:
        """Close the last fd of an object."""
        os.close(self.opened[name].pop())
        return 0

    def close_all(self) -> None:
        """Close all fds, those of the object that was opened last first."""
        for fds in reversed(self.opened.values()):
            while fds:
                os.close(fds.pop())
