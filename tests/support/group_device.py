"""A device that is opened the bare way, by its group: nobody listens when the kernel asks for it."""

from __future__ import annotations

import uuid
from contextlib import ExitStack
from types import TracebackType

from vfiotool.vfio import Container, Group, IommuType


class GroupDevice:
    """The ``file`` of a device, with its ``group`` and a ``container`` of type1v2 of its own."""

    def __init__(self, address: str, group_id: int, vf_token: uuid.UUID | None = None) -> None:
        with ExitStack() as stack:
            self.container = stack.enter_context(Container())
            self.group = stack.enter_context(Group(group_id))
            self.group.set_container(self.container)
            self.container.set_iommu(IommuType.TYPE1v2)
            self.file = stack.enter_context(self.group.open_device(address, vf_token))
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Close device, group and container."""
        self._stack.close()

    def __enter__(self) -> GroupDevice:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
