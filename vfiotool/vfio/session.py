"""A device with all that it needs to do DMA, opened and closed as one."""

from __future__ import annotations

import uuid
from contextlib import ExitStack
from types import TracebackType

from vfiotool.vfio.container import Container
from vfiotool.vfio.group import Group


class GroupDevice:
    """An open ``device`` with its ``group`` and a ``container`` of its own, ready for DMA.

    A context manager that closes the three in that order. Threads may share it, but see ``Handle``.
    """

    def __init__(self, address: str, group_id: int, vf_token: uuid.UUID | None = None) -> None:
        """Open the device at an address, through its group; the container is type1v2 or type1.

        ``vf_token`` is for a VF whose PF is on vfio-pci too: see ``Device.set_vf_token``.

        Raises:
            UnsupportedError, DeviceNotFoundError, GroupNotViableError, KernelError: as ``Container``,
                ``Group`` and ``Group.open_device`` have them. Nothing stays open then.
        """
        with ExitStack() as stack:
            self.container = stack.enter_context(Container())
            self.group = stack.enter_context(Group(group_id))
            self.group.set_container(self.container)
            self.iommu = self.container.set_type1()
            self.device = stack.enter_context(self.group.open_device(address, vf_token))
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Close device, group and container; calls after the first do nothing."""
        self._stack.close()

    def __enter__(self) -> GroupDevice:
        self.device.fileno()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
