"""What standalone scripts are made of: ``standalone`` copies what one needs, and nothing is run here.

Each constant says which header has it. No function needs more than Python's standard library.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

DEVICES = "/sys/bus/pci/devices"
DRIVERS = "/sys/bus/pci/drivers"
PATIENCE_SECONDS = 30.0

VFIO_SET_IOMMU = 0x3B66  # _IO(';', 100 + 2), <linux/vfio.h>
VFIO_GROUP_GET_STATUS = 0x3B67  # _IO(';', 100 + 3), <linux/vfio.h>
VFIO_GROUP_SET_CONTAINER = 0x3B68  # _IO(';', 100 + 4), <linux/vfio.h>
VFIO_GROUP_UNSET_CONTAINER = 0x3B69  # _IO(';', 100 + 5), <linux/vfio.h>
VFIO_GROUP_GET_DEVICE_FD = 0x3B6A  # _IO(';', 100 + 6), <linux/vfio.h>
VFIO_DEVICE_BIND_IOMMUFD = 0x3B76  # _IO(';', 100 + 18), <linux/vfio.h>
VFIO_DEVICE_ATTACH_IOMMUFD_PT = 0x3B77  # _IO(';', 100 + 19), <linux/vfio.h>
IOMMU_IOAS_ALLOC = 0x3B81  # _IO(';', 0x81), <linux/iommufd.h>
VFIO_TYPE1v2_IOMMU = 3  # <linux/vfio.h>

fds: dict[str, list[int]] = {}  # what is open, by what it is of; the last is used
numbers: dict[str, int] = {}  # what the kernel has given
waiting: dict[str, tuple[int, int]] = {}  # unbinds that wait: the child, and the pipe that gives its errno
to_undo: list[Callable[[], object]] = []  # what is done at the end, the last first


class OtherwiseError(Exception):
    """An operation did not do what is expected of it."""

    def __init__(self, message: str, as_found: bool) -> None:
        super().__init__(message)
        self.as_found = as_found


class NoteError(Exception):
    """It went otherwise in a way that has no errno."""


def main(devices: Sequence[str], modules: Sequence[str], run: Callable[[], None]) -> int:
    """Take the devices, run, and give them back; 1: it goes as found, 0: as expected, 2: neither."""
    before: dict[str, tuple[str, str]] = {}
    try:
        try:
            for module in modules:
                subprocess.run(["modprobe", module], check=True)
            for device in devices:
                before[device] = driver_of(device), override_of(device)
                take(device)
            run()
        finally:
            clean_up()
            for device, (driver, override) in before.items():
                give_back(device, driver, override)
    except OtherwiseError as error:
        print(error)
        return 1 if error.as_found else 2
    except (OSError, subprocess.SubprocessError) as error:
        print(f"it cannot be run: {error}", file=sys.stderr)
        return 2
    print("all goes as expected")
    return 0


def clean_up() -> None:
    """Close all, and undo the rest."""
    for opened in fds.values():
        while opened:
            os.close(opened.pop())
    while to_undo:
        to_undo.pop()()


def step(
    operation: Callable[..., int],
    *arguments: int | str,
    errnos: Sequence[int] = (0,),
    value: int | None = None,
    found: tuple[int, int] | str | None = None,
) -> None:
    """Do an operation and print what comes of it; ``found`` is what came of it when the bug was found."""
    code, result, note = outcome(operation, *arguments)
    came = note or (errno.errorcode.get(code, str(code)) if code else f"0, {result}" if result else "0")
    print(f"{operation.__name__}({', '.join(map(str, arguments))}): {came}", flush=True)
    if not note and code in errnos and (code or value is None or result == value):
        return
    names = " or ".join(errno.errorcode.get(one, str(one)) for one in errnos)
    expected = names if value is None else f"{names}, {value}"
    raise OtherwiseError(
        f"it is otherwise than expected: {expected}",
        as_found=isinstance(found, str) if note else (code, result) == found,
    )


def outcome(operation: Callable[..., int], *arguments: int | str) -> tuple[int, int, str]:
    """Return its errno, what it gives, and what went otherwise beside that."""
    try:
        return 0, operation(*arguments), ""
    except OSError as error:
        return error.errno or errno.EIO, 0, ""
    except NoteError as error:
        return 0, 0, str(error)


# Drivers


def driver_of(device: str) -> str:
    """Return the driver that a device has, or nothing."""
    os.stat(f"{DEVICES}/{device}")
    try:
        return os.path.basename(os.readlink(f"{DEVICES}/{device}/driver"))
    except FileNotFoundError:
        return ""


def override_of(device: str) -> str:
    """Return which driver a device is meant for, or nothing."""
    with open(f"{DEVICES}/{device}/driver_override", encoding="ascii") as file:
        name = file.read().strip()
    return "" if name == "(null)" else name


def write(path: str, text: str) -> int:
    """Write what a file of sysfs takes, in one system call."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode("ascii"))
    finally:
        os.close(fd)
    return 0


