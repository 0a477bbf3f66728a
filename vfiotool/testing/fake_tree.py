"""A machine's ``/sys``, ``/proc`` and ``/dev`` as files below a folder, in the kernel's layout."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vfiotool.host.attributes import DEVICES, DRIVERS, GROUPS, device_path
from vfiotool.host.groups import is_vfio_driver
from vfiotool.host.tree import Tree
from vfiotool.testing.built_config import config_space

DRIVERS_PROBE = "/sys/bus/pci/drivers_probe"
# Classes whose devices have nodes -> major numbers for local use (Documentation/admin-guide/devices.txt).
_NUMBERED = {"block": 240, "drm": 241, "nvme": 242, "uio": 243}
_BOOT_ID = "b007b007-0000-4000-8000-000000000001"
MSI_REGION = "0x00000000fee00000 0x00000000feefffff msi"


@dataclass(slots=True)
class FakeDriver:
    """A PCI driver: the ``(vendor, device)`` ids that it supports; ``is_loaded`` if its module is loaded."""

    ids: set[tuple[int, int]]
    is_loaded: bool


@dataclass(frozen=True, slots=True)
class FakePciDevice:
    """The fixed properties of a PCI device; ``folder`` is its path in ``/sys/devices``."""

    ids: tuple[int, int]
    class_code: int
    group: int | None
    folder: str


@dataclass
class FakeTree:
    """Writes the tree of a kernel of release ``kernel``. It does not imitate the kernel's actions."""

    root: str
    kernel: str = "6.12.0"
    tree: Tree = field(init=False)
    devices: dict[str, FakePciDevice] = field(init=False, default_factory=dict)
    drivers: dict[str, FakeDriver] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if os.path.realpath(self.root) == "/":
            raise ValueError("a fake host needs a folder other than /")
        self.tree = Tree(self.root)
        for folder in (DEVICES, DRIVERS, GROUPS, "/dev"):
            os.makedirs(self.tree.path(folder))
        self.put(DRIVERS_PROBE, "")
        self.put("/proc/self/mountinfo", "")
        self.put("/proc/sys/kernel/osrelease", self.kernel)
        self.put("/proc/sys/kernel/random/boot_id", _BOOT_ID)

    def put(self, path: str, content: str | bytes) -> None:
        """Write a file; text gets a final newline, as the kernel writes it."""
        os.makedirs(self.tree.path(os.path.dirname(path)), exist_ok=True)
        with open(self.tree.path(path), "wb") as file:
            file.write(content if isinstance(content, bytes) else f"{content}\n".encode())

    def remove(self, path: str) -> None:
        """Remove a file or link, if it exists."""
        if self.tree.exists(path):
            os.unlink(self.tree.path(path))

    def link(self, path: str, target: str) -> None:
        """Create a relative symbolic link, as in sysfs."""
        os.makedirs(self.tree.path(os.path.dirname(path)), exist_ok=True)
        os.symlink(os.path.relpath(target, os.path.dirname(path)), self.tree.path(path))

    def add_device(
        self,
        address: str,
        *,
        vendor: int = 0x1234,
        device: int = 0x11E8,
        class_code: int = 0x00FF00,
        driver: str | None = None,
        group: int | None = None,
        bridge: str | None = None,
        domain_of: str | None = None,
        physfn: str | None = None,
        totalvfs: int | None = None,
        config: bytes | None = None,
        **attributes: str,
    ) -> None:
        """Add a device below a ``bridge`` or on its domain's root bus, with additional ``attributes``.

        ``domain_of`` is the device that makes the domain, such as an Intel VMD; else the firmware makes it.
        The driver is added if it does not exist. A host driver then supports the ids of the device.
        """
        folder = f"{self._parent_folder(address, bridge, domain_of, physfn)}/{address}"
        self.devices[address] = FakePciDevice((vendor, device), class_code, group, folder)
        numbers = {"vendor": vendor, "device": device, "subsystem_vendor": 0, "subsystem_device": 0}
        for name, number in numbers.items():
            self.put(f"{folder}/{name}", f"0x{number:04x}")
        self.put(f"{folder}/class", f"0x{class_code:06x}")
        self.put(
            f"{folder}/config", config or config_space(vendor=vendor, device=device, class_code=class_code)
        )
        for name, text in (self._usual_attributes() | attributes).items():
            self.put(f"{folder}/{name}", text)
        self.link(device_path(address), folder)
        if group is not None:
            self._join_group(address, group)
        if totalvfs is not None:
            self.put(f"{folder}/sriov_totalvfs", str(totalvfs))
            for name, number in (("numvfs", 0), ("drivers_autoprobe", 1), ("offset", 1), ("stride", 1)):
                self.put(f"{folder}/sriov_{name}", str(number))
        if physfn is not None:
            self._join_physfn(address, physfn)
        if driver is not None:
            ids = set() if is_vfio_driver(driver) else {(vendor, device)}
            self.add_driver(driver, ids=self.drivers[driver].ids | ids if driver in self.drivers else ids)
            self.set_driver(address, driver)

    def remove_device(self, address: str) -> None:
        """Remove a device."""
        self.set_driver(address, None)
        device = self.devices.pop(address)
        if device.group is not None:
            self.remove(f"{GROUPS}/{device.group}/devices/{address}")
        self.remove(device_path(address))
        shutil.rmtree(self.tree.path(device.folder))

    def add_driver(
        self, name: str, *, ids: Iterable[tuple[int, int]] = (), module_loaded: bool = True
    ) -> None:
        """Add a driver; it appears in sysfs only if its module is loaded."""
        self.drivers[name] = FakeDriver(set(ids), is_loaded=module_loaded)
        if not module_loaded:
            return
        for attribute in ("bind", "unbind"):
            self.put(f"{DRIVERS}/{name}/{attribute}", "")
        if is_vfio_driver(name):
            self.put("/dev/vfio/vfio", "")

    def add_group(self, number: int, *, type: str = "DMA", reserved_regions: str = MSI_REGION) -> None:  # noqa: A002 - the kernel's own name
        """Add a group, or change its attributes."""
        os.makedirs(self.tree.path(f"{GROUPS}/{number}/devices"), exist_ok=True)
        self.put(f"{GROUPS}/{number}/type", type)
        self.put(f"{GROUPS}/{number}/reserved_regions", reserved_regions)

    def add_class(self, kind: str, name: str, folder: str, **attributes: str) -> None:
        """Add a network interface (``net``), disk (``block``) or controller (``nvme``), at ``folder``.

        A thing with a node has the device number ``dev``; ``_NUMBERED`` has the classes with made-up numbers.
        """
        os.makedirs(self.tree.path(folder), exist_ok=True)
        self.link(f"/sys/class/{kind}/{name}", folder)
        self.link(f"{folder}/subsystem", f"/sys/class/{kind}")
        if kind in _NUMBERED and "dev" not in attributes:
            attributes["dev"] = f"{_NUMBERED[kind]}:{len(self.tree.find_names(f'/sys/class/{kind}'))}"
        if "dev" in attributes:
            self.link(f"/sys/dev/{'block' if kind == 'block' else 'char'}/{attributes['dev']}", folder)
        for attribute, text in attributes.items():
            self.put(f"{folder}/{attribute}", text)

    def mount(self, source: str, point: str) -> None:
        """Mount a disk, under its device number if it was added with ``dev``."""
        number = self.tree.find(f"/sys/class/block/{os.path.basename(source)}/dev") or "0:99"
        mounts = self.tree.read("/proc/self/mountinfo")
        line = f"30 1 {number} / {point} rw,relatime shared:1 - ext4 {source} rw"
        self.put("/proc/self/mountinfo", f"{mounts}\n{line}".lstrip())

    def add_process(
        self, pid: int, comm: str, fds: Mapping[int, str] | None = None, flags: int = os.O_RDWR
    ) -> None:
        """Add a process with open files: targets by file descriptor, all opened with ``flags``."""
        folder = f"/proc/{pid}"
        self.put(f"{folder}/comm", comm)
        self.put(f"{folder}/stat", f"{pid} ({comm}) S{' 0' * 18} 100 0")
        os.makedirs(self.tree.path(f"{folder}/fd"))
        for fd, target in (fds or {}).items():
            os.symlink(target, self.tree.path(f"{folder}/fd/{fd}"))
            self.put(f"{folder}/fdinfo/{fd}", f"pos:\t0\nflags:\t0{flags:o}\nmnt_id:\t27")

    def end_process(self, pid: int) -> None:
        """Remove a process."""
        shutil.rmtree(self.tree.path(f"/proc/{pid}"))

    def set_driver(self, address: str, driver: str | None) -> None:
        """Set the driver links of a device, and create or remove the node of its group."""
        device = self.devices[address]
        link = f"{device.folder}/driver"
        former = self.tree.find_link(link)
        if former is not None:
            self.remove(link)
            self.remove(f"{DRIVERS}/{former}/{address}")
        if driver is not None:
            self.link(link, f"{DRIVERS}/{driver}")
            self.link(f"{DRIVERS}/{driver}/{address}", device.folder)
        if device.group is not None:
            self._set_node(device.group)

    def driver(self, address: str) -> str | None:
        """Return the name of a device's driver, or None."""
        return self.tree.find_link(f"{device_path(address)}/driver")

    def at_least(self, major: int, minor: int) -> bool:
        """Return True if the kernel is this release or later."""
        parts = self.kernel.split(".")
        return (int(parts[0]), int(parts[1])) >= (major, minor)

    def _parent_folder(
        self, address: str, bridge: str | None, domain_of: str | None, physfn: str | None
    ) -> str:
        if physfn is not None:
            return os.path.dirname(self.devices[physfn].folder)
        if bridge is not None:
            return self.devices[bridge].folder
        above = "/sys/devices" if domain_of is None else self.devices[domain_of].folder
        return f"{above}/pci{address.rpartition(':')[0]}"

    def _usual_attributes(self) -> dict[str, str]:
        attributes = {
            "revision": "0x00",
            "numa_node": "-1",
            "driver_override": "(null)",
            "resource": "",
            "power_state": "D0",
            "power/control": "on",
        }
        # Up to 5.14 the kernel shows that a reset is possible, but not by which method.
        return attributes | ({"reset_method": "flr"} if self.at_least(5, 15) else {"reset": ""})

    def _join_group(self, address: str, number: int) -> None:
        if not self.tree.exists(f"{GROUPS}/{number}"):
            self.add_group(number)
        folder = self.devices[address].folder
        self.link(f"{folder}/iommu_group", f"{GROUPS}/{number}")
        self.link(f"{GROUPS}/{number}/devices/{address}", folder)

    def _join_physfn(self, address: str, physfn: str) -> None:
        pf, vf = self.devices[physfn].folder, self.devices[address].folder
        count = int(self.tree.read(f"{pf}/sriov_numvfs"))
        self.link(f"{vf}/physfn", pf)
        self.link(f"{pf}/virtfn{count}", vf)
        self.put(f"{pf}/sriov_numvfs", str(count + 1))

    def _set_node(self, number: int) -> None:
        members = self.tree.names(f"{GROUPS}/{number}/devices")
        if any(is_vfio_driver(self.driver(member)) for member in members):
            self.put(f"/dev/vfio/{number}", "")
        else:
            self.remove(f"/dev/vfio/{number}")
