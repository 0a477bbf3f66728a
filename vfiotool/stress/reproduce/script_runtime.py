"""The functions of standalone scripts: ``script`` copies those that a script needs.

The comment of each constant names the kernel's header. All functions use Python's standard library, and
``GroupFds``, which a script copies too.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import re
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from vfiotool.stress.group.fds import DEVICES, DRIVERS, GroupFds, write

PATIENCE_SECONDS = 30.0
LOG_SECONDS = 2.0  # the longest delay of a line in the kernel's log
MOMENT_SECONDS = 2.0  # the longest sleep for a lock
GONE = (errno.ENODEV, errno.ENOENT, errno.ENXIO, errno.EAGAIN)  # the errnos of a device that went away

VFIO_DEVICE_GET_REGION_INFO = 0x3B6C  # _IO(';', 100 + 8), <linux/vfio.h>
VFIO_DEVICE_SET_IRQS = 0x3B6E  # _IO(';', 100 + 10), <linux/vfio.h>
VFIO_DEVICE_RESET = 0x3B6F  # _IO(';', 100 + 11), <linux/vfio.h>
VFIO_IOMMU_MAP_DMA = 0x3B71  # _IO(';', 100 + 13), <linux/vfio.h>
VFIO_IOMMU_UNMAP_DMA = 0x3B72  # _IO(';', 100 + 14), <linux/vfio.h>
IOMMU_IOAS_MAP = 0x3B85  # _IO(';', 0x85), <linux/iommufd.h>
IOMMU_IOAS_UNMAP = 0x3B86  # _IO(';', 0x86), <linux/iommufd.h>
VFIO_PCI_CONFIG_REGION_INDEX = 7  # <linux/vfio.h>
VFIO_PCI_INTX_IRQ_INDEX = 0  # <linux/vfio.h>
VFIO_IRQ_SET_DATA_NONE = 1 << 0  # <linux/vfio.h>
VFIO_IRQ_SET_DATA_EVENTFD = 1 << 2  # <linux/vfio.h>
VFIO_IRQ_SET_ACTION_MASK = 1 << 3  # <linux/vfio.h>
VFIO_IRQ_SET_ACTION_UNMASK = 1 << 4  # <linux/vfio.h>
VFIO_IRQ_SET_ACTION_TRIGGER = 1 << 5  # <linux/vfio.h>
VFIO_DMA_MAP_FLAG_READ = 1 << 0  # <linux/vfio.h>
VFIO_DMA_MAP_FLAG_WRITE = 1 << 1  # <linux/vfio.h>
VFIO_DMA_UNMAP_FLAG_ALL = 1 << 1  # <linux/vfio.h>
IOMMU_IOAS_MAP_FIXED_IOVA = 1 << 0  # <linux/iommufd.h>
IOMMU_IOAS_MAP_WRITEABLE = 1 << 1  # <linux/iommufd.h>
IOMMU_IOAS_MAP_READABLE = 1 << 2  # <linux/iommufd.h>
SLOTS = 32
SLOT_BYTES = 64 << 10
IOVA = 0x1000000  # of the first slot

group = GroupFds()
numbers: dict[str, int] = {}  # numbers to remember, by their object
waiting: dict[str, tuple[int, int]] = {}  # the child that works on a device, and the pipe of its errno
memory: list[mmap.mmap] = []  # the memory for DMA, in slots
to_undo: list[Callable[[], object]] = []  # called at the end, the last first


Call = tuple[Any, ...]  # a function, and its arguments


class UnexpectedError(Exception):
    """The result of an operation is not as expected. ``as_found``: it is the result of the finding."""

    def __init__(self, message: str, as_found: bool) -> None:
        super().__init__(message)
        self.as_found = as_found


class NoteError(Exception):
    """An operation failed in a way that no errno shows."""


def main(devices: Sequence[str], modules: Sequence[str], run: Callable[[], None]) -> int:
    """Take the devices, run, and give them back. Return 1 for the finding, 0 for no finding, else 2."""
    before: dict[str, tuple[str, str]] = {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # to give the devices back
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
    except UnexpectedError as error:
        print(error)
        return 1 if error.as_found else 2
    except (OSError, subprocess.SubprocessError) as error:
        print(f"the script cannot run: {error}", file=sys.stderr)
        return 2
    print("all goes as expected")
    return 0


def clean_up() -> None:
    """Close all fds, and call what is in ``to_undo``."""
    group.close_all()
    while to_undo:
        to_undo.pop()()


def step(
    operation: Callable[..., int],
    *arguments: int | str | Call,
    errnos: Sequence[int] = (0,),
    value: int | None = None,
    found: tuple[int, int] | str | None = None,
) -> None:
    """Execute an operation and print its result. ``found`` is the result when the bug was found."""
    code, result, note = outcome(operation, *arguments)
    came = note or (f"0, {result}" if result and not code else name_of(code))
    print(f"{shown((operation, *arguments))}: {came}", flush=True)
    if not note and code in errnos and (code or value is None or result == value):
        return
    names = " or ".join(map(name_of, errnos))
    expected = names if value is None else f"{names}, {value}"
    raise UnexpectedError(
        f"the result is unexpected; expected: {expected}",
        as_found=isinstance(found, str) if note else (code, result) == found,
    )


def name_of(code: int) -> str:
    """Return an errno's name, or ``0``."""
    return errno.errorcode.get(code, str(code))