def take(device: str) -> None:
    """Have a device on vfio-pci."""
    if driver_of(device) == "vfio-pci":
        return
    if driver_of(device):
        unbind(device)
    bind(device, "vfio-pci")


def give_back(device: str, driver: str, override: str) -> None:
    """Have a device on the driver that it had."""
    write(f"{DEVICES}/{device}/driver_override", override or "\n")
    if driver_of(device) not in ("", driver):
        unbind(device)
    if driver and not driver_of(device):
        write(f"{DRIVERS}/{driver}/bind", device)


def bind(device: str, driver: str) -> int:
    """Bind a device that has no driver."""
    write(f"{DEVICES}/{device}/driver_override", driver)
    return write(f"{DRIVERS}/{driver}/bind", device)


def unbind(device: str) -> int:
    """Take a device from its driver."""
    return write(f"{DEVICES}/{device}/driver/unbind", device)


def begin_unbind(device: str) -> int:
    """Write to ``unbind`` in a child, and see that it comes to wait in the kernel."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        unbind_in_child(device, theirs)
    os.close(theirs)
    waiting[device] = pid, ours
    to_undo.append(lambda: device in waiting and outcome(end_unbind, device))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_waiting(pid):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            raise NoteError("did not wait")
        if time.monotonic() > deadline:
            raise NoteError(f"neither waits nor ends after {PATIENCE_SECONDS:g} s (pid {pid})")
        time.sleep(0.001)
    return 0


def unbind_in_child(device: str, pipe: int) -> None:
    """Unbind, with nothing else open: a second fd of a device would keep it busy. Does not return."""
    os.dup2(pipe, 0)
    os.closerange(1, os.sysconf("SC_OPEN_MAX"))
    code = outcome(unbind, device)[0]
    os.write(0, code.to_bytes(4, "little"))
    os._exit(0)


def is_waiting(pid: int) -> bool:
    """Say whether a process sleeps in the kernel until a device is let go of."""
    try:
        with open(f"/proc/{pid}/stack", encoding="ascii") as file:
            stack = file.read()
    except OSError:
        return False
    return "vfio_unregister_group_dev" in stack or "vfio_del_group_dev" in stack


def end_unbind(device: str) -> int:
    """Wait until the unbind that was begun has ended."""
    pid, pipe = waiting.pop(device)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG):
        if time.monotonic() > deadline:
            raise NoteError(f"still waits {PATIENCE_SECONDS:g} s after nothing keeps it (pid {pid})")
        time.sleep(0.001)
    code = int.from_bytes(os.read(pipe, 4), "little")
    os.close(pipe)
    if code:
        raise OSError(code, os.strerror(code))
    return 0


def await_node(device: str, state: str) -> int:
    """Wait until the node of a device's group is ``there`` or ``gone``: a worker of the kernel does that."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while os.path.exists(group_node(device)) != (state == "there"):
        if time.monotonic() > deadline:
            raise NoteError(f"{group_node(device)} is not {state} after {PATIENCE_SECONDS:g} s")
        time.sleep(0.001)
    return 0


