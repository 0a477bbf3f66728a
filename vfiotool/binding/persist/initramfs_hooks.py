"""The hooks that copy the udev rules, and the drivers that they load, into an initramfs."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from vfiotool.binding import marked_files
from vfiotool.host.boot_image import OSTREE, boot_images, readable_text
from vfiotool.host.era import kernel_release, modules_folder
from vfiotool.host.tree import Tree

_SOURCES = os.path.join(os.path.dirname(__file__), "hooks")
_KERNEL_INSTALL = "/usr/bin/kernel-install"
_KERNEL_INSTALL_CONF = ("/etc/kernel/install.conf", "/usr/lib/kernel/install.conf")
_RPM_OSTREE = "/usr/bin/rpm-ostree"
_PRESETS = "/etc/mkinitcpio.d"
_GENERATOR = re.compile(r"^\s*initrd_generator=[\"']?([\w.-]+)", re.MULTILINE)
_OWN_CONFIG = re.compile(r"^\s*\w+_config=", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class InitramfsHook:
    """The hook for one program that builds an initramfs: a file at ``path``, copied from ``source``.

    The program is at one of ``programs``. ``rebuild`` is the command that builds the initramfs again.
    ``images`` is a pattern of the names that the program gives to images.
    """

    builder: str
    programs: tuple[str, ...]
    path: str
    source: str
    mode: int
    rebuild: str
    images: str

    @property
    def text(self) -> str:
        """The content of the hook's file."""
        with open(os.path.join(_SOURCES, self.source), encoding="utf-8") as file:
            return file.read()

    def has_builder(self, tree: Tree) -> bool:
        """Return True if the program is installed; its folder in ``/etc`` can outlive it."""
        return any(tree.exists(program) for program in self.programs)


HOOKS = (
    InitramfsHook(
        "initramfs-tools",
        ("/usr/sbin/mkinitramfs", "/sbin/mkinitramfs"),
        "/etc/initramfs-tools/hooks/vfiotool",
        "initramfs-tools",
        0o755,
        "update-initramfs -u",
        r"initrd\.img-.*",
    ),
    InitramfsHook(
        "mkinitcpio",
        ("/usr/bin/mkinitcpio",),
        "/etc/mkinitcpio.conf.d/zz-vfiotool.conf",  # after others, which may assign instead of append
        "mkinitcpio.conf",
        0o644,
        "mkinitcpio -P",
        r"initramfs-(?!\d).*\.img|.*\.efi",
    ),
    InitramfsHook(
        "dracut",
        ("/usr/bin/dracut", "/usr/sbin/dracut", "/sbin/dracut"),
        "/etc/dracut.conf.d/90-vfiotool.conf",
        "dracut.conf",
        0o644,
        "dracut -f",
        r"initramfs-.*|initrd.*",
    ),
)


def installed_hooks(tree: Tree) -> list[InitramfsHook]:
    """Return the hooks whose builder is installed."""
    return [hook for hook in HOOKS if hook.has_builder(tree)]


def makers(tree: Tree) -> list[InitramfsHook]:
    """Return the hooks of the builders that make the running kernel's initramfs, as far as that is known.

    The setting of kernel-install tells the builder, or else the names of the images do; if neither does,
    it may be any builder that is installed. Empty if it is none that vfiotool has a hook for.
    """
    installed, images = installed_hooks(tree), boot_images(tree)
    generator = _generator(tree)
    if generator is not None and (not images or _is_kernel_installs(tree, images)):
        return [hook for hook in installed if hook.builder == generator]
    for hook in installed:  # of two builders that give an image this name, the first is the distribution's
        if any(re.fullmatch(hook.images, os.path.basename(image)) for image in images):
            return [hook]
    return installed


def why_without_effect(tree: Tree, hook: InitramfsHook) -> str | None:
    """Return why the builder does not read its hook, ``None`` if nothing is known against it.

    mkinitcpio reads further configuration files from version 36 on, and none if a preset names its own:
    mkinitcpio(8), ``--config``.
    """
    if hook.builder != "mkinitcpio":
        return None
    if "mkinitcpio.conf.d" not in readable_text(tree, hook.programs[0]):
        return "this mkinitcpio reads no files of /etc/mkinitcpio.conf.d"
    for name in sorted(tree.find_names(_PRESETS)):
        if name.endswith(".preset") and _OWN_CONFIG.search(readable_text(tree, f"{_PRESETS}/{name}")):
            return f"{_PRESETS}/{name} names a configuration of its own, and mkinitcpio reads that one alone"
    return None


def rebuild_commands(tree: Tree) -> list[str]:
    """Return the commands that bring changed entries into the initramfs; any one of them is enough.

    Empty if none is known.
    """
    if tree.exists(OSTREE):
        return ["rpm-ostree initramfs --enable"] if tree.exists(_RPM_OSTREE) else []
    hooks = makers(tree)
    if hooks and hooks[0].builder != "mkinitcpio" and _is_kernel_installs(tree, boot_images(tree)):
        return [f"kernel-install add {kernel_release(tree)} {modules_folder(tree)}/vmlinuz"]
    return [hook.rebuild for hook in hooks]


def write_hooks(tree: Tree) -> None:
    """Write the hook of each installed builder, with its folder if that is missing.

    Raises:
        VfioToolError: a file cannot be written, or was not written by vfiotool.
    """
    for hook in installed_hooks(tree):
        path = tree.path(hook.path)
        with marked_files.explained(path):
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with marked_files.locked(os.path.dirname(path)):
            marked_files.write(path, hook.text, hook.mode)


def remove_hooks(tree: Tree) -> None:
    """Remove all hooks, also of builders that are no longer installed; raises as ``write_hooks`` does."""
    for hook in HOOKS:
        path = tree.path(hook.path)
        if os.path.isdir(os.path.dirname(path)):
            with marked_files.locked(os.path.dirname(path)):
                marked_files.remove(path)


def _is_kernel_installs(tree: Tree, images: list[str]) -> bool:
    """Return True if kernel-install puts the images in place: UKIs, and images in a kernel's own folder."""
    is_theirs = [
        image.endswith(".efi") or os.path.basename(os.path.dirname(image)) == kernel_release(tree)
        for image in images
    ]
    return tree.exists(_KERNEL_INSTALL) and bool(images) and all(is_theirs)


def _generator(tree: Tree) -> str | None:
    texts = (readable_text(tree, path) for path in _KERNEL_INSTALL_CONF)
    return next((found[1] for text in texts if (found := _GENERATOR.search(text))), None)
