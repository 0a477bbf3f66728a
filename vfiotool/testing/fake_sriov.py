"""How the fake host creates and removes the VFs of a PF (drivers/pci/iov.c).

The files are the only record of VFs, so a second process sees the VFs that a killed process created.
"""

from __future__ import annotations

import errno
import shutil
from abc import ABC, abstractmethod

from vfiotool.binding.sriov import ENABLE_SRIOV, vf_addresses
from vfiotool.host.attributes import GROUPS, device_path
from vfiotool.host.device_state import AUTOPROBE, NUMVFS
from vfiotool.host.groups import is_vfio_driver
from vfiotool.testing.fake_tree import FakePciDevice, FakeTree


class SriovHost(FakeTree, ABC):
    """A tree whose kernel probes devices and emits uevents; VFs are created in it."""

    @abstractmethod
    def probe(self, address: str) -> int:
        """Offer a device to the drivers, and return 0 or the errno of ``drivers_probe``."""

    @abstractmethod
    def emit(self, action: str, address: str) -> None:
        """Emit a uevent of a device."""


def vfs_of(host: SriovHost, pf: str) -> list[str]:
    """Return the addresses of a PF's VFs, in the order of its ``virtfn`` links."""
    folder = device_path(pf)
    links = [name for name in host.tree.names(folder) if name.startswith("virtfn")]
    links.sort(key=lambda name: int(name.removeprefix("virtfn")))
    return [vf for name in links if (vf := host.tree.find_link(f"{folder}/{name}")) is not None]


def refresh_vfs(host: SriovHost) -> None:
    """Update ``host.devices`` for VFs that another process created or removed."""
    pfs = [pf for pf in host.devices if host.tree.exists(f"{device_path(pf)}/{NUMVFS}")]
    there = {vf: pf for pf in pfs for vf in vfs_of(host, pf)}
    gone = [one for one in host.devices if not host.tree.exists(device_path(one))]
    for vf in gone:
        del host.devices[vf]
    for vf in there.keys() - host.devices.keys():
        host.devices[vf] = _vf(host, vf, there[vf])


def set_numvfs(host: SriovHost, pf: str, text: str) -> int:
    """Create or remove VFs; return 0 or the errno of ``sriov_numvfs_store()``."""
    if not text.isdecimal():
        return errno.EINVAL
    count = int(text)
    now = int(host.tree.read(f"{device_path(pf)}/{NUMVFS}"))
    if count > int(host.tree.read(f"{device_path(pf)}/sriov_totalvfs")):
        return errno.ERANGE
    if count == now:
        return 0
    if not _makes_vfs(host, host.driver(pf)):
        return errno.ENOENT
    if count and now:
        return errno.EBUSY
    if count:
        for vf in vf_addresses(host.tree, pf, count):
            _make(host, pf, vf)
    else:
        remove_vfs(host, pf)
    return 0


def remove_vfs(host: SriovHost, pf: str) -> None:
    """Remove all VFs of a PF, including VFs that have a driver."""
    for number, vf in enumerate(vfs_of(host, pf)):
        device = host.devices[vf]
        if host.driver(vf) is not None:
            host.emit("unbind", vf)
        host.remove(f"{device_path(pf)}/virtfn{number}")
        host.remove_device(vf)
        if device.group is not None and not host.tree.names(f"{GROUPS}/{device.group}/devices"):
            shutil.rmtree(host.tree.path(f"{GROUPS}/{device.group}"))
        host.emit("remove", vf)
    if host.tree.exists(f"{device_path(pf)}/{NUMVFS}"):
        host.put(f"{device_path(pf)}/{NUMVFS}", "0")


def _make(host: SriovHost, pf: str, vf: str) -> None:
    vendor, device = host.devices[pf].ids
    groups = {int(number) for number in host.tree.names(GROUPS)}
    free = min(set(range(len(groups) + 1)) - groups)
    group = None if host.devices[pf].group is None else free
    host.add_device(
        vf, vendor=vendor, device=device, class_code=host.devices[pf].class_code, group=group, physfn=pf
    )
    host.emit("add", vf)
    driver = host.driver(pf)
    if is_vfio_driver(driver):
        host.put(f"{device_path(vf)}/driver_override", str(driver))
    if is_vfio_driver(driver) or host.tree.read(f"{device_path(pf)}/{AUTOPROBE}") == "1":
        host.probe(vf)


def _makes_vfs(host: SriovHost, driver: str | None) -> bool:
    """Return True if a driver has ``sriov_configure``."""
    if driver == "vfio-pci":
        return host.tree.find(ENABLE_SRIOV) == "Y"
    return driver is not None and driver != "pci-stub"


def _vf(host: SriovHost, vf: str, pf: str) -> FakePciDevice:
    group = host.tree.find_link(f"{device_path(vf)}/iommu_group")
    like = host.devices[pf]
    folder = f"{like.folder.rpartition('/')[0]}/{vf}"
    return FakePciDevice(like.ids, like.class_code, None if group is None else int(group), folder)
