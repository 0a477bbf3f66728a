"""PCI addresses as the kernel writes them: ``DOMAIN:BUS:DEVICE.FUNCTION`` in hexadecimal."""

from __future__ import annotations

from vfiotool.errors import SelectorError

_HINT = "an address looks like 0000:03:00.0, or 03:00.0 in domain 0000"
HEX_DIGITS = frozenset("0123456789abcdefABCDEF")


def parse_address(text: str) -> str:
    """Return the address in the kernel's form, from a full address or one without a domain.

    A domain has four hexadecimal digits or more: Intel VMD starts at ``10000``
    (``drivers/pci/controller/vmd.c``), and the kernel prints it with ``%04x``.

    Raises:
        SelectorError: the text is not an address, or a number is out of range.
    """
    domain_bus, _, device_function = text.strip().rpartition(":")
    domain, _, bus = domain_bus.rpartition(":")
    device, dot, function = device_function.partition(".")
    numbers = (
        _number(text, domain or "0", digits=8, limit=1 << 32),
        _number(text, bus, digits=2, limit=256),
        _number(text, device, digits=2, limit=32),
        _number(text, function, digits=1, limit=8),
    )
    if not dot:
        raise SelectorError(f"'{text}' is not a PCI address", hint=_HINT)
    return address_text(*numbers)


def address_text(domain: int, bus: int, device: int, function: int) -> str:
    """Return the address of these numbers in the kernel's form."""
    return f"{domain:04x}:{bus:02x}:{device:02x}.{function:x}"


def is_address(text: str) -> bool:
    """Return True if the text is an address, with or without a domain."""
    try:
        parse_address(text)
    except SelectorError:
        return False
    return True


def is_full_address(text: str) -> bool:
    """Return True if the text is an address exactly as the kernel writes it."""
    try:
        return parse_address(text) == text
    except SelectorError:
        return False


def sort_key(address: str) -> tuple[int, str]:
    """Return a key that orders addresses by domain as a number, then by the rest, which has a fixed width."""
    domain, _, rest = address.partition(":")
    return int(domain, 16), rest


def _number(text: str, part: str, *, digits: int, limit: int) -> int:
    if not part or len(part) > digits or not HEX_DIGITS.issuperset(part):
        raise SelectorError(f"'{text}' is not a PCI address", hint=_HINT)
    value = int(part, 16)
    if value >= limit:
        raise SelectorError(
            f"'{text}' is not a PCI address: {part} is too large (at most {limit - 1:x})",
            hint=_HINT,
        )
    return value
