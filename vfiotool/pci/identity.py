"""Which function answers at an address: its ids, class and revision, from the first bytes of its registers.

A listing imports this module, so it has no dataclasses.
"""

from __future__ import annotations

HEADER_SIZE = 64
"""The bytes of configuration space that the kernel shows every user."""

_VENDOR, _DEVICE, _REVISION, _CLASS, _TYPE, _SUBSYSTEM = 0x00, 0x02, 0x08, 0x09, 0x0E, 0x2C
_TYPE_MASK = 0x7F
_ENDPOINT = 0
_NO_ID = 0xFFFF


def is_silent(config: bytes) -> bool:
    """Return True if all bits are ones: the device does not answer, as it is removed, off or in reset.

    The vendor id alone decides nothing: it is all ones for a VF, too (PCI Express Base section 9.3.4.1.1).
    """
    return config[:HEADER_SIZE] == b"\xff" * HEADER_SIZE


def read_identity(config: bytes) -> dict[str, int]:
    """Return the ids, the class and the revision by the names that ``PciDevice`` gives them.

    Left out is what the registers do not have: the ids of a VF, which are ones there, and the subsystem of a
    function that is no endpoint. Empty if nothing answers, or if ``config`` has fewer than 64 bytes.

    Source: PCI Local Bus 3.0 section 6.1.
    """
    if len(config) < HEADER_SIZE or is_silent(config):
        return {}
    found = {
        "revision": config[_REVISION],
        "class_code": int.from_bytes(config[_CLASS : _CLASS + 3], "little"),
    }
    if _word(config, _VENDOR) != _NO_ID:
        found |= {"vendor_id": _word(config, _VENDOR), "device_id": _word(config, _DEVICE)}
    if config[_TYPE] & _TYPE_MASK == _ENDPOINT:
        found["subsystem_vendor_id"] = _word(config, _SUBSYSTEM)
        found["subsystem_device_id"] = _word(config, _SUBSYSTEM + 2)
    return found


def _word(config: bytes, offset: int) -> int:
    return int.from_bytes(config[offset : offset + 2], "little")