def shown(part: int | str | Call) -> str:
    """Return a call, or an argument, as a text."""
    if not isinstance(part, tuple):
        return str(part)
    operation, *arguments = part
    return f"{operation.__name__}({', '.join(map(shown, arguments))})"


def outcome(operation: Callable[..., int], *arguments: int | str | Call) -> tuple[int, int, str]:
    """Execute an operation; return its errno, its result, and a note of a failure that no errno shows."""
    try:
        return 0, operation(*arguments), ""
    except OSError as error:
        return error.errno or errno.EIO, 0, ""
    except NoteError as error:
        return 0, 0, str(error)


# The kernel's log


def open_log() -> int:
    """Return a descriptor of the kernel's log, for the lines that are logged from now on."""
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(fd, 0, os.SEEK_END)
    return fd


def see_log(fd: int, pattern: str) -> None:
    """Raise UnexpectedError if the kernel logs a line like that of the finding."""
    deadline = time.monotonic() + LOG_SECONDS
    while time.monotonic() < deadline:
        try:
            line = os.read(fd, 8192).decode("utf-8", "replace").partition(";")[2].partition("\n")[0]
        except BlockingIOError:
            time.sleep(0.1)
            continue
        if re.search(pattern, line):
            raise UnexpectedError(f"the kernel logs: {line}", as_found=True)


# Drivers


def driver_of(device: str) -> str:
    """Return the driver of a device, or an empty text."""
    os.stat(f"{DEVICES}/{device}")
    try:
        return os.path.basename(os.readlink(f"{DEVICES}/{device}/driver"))
    except FileNotFoundError:
        return ""


def override_of(device: str) -> str:
    """Return the driver_override of a device, or an empty text."""
    with open(f"{DEVICES}/{device}/driver_override", encoding="ascii") as file:
        name = file.read().strip()
    return "" if name == "(null)" else name


def take(device: str) -> None:
    """Bind a device to vfio-pci."""
    if driver_of(device) == "vfio-pci":
        return
    if driver_of(device):
        group.unbind(device)
    group.bind(device, "vfio-pci")


def give_back(device: str, driver: str, override: str) -> None:
    """Bind a device to its former driver."""
    write(f"{DEVICES}/{device}/driver_override", override or "\n")
    if driver_of(device) not in ("", driver):
        group.unbind(device)
    if driver and not driver_of(device):
        outcome(write, f"{DRIVERS}/{driver}/bind", device)  # the kernel may have bound it meanwhile
    if driver_of(device) != driver:
        raise OSError(errno.EIO, f"{device} is not on its former driver '{driver}'")


# Operations that block in the kernel


def begin_unbind(device: str) -> int:
    """Start an unbind in a child, and check that it blocks in the kernel."""
    begin(device, group.unbind, device)
    return require_wait(device)


