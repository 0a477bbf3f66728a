"""The ten slowest tests of a session, those in its guests among them."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.support.guest_runs import Duration, GuestRun

COUNT = 10


def slowest(reports: Iterable[pytest.TestReport], runs: Iterable[GuestRun]) -> list[Duration]:
    """Return the slowest phases of tests on the host and in guests, but for those that wait for guests."""
    here = [
        Duration(report.duration, report.when or "", report.nodeid)
        for report in reports
        if "late" not in report.keywords
    ]
    there = [duration for run in runs for duration in run.durations]
    return sorted([*here, *there], reverse=True)[:COUNT]
