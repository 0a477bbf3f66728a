"""Samples in bounded memory: count all items, keep the first items."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")

MOST = 100


class Samples(Generic[T]):
    """The first hundred items, and the number of all items."""

    __slots__ = ("count", "first")

    def __init__(self, *first: T) -> None:
        self.first = list(first)
        self.count = len(first)

    def add(self, item: T) -> None:
        """Count an item, and keep the item among the first hundred."""
        self.count += 1
        if len(self.first) < MOST:
            self.first.append(item)

    def extend(self, others: Samples[T]) -> None:
        """Add the samples of another."""
        self.count += others.count
        self.first.extend(others.first[: MOST - len(self.first)])

    def copy(self) -> Samples[T]:
        """Return an independent copy."""
        copied = Samples[T]()
        copied.extend(self)
        return copied


def times(count: int) -> str:
    """Return ``once`` or ``N times``."""
    return "once" if count == 1 else f"{count} times"
