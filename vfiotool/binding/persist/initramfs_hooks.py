"""The hooks that copy the udev rules, and the drivers that they load, into an initramfs."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vfiotool.binding import marked_files
from vfiotool.host.tree import Tree

_SOURCES = os.path.join(os.path.dirname(__file__), "hooks")


@dataclass(frozen=True, slots=True)
class InitramfsHook:
    """The hook for one program that builds an initramfs: a file at ``path``, copied from ``source``.

    ``rebuild`` is the command that builds the initramfs again.
    """

    builder: str
    path: str
    source: str
    mode: int
    rebuild: str

    @property
    def text(self) -> str:
        """The content of the hook's file."""
        with open(os.path.join(_SOURCES, self.source), encoding="utf-8") as file:
            return file.read()

    def has_builder(self, tree: Tree) -> bool:
        """Return True if the program is installed."""
        return tree.exists(os.path.dirname(self.path))


HOOKS = (
    InitramfsHook(
        "initramfs-tools",
        "/etc/initramfs-tools/hooks/vfiotool",
        "initramfs-tools",
        0o755,
        "update-initramfs -u",
    ),
    InitramfsHook("dracut", "/etc/dracut.conf.d/90-vfiotool.conf", "dracut.conf", 0o644, "dracut -f"),
)


def installed_hooks(tree: Tree) -> list[InitramfsHook]:
    """Return the hooks whose builder is installed."""
    return [hook for hook in HOOKS if hook.has_builder(tree)]


def rebuild_commands(tree: Tree) -> list[str]:
    """Return the commands that bring changed entries into the initramfs; any one of them is enough."""
    return [hook.rebuild for hook in installed_hooks(tree)]


def write_hooks(tree: Tree) -> None:
    """Write the hook of each installed builder.

    Raises:
        VfioToolError: a file cannot be written, or was not written by vfiotool.
    """
    for hook in installed_hooks(tree):
        path = tree.path(hook.path)
        with marked_files.locked(os.path.dirname(path)):
            marked_files.write(path, hook.text, hook.mode)


def remove_hooks(tree: Tree) -> None:
    """Remove the hook of each installed builder; raises as ``write_hooks`` does."""
    for hook in installed_hooks(tree):
        path = tree.path(hook.path)
        with marked_files.locked(os.path.dirname(path)):
            marked_files.remove(path)
