"""Intel's 82576, by its datasheet: ``Igb`` copies memory through its loopback, and raises its interrupts."""

from vfiotool.drivers.igb.driver import Igb
from vfiotool.drivers.igb.errors import IgbError, IgbTimeoutError

__all__ = ["Igb", "IgbError", "IgbTimeoutError"]
