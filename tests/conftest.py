"""Where a test can run, on the host or in a guest, and in which tier.

Tests marked ``needs_guest`` change real devices. They are collected only inside a lab guest, where
``tests/lab/test_in_guests.py`` runs them on every kernel; the others are collected only outside.
Tests marked ``full`` are heavy: they run with ``--full``, or if they are named by their id (``file::test``).
Those marked ``quick_on_fake`` are heavy on all but the fake of 6.12.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.guest_runs import GuestRuns

GUEST_KERNEL = os.environ.get("VFIOTOOL_LAB_KERNEL")
REQUIRE_LAB = os.environ.get("VFIOTOOL_REQUIRE_LAB") == "1"
QUICK_FAKE = "6.12.0"
"""The kernel that the fake host of the quick tier has where one fake has to do."""
LAST = ("late", "after_all", "for_good")
"""The marks of tests that run after all others, in this order."""

_GUEST_RUNS: pytest.StashKey[GuestRuns] = pytest.StashKey()


def pytest_configure() -> None:
    """Have processes that tests start take SIGINT, which a shell has its background processes ignore."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that selects the tier."""
    parser.addoption("--full", action="store_true", help="run the full tier: the tests marked 'full' too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that run here and in this tier; some come last."""
    here = [item for item in items if _runs_here(item) and _is_in_tier(config, item)]
    here.sort(key=lambda item: [item.get_closest_marker(mark) is not None for mark in LAST])
    kept = set(here)
    elsewhere = [item for item in items if item not in kept]
    if elsewhere:
        config.hook.pytest_deselected(items=elsewhere)
    items[:] = here


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print a failure at once in a guest: pytest's summary is lost with a guest."""
    if GUEST_KERNEL is not None and report.failed:
        print(f"\n{report.nodeid} ({report.when}):\n{report.longreprtext}", flush=True)


def _runs_here(item: pytest.Item) -> bool:
    """Return True if a test that needs a guest is in one, or a test of the host is outside."""
    return (item.get_closest_marker("needs_guest") is not None) == (GUEST_KERNEL is not None)


def _is_in_tier(config: pytest.Config, item: pytest.Item) -> bool:
    """Return True if the tier has this test. A test that is named by its id always runs."""
    if config.getoption("full") or not _is_heavy(item):
        return True
    return any("::" in argument and item.nodeid.startswith(argument) for argument in config.args)


def _is_heavy(item: pytest.Item) -> bool:
    """Return True if the quick tier leaves a test out."""
    if item.get_closest_marker("full") is not None:
        return True
    if item.get_closest_marker("quick_on_fake") is not None and isinstance(item, pytest.Function):
        return item.callspec.params["bench"] != QUICK_FAKE
    return False


def missing(reason: str) -> None:
    """Skip a test for want of a prerequisite, or fail it where ``scripts/test`` demands all."""
    if REQUIRE_LAB:
        pytest.fail(reason)
    pytest.skip(reason)


def need_guests() -> None:
    """Skip a test, with the reason, where no guest can be started."""
    from vfiotool.errors import LabError
    from vfiotool.lab import initramfs, qemu

    try:
        qemu.program()
        initramfs.busybox()
    except LabError as error:
        missing(f"{error}: {error.hint}")


@pytest.fixture(scope="session", autouse=True)
def guest_runs(request: pytest.FixtureRequest) -> Iterator[GuestRuns | None]:
    """The runs of the selected guests, started before the first test of the host; None if there are none."""
    functions = (item for item in request.session.items if isinstance(item, pytest.Function))
    items = [item for item in functions if item.originalname == "test_in_guest"]
    guests: list[Any] = [item.callspec.params["guest"] for item in items]
    if not guests:
        yield None
        return
    from tests.support import lspci
    from tests.support.guest_runs import GuestRuns

    lspci.make_ready()
    runs = request.config.stash[_GUEST_RUNS] = GuestRuns(guests, full=request.config.getoption("full"))
    yield runs
    runs.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the slowest tests of host and guests, if there were guests."""
    if (runs := config.stash.get(_GUEST_RUNS, None)) is None:
        return
    from tests.support.slowest import COUNT, slowest

    reports = [one for kind in ("passed", "failed") for one in terminalreporter.getreports(kind)]
    terminalreporter.section(f"{COUNT} slowest")
    for duration in slowest(reports, runs.ended()):
        terminalreporter.line(f"{duration.seconds:7.1f} s {duration.phase:8} {duration.test}")


VfioBound = Callable[..., AbstractContextManager[int]]


@pytest.fixture
def vfio_bound(tmp_path: Path) -> VfioBound:
    """Bind devices to vfio-pci for a ``with`` block, and yield the group of the first."""
    import vfiotool

    @contextlib.contextmanager
    def bound(*addresses: str) -> Iterator[int]:
        with vfiotool.bound(*addresses, state_dir=str(tmp_path / "state")):
            yield int(os.readlink(f"/sys/bus/pci/devices/{addresses[0]}/iommu_group").rpartition("/")[2])

    return bound
