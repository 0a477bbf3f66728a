"""Drivers in Python: named registers, and example drivers that follow their device's datasheet."""

from vfiotool.drivers.device_register import DeviceRegister, RegisterArray
from vfiotool.drivers.register_layout import Field, bit, bits
from vfiotool.drivers.registers import Nested, Register, RegisterBlock

__all__ = [
    "DeviceRegister",
    "Field",
    "Nested",
    "Register",
    "RegisterArray",
    "RegisterBlock",
    "bit",
    "bits",
]
