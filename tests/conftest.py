"""Where a test can run: on the host (unit, contract on the fake, lab guests started) or in a guest.

Tests marked ``needs_guest`` change real devices. They are collected only inside a lab guest, where
``tests/lab/test_in_guests.py`` runs them on every kernel; the others are collected only outside.
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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep what runs here: a guest runs what needs one, a host runs the rest; some come last."""
    wanted = GUEST_KERNEL is not None
    here = [item for item in items if (item.get_closest_marker("needs_guest") is not None) == wanted]
    here.sort(
        key=lambda item: [item.get_closest_marker(late) is not None for late in ("after_all", "for_good")]
    )
    elsewhere = [item for item in items if item not in here]
    if elsewhere:
        config.hook.pytest_deselected(items=elsewhere)
    items[:] = here


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
