"""Regions, mapped registers and configuration space of real devices, on a real kernel.

edu (QEMU docs/specs/edu) shows the width of an access: below 0x80 it responds to 32 bits only. pci-testdev
(QEMU docs/specs/pci-testdev) has I/O ports, and counts what is written to them. The NVMe controller has its
MSI-X table in BAR0, and Power Management.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import mmap
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import vfiotool
from vfiotool.errors import AccessError, ClosedError, KernelError, UnsupportedError
from vfiotool.pci.capabilities.standard import MsiX, PowerManagement
from vfiotool.vfio.device import Device, open_device
from vfiotool.vfio.info import MmapArea
from vfiotool.vfio.mmio.mmio import Mmio
from vfiotool.vfio.regions.region import Region
from vfiotool.vfio.regions.register_space import RegisterSpace
from vfiotool.vfio.uapi import PciRegion

pytestmark = pytest.mark.needs_guest

EDU, TESTDEV, NVME = "0000:00:10.0", "0000:00:11.0", "0000:00:13.0"
DEVICES = (EDU, TESTDEV, NVME)
SECONDS = 60
EDU_IDENT = 0x010000ED
COMMAND = 0x04


@pytest.fixture(scope="module", autouse=True)
def devices_bound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """All three devices on vfio-pci for all of these tests: binding takes time."""
    with vfiotool.bound(*DEVICES, state_dir=str(tmp_path_factory.mktemp("state"))):
        yield


def opened(address: str) -> Device:
    """Open a device without the thread that handles the kernel's requests."""
    return open_device(address, honour_requests=False)


@pytest.fixture
def edu() -> Iterator[Device]:
    with opened(EDU) as device:
        yield device


@pytest.fixture
def bar0(edu: Device) -> Iterator[Mmio]:
    with edu.regions.bar0.map() as window:
        yield window


@pytest.fixture
def nvme() -> Iterator[Device]:
    with opened(NVME) as device:
        yield device


def sysfs(address: str, name: str) -> bytes:
    with open(f"/sys/bus/pci/devices/{address}/{name}", "rb") as file:
        return file.read()


def bar_sizes(address: str) -> dict[int, int]:
    """Return the kernel's sizes of the BARs and the ROM."""
    lines = sysfs(address, "resource").decode().splitlines()[:7]
    ends = [[int(word, 16) for word in line.split()[:2]] for line in lines]
    return {index: end - start + 1 for index, (start, end) in enumerate(ends) if end}


def mapped_files() -> str:
    with open("/proc/self/maps", encoding="ascii") as file:
        return file.read()


def device_is_mapped() -> bool:
    """Return True if this process maps a device's file, from a group or a cdev."""
    return "[vfio-device]" in mapped_files() or "/dev/vfio/" in mapped_files()


# The regions of a device


@pytest.mark.parametrize("address", DEVICES)
def test_regions_are_those_of_sysfs(address: str) -> None:
    expected = bar_sizes(address)
    config = sysfs(address, "config")
    with opened(address) as device:
        sizes = {region.index: region.size for region in device.regions}
        assert sizes.pop(PciRegion.CONFIG) == len(config)
        assert sizes == expected
        for index in range(10):
            assert (index in device.regions) == (index in expected or index == PciRegion.CONFIG)
        with pytest.raises(UnsupportedError, match=f"{address} has no vga") as caught:
            device.regions.vga  # noqa: B018 - it raises
        assert "bar0" in caught.value.hint


@pytest.mark.parametrize("address", DEVICES)
def test_configuration_space_is_that_of_sysfs(address: str) -> None:
    """Except what the kernel emulates: command register, interrupt line, BARs, hidden capabilities."""
    with opened(address) as device:
        config, kernels = device.config, sysfs(address, "config")
        raw = config.raw()
        assert len(raw) == len(kernels)
        for start, end in ((0, 4), (8, 0x10), (0x2C, 0x30)):
            assert raw[start:end] == kernels[start:end]
        assert raw == config.read(config.size)
        assert (config.vendor_id, config.device_id) == struct.unpack_from("<HH", kernels)
        assert [config.read8(at) for at in range(64)] == list(raw[:64])
        assert [config.read16(at) for at in range(0, 64, 2)] == list(struct.unpack("<32H", raw[:64]))
        assert [config.read32(at) for at in range(0, 64, 4)] == list(struct.unpack("<16I", raw[:64]))
        assert [config.read64(at) for at in range(0, 64, 8)] == list(struct.unpack("<8Q", raw[:64]))


