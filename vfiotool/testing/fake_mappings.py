"""The mappings of a fake address space, by IOVA."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass

from vfiotool.vfio.uapi import DmaMapFlags


@dataclass(frozen=True, slots=True)
class FakeMapping:
    """``size`` bytes at address ``vaddr`` of this process, mapped at ``iova`` for devices."""

    iova: int
    size: int
    vaddr: int
    access: DmaMapFlags

    @property
    def end(self) -> int:
        """The first IOVA after the mapping."""
        return self.iova + self.size

    def part(self, start: int, end: int) -> FakeMapping:
        """Return the part between two IOVAs."""
        return FakeMapping(start, end - start, self.vaddr + start - self.iova, self.access)


class FakeMappings:
    """Mappings that do not overlap; iteration is by IOVA, lowest first. Threads must not share it."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._at: dict[int, FakeMapping] = {}

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[FakeMapping]:
        return (self._at[start] for start in self._starts)

    def overlapping(self, iova: int, size: int) -> Iterator[FakeMapping]:
        """Yield the mappings that contain any of these IOVAs."""
        at = max(bisect_right(self._starts, iova) - 1, 0)
        while at < len(self._starts) and self._starts[at] < iova + size:
            one = self._at[self._starts[at]]
            if one.end > iova:
                yield one
            at += 1

    def add(self, mapping: FakeMapping) -> None:
        """Add a mapping that overlaps no other."""
        insort(self._starts, mapping.iova)
        self._at[mapping.iova] = mapping

    def cut(self, iova: int) -> None:
        """Split the mapping that contains this IOVA; a mapping that starts there is not split."""
        whole = next(self.overlapping(iova, 1), None)
        if whole is not None and whole.iova < iova:
            self._at[whole.iova] = whole.part(whole.iova, iova)
            self.add(whole.part(iova, whole.end))

    def remove(self, starts: list[int]) -> int:
        """Remove the mappings that start at these IOVAs, and return their size in bytes."""
        if len(starts) == 1:
            del self._starts[bisect_left(self._starts, starts[0])]
        else:
            gone = set(starts)
            self._starts = [start for start in self._starts if start not in gone]
        return sum(self._at.pop(start).size for start in starts)

    def clear(self) -> int:
        """Remove all mappings, and return their size in bytes."""
        return self.remove(list(self._starts))
