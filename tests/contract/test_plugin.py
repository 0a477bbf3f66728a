"""The pytest plugin on a device: the example of docs/testing.md, and what is as it was after it."""

from __future__ import annotations

import os

import pytest

from tests.support.address_spaces import OFFERED
from tests.support.binding_bench import E1000E, EDU
from tests.support.documents import write_files

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.needs_guest

PLUGIN = ("-p", "vfiotool.testing.plugin", "-p", "no:cacheprovider")
DEVICES = "/sys/bus/pci/devices"


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder with tests of its own, and no plugin but this one, whether or not it is installed."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return pytester


def state_of(address: str) -> tuple[str | None, str]:
    """Return driver and override of a device."""
    link = f"{DEVICES}/{address}/driver"
    driver = os.path.basename(os.readlink(link)) if os.path.exists(link) else None
    with open(f"{DEVICES}/{address}/driver_override") as override:
        return driver, override.read()


def test_the_example_of_the_guide_runs_on_the_device(run: pytest.Pytester) -> None:
    before = state_of(EDU)
    write_files("docs/testing.md", run.path)
    result = run.runpytest(*PLUGIN, "-v", "-Werror", "--vfio-device", EDU)
    result.assert_outcomes(passed=2 + len(OFFERED))
    result.stdout.fnmatch_lines_random([f"*test_copy?{EDU}-{mode.value}? PASSED*" for mode in OFFERED])
    assert state_of(EDU) == before


def test_a_device_is_bound_as_long_as_the_session_lasts_and_then_as_it_was(run: pytest.Pytester) -> None:
    before = state_of(E1000E)
    assert before[0] == "e1000e"
    run.makepyfile(
        f"""
        import os, pytest

        def test_bound(vfio_bound, vfio_address):
            assert vfio_bound == ["{E1000E}"]
            assert os.readlink(f"{DEVICES}/{{vfio_address}}/driver").endswith("/vfio-pci")

        def test_leaking(vfio_device):
            vfio_device.dma.alloc(4096)

        def test_failing(vfio_device):
            assert False
        """
    )
    result = run.runpytest(*PLUGIN, "--vfio-device", E1000E, "--vfio-iommu", "type1")
    result.assert_outcomes(passed=2, failed=1, errors=1)
    assert state_of(E1000E) == before


@pytest.mark.full
def test_a_mode_that_is_not_there_is_an_error_where_it_was_asked_for(run: pytest.Pytester) -> None:
    run.makepyfile("def test_mode(vfio_device, vfio_iommu_mode): pass")
    result = run.runpytest(*PLUGIN, "--vfio-device", EDU, "--vfio-iommu", "noiommu")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*UnsupportedError*"])
