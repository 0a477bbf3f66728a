"""File systems without a block device, which a PCI device shares with this machine: 9p, virtiofs, vboxsf."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vfiotool.host.tree import Tree
from vfiotool.host.usage.claim import Claim
from vfiotool.host.usage.mounts import Mount, mount_claims, mounts
from vfiotool.host.usage.pci_parents import required_by


@dataclass(frozen=True, slots=True)
class _Transport:
    """A type of file system: the folder of the driver of its devices, the attribute with a device's tag, and
    the module that each mount keeps in use."""

    kind: str
    driver: str
    tag: str
    module: str


_TRANSPORTS = (
    _Transport("9p", "/sys/bus/virtio/drivers/9pnet_virtio", "mount_tag", "9pnet_virtio"),
    _Transport("virtiofs", "/sys/bus/virtio/drivers/virtiofs", "tag", "virtiofs"),
    _Transport("vboxsf", "/sys/bus/pci/drivers/vboxguest", "tag", "vboxsf"),
)
_VIRTIOFS = "/sys/fs/virtiofs"


@dataclass(frozen=True, slots=True)
class SharedFolder:
    """A shared folder, by its tag, or by its type if the kernel does not show the tag."""

    name: str
    claims: tuple[Claim, ...]
    devices: frozenset[str]


def find_shared_folders(tree: Tree, wanted: frozenset[str]) -> Iterator[SharedFolder]:
    """Yield the shared folders of these PCI devices.

    A folder that is not mounted in sight has a claim if some folder of its type is mounted out of sight: in
    another mount namespace, or below an overlay that the initramfs made. The module's count tells.
    """
    for transport in _TRANSPORTS:
        devices = dict(_devices(tree, transport))
        if any(needed & wanted for _, needed in devices.values()):
            mounted = [mount for mount in mounts(tree) if mount.kind == transport.kind]
            unseen = _has_unseen(tree, transport, mounted)
            for tag, needed in devices.values():
                if needed & wanted:
                    yield _folder(transport, tag, needed, mounted, unseen)


def _folder(
    transport: _Transport, tag: str, needed: frozenset[str], mounted: list[Mount], unseen: bool
) -> SharedFolder:
    # Without a tag, any mount of the type may be of this device.
    points = dict.fromkeys(mount.point for mount in mounted if not tag or mount.source == tag)
    claims = tuple(mount_claims(points))
    if not claims and unseen:
        claims = (Claim("mounted", "may be mounted out of sight, and hold the root of this machine"),)
    return SharedFolder(tag or transport.kind, claims, needed)


def _devices(tree: Tree, transport: _Transport) -> Iterator[tuple[str, tuple[str, frozenset[str]]]]:
    """Yield the path of each device, with its tag and the PCI devices that it needs."""
    for name in sorted(tree.find_names(transport.driver)):
        if tree.find_link(f"{transport.driver}/{name}") is not None and name != "module":
            path = tree.resolve(f"{transport.driver}/{name}")
            tag = tree.find(f"{path}/{transport.tag}") or _virtiofs_tag(tree, path)
            yield path, (tag.strip("\0\n"), required_by([path]))


def _virtiofs_tag(tree: Tree, path: str) -> str:
    """Return the tag of a virtiofs device, which the kernel shows since Linux 6.9; empty if unknown."""
    for number in tree.find_names(_VIRTIOFS):
        if tree.resolve(f"{_VIRTIOFS}/{number}/device") == path:
            return tree.find(f"{_VIRTIOFS}/{number}/tag") or ""
    return ""


def _has_unseen(tree: Tree, transport: _Transport, mounted: list[Mount]) -> bool:
    """Return True if more file systems may be mounted than are in sight; always if the module is built in."""
    count = tree.find(f"/sys/module/{transport.module}/refcnt")
    seen = len({mount.number for mount in mounted})
    return count is None or not count.isdecimal() or int(count) > seen
