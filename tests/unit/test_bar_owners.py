"""What else has a BAR: /proc/iomem as kernels print it, the error of an access, and doctor's check."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.memory_device_file import MMAP, READ, WRITE, MemoryDeviceFile, region_answer
from tests.unit.conftest import Run
from vfiotool.errors import KernelError
from vfiotool.host.bar_owners import BarOwner, bar_owners, device_ranges, how_to_release
from vfiotool.host.doctor import Check, examine
from vfiotool.testing import FakeHost
from vfiotool.vfio.regions import bar_errors
from vfiotool.vfio.regions.bar_errors import bar_error
from vfiotool.vfio.regions.regions import Regions

GPU, EDU, PF, VF = "0000:01:00.0", "0000:00:10.0", "0000:02:00.0", "0000:02:10.0"
MEMORY, PORTS = 0x200, 0x100


def resource(*ranges: tuple[int, int, int]) -> str:
    """Return the text of a device's ``resource`` file: a line for each BAR."""
    return "\n".join(f"0x{start:016x} 0x{end:016x} 0x{flags:016x}" for start, end, flags in ranges)


BARS = resource((0xE0000000, 0xEFFFFFFF, MEMORY), (0, 0, 0), (0xE000, 0xE07F, PORTS))
EFIFB = """00000000-00000fff : Reserved
00001000-0009ffff : System RAM
c0000000-febfffff : PCI Bus 0000:00
  e0000000-f0ffffff : PCI Bus 0000:01
    e0000000-efffffff : 0000:01:00.0
      e0000000-e07e8fff : efifb
    f0000000-f0003fff : 0000:01:00.1
      f0000000-f0003fff : vfio-pci
fee00000-fee00fff : Local APIC"""
SIMPLEFB = """e0000000-efffffff : 0000:01:00.0
  e0000000-e07e8fff : BOOTFB
    e0000000-e07e8fff : simplefb"""
BOOTFB = "e0000000-efffffff : 0000:01:00.0\n  e0000000-e07e8fff : BOOTFB"
RAMOOPS = """e0000000-efffffff : 0000:01:00.0
  e0010000-e0010fff : ramoops:dump(0/2)
  e0011000-e0011fff : ramoops:dump(1/2)"""
# Below four bridges the device is at the last level that the kernel shows, and so is what is inside it.
DEEP = """c0000000-febfffff : PCI Bus 0000:00
  e0000000-f1ffffff : PCI Bus 0000:01
    e0000000-f1ffffff : PCI Bus 0000:02
      e0000000-f1ffffff : PCI Bus 0000:03
        e0000000-f1ffffff : PCI Bus 0000:04
          e0000000-efffffff : 0000:01:00.0
          e0000000-e07e8fff : efifb
          f0000000-f0003fff : 0000:01:00.1
          f0000000-f0003fff : snd_hda_intel"""
HIDDEN = """00000000-00000000 : PCI Bus 0000:00
  00000000-00000000 : 0000:01:00.0
    00000000-00000000 : efifb
  00000000-00000000 : 0000:01:00.1
    00000000-00000000 : snd_hda_intel"""
QUIET = """e0000000-efffffff : 0000:01:00.0
  e0000000-efffffff : vfio-pci
  e1000000-e1ffffff : pnp 00:06
    e1000000-e10fffff : Reserved"""


@pytest.fixture
def machine(host: FakeHost) -> FakeHost:
    host.add_driver("vfio-pci")
    host.add_device(GPU, class_code=0x030000, driver="vfio-pci", group=1, resource=BARS)
    host.add_device(EDU, group=2, driver="edu", resource=resource((0xF2000000, 0xF20FFFFF, MEMORY)))
    return host


@pytest.mark.parametrize(
    ("iomem", "owners"),
    [
        (EFIFB, [(0, "efifb")]),
        (SIMPLEFB, [(0, "simplefb")]),
        (BOOTFB, []),
        (RAMOOPS, [(0, "ramoops:dump(0/2)"), (0, "ramoops:dump(1/2)")]),
        (DEEP, [(0, "efifb")]),
        (HIDDEN, [(None, "efifb")]),
        (QUIET, []),
        ("", []),
        ("e0000000-efffffff : 0000:01:00.0", []),
        ("not a range\n-: \nzz-yy : x\ne0000000-efffffff : 0000:01:00.0\n  1-2", []),
        ("e0000000-efffffff : 0000:01:00.0\n  e0-e1 : a\x1b[2J", [(0, "a?[2J")]),
    ],
)
def test_what_else_has_a_bar(machine: FakeHost, iomem: str, owners: list[tuple[int | None, str]]) -> None:
    machine.put("/proc/iomem", iomem)
    assert list(bar_owners(machine.tree, GPU)) == [BarOwner(*owner) for owner in owners]
    machine.put("/proc/iomem", device_ranges(machine.tree.read("/proc/iomem")))
    assert list(bar_owners(machine.tree, GPU)) == [BarOwner(*owner) for owner in owners], "in a capture"


def test_ports_have_owners_too(machine: FakeHost) -> None:
    machine.put(
        "/proc/ioports", "0000-0cf7 : PCI Bus 0000:00\n  e000-e07f : 0000:01:00.0\n    e000-e00f : it87"
    )
    assert bar_owners(machine.tree, GPU) == (BarOwner(2, "it87"),)


def test_up_to_5_17_the_firmwares_buffer_itself_is_busy(old_host: FakeHost) -> None:
    old_host.add_device(GPU, group=1, resource=BARS)
    old_host.put("/proc/iomem", BOOTFB)
    assert bar_owners(old_host.tree, GPU) == (BarOwner(0, "BOOTFB"),)
    assert "initcall_blacklist=sysfb_init" in how_to_release(old_host.tree, "BOOTFB")


