"""Helpers of families whose operations never block, and which use fds that the life cycle opens."""

from __future__ import annotations

from collections.abc import Iterator

from vfiotool.stress.group.harness import GroupHarness
from vfiotool.stress.record import Call, Outcome


class NonBlockingFamily:
    """The part of ``OperationFamily`` that is the same for all families whose operations never block."""

    def releases(self, _call: Call) -> Iterator[Call]:
        """Yield nothing: no operation has to be unblocked."""
        return iter(())

    def finish(self, call: Call) -> Outcome:
        """Return a note: the call has not blocked."""
        return Outcome(note=f"'{call}' never waits")


def usable_fd(harness: GroupHarness, member: int) -> int | None:
    """Return the fd by which this process can use a member, or None.

    The fd comes from the group, or is the member's own node if that is bound to the iommufd.
    """
    if not 0 <= member < len(harness.spec.members):
        return None
    if harness.clients.owns_device(member) or harness.state.members[member].has_iommufd:
        return harness.clients.first.device(member)
    return None


def usable_members(harness: GroupHarness) -> list[int]:
    """Return the indices of the members that this process can use."""
    return [at for at in range(len(harness.spec.members)) if usable_fd(harness, at) is not None]