def begin(device: str, operation: Callable[..., int], *arguments: str) -> None:
    """Start an operation on a device in a child without other fds: a second fd would keep the device busy."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(theirs, 0)
        os.closerange(1, os.sysconf("SC_OPEN_MAX"))
        os.write(0, outcome(operation, *arguments)[0].to_bytes(4, "little"))
        os._exit(0)
    os.close(theirs)
    waiting[device] = pid, ours
    to_undo.append(lambda: device in waiting and outcome(end_wait, device))


def require_wait(device: str) -> int:
    """Check that the operation that was started blocks in the kernel."""
    if not comes_to_wait(device):
        raise NoteError("did not wait")
    return 0


def comes_to_wait(device: str) -> bool:
    """Wait until the started operation sleeps in the kernel, or has ended; return True if it sleeps."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_waiting(waiting[device][0]):
        if has_ended(device, 0):
            return False
        if time.monotonic() > deadline:
            raise NoteError(f"neither waits nor ends after {PATIENCE_SECONDS:g} s (pid {waiting[device][0]})")
        time.sleep(0.001)
    return True


def is_waiting(pid: int) -> bool:
    """Return True if a process sleeps in the kernel until all fds of a device are closed."""
    seen = []
    for name in ("status", "stack", "status"):
        try:
            with open(f"/proc/{pid}/{name}", encoding="ascii") as file:
                seen.append(file.read())
        except OSError:
            return False
    before, stack, after = seen
    if before != after or not ("State:\tS" in after or "State:\tD" in after):
        return False  # the task runs in the kernel, or gave way to another task
    innermost = stack.partition("\n")[0]
    return " vfio_unregister_group_dev+" in innermost or " vfio_del_group_dev+" in innermost


def has_ended(device: str, seconds: float) -> bool:
    """Wait at most ``seconds`` for the end of the started operation; return True if it has ended."""
    return bool(select.select([waiting[device][1]], [], [], seconds)[0])


def end_wait(device: str) -> int:
    """Wait until the started operation has ended."""
    pid, pipe = waiting[device]
    ended = has_ended(device, PATIENCE_SECONDS)
    del waiting[device]
    if not ended:
        raise NoteError(f"still waits {PATIENCE_SECONDS:g} s after the device was closed (pid {pid})")
    os.waitpid(pid, 0)
    code = int.from_bytes(os.read(pipe, 4), "little")
    os.close(pipe)
    if code:
        raise OSError(code, os.strerror(code))
    return 0


def await_node(device: str, state: str) -> int:
    """Wait until the node of a device's group is ``there`` or ``gone``, by a worker of the kernel."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while os.path.exists(group.node_of(device)) != (state == "there"):
        if time.monotonic() > deadline:
            raise NoteError(f"{group.node_of(device)} is not {state} after {PATIENCE_SECONDS:g} s")
        time.sleep(0.001)
    return 0


# Two at once


def at_once(other: Call, ours: Call, head_start_us: int, *allowed: str) -> int:
    """Execute two operations at once, the first in a child. Their results must be in ``allowed``."""
    operation, device, *more = other
    begin(device, operation, device, *more)
    spin(head_start_us)
    code = outcome(*ours)[0]
    waits = comes_to_wait(device)
    if waits and f"waits and {kind_of(code)}" not in allowed and has_ended(device, MOMENT_SECONDS):
        waits = False  # the operation slept for a lock
    came = f"{'waits' if waits else kind_of(outcome(end_wait, device)[0])} and {kind_of(code)}"
    if came not in allowed:
        raise NoteError(f"{came}, not {' or '.join(allowed)}")
    return 0


def kind_of(code: int) -> str:
    """Return an errno's name; the errnos of a device that went away count as one."""
    return "gone" if code in GONE else name_of(code)


def spin(microseconds: int) -> None:
    """Wait without a sleep, which is too coarse."""
    end = time.perf_counter() + microseconds / 1e6
    while time.perf_counter() < end:
        pass


def remove_while_mapping(device: str, container: int) -> int:
    """Start to remove a device, which blocks, and check that map and unmap still work."""
    note_removal(device)
    begin(device, write, f"{DEVICES}/{device}/remove", "1")
    for slot in range(16):
        code = outcome(map_dma, container, slot, 1)[0]
        if code:
            raise NoteError(f"map_dma during the removal: {name_of(code)}")
        code, size, _ = outcome(unmap_dma, container, slot, 1)
        if code or size != SLOT_BYTES:
            raise NoteError(f"unmap_dma during the removal: {name_of(code)}, {size}")
    return require_wait(device)


