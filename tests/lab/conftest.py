"""Fixtures of the tests in a guest."""

from __future__ import annotations

import pytest

from tests.support.guest import output


@pytest.fixture
def vfio_pci() -> None:
    """Have vfio-pci loaded."""
    output("modprobe", "vfio-pci")
