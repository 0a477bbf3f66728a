"""The latencies and error counts of operations."""

from __future__ import annotations

import errno
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.strategies import examples
from vfiotool.stress.record import errno_name
from vfiotool.stress.results.stats import MOST_NAMES, OTHERS, Latencies


@examples(25)
@given(st.lists(st.floats(0, 3.5e9), min_size=1, max_size=300))
def test_percentiles_are_those_of_the_data(data: list[float]) -> None:
    latencies = Latencies()
    for value in data:
        latencies.record("map", value, "0")
    found = latencies.document()["map"]
    ordered = sorted(max(1, round(value)) for value in data)
    for percent in (50, 90, 99):
        rank = max(1, int(percent * len(ordered) / 100 + 0.5))
        true = min(ordered[rank - 1], round(max(data), 1))
        assert true <= found[f"p{percent}_us"] <= true * 1.001 + 1
    assert found["max_us"] == round(max(data), 1)


def test_percentiles_of_many_against_numpy() -> None:
    from numpy import percentile
    from numpy.random import default_rng

    data = default_rng(1).lognormal(4, 2, 50_000)
    latencies = Latencies()
    for value in data:
        latencies.record("open", float(value), "0")
    found = latencies.document()["open"]
    for percent in (50, 90, 99):
        assert found[f"p{percent}_us"] == pytest.approx(float(percentile(data, percent)), rel=0.01)
    assert found["p50_us"] == pytest.approx(statistics.median(data), rel=0.01)
    assert found["count"] == latencies.count == 50_000


def test_errors_are_counted_by_name() -> None:
    latencies = Latencies()
    for code in (0, errno.EBUSY, 0, errno.EPERM, errno.EBUSY):
        latencies.record("bind", 5, errno_name(code))
    latencies.record("unbind", 5e12, "0")
    assert latencies.document()["bind"]["errors"] == {"EBUSY": 2, "EPERM": 1}
    assert latencies.document()["unbind"]["p99_us"] == pytest.approx(3.6e9, rel=0.001)  # an hour at most
    assert latencies.document()["unbind"]["max_us"] == 5e12


def test_names_are_bounded() -> None:
    latencies = Latencies()
    for number in range(1000):
        latencies.record(f"operation {number}", 1, f"E{number}")
        latencies.record("operation 0", 1, f"E{number}")
    found = latencies.document()
    assert len(found) == MOST_NAMES
    assert sum(one["count"] for one in found.values()) == latencies.count == 2000
    assert sum(found["operation 0"]["errors"].values()) == 1001
    assert len(found[OTHERS]["errors"]) == MOST_NAMES
    assert list(latencies.most_frequent(2)) == ["operation 0", OTHERS]
