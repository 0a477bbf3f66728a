"""What can go wrong with an 82576."""

from __future__ import annotations

from vfiotool.errors import VfioToolError


class IgbError(VfioToolError):
    """The device did not do what it was told."""


class IgbTimeoutError(IgbError, TimeoutError):
    """A frame did not come back in time. Memory that is part of the copy is the device's until ``stop()``."""
