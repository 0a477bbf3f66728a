"""What the tests in a guest ask for by name."""

from __future__ import annotations

import pytest

from tests.support.guest import output


@pytest.fixture
def vfio_pci() -> None:
    """Have vfio-pci loaded."""
    output("modprobe", "vfio-pci")
