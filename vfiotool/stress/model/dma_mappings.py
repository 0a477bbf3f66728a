"""What is mapped in an IO address space, and what a kernel must say to the next map or unmap.

Sources: vfio_dma_do_unmap in drivers/vfio/vfio_iommu_type1.c, iopt_unmap_iova_range in
drivers/iommu/iommufd/io_pagetable.c; of 6.12, and 5.10 where that has it.
"""

from __future__ import annotations

import errno


class Mappings:
    """The mappings of a container that has type1v2, or of an IOAS, in units that each have a number."""

    def __init__(self, *, is_ioas: bool) -> None:
        self._is_ioas = is_ioas
        self._counts: dict[int, int] = {}  # of each mapping, by its first unit

    @property
    def count(self) -> int:
        """Return how many units are mapped."""
        return sum(self._counts.values())

    @property
    def all(self) -> list[tuple[int, int]]:
        """Return the first unit of each mapping, and how many it has; the lowest first."""
        return sorted(self._counts.items())

    def map(self, first: int, count: int) -> int:
        """Return the errno of a map, or 0. Nothing changes before ``add``."""
        return errno.EEXIST if self._touched(first, count) else 0

    def add(self, first: int, count: int) -> None:
        """Take note of a map."""
        self._counts[first] = count

    def unmap(self, first: int, count: int) -> tuple[int, list[int]]:
        """Return the errno of an unmap, or 0, and which mappings go by it, by their first units.

        type1v2 cuts none, and then does nothing at all. An IOAS undoes what is below the one that would be
        cut before it comes to that. Where nothing is mapped, it has nothing to undo, which type1 has done.
        """
        touched = self._touched(first, count)
        whole = list[int]()
        for start in touched:
            if start < first or start + self._counts[start] > first + count:
                return (errno.ENOENT, whole) if self._is_ioas else (errno.EINVAL, [])
            whole.append(start)
        return (errno.ENOENT if self._is_ioas and not touched else 0), whole

    def size(self, mappings: list[int]) -> int:
        """Return how many units these mappings have."""
        return sum(self._counts[start] for start in mappings)

    def drop(self, mappings: list[int]) -> None:
        """Take note that these are gone."""
        for start in mappings:
            del self._counts[start]

    def _touched(self, first: int, count: int) -> list[int]:
        """Return what overlaps with a range, the lowest first."""
        return [start for start, size in self.all if start < first + count and first < start + size]
