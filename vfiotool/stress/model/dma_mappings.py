"""The mappings of an IO address space, and the result that a kernel must give to the next map or unmap.

Sources: vfio_dma_do_unmap in drivers/vfio/vfio_iommu_type1.c, iopt_unmap_iova_range in
drivers/iommu/iommufd/io_pagetable.c; both of 6.12, the former also of 5.10.
"""

from __future__ import annotations

import errno


class Mappings:
    """The mappings of a container with type1v2, or of an IOAS. IOVAs and sizes are counted in units."""

    def __init__(self, *, is_ioas: bool) -> None:
        self._is_ioas = is_ioas
        self._counts: dict[int, int] = {}  # of each mapping, by its first unit

    @property
    def count(self) -> int:
        """Return the number of mapped units."""
        return sum(self._counts.values())

    @property
    def all(self) -> list[tuple[int, int]]:
        """Return the first unit and the number of units of each mapping, the lowest first."""
        return sorted(self._counts.items())

    def map(self, first: int, count: int) -> int:
        """Return the errno of a map, or 0. Only ``add`` changes the mappings."""
        return errno.EEXIST if self._touched(first, count) else 0

    def add(self, first: int, count: int) -> None:
        """Add a mapping."""
        self._counts[first] = count

    def unmap(self, first: int, count: int) -> tuple[int, list[int]]:
        """Return the errno of an unmap, or 0, and the mappings that it removes, by their first units.

        Neither cuts a mapping. If a mapping would be cut, type1v2 removes nothing, and an IOAS removes the
        mappings below it. If nothing is mapped in the range, type1v2 succeeds, and an IOAS gives ENOENT.
        """
        touched = self._touched(first, count)
        whole = list[int]()
        for start in touched:
            if start < first or start + self._counts[start] > first + count:
                return (errno.ENOENT, whole) if self._is_ioas else (errno.EINVAL, [])
            whole.append(start)
        return (errno.ENOENT if self._is_ioas and not touched else 0), whole

    def size(self, mappings: list[int]) -> int:
        """Return the number of units of these mappings."""
        return sum(self._counts[start] for start in mappings)

    def drop(self, mappings: list[int]) -> None:
        """Remove mappings."""
        for start in mappings:
            del self._counts[start]

    def _touched(self, first: int, count: int) -> list[int]:
        """Return the mappings that overlap with a range, the lowest first."""
        return [start for start, size in self.all if start < first + count and first < start + size]
