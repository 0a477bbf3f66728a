"""Drivers in Python: registers by name, and drivers that show how a device is driven by its datasheet."""

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