# Containers and groups


def open_container(number: int) -> int:
    """Open a container."""
    return keep(f"container {number}", "/dev/vfio/vfio")


def close_container(number: int) -> int:
    """Close a container; a group that is in it keeps it."""
    return close(f"container {number}")


def set_iommu(number: int) -> int:
    """Give a container its IOMMU."""
    fcntl.ioctl(fds[f"container {number}"][-1], VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU)
    return 0


def group_node(device: str) -> str:
    """Return the node of the group that a device is in."""
    return "/dev/vfio/" + os.path.basename(os.readlink(f"{DEVICES}/{device}/iommu_group"))


def open_group(device: str) -> int:
    """Open the group that a device is in."""
    return keep("group", group_node(device))


def close_group() -> int:
    """Close the group."""
    return close("group")


def get_status() -> int:
    """Return the flags of the group: 1 viable, 2 a container is set."""
    status = bytearray(struct.pack("=II", 8, 0))  # struct vfio_group_status: argsz, flags
    fcntl.ioctl(fds["group"][-1], VFIO_GROUP_GET_STATUS, status)
    return int(struct.unpack("=II", status)[1])


def set_container(number: int) -> int:
    """Put the group into a container."""
    container = struct.pack("=i", fds[f"container {number}"][-1])
    fcntl.ioctl(fds["group"][-1], VFIO_GROUP_SET_CONTAINER, container)
    return 0


def unset_container() -> int:
    """Take the group out of its container."""
    fcntl.ioctl(fds["group"][-1], VFIO_GROUP_UNSET_CONTAINER)
    return 0


def get_device_fd(device: str) -> int:
    """Have the group give an fd of a device."""
    name = bytearray(device.encode("ascii") + b"\0")
    fd = fcntl.ioctl(fds["group"][-1], VFIO_GROUP_GET_DEVICE_FD, name)
    fds.setdefault(f"device {device}", []).append(fd)
    return 0


def close_device(device: str) -> int:
    """Close the last fd of a device."""
    return close(f"device {device}")


# Nodes of single devices


def open_cdev(device: str) -> int:
    """Open a device's own node."""
    (name,) = os.listdir(f"{DEVICES}/{device}/vfio-dev")
    return keep(f"cdev {device}", f"/dev/vfio/devices/{name}")


def close_cdev(device: str) -> int:
    """Close a device's own node."""
    return close(f"cdev {device}")


def bind_iommufd(device: str) -> int:
    """Bind a device to the iommufd."""
    ioas()
    question = struct.pack("=IIiI", 16, 0, fds["iommufd"][-1], 0)  # struct vfio_device_bind_iommufd
    fcntl.ioctl(fds[f"cdev {device}"][-1], VFIO_DEVICE_BIND_IOMMUFD, question)
    return 0


def attach_iommufd_pt(device: str) -> int:
    """Attach a device to the IO address space."""
    question = struct.pack("=III", 12, 0, ioas())  # struct vfio_device_attach_iommufd_pt
    fcntl.ioctl(fds[f"cdev {device}"][-1], VFIO_DEVICE_ATTACH_IOMMUFD_PT, question)
    return 0


def ioas() -> int:
    """Return the id of the IO address space, which is made with its iommufd when it is first needed."""
    if "ioas" not in numbers:
        keep("iommufd", "/dev/iommu")
        alloc = bytearray(struct.pack("=III", 12, 0, 0))  # struct iommu_ioas_alloc: size, flags, out_ioas_id
        fcntl.ioctl(fds["iommufd"][-1], IOMMU_IOAS_ALLOC, alloc)
        numbers["ioas"] = struct.unpack("=III", alloc)[2]
    return numbers["ioas"]


def keep(what: str, path: str) -> int:
    """Open a node."""
    fds.setdefault(what, []).append(os.open(path, os.O_RDWR))
    return 0


def close(what: str) -> int:
    """Close the last fd of something."""
    os.close(fds[what].pop())
    return 0
