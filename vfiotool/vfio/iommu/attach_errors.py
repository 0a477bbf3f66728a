"""Why the kernel does not attach a group or a device to an IO address space: its errno alone does not say."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from vfiotool.errors import KernelError
from vfiotool.events.entry import TimelineEntry
from vfiotool.events.kmsg import KernelLog
from vfiotool.host.attributes import GROUPS
from vfiotool.host.checks.iommu import UNSAFE, check_remapping
from vfiotool.host.direct_regions import OTHER_FIRMWARE, direct_note
from vfiotool.host.groups import read_groups
from vfiotool.host.pending_unbinds import STATE_DIR
from vfiotool.host.tree import Tree
from vfiotool.util.text import printable

_AMBIGUOUS = (errno.EPERM, errno.EINVAL)
# intel_iommu_attach_device() up to 6.5, and __iommu_device_set_domain() since 6.6.
_OF_DIRECT_REGIONS = ("due to platform RMRR requirement", "have a 1:1 IOMMU mapping")

NO_REMAPPING = "the IOMMU does not remap interrupts, so a device could forge interrupts of others"
HOW_TO_REMAP = "turn interrupt remapping on: 'vfiotool doctor' says how on this machine"


@dataclass(frozen=True, slots=True)
class AttachFacts:
    """The facts that explain a refusal.

    ``direct`` is the note on the group's direct regions, empty if it has none. ``unsafe`` is True if the
    IOMMU does not remap interrupts, and no module accepts that. ``logged`` is what the kernel's log says
    about a direct region of a device of the group, empty if nothing can be read.
    """

    direct: str
    unsafe: bool
    logged: str


@contextlib.contextmanager
def explained(group_id: int | None) -> Iterator[None]:
    """Explain an EPERM or EINVAL of attaching a group, or a device of it, by what this machine says.

    Without a group, as of a device that has just gone, the errors stay as they are.
    """
    try:
        yield
    except KernelError as error:
        if group_id is None or error.errno not in _AMBIGUOUS:
            raise
        known = explain_attach(read_facts(group_id), error.errno)
        if known is None:
            raise
        cause, remedy = known
        raise KernelError(error.errno, error.operation, error.subject, cause=cause, hint=remedy) from error


def explain_attach(facts: AttachFacts, code: int) -> tuple[str, str] | None:
    """Return the cause and the remedy of an EPERM or EINVAL; ``None`` if the facts do not explain it.

    The kernel reports missing interrupt remapping with EPERM only.
    """
    if facts.logged:
        told = f"the kernel's log says '{facts.logged}'"
        return (f"{facts.direct}; {told}" if facts.direct else told), OTHER_FIRMWARE
    unsafe = facts.unsafe and code == errno.EPERM
    if facts.direct and unsafe:
        return f"{facts.direct}; also, {NO_REMAPPING}", OTHER_FIRMWARE
    if facts.direct:
        return facts.direct, OTHER_FIRMWARE
    return (NO_REMAPPING, HOW_TO_REMAP) if unsafe else None


def read_facts(group_id: int, tree: Tree | None = None) -> AttachFacts:
    """Read the facts about a group of this machine. Bounded in time like ``vfiotool groups``."""
    tree = tree or Tree()
    found = read_groups(tree, [group_id], ())
    return AttachFacts(
        direct="".join(map(direct_note, found)),
        unsafe=check_remapping(tree, STATE_DIR).ok is False
        and not any(tree.find(one) == "Y" for one in UNSAFE),
        logged=logged_refusal(_read_log(), tree.find_names(f"{GROUPS}/{group_id}/devices")),
    )


def logged_refusal(log: Iterable[TimelineEntry], devices: Collection[str]) -> str:
    """Return the last line of the kernel's log that refuses one of these devices for a direct region."""
    found = [
        entry.detail
        for entry in log
        if entry.address in devices and any(text in entry.detail for text in _OF_DIRECT_REGIONS)
    ]
    return printable(found[-1]) if found else ""


def _read_log() -> list[TimelineEntry]:
    """Return the kernel's log; empty if this user may not read it."""
    try:
        with contextlib.closing(KernelLog(whole=True)) as log:
            return list(log.read())
    except OSError:
        return []
