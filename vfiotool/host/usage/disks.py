"""The uses of disks: file systems, swap, and volumes built on them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from vfiotool.host.tree import Tree
from vfiotool.host.usage.claim import Claim, some
from vfiotool.host.usage.mounts import mount_claims, mount_points, swaps
from vfiotool.host.usage.openers import is_claimed

BLOCK = "/sys/class/block"
_UDEV = "/run/udev/data"
_NUMBER = re.compile("[0-9]{1,10}:[0-9]{1,10}")  # major:minor

# Prefix of dm/uuid -> rule, and the text for the disk below.
_MAPPED = {
    "LVM-": ("lvm", "is a part of the LVM volume"),
    "CRYPT-": ("crypt", "is below the encrypted volume"),
    "mpath-": ("stacked", "is a path of the multipath device"),
}
# ID_FS_TYPE of udev's database -> rule, and the text for an idle disk with this type.
_SIGNATURES = {
    "LVM2_member": ("lvm", "is an LVM physical volume"),
    "linux_raid_member": ("md", "is a member of an md array"),
    "ddf_raid_member": ("md", "is a member of a firmware's RAID array"),
    "isw_raid_member": ("md", "is a member of a firmware's RAID array"),
    "crypto_LUKS": ("crypt", "is encrypted with LUKS"),
    "zfs_member": ("zfs", "is a member of a ZFS pool"),
    "swap": ("swap", "is made for swap"),
}


def disk_claims(tree: Tree, names: Iterable[str]) -> Mapping[str, tuple[Claim, ...]]:
    """Return the claims on each of these disks and partitions; an idle empty disk has no claims.

    The content of an idle disk is known only from udev's database, if udev runs.
    """
    disks = _Disks(tree)
    active = {name: tuple(dict.fromkeys(disks.claims(name))) for name in names}
    own = {name: (*claims, *disks.idle_claims(name, claims)) for name, claims in active.items()}
    found = {}
    for name in own:
        parts = disks.partitions(name)
        is_explained, is_known = (any(one.get(disk) for disk in (name, *parts)) for one in (active, own))
        kernels = () if is_explained else disks.kernels_claim(name)
        tables = () if is_known else disks.table_claims(name, parts)
        found[name] = (*own[name], *kernels, *tables)
    return found


def is_hidden(tree: Tree, name: str) -> bool:
    """Return True if a block device has no node: it is only a path to a disk, as with NVMe multipath."""
    return tree.find(f"{BLOCK}/{name}/hidden") == "1"


class _Disks:
    """The block devices at one moment."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._points, self._swaps = mount_points(tree), swaps(tree)
        self._loops = _loops(tree)
        self._databases = [folder for folder in _udev_databases(tree) if tree.exists(folder)]

    def claims(self, name: str) -> Iterator[Claim]:
        """Yield the uses of a disk or partition, except by its own partitions."""
        above = self._above(name)
        for upper in above:
            if (claim := self._membership(upper)) is not None:
                yield claim
        for one in (name, *above):
            yield from self._uses(one, "" if one == name else f", through {self._label(one)}")

    def idle_claims(self, name: str, active: Iterable[Claim]) -> Iterator[Claim]:
        """Yield the claim of what is on a disk or partition, unless an ``active`` claim has its rule."""
        rules = {claim.rule for claim in active}
        rule, text = _SIGNATURES.get(self._udev(name).get("ID_FS_TYPE", ""), ("", ""))
        if rule and rule not in rules and name not in self._swaps:
            yield Claim(rule, f"{text}, which is not active")

    def kernels_claim(self, name: str) -> Iterator[Claim]:
        """Yield a claim if the kernel has the disk in use, or may have; for disks without an active claim."""
        if self._tree.root != "/":
            return
        answer = is_claimed(f"/dev/{name.replace('!', '/')}")
        if answer:
            yield Claim("claimed", "is in use by the kernel for an unknown purpose")
        elif answer is None:
            yield Claim("claimed", "may be in use by the kernel: its node cannot be opened here to find out")

    def table_claims(self, name: str, parts: list[str]) -> Iterator[Claim]:
        """Yield a claim if a disk has partitions, even if none is in use."""
        kind = self._udev(name).get("ID_PART_TABLE_TYPE")
        if parts:
            yield Claim("partitions", f"has the partitions {some(parts)}")
        elif kind and not self._tree.exists(f"{BLOCK}/{name}/partition"):
            yield Claim("partitions", f"has a partition table ({kind})")
        elif (self._tree.root == "/" or not self._tree.is_complete) and not self._databases:
            yield Claim(
                "partitions", "may have data on it: udev's database, which would tell, is not in sight"
            )

    def partitions(self, name: str) -> list[str]:
        """Return the partitions of a disk, from its directory in sysfs."""
        inside = sorted(self._tree.find_names(f"{BLOCK}/{name}"))
        return [one for one in inside if one.startswith(name) and self._is_partition(f"{name}/{one}")]

    def _is_partition(self, path: str) -> bool:
        return self._tree.exists(f"{BLOCK}/{path}/partition")

    def _above(self, name: str) -> list[str]:
        """Return all block devices built on a disk, each once. A malformed capture can have loops."""
        found: dict[str, None] = {}
        waiting = [name]
        while waiting:
            one = waiting.pop(0)
            uppers = [*sorted(self._tree.find_names(f"{BLOCK}/{one}/holders")), *self._loops.get(one, ())]
            uppers += self.partitions(one) if one != name else []
            waiting += [upper for upper in uppers if upper not in found and upper != name]
            found.update(dict.fromkeys(waiting))
        return list(found)

    def _membership(self, upper: str) -> Claim | None:
        if self._is_partition(upper):
            return None
        uuid = self._tree.find(f"{BLOCK}/{upper}/dm/uuid") or ""
        for prefix, (rule, text) in _MAPPED.items():
            if uuid.startswith(prefix):
                return Claim(rule, f"{text} {self._label(upper)}")
        if self._tree.exists(f"{BLOCK}/{upper}/md"):
            return Claim("md", f"is a member of the md array {upper}")
        return Claim("stacked", f"is below {self._label(upper)}")

    def _uses(self, name: str, through: str) -> Iterator[Claim]:
        yield from mount_claims(self._points.get(name, ()), through)
        if name in self._swaps:
            yield Claim("swap", f"is swapped to{through}")

    def _label(self, name: str) -> str:
        return self._tree.find(f"{BLOCK}/{name}/dm/name") or name

    def _udev(self, name: str) -> Mapping[str, str]:
        """Return the properties of a device in udev's database (lines ``E:KEY=VALUE``)."""
        number = self._tree.find(f"{BLOCK}/{name}/dev") or ""
        if _NUMBER.fullmatch(number) is None:
            return {}
        texts = (self._tree.find(f"{folder}/b{number}") for folder in self._databases)
        lines = (next(filter(None, texts), None) or "").splitlines()
        pairs = (line[2:].partition("=") for line in lines if line.startswith("E:"))
        return {key: value for key, _, value in pairs}


def _udev_databases(tree: Tree) -> tuple[str, ...]:
    """Return the folders in which udev's database may be: here, and where pid 1 sees its files."""
    return (_UDEV, f"/proc/1/root{_UDEV}") if tree.root == "/" else (_UDEV,)


def _loops(tree: Tree) -> Mapping[str, tuple[str, ...]]:
    """Return the loop devices by the name of the block device that they are on."""
    found: dict[str, tuple[str, ...]] = {}
    for name in tree.find_names(BLOCK):
        backing = tree.find(f"{BLOCK}/{name}/loop/backing_file") if name.startswith("loop") else None
        if backing and backing.startswith("/dev/"):
            disk = backing.removeprefix("/dev/")
            found[disk] = (*found.get(disk, ()), name)
    return found
