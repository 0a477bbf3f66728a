"""What the families share whose operations end at once, and which use fds that the life cycle has opened."""

from __future__ import annotations

from collections.abc import Iterator

from vfiotool.stress.group.harness import GroupHarness
from vfiotool.stress.record import Call, Outcome


class NonBlockingFamily:
    """The part of ``OperationFamily`` for what never waits."""

    def releases(self, _call: Call) -> Iterator[Call]:
        """Yield nothing."""
        return iter(())

    def finish(self, call: Call) -> Outcome:
        """Say that it did not wait."""
        return Outcome(note=f"{call} does not wait")


def usable_fd(harness: GroupHarness, member: int) -> int | None:
    """Return the fd by which this process can use a member: the group's, or that of a node in an iommufd."""
    if not 0 <= member < len(harness.spec.members):
        return None
    if harness.clients.owns_device(member) or harness.state.members[member].has_iommufd:
        return harness.clients.first.device(member)
    return None


def usable_members(harness: GroupHarness) -> list[int]:
    """Return the members that this process can use."""
    return [at for at in range(len(harness.spec.members)) if usable_fd(harness, at) is not None]
