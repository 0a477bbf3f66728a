"""Errors of the 82576 driver."""

from __future__ import annotations

from vfiotool.errors import VfioToolError


class IgbError(VfioToolError):
    """The device did not do what the driver requested."""


class IgbTimeoutError(IgbError, TimeoutError):
    """A frame did not return in time. Memory of the copy belongs to the device until ``stop()``."""