def close_while_resetting(device: str, head_start_us: int) -> int:
    """Close the last fd of a device while a thread resets the device by that fd."""
    codes: list[int] = []
    fd = group.last_of(device)
    thread = threading.Thread(target=lambda: codes.append(outcome(reset_by, fd)[0]))
    thread.start()
    spin(head_start_us)
    try:
        group.close_device(device)
    finally:
        thread.join()
    if codes[0] not in (0, errno.EBADF, errno.EINVAL, errno.ENOTTY):
        raise NoteError(f"the reset gave {name_of(codes[0])}")
    return 0


# Operations on a device


def reset(device: str) -> int:
    """Reset a function."""
    return reset_by(group.last_of(device))


def reset_by(fd: int) -> int:
    """Reset a function. While a process reads its uevent file in sysfs, a reset gives EAGAIN: repeat it."""
    deadline = time.monotonic() + 1
    while True:
        try:
            fcntl.ioctl(fd, VFIO_DEVICE_RESET)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)
        else:
            return 0


def read_config(device: str) -> int:
    """Return the first 32 bits of configuration space: the device and vendor ids."""
    info = bytearray(struct.pack("=IIIIQQ", 32, 0, VFIO_PCI_CONFIG_REGION_INDEX, 0, 0, 0))
    fcntl.ioctl(group.last_of(device), VFIO_DEVICE_GET_REGION_INFO, info)
    offset = struct.unpack("=IIIIQQ", info)[5]
    return int.from_bytes(os.pread(group.last_of(device), 4, offset), "little")


def set_irqs(device: str, flags: int, index: int, start: int, count: int, data: bytes = b"") -> int:
    """Execute VFIO_DEVICE_SET_IRQS; a positive result is the number of vectors that could be enabled."""
    argument = struct.pack("=IIIII", 20 + len(data), flags, index, start, count) + data
    if fcntl.ioctl(group.last_of(device), VFIO_DEVICE_SET_IRQS, bytearray(argument)):
        raise OSError(errno.ENOSPC, "fewer vectors")
    return 0


def enable_irqs(device: str, index: int, count: int, eventfds: int) -> int:
    """Enable ``count`` vectors; the first ``eventfds`` of them have an eventfd."""
    vectors = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(eventfds)]
    data = struct.pack(f"={count}i", *vectors, *[-1] * (count - eventfds))
    set_irqs(device, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, index, 0, count, data)
    group.opened[f"irqs of {device}"] = vectors
    numbers[f"irqs of {device}"] = index
    return 0


def trigger_irq(device: str, vector: int, times: int) -> int:
    """Trigger an interrupt by software; return the number of signals of its eventfd."""
    for _ in range(times):
        flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER
        set_irqs(device, flags, numbers[f"irqs of {device}"], vector, 1)
    return signalled(group.opened[f"irqs of {device}"][vector])


def signalled(eventfd: int) -> int:
    """Return the number of an eventfd's signals since it was last read."""
    try:
        return os.eventfd_read(eventfd)
    except BlockingIOError:
        return 0


def mask_irq(device: str) -> int:
    """Mask INTx."""
    return set_irqs(device, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_MASK, VFIO_PCI_INTX_IRQ_INDEX, 0, 1)


def unmask_irq(device: str) -> int:
    """Unmask INTx."""
    return set_irqs(
        device, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK, VFIO_PCI_INTX_IRQ_INDEX, 0, 1
    )


def disable_irqs(device: str) -> int:
    """Disable interrupts; return the number of signals that no call triggered."""
    flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER
    set_irqs(device, flags, numbers[f"irqs of {device}"], 0, 0)
    return sum(signalled(one) for one in group.opened[f"irqs of {device}"])


# DMA


def address_of(slot: int) -> int:
    """Return the address of a slot in memory. No child inherits it: a fork would copy pinned pages."""
    if not memory:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        memory.append(mmap.mmap(-1, SLOTS * SLOT_BYTES, flags=flags))
        memory[0].madvise(mmap.MADV_DONTFORK)
    return ctypes.addressof(ctypes.c_char.from_buffer(memory[0])) + slot * SLOT_BYTES


def map_dma(container: int, slot: int, slots: int) -> int:
    """Map slots in a container: struct vfio_iommu_type1_dma_map."""
    flags, iova = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE, IOVA + slot * SLOT_BYTES
    argument = struct.pack("=IIQQQ", 32, flags, address_of(slot), iova, slots * SLOT_BYTES)
    fcntl.ioctl(group.last(f"container {container}"), VFIO_IOMMU_MAP_DMA, argument)
    return 0


