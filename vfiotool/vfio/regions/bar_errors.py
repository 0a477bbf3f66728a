"""Why a BAR of an open device cannot be used: the kernel says only EBUSY."""

from __future__ import annotations

import errno

from vfiotool.errors import KernelError
from vfiotool.host.bar_owners import bar_owners, how_to_release
from vfiotool.host.bars import ROM
from vfiotool.host.tree import Tree

_UNKNOWN = "something else in the kernel has a part of the BAR, and /proc/iomem does not name it"
_LOG = "the kernel's log (dmesg) has a line 'can't reserve' with the range"


def bar_error(error: KernelError, address: str, index: int, tree: Tree | None = None) -> KernelError:
    """Return an EBUSY of using a region, with the owner of the BAR; any other error as it is.

    Source: ``vfio_pci_core_setup_barmap()`` and ``vfio_pci_core_mmap()`` in
    drivers/vfio/pci/vfio_pci_core.c request the whole BAR.
    """
    if error.errno != errno.EBUSY or index > ROM:
        return error
    tree = tree or Tree()
    names = [owner.name for owner in bar_owners(tree, address) if owner.bar in (None, index)]
    cause = f"{', '.join(names)} has it (/proc/iomem)" if names else _UNKNOWN
    remedies = dict.fromkeys(how_to_release(tree, name) for name in names)
    hint = "; ".join(remedies) or _LOG
    return KernelError(error.errno, error.operation, error.subject, cause=cause, hint=hint)
