"""Errors of refused accesses to a region, with the same text for mapped and for unmapped registers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vfiotool.errors import AccessError

WIDTHS = (8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class RegionAccess:
    """A ``verb`` ("read", "write" or "map") of ``size`` bytes at ``offset`` of a ``subject``.

    The access is split into units of ``width`` bits; a width of 0 leaves the width to the kernel.
    """

    verb: str
    offset: int
    size: int
    width: int
    subject: str

    @classmethod
    def single(cls, verb: str, offset: int, width: int, subject: str) -> RegionAccess:
        """Describe a single access of a width."""
        return cls(verb, offset, width // 8, width, subject)

    @property
    def end(self) -> int:
        """The first offset behind the access."""
        return self.offset + self.size

    def refused(self, why: str, *, hint: str = "") -> AccessError:
        """Return the error for this access and this reason."""
        return AccessError(f"{self} {why}", hint=hint)

    def outside(self, limit: int) -> AccessError:
        """Return the error for a subject of only ``limit`` bytes."""
        return self.refused(f"lies outside: it has {limit:#x} bytes", hint="offsets count from its start")

    def misfit(self) -> AccessError:
        """Return the error for an offset, a size or a width that do not fit together."""
        if self.width not in WIDTHS:
            return self.refused("has an invalid width", hint="a width is 8, 16, 32 or 64 bits")
        step = self.width // 8
        if self.size % step:
            return self.refused(
                f"is no multiple of {step} bytes", hint="access the rest separately, with a smaller width"
            )
        return self.refused("is misaligned", hint=f"an offset is a multiple of the width, {step} bytes")

    def too_large(self, value: int) -> AccessError:
        """Return the error for a value that does not fit in the width."""
        return self.refused(
            f"cannot hold {value:#x}", hint=f"values are from 0 to {(1 << self.width) - 1:#x}"
        )

    def unwritable(self) -> AccessError:
        """Return the error for a write to read-only bytes."""
        return self.refused("is forbidden: it is read-only", hint="the kernel allows no write there")

    def __str__(self) -> str:
        if self.width and self.size * 8 == self.width:
            return f"a {self.width}-bit {self.verb} at {self.offset:#x} of {self.subject}"
        by = f", {self.width} bits at a time," if self.width else ""
        return f"a {self.verb} of {self.size:#x} bytes{by} at {self.offset:#x} of {self.subject}"


@dataclass(frozen=True, slots=True)
class Guard:
    """Bytes from ``start`` to before ``end`` that no write may reach, and the reason."""

    start: int
    end: int
    why: str
    hint: str

    def moved(self, distance: int) -> Guard:
        """Return the same guard with offsets that count from ``distance`` further on."""
        return Guard(self.start - distance, self.end - distance, self.why, self.hint)

    def meets(self, access: RegionAccess) -> bool:
        """Return True if an access would reach a guarded byte."""
        return access.offset < self.end and access.end > self.start


def guarded(access: RegionAccess, guards: Iterable[Guard]) -> AccessError | None:
    """Return the error for a write that a guard forbids, or ``None``."""
    met = (access.refused(f"is forbidden: {one.why}", hint=one.hint) for one in guards if one.meets(access))
    return next(met, None)
