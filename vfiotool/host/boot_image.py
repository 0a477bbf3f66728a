"""The initramfs that the running kernel started with: whether there was one, and the files it may be from.

An initramfs is a file of its own, or a part of a unified kernel image (UKI).
"""

from __future__ import annotations

import struct

from vfiotool.host.era import kernel_release, modules_folder
from vfiotool.host.tree import Tree

OSTREE = "/run/ostree-booted"

# The kernel's Documentation/arch/x86/boot.rst and zero-page.rst: ramdisk_size and ext_ramdisk_size.
_BOOT_PARAMS = "/sys/kernel/boot_params/data"
_RAMDISK_SIZE, _EXT_RAMDISK_SIZE = 0x21C, 0x0C4
_CHOSEN = "/proc/device-tree/chosen/linux,initrd-start"

# systemd-stub(7): four bytes of attributes, then UTF-16.
_VARIABLES = "/sys/firmware/efi/efivars/{}-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
_STUB_INFO, _STUB_IMAGE = (_VARIABLES.format(name) for name in ("StubInfo", "StubImageIdentifier"))

_BOOT_FOLDERS = ("/boot", "/efi", "/boot/efi")
"""Where the boot partition and the EFI system partition are mounted."""


def had_initramfs(tree: Tree) -> bool | None:
    """Return True if the boot loader gave the kernel an initramfs, ``None`` if the kernel does not say.

    An initramfs that is built into the kernel does not count: nothing can be added to it.
    """
    if tree.exists(_CHOSEN) or tree.exists(_STUB_INFO):
        return True
    try:
        data = tree.read_bytes(_BOOT_PARAMS)
        sizes = [struct.unpack_from("<I", data, at)[0] for at in (_RAMDISK_SIZE, _EXT_RAMDISK_SIZE)]
    except (OSError, struct.error):
        return None
    return any(sizes)


def boot_images(tree: Tree) -> list[str]:
    """Return the files that the running kernel's initramfs may be from; several if the kernel does not say.

    The list is empty if no such file can be seen: a boot partition need not be mounted.
    """
    named = _named_images(tree)
    if named:
        return [path for path in named if tree.exists(path)]
    unified = [path for folder in _BOOT_FOLDERS for path in _in(tree, f"{folder}/EFI/Linux", ".efi")]
    if tree.exists(_STUB_INFO):
        return unified
    return [*_by_release(tree), *unified]


def _named_images(tree: Tree) -> list[str]:
    """Return the possible paths of the image that the boot loader names; empty if it names none."""
    names = [name] if (name := _efi_text(tree, _STUB_IMAGE)) else _initrd_parameters(tree)
    paths = [name.replace("\\", "/").lstrip("/") for name in names]
    return [f"{folder}/{path}" for path in paths for folder in _BOOT_FOLDERS if ".." not in path.split("/")]


def _initrd_parameters(tree: Tree) -> list[str]:
    """Return the images that the kernel command line names: EFI's boot stub loads them, in this order."""
    words = readable_text(tree, "/proc/cmdline").split()
    names = [word.partition("=")[2] for word in words if word.startswith("initrd=")]
    return [name for name in names if not name.endswith("-ucode.img")]


def _by_release(tree: Tree) -> list[str]:
    """Return the images whose name has the kernel's release, or on Arch the name of the kernel's package."""
    release = kernel_release(tree).rpartition("/")[2]
    package = readable_text(tree, f"{modules_folder(tree)}/pkgbase")
    names = [f"initrd.img-{release}", f"initramfs-{release}.img", f"initrd-{release}"]
    names += [f"initramfs-{package}.img"] if package and "/" not in package else []
    paths = [f"/boot/{name}" for name in names]
    for folder in _BOOT_FOLDERS:  # the Boot Loader Specification, type 1: TOKEN/RELEASE/initrd
        for token in _names(tree, folder):
            paths += _in(tree, f"{folder}/{token}/{release}", "", ("initrd", "initramfs"))
    for deployment in _names(tree, "/boot/ostree"):
        paths.append(f"/boot/ostree/{deployment}/initramfs-{release}.img")
    return [path for path in paths if tree.exists(path)]


def _in(tree: Tree, folder: str, end: str, starts: tuple[str, ...] = ("",)) -> list[str]:
    names = sorted(_names(tree, folder))
    if end:  # a UKI is for one kernel; the name of Arch's has its package alone
        release, package = kernel_release(tree), readable_text(tree, f"{modules_folder(tree)}/pkgbase")
        names = [name for name in names if release in name or (package and f"-{package}{end}" in name)]
    return [f"{folder}/{name}" for name in names if name.startswith(starts) and name.endswith(end)]


def _names(tree: Tree, folder: str) -> list[str]:
    try:
        return tree.names(folder)
    except OSError:  # not there, not a folder, or only root may see it
        return []


def readable_text(tree: Tree, path: str) -> str:
    """Return the text of a file, empty if it cannot be read."""
    try:
        return tree.find(path) or ""
    except OSError:
        return ""


def _efi_text(tree: Tree, path: str) -> str:
    try:
        return tree.read_bytes(path)[4:].decode("utf-16-le", "replace").strip("\0")
    except OSError:
        return ""
