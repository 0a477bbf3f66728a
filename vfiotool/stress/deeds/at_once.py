"""What the families share whose operations end at once, and which use fds that the life cycle has opened."""

from __future__ import annotations

from collections.abc import Iterator

from vfiotool.stress.action import Action, Outcome
from vfiotool.stress.stage import Stage


class AtOnce:
    """The part of ``Deeds`` for what never waits."""

    def releases(self, _action: Action) -> Iterator[Action]:
        """Yield nothing."""
        return iter(())

    def finish(self, action: Action) -> Outcome:
        """Say that it did not wait."""
        return Outcome(note=f"{action} does not wait")


def usable_fd(stage: Stage, member: int) -> int | None:
    """Return the fd by which this process can use a member: the group's, or that of a node in an iommufd."""
    if not 0 <= member < len(stage.unit.members):
        return None
    if stage.troupe.owns_device(member) or stage.state.members[member].has_iommufd:
        return stage.troupe.actor.device(member)
    return None


def usable_members(stage: Stage) -> list[int]:
    """Return the members that this process can use."""
    return [at for at in range(len(stage.unit.members)) if usable_fd(stage, at) is not None]
