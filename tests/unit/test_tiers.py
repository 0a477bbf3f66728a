"""Each test has a tier: the full tier has all tests, and the quick tier none that the full one lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from typing import NamedTuple

import pytest

from tests import tiers
from tests.tiers import ROOT, Guest

COLLECT = """
import json, sys
import pytest

class Listing:
    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items):
        self.all = [(item.nodeid, [mark.name for mark in item.iter_markers()]) for item in items]

    def pytest_collection_finish(self, session):
        self.selected = [item.nodeid for item in session.items]

listing = Listing()
status = pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", *sys.argv[1:]], plugins=[listing])
print()
print(json.dumps([listing.all, listing.selected]))
sys.exit(status)
"""

FILES = ("tests/unit/test_stress.py", "tests/contract/test_recovery.py")
"""Files with tests of all kinds: heavy ones and others, for the host, for guests, and for both."""


class Collection(NamedTuple):
    """The marks of all tests that pytest found, by their ids, and the ids of those that it would run."""

    marks: dict[str, list[str]]
    selected: set[str]


@cache
def collected(*arguments: str, in_guest: bool = False) -> Collection:
    """Have pytest collect, on the host or as in a guest."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VFIOTOOL_LAB_")}
    if in_guest:
        environment |= {"VFIOTOOL_LAB_KERNEL": tiers.REFERENCE, "VFIOTOOL_LAB_MACHINE": "default"}
    words = [sys.executable, "-c", COLLECT, *arguments]
    ran = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    marks, selected = json.loads(ran.stdout.splitlines()[-1])
    return Collection(dict(marks), set(selected))


@pytest.fixture(scope="module")
def in_guests() -> list[str]:
    """The ids of all tests that need a guest."""
    return [test for test, marks in collected("tests").marks.items() if "needs_guest" in marks]


def selects(guest: Guest, test: str) -> bool:
    """Return True if a guest runs a test, by the folders, files and tests that it names."""
    return any(is_below(test, name) for name in guest.tests)


def is_below(test: str, name: str) -> bool:
    return test == name or test.startswith((f"{name}/", f"{name}::", f"{name}["))


@pytest.mark.parametrize("guest", dict.fromkeys((*tiers.QUICK, *tiers.FULL)), ids=str)
def test_each_name_in_the_table_is_that_of_tests(guest: Guest, in_guests: list[str]) -> None:
    names = guest.tests[: guest.tests.index("-k")] if "-k" in guest.tests else guest.tests
    assert [name for name in names if not any(is_below(test, name) for test in in_guests)] == []


def test_the_full_tier_runs_every_test_on_the_reference(in_guests: list[str]) -> None:
    guests = [one for one in tiers.FULL if str(one).startswith(f"{tiers.REFERENCE}-default")]
    assert [test for test in in_guests if not any(selects(guest, test) for guest in guests)] == []


@pytest.mark.parametrize("quick", tiers.QUICK, ids=str)
def test_a_guest_of_the_quick_tier_runs_what_the_full_tier_runs_there(
    quick: Guest, in_guests: list[str]
) -> None:
    there = [full for full in tiers.FULL if (full.kernel, full.machine) == (quick.kernel, quick.machine)]
    missed = [
        test for test in in_guests if selects(quick, test) and not any(selects(full, test) for full in there)
    ]
    assert missed == []


def test_both_tiers_have_the_same_kernels() -> None:
    quick, full = ({guest.kernel for guest in tier} for tier in (tiers.QUICK, tiers.FULL))
    assert quick == full


def test_no_guest_of_a_tier_has_the_name_of_another() -> None:
    for tier in (tiers.QUICK, tiers.FULL):
        assert len(set(map(str, tier))) == len(tier)


@pytest.mark.parametrize("in_guest", [False, True])
def test_the_heavy_tests_are_those_that_the_quick_tier_leaves_out(in_guest: bool) -> None:
    quick, full = collected(*FILES, in_guest=in_guest), collected("--full", *FILES, in_guest=in_guest)
    here = {test for test, marks in full.marks.items() if ("needs_guest" in marks) == in_guest}
    heavy = {test for test in here if "full" in full.marks[test] or is_matrix(test, full.marks[test])}
    assert full.selected == here
    assert quick.selected == here - heavy < here


def is_matrix(test: str, marks: list[str]) -> bool:
    return "quick_on_fake" in marks and "[fake-6.12" not in test


def test_a_heavy_test_that_is_named_by_its_id_runs() -> None:
    marks, selected = collected("tests/unit/test_stress.py::test_memory_does_not_grow_with_the_run")
    assert [*marks] == [*selected]


def test_each_test_runs_on_the_host_or_in_guests_but_not_on_both() -> None:
    here, there = collected("--full", *FILES), collected("--full", *FILES, in_guest=True)
    assert here.selected | there.selected == set(here.marks)
    assert not here.selected & there.selected
