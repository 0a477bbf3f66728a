"""Drivers in Python: registers by name, and drivers that show how a device is driven by its datasheet."""

from vfiotool.drivers.bound import Array, BoundRegister
from vfiotool.drivers.layout import Field, bit, bits
from vfiotool.drivers.registers import Nested, Register, RegisterBlock

__all__ = [
    "Array",
    "BoundRegister",
    "Field",
    "Nested",
    "Register",
    "RegisterBlock",
    "bit",
    "bits",
]
