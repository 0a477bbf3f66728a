"""Where a test can run, on the host or in a guest, and in which tier.

Tests marked ``needs_guest`` change real devices. They are collected only inside a lab guest, where
``tests/lab/test_in_guests.py`` runs them on every kernel; the others are collected only outside.
Tests marked ``full`` are heavy: they run with ``--full``, or if they are named by their id (``file::test``).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

GUEST_KERNEL = os.environ.get("VFIOTOOL_LAB_KERNEL")
REQUIRE_LAB = os.environ.get("VFIOTOOL_REQUIRE_LAB") == "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that selects the tier."""
    parser.addoption("--full", action="store_true", help="run the full tier: the tests marked 'full' too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that run here and in this tier; some come last."""
    here = [item for item in items if _runs_here(item) and _is_in_tier(config, item)]
    here.sort(
        key=lambda item: [item.get_closest_marker(late) is not None for late in ("after_all", "for_good")]
    )
    kept = set(here)
    elsewhere = [item for item in items if item not in kept]
    if elsewhere:
        config.hook.pytest_deselected(items=elsewhere)
    items[:] = here


def _runs_here(item: pytest.Item) -> bool:
    """Return True if a test that needs a guest is in one, or a test of the host is outside."""
    return (item.get_closest_marker("needs_guest") is not None) == (GUEST_KERNEL is not None)


def _is_in_tier(config: pytest.Config, item: pytest.Item) -> bool:
    """Return True if the tier has this test. A test that is named by its id always runs."""
    if item.get_closest_marker("full") is None or config.getoption("full"):
        return True
    return any("::" in argument for argument in config.args)


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