def test_capabilities_are_those_of_the_device(nvme: Device) -> None:
    kernels = sysfs(NVME, "config")
    at, chain = kernels[0x34], []
    while at:
        chain.append((kernels[at], at))
        at = kernels[at + 1]
    assert [(one.id, one.offset) for one in nvme.config.capabilities() if not one.extended] == chain
    found = nvme.config.find(0x11)
    assert found is not None
    assert isinstance(found.content, MsiX)
    control, table, pending = struct.unpack_from("<HII", kernels, found.offset + 2)
    assert (found.content.count, found.content.table_offset | found.content.table_bar) == (
        (control & 0x7FF) + 1,
        table,
    )
    assert found.content.pba_offset | found.content.pba_bar == pending
    assert nvme.config.find(0x05) is None


def test_bits_of_the_command_register(edu: Device) -> None:
    config = edu.config
    before = config.command
    assert config.memory
    assert not config.bus_master, "it is off when a device is opened"
    config.bus_master = True
    assert config.command == before | 4
    assert sysfs(EDU, "config")[COMMAND] & 4, "the kernel has it too"
    config.bus_master = False
    assert config.command == before
    assert not sysfs(EDU, "config")[COMMAND] & 4


# Access


def spaces(edu: Device, bar0: Mmio) -> tuple[RegisterSpace, RegisterSpace]:
    return bar0, edu.regions.bar0


@pytest.mark.parametrize("which", [0, 1], ids=["mapped", "calls"])
def test_edus_registers(edu: Device, bar0: Mmio, which: int) -> None:
    space = spaces(edu, bar0)[which]
    assert space.size == 1 << 20
    assert space.read32(0x00) == EDU_IDENT
    space.write32(0x04, 0x12345678)
    assert space.read32(0x04) == 0xFFFFFFFF ^ 0x12345678
    space.write32(0x08, 7)
    deadline = time.monotonic() + SECONDS
    while space.read32(0x20) & 1:
        assert time.monotonic() < deadline
    assert space.read32(0x08) == 5040


def test_the_device_sees_the_width_of_each_access(edu: Device, bar0: Mmio) -> None:
    """For an access of an unsupported width edu returns 0 (too narrow) or ones (too wide)."""
    for space in spaces(edu, bar0):
        assert space.read8(0) == space.read16(0) == 0
        assert space.read32(0) == EDU_IDENT
    assert bar0.read64(0) == (1 << 64) - 1
    bar0.write32(0x04, 0)
    for write in (bar0.write8, bar0.write16, bar0.write64):
        write(0x04 if write != bar0.write64 else 0x00, 0x55)
        assert bar0.read32(0x04) == 0xFFFFFFFF, "edu did not take it"
    bar0.write64(0x80, 0x1122334455667788)
    assert bar0.read64(0x80) == 0x1122334455667788, "two of 32 bits would have left the half of it"


def test_64_bits_by_a_system_call_may_be_two_accesses(edu: Device, bar0: Mmio) -> None:
    found = edu.regions.bar0.read64(0)
    assert found in ((1 << 64) - 1, bar0.read32(4) << 32 | EDU_IDENT)


def test_blocks_and_fifos(bar0: Mmio) -> None:
    bar0.write_fifo(0x04, struct.pack("<3I", 1, 2, 3))
    assert bar0.read32(0x04) == 0xFFFFFFFC
    assert bar0.read_block(0, 8) == struct.pack("<II", EDU_IDENT, 0xFFFFFFFC)
    assert bar0.read_block(0, 8, 16) == bytes(8), "with accesses of the requested width"
    assert bar0.read_block(0, 16, 64) == b"\xff" * 16
    assert bar0.read_fifo(0, 12) == struct.pack("<I", EDU_IDENT) * 3
    bar0.write_block(0x80, struct.pack("<QQ", 0x1000, 0x40000), 64)
    assert bar0.read_block(0x80, 16, 64) == struct.pack("<QQ", 0x1000, 0x40000)


@pytest.mark.parametrize("mapped", [True, False])
def test_testdev_counts_writes(mapped: bool) -> None:
    """BAR0 is memory, BAR1 has I/O ports, which the kernel cannot map."""
    with opened(TESTDEV) as device, contextlib.ExitStack() as stack:
        region = device.regions.bar0 if mapped else device.regions.bar1
        space: RegisterSpace = stack.enter_context(region.map()) if mapped else region
        space.write8(0, 0)
        assert region.read(16, 16).startswith(b"mmio-" if mapped else b"portio-")
        offset, data = space.read32(4), space.read8(8)
        assert space.read32(12) == 0
        for count in range(1, 4):
            space.write8(offset, data)
            assert space.read32(12) == count


