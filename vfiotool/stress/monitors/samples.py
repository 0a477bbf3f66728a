"""Findings of one kind in bounded memory: all are counted, the first are kept."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")

MOST = 100


class Samples(Generic[T]):
    """The first hundred of something, and how many there were."""

    __slots__ = ("count", "first")

    def __init__(self, *first: T) -> None:
        self.first = list(first)
        self.count = len(first)

    def add(self, one: T) -> None:
        """Count one, and keep it if it is among the first."""
        self.count += 1
        if len(self.first) < MOST:
            self.first.append(one)

    def extend(self, others: Samples[T]) -> None:
        """Count those of another, too."""
        self.count += others.count
        self.first.extend(others.first[: MOST - len(self.first)])

    def copy(self) -> Samples[T]:
        """Return the same, to be added to on its own."""
        made = Samples[T]()
        made.extend(self)
        return made


def times(count: int) -> str:
    """Return how often, in words."""
    return "once" if count == 1 else f"{count} times"