def test_the_vfs_in_the_range_of_a_pf_are_no_owners(machine: FakeHost) -> None:
    machine.add_device(PF, resource=resource((0xE0000000, 0xE0003FFF, MEMORY)), group=3)
    machine.put(
        "/proc/iomem",
        f"e1000000-e10fffff : {PF}\n  e1000000-e1003fff : {VF}\n    e1000000-e1003fff : igbvf",
    )
    assert bar_owners(machine.tree, PF) == ()
    machine.put("/proc/iomem", f"00000000-00000000 : {PF}\n  00000000-00000000 : {VF}")
    assert bar_owners(machine.tree, PF) == (), "without root"


@given(text=st.text(alphabet="0123456789abcdef-: .\nvP\t\x1b", max_size=300))
def test_no_text_ends_in_a_traceback(host: FakeHost, text: str) -> None:
    host.put("/proc/iomem", f"{text}\ne0000000-efffffff : {GPU}\n{text}".encode())
    bar_owners(host.tree, GPU)
    device_ranges(text)


def test_a_capture_has_the_ranges_of_pci_devices_alone() -> None:
    kept = device_ranges(EFIFB)
    assert "System RAM" not in kept
    assert "Local APIC" not in kept
    assert kept.splitlines()[:2] == [
        "    e0000000-efffffff : 0000:01:00.0",
        "      e0000000-e07e8fff : efifb",
    ]


@pytest.mark.parametrize(
    ("name", "driver", "device", "command"),
    [
        ("efifb", "efi-framebuffer", "efi-framebuffer.0", "echo efi-framebuffer.0 > "),
        ("simpledrm", "simple-framebuffer", "simple-framebuffer.0", "echo simple-framebuffer.0 > "),
        ("vesafb", "vesa-framebuffer", "vesa-framebuffer.0", "echo vesa-framebuffer.0 > "),
    ],
)
def test_a_frame_buffer_is_unbound_with_a_command_that_exists(
    host: FakeHost, name: str, driver: str, device: str, command: str
) -> None:
    folder = f"/sys/bus/platform/drivers/{driver}"
    host.put(f"{folder}/unbind", "")
    assert how_to_release(host.tree, name) == f"end what has it: {name} in /proc/iomem"
    host.link(f"{folder}/{device}", f"/sys/devices/platform/{device}")
    assert how_to_release(host.tree, name).startswith(f"{command}{folder}/unbind")


def test_a_module_is_unloaded_if_it_can_be(host: FakeHost) -> None:
    assert "modprobe" not in how_to_release(host.tree, "ramoops:dump(0/2)")
    host.put("/sys/module/ramoops/initstate", "live")
    assert how_to_release(host.tree, "ramoops:dump(0/2)") == "modprobe -r ramoops"
    assert "modprobe" not in how_to_release(host.tree, "../etc")


@pytest.mark.parametrize(
    ("code", "index", "iomem", "says"),
    [
        (errno.EBUSY, 0, EFIFB, "failed: efifb has it (/proc/iomem) (EBUSY)"),
        (errno.EBUSY, 0, HIDDEN, "failed: efifb has it (/proc/iomem) (EBUSY)"),
        (errno.EBUSY, 2, EFIFB, "something else in the kernel has a part"),
        (errno.EBUSY, 0, "", "something else in the kernel has a part"),
        (errno.EBUSY, 7, EFIFB, "already in use (EBUSY)"),
        (errno.EIO, 0, EFIFB, "the device does not answer"),
    ],
)
def test_an_access_to_a_busy_bar_names_its_owner(
    machine: FakeHost, code: int, index: int, iomem: str, says: str
) -> None:
    machine.put("/proc/iomem", iomem)
    error = bar_error(KernelError(code, "pread", GPU), GPU, index, machine.tree)
    assert says in str(error)
    assert (error.errno, error.operation, error.subject) == (code, "pread", GPU)
    if code == errno.EBUSY and index <= 6:
        assert "vfiotool groups" not in error.hint, "no process holds it"


@pytest.mark.parametrize("access", ["read32", "write32", "map"])
def test_every_access_of_a_region_explains_ebusy(
    machine: FakeHost, monkeypatch: pytest.MonkeyPatch, access: str
) -> None:
    machine.put("/proc/iomem", EFIFB)
    monkeypatch.setattr(bar_errors, "Tree", lambda: machine.tree)

    def busy(*args: object, **kwargs: object) -> None:
        raise KernelError(errno.EBUSY, "open", GPU)

    with MemoryDeviceFile({0: region_answer(READ | WRITE | MMAP, size=4096, offset=0)}) as file:
        file.name = GPU
        region = Regions(file).bar0
        for name in ("pread", "pwrite", "map"):
            monkeypatch.setattr(file, name, busy)
        arguments = {"read32": (0,), "write32": (0, 1), "map": ()}[access]
        with pytest.raises(KernelError, match="efifb has it"):
            getattr(region, access)(*arguments)


def verdict(machine: FakeHost) -> Check:
    (found,) = [one for one in examine(machine.tree) if one.name == "bars"]
    return found


def test_doctor_checks_the_devices_on_vfio(machine: FakeHost, vfiotool: Run) -> None:
    machine.put("/proc/iomem", f"{EFIFB}\nf2000000-f20fffff : {EDU}\n  f2000000-f20fffff : edu")
    found = verdict(machine)
    assert (found.ok, found.detail) == (False, f"efifb has bar0 of {GPU}, which VFIO then cannot use")
    assert found.remedy == "end what has it: efifb in /proc/iomem"
    machine.put("/proc/iomem", HIDDEN)
    assert verdict(machine).detail.startswith(f"efifb has a BAR of {GPU}")
    machine.put("/proc/iomem", QUIET)
    assert verdict(machine).ok is True
