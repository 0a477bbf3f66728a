"""The ids of a PCI device's model as a text, as lspci writes them."""

from __future__ import annotations


def ids_text(vendor_id: int, device_id: int) -> str:
    """Return ``VENDOR:DEVICE``, four hexadecimal digits each."""
    return f"{vendor_id:04x}:{device_id:04x}"