def test_ports_are_not_mapped_and_are_bounded() -> None:
    with opened(TESTDEV) as device:
        ports = device.regions.bar1
        assert ports.areas == ()
        with pytest.raises(AccessError, match="the kernel cannot map this region"):
            ports.map()
        uses: list[Callable[[], object]] = [
            lambda: ports.read32(ports.size),
            lambda: ports.read(8, ports.size - 4),
            lambda: ports.write(b"12345678", ports.size - 4),
        ]
        for use in uses:
            with pytest.raises(AccessError, match="lies outside"):
                use()


def test_parts_of_a_region_are_mapped(edu: Device) -> None:
    region = edu.regions.bar0
    assert region.areas == (MmapArea(0, region.size),)
    for offset, size in ((0, 8), (4, 4), (0, 4096)):
        with region.map(offset, size) as window:
            assert window.read32(0) == (EDU_IDENT if not offset else region.read32(offset))
            with pytest.raises(AccessError):
                window.read32(size)
    with region.map(region.size - 8) as window:
        assert window.read_block(0, 8) == region.read(8, region.size - 8)


# MSI-X


def test_the_msix_table_is_guarded(nvme: Device) -> None:
    found = nvme.config.find(0x11)
    assert found is not None
    assert isinstance(found.content, MsiX)
    msix, region = found.content, nvme.regions.bar0
    assert region.info.msix_mappable
    last = msix.table_offset + msix.table_size - 4
    with region.map() as window, region.map(msix.table_offset, 4096) as table:
        before = window.read_block(msix.table_offset, msix.table_size)
        assert before[12:16] == b"\1\0\0\0", "a vector is masked"
        uses: list[Callable[[], object]] = [
            lambda: window.write32(msix.table_offset, 0x11),
            lambda: window.write8(last + 3, 0),
            lambda: table.write32(0, 0x11),
            lambda: window.write32(msix.pba_offset, 0x11),
            lambda: window.write_block(msix.table_offset - 4, bytes(8)),
            lambda: region.write32(last, 0x11),
            lambda: region.write(bytes(8), msix.table_offset - 4),
        ]
        for use in uses:
            with pytest.raises(AccessError, match="is forbidden: the MSI-X"):
                use()
        assert window.read_block(msix.table_offset, msix.table_size) == before
        assert region.read(msix.table_size, msix.table_offset) == b"\xff" * msix.table_size, "see Region"
        low, high = window.read32(0), window.read32(4)
        assert window.read64(0) == high << 32 | low, "what lies around is accessible"


# Memory that is off


def refused_and_alive(window: Mmio, why: str) -> None:
    with pytest.raises(AccessError, match=why):
        window.read32(0)
    with pytest.raises(AccessError, match=why):
        window.write_block(0, bytes(8))


def test_memory_that_is_off_is_an_error_and_no_signal(edu: Device, bar0: Mmio) -> None:
    edu.config.memory = False
    refused_and_alive(bar0, "memory is off")
    with edu.regions.bar0.map() as other:
        refused_and_alive(other, "memory is off")
        with pytest.raises(KernelError) as caught:
            edu.regions.bar0.read32(0)
        assert caught.value.errno == errno.EIO
        edu.config.memory = True
        assert other.read32(0) == bar0.read32(0) == EDU_IDENT


def test_an_unblocked_access_is_a_signal(edu: Device) -> None:
    with mmap.mmap(edu.fileno(), 4096, offset=edu.regions.bar0.info.offset) as memory:
        edu.config.memory = False
        pid = os.fork()
        if not pid:
            faulthandler.disable()
            os._exit(memory[0])
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGBUS
        edu.config.memory = True
        assert memory[:4] == struct.pack("<I", EDU_IDENT)


def test_d3hot_is_an_error_and_no_signal(nvme: Device) -> None:
    found = nvme.config.find(0x01)
    assert found is not None
    assert isinstance(found.content, PowerManagement)
    assert found.content.state == "D0"
    state = found.offset + 4
    with nvme.regions.bar0.map() as window:
        version = window.read32(8)
        nvme.config.write16(state, 3)
        refused_and_alive(window, "in D3hot")
        nvme.config.write16(state, 0)
        assert window.read32(8) == version


