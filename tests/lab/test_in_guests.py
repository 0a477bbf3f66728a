"""The tests that need a guest, in the guests of the tier: ``tests/tiers.py`` lists them."""

from __future__ import annotations

import re

import pytest

from tests import tiers
from tests.conftest import need_guests
from tests.support.guest_runs import GuestRuns, why_not
from tests.tiers import Guest

NO_TEST_RAN, LOST = 5, 125

_REPORT = re.compile(r"^=+ (?:FAILURES|ERRORS) =+$", re.MULTILINE)

pytestmark = pytest.mark.late


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each guest of the tier."""
    guests = tiers.FULL if metafunc.config.getoption("full") else tiers.QUICK
    metafunc.parametrize("guest", guests, ids=str)


def test_in_guest(guest: Guest, guest_runs: GuestRuns, capsys: pytest.CaptureFixture[str]) -> None:
    need_guests()
    if reason := why_not(guest):
        pytest.skip(reason)
    run = guest_runs.result(guest)
    print(run.output[found.start() :] if (found := _REPORT.search(run.output)) else run.output)
    with capsys.disabled():
        print(f"\n{guest} in {run.seconds:.0f} s: {run.summary or 'lost'}")
        if run.lost:
            print(run.lost)
    assert run.status != LOST, "the guest was lost"
    assert run.status != NO_TEST_RAN, "no test ran in the guest"
    assert run.status == 0, "tests failed in the guest"
    assert " passed" in run.summary
    if guest.needs:
        assert "skipped" not in run.summary
