"""The checks of ``vfiotool doctor``: each reads a few facts, and judges them by a pure function."""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.host.era import kernel_release
from vfiotool.host.tree import Tree


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found; ``ok`` is ``None`` where it cannot be known from here.

    ``remedy`` is what a person can type, as root, or do; ``None`` where nothing is to be done.
    """

    ok: bool | None
    detail: str
    remedy: str | None = None


def modules_folder(tree: Tree) -> str:
    """Return the folder of the running kernel's modules; a release that is a path leads nowhere else."""
    return f"/lib/modules/{kernel_release(tree).rpartition('/')[2]}"