def test_memory_goes_off_while_threads_access(edu: Device, bar0: Mmio) -> None:
    """Each access reaches the device or plain memory, or is refused; none kills the process."""
    done = threading.Event()
    failed: list[BaseException] = []

    def use() -> None:
        while not done.is_set():
            try:
                bar0.read32(0)
            except AccessError:
                continue
            except BaseException as error:
                failed.append(error)

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        edu.config.memory = False
        edu.config.memory = True
    done.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert bar0.read32(0) == EDU_IDENT


# The end


def test_a_device_is_free_once_its_windows_are_closed_with_it(edu: Device, bar0: Mmio) -> None:
    edu.close()
    with pytest.raises(ClosedError, match="bar0"):
        bar0.read32(0)
    with pytest.raises(ClosedError):
        edu.regions.bar0.read32(0)
    with pytest.raises(ClosedError):
        edu.regions.bar0.map()
    opened(EDU).close()


def test_a_released_device_lets_the_unbind_complete() -> None:
    """While a thread uses the registers, and no object is closed."""
    device = opened(EDU)
    window = device.regions.bar0.map()
    outcome: list[BaseException] = []

    def use() -> None:
        try:
            while True:
                window.read32(0)
        except BaseException as error:
            outcome.append(error)

    user = threading.Thread(target=use)
    user.start()
    driver = f"/sys/bus/pci/devices/{EDU}/driver"
    write = "import sys; open('/sys/bus/pci/drivers/vfio-pci/unbind', 'w').write(sys.argv[1])"
    with subprocess.Popen([sys.executable, "-c", write, EDU]) as unbind:
        deadline = time.monotonic() + SECONDS
        while os.path.lexists(driver):
            assert time.monotonic() < deadline
        assert unbind.poll() is None, "the write waits for the device's end"
        assert device_is_mapped()
        device.file.revoke("the test wants it back")
        assert unbind.wait(SECONDS) == 0
    user.join(SECONDS)
    assert isinstance(outcome[0], ClosedError)
    assert outcome[0].hint == "the test wants it back"
    window.close()
    device.close()
    with open("/sys/bus/pci/drivers/vfio-pci/bind", "w", encoding="ascii") as bind:
        bind.write(EDU)
    opened(EDU).close()


def test_a_child_of_fork_neither_has_nor_holds_the_device(edu: Device, bar0: Mmio) -> None:
    reader, writer = os.pipe()
    wait, go = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(go)
        os.write(writer, b"1" if child_is_clean(edu, bar0) else b"0")
        os.read(wait, 1)
        os._exit(0)
    os.close(wait)
    assert os.read(reader, 1) == b"1"
    assert bar0.read32(0) == EDU_IDENT
    edu.close()
    opened(EDU).close()
    os.close(go)
    assert os.waitpid(pid, 0)[1] == 0
    os.close(reader)
    os.close(writer)


def child_is_clean(edu: Device, bar0: Mmio) -> bool:
    uses: list[Callable[[], object]] = [
        lambda: bar0.read32(0),
        lambda: edu.regions.bar0.read32(0),
        lambda: edu.config.vendor_id,
        lambda: setattr(edu.config, "memory", False),
    ]
    for use in uses:
        try:
            use()
        except ClosedError:
            continue
        return False
    return not device_is_mapped()


def test_a_large_window_is_closed_without_free_memory() -> None:
    """Without overcommit the kernel has no writable memory to replace a large BAR."""
    fd = os.memfd_create("device")
    os.truncate(fd, 1 << 42)
    window = Mmio.of_file(fd, 0, 1 << 42, write=True, name="bar0")
    os.close(fd)
    address = window.address
    setting = "/proc/sys/vm/overcommit_memory"
    with open(setting, encoding="ascii") as file:
        before = file.read()
    with open(setting, "w", encoding="ascii") as file:
        file.write("2")
    try:
        window.close()
    finally:
        with open(setting, "w", encoding="ascii") as file:
            file.write(before)
    (line,) = [line for line in mapped_files().splitlines() if line.startswith(f"{address:x}-")]
    assert " r--p " in line


def test_repr(edu: Device, bar0: Mmio) -> None:
    assert repr(edu.regions.bar0) == f"<Region bar0 of {EDU}, 0x100000 bytes>"
    assert isinstance(edu.config, Region)
    assert f"bar0 of {EDU}" in repr(bar0)
