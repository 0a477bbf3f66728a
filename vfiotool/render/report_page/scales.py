"""Scales that map values to positions in a drawing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_LEAST_US = 1.0


@dataclass(frozen=True, slots=True)
class LogScale:
    """Microseconds on a logarithmic axis of whole decades, from ``start`` to ``end`` in pixels."""

    low: int
    high: int
    start: float
    end: float

    @classmethod
    def around(cls, values: Iterable[float], start: float, end: float) -> LogScale:
        """Return the scale that contains all values, with at least two decades."""
        logs = [math.log10(max(value, _LEAST_US)) for value in values] or [0.0]
        low = math.floor(min(logs))
        return cls(low, max(math.ceil(max(logs)), low + 2), start, end)

    def at(self, us: float) -> float:
        """Return the position of a value, in pixels."""
        share = (math.log10(max(us, _LEAST_US)) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, most: int) -> list[float]:
        """Return at most ``most`` evenly spaced decades, in microseconds."""
        step = math.ceil((self.high - self.low + 1) / most)
        return [10.0**power for power in range(self.low, self.high + 1, step)]


@dataclass(frozen=True, slots=True)
class TimeScale:
    """Seconds from 0 to ``most``, from ``start`` to ``end`` in pixels."""

    most: float
    start: float
    end: float

    def at(self, seconds: float) -> float:
        """Return the position of a time, in pixels."""
        return round(self.start + seconds / self.most * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Return about eight round times, in seconds."""
        rough = self.most / 8
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
        return [number * step for number in range(int(self.most / step * 1.000001) + 1)]