def unmap_dma(container: int, slot: int, slots: int) -> int:
    """Unmap slots in a container, and return the number of unmapped bytes."""
    return unmap_range(container, 0, IOVA + slot * SLOT_BYTES, slots * SLOT_BYTES)


def unmap_dma_all(container: int) -> int:
    """Unmap everything in a container, and return the number of unmapped bytes."""
    return unmap_range(container, VFIO_DMA_UNMAP_FLAG_ALL, 0, 0)


def unmap_range(container: int, flags: int, iova: int, size: int) -> int:
    """Execute VFIO_IOMMU_UNMAP_DMA: struct vfio_iommu_type1_dma_unmap."""
    argument = bytearray(struct.pack("=IIQQ", 24, flags, iova, size))
    fcntl.ioctl(group.last(f"container {container}"), VFIO_IOMMU_UNMAP_DMA, argument)
    return int(struct.unpack("=IIQQ", argument)[3])


def map_ioas(slot: int, slots: int) -> int:
    """Map slots in the IO address space: struct iommu_ioas_map."""
    flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE
    iova, size = IOVA + slot * SLOT_BYTES, slots * SLOT_BYTES
    argument = struct.pack("=IIIIQQQ", 40, flags, group.ioas(), 0, address_of(slot), size, iova)
    fcntl.ioctl(group.last("iommufd"), IOMMU_IOAS_MAP, argument)
    return 0


def unmap_ioas(slot: int, slots: int) -> int:
    """Unmap slots in the IO address space, and return the number of unmapped bytes."""
    return unmap_ioas_range(IOVA + slot * SLOT_BYTES, slots * SLOT_BYTES)


def unmap_ioas_all() -> int:
    """Unmap everything in the IO address space, and return the number of unmapped bytes."""
    try:
        return unmap_ioas_range(0, (1 << 64) - 1)
    except FileNotFoundError:
        return 0


def unmap_ioas_range(iova: int, size: int) -> int:
    """Execute IOMMU_IOAS_UNMAP: struct iommu_ioas_unmap."""
    argument = bytearray(struct.pack("=IIQQ", 24, group.ioas(), iova, size))
    fcntl.ioctl(group.last("iommufd"), IOMMU_IOAS_UNMAP, argument)
    return int(struct.unpack("=IIQQ", argument)[3])


def pins() -> int:
    """Return the number of pages that the kernel accounts to this process as locked or pinned."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        kilobytes = sum(int(line.split()[1]) for line in lines if line.startswith(("VmLck:", "VmPin:")))
    return (kilobytes << 10) // mmap.PAGESIZE


# The bus


def remove(device: str) -> int:
    """Take a device off the bus."""
    note_removal(device)
    return write(f"{DEVICES}/{device}/remove", "1")


def note_removal(device: str) -> None:
    """Prepare for the removal of a device: remember its group's node, and rescan the bus at the end."""
    group.node_of(device)  # sysfs has it only until the removal
    to_undo.append(lambda: os.path.exists(f"{DEVICES}/{device}") or rescan())


def rescan() -> int:
    """Rescan the bus: the kernel finds removed devices."""
    return write("/sys/bus/pci/rescan", "1")


def await_driver(device: str, driver: str) -> int:
    """Wait until a device has its driver, which may come after the rescan."""
    if not os.path.exists(f"{DEVICES}/{device}"):
        raise NoteError(f"{device} was not found again")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (now := driver_of(device)) != driver:
        if now or time.monotonic() > deadline:
            raise NoteError(f"{device} was found and has the driver '{now}', not '{driver}'")
        time.sleep(0.001)
    return 0


def set_vfs(device: str, count: int) -> int:
    """Set the number of VFs; no host driver binds to them."""
    autoprobe, numvfs = (f"{DEVICES}/{device}/sriov_{name}" for name in ("drivers_autoprobe", "numvfs"))
    if autoprobe not in numbers:
        with open(autoprobe, encoding="ascii") as file:
            numbers[autoprobe] = int(file.read())
        to_undo.append(lambda: write(autoprobe, str(numbers[autoprobe])))
        to_undo.append(lambda: write(numvfs, "0"))
        write(autoprobe, "0")
    return write(numvfs, str(count))
