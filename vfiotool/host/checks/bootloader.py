"""The boot loader of this machine, and the commands that change the kernel command line.

The boot loader is detected by the files that its tools leave. The commands are those that its distribution
documents. All need root.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.host.era import modules_folder
from vfiotool.host.tree import Tree

# The boot loader writes it: four bytes of attributes, then UTF-16 (systemd.io/BOOT_LOADER_INTERFACE).
LOADER_INFO = "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"

_CMDLINE = "/etc/kernel/cmdline"
_GRUB = "/etc/default/grub"
_PROGRAM_FOLDERS = ("/usr/sbin", "/usr/bin", "/sbin")
_ENTRY_FOLDERS = ("/boot/loader/entries", "/boot/efi/loader/entries", "/efi/loader/entries")


@dataclass(frozen=True, slots=True)
class BootLoader:
    """A boot loader. ``add`` and ``remove`` are shell commands, with ``{}`` for the kernel parameter."""

    name: str
    add: str
    remove: str

    def to_add(self, parameter: str) -> str:
        """Return the command that adds a parameter for the next boot."""
        return self.add.replace("{}", parameter)

    def to_remove(self, parameter: str) -> str:
        """Return the command that removes a parameter for the next boot."""
        return self.remove.replace("{}", parameter)


_UNKNOWN = BootLoader(
    "an unknown boot loader",
    "add {} to the kernel command line in the boot loader's configuration",
    "remove {} from the kernel command line in the boot loader's configuration",
)
_OSTREE = BootLoader("rpm-ostree", "rpm-ostree kargs --append={}", "rpm-ostree kargs --delete={}")
_KERNELSTUB = BootLoader("kernelstub", "kernelstub --add-options {}", "kernelstub --delete-options {}")
_GRUBBY = BootLoader(
    "grubby", "grubby --update-kernel=ALL --args={}", "grubby --update-kernel=ALL --remove-args={}"
)
_NIXOS = BootLoader(
    "NixOS",
    "add '{}' to boot.kernelParams in /etc/nixos/configuration.nix, then: nixos-rebuild boot",
    "remove '{}' from boot.kernelParams in /etc/nixos/configuration.nix, then: nixos-rebuild boot",
)


def detect_boot_loader(tree: Tree) -> BootLoader:
    """Detect the boot loader. For an unknown boot loader, ``add`` and ``remove`` are text, not commands."""
    for marker, loader in (
        ("/run/ostree-booted", _OSTREE),
        ("/etc/NIXOS", _NIXOS),
        ("/etc/kernelstub/configuration", _KERNELSTUB),
    ):
        if tree.exists(marker):
            return loader
    if tree.exists("/etc/kernel/proxmox-boot-uuids") and tree.exists(_CMDLINE):
        return _by_file("proxmox-boot-tool", "proxmox-boot-tool refresh")
    if _program(tree, "grubby"):
        return _GRUBBY
    is_systemd_boot = "systemd-boot" in _loader_info(tree)
    if tree.exists(_GRUB) and not is_systemd_boot:
        return _grub(tree)
    if tree.exists(_CMDLINE):
        return _by_file("systemd-boot", _reinstall(tree))
    return next((_by_entries(f) for f in _ENTRY_FOLDERS if tree.exists(f)), _UNKNOWN)


def _program(tree: Tree, name: str) -> bool:
    return any(tree.exists(f"{folder}/{name}") for folder in _PROGRAM_FOLDERS)


def _loader_info(tree: Tree) -> str:
    try:
        return tree.read_bytes(LOADER_INFO)[4:].decode("utf-16-le", "replace")
    except OSError:
        return ""


def _grub(tree: Tree) -> BootLoader:
    """grub-mkconfig runs the file as a shell script, so a line at its end applies to any content."""
    apply = "update-grub" if _program(tree, "update-grub") else _grub_mkconfig(tree)
    add = f"""echo 'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX {{}}"' >> {_GRUB} && {apply}"""
    return BootLoader("GRUB", add, f"sed -i 's/ *\\b{{}}\\b//' {_GRUB} && {apply}")


def _grub_mkconfig(tree: Tree) -> str:
    number = "2" if _program(tree, "grub2-mkconfig") else ""
    folder = "/boot/grub2" if tree.exists("/boot/grub2") else "/boot/grub"
    return f"grub{number}-mkconfig -o {folder}/grub.cfg"


def _by_file(name: str, apply: str) -> BootLoader:
    return BootLoader(
        name,
        f"sed -i '1s/$/ {{}}/' {_CMDLINE} && {apply}",
        f"sed -i 's/ *\\b{{}}\\b//' {_CMDLINE} && {apply}",
    )


def _by_entries(folder: str) -> BootLoader:
    return BootLoader(
        "systemd-boot",
        f"sed -i '/^options/s/$/ {{}}/' {folder}/*.conf",
        f"sed -i '/^options/s/ *\\b{{}}\\b//' {folder}/*.conf",
    )


def _reinstall(tree: Tree) -> str:
    """Return the command that regenerates the boot entries or the unified kernel images."""
    if tree.exists("/etc/mkinitcpio.d"):
        return "mkinitcpio -P"
    beside_modules = tree.exists(f"{modules_folder(tree)}/vmlinuz")
    image = '"/lib/modules/$(uname -r)/vmlinuz"' if beside_modules else '"/boot/vmlinuz-$(uname -r)"'
    return f'kernel-install add "$(uname -r)" {image}'
