"""The ids of a PCI device's model as a text, as lspci writes them."""

from __future__ import annotations

FOR_ROOT = "the kernel shows them to root alone"
"""Why the capabilities of a device are not in sight."""


def ids_text(vendor_id: int | None, device_id: int | None) -> str:
    """Return ``VENDOR:DEVICE``, four hexadecimal digits each; ``????`` for an id that is unknown."""
    return f"{hex_text(vendor_id, 4)}:{hex_text(device_id, 4)}"


def name_text(vendor: str | None, device: str | None) -> str:
    """Return the names of a vendor and its device; question marks for a name whose id is unknown."""
    return f"{vendor or 'Vendor ????'} {device or 'Device ????'}"


def silence_text(address: str) -> str:
    """Return the sentence that nothing answers at an address."""
    return (
        f"nothing answers at {address}: all registers read as ones, as those of a device that was removed, "
        "is without power or hangs"
    )


def hex_text(number: int | None, digits: int) -> str:
    """Return a number in hexadecimal, of at least that many digits; question marks if it is unknown."""
    return "?" * digits if number is None else f"{number:0{digits}x}"
