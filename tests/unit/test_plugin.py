"""The pytest plugin: other people's drivers, tested on a fake; what needs a kernel is in tests/contract."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.documents import write_files

pytest_plugins = ["pytester"]

PLUGIN = ("-p", "vfiotool.testing.plugin", "-p", "no:cacheprovider")
MODES = ("type1", "type1v2", "compat-type1", "compat-type1v2", "iommufd")
FAKE = """
    import pytest
    from vfiotool.testing import FakeEdu

    @pytest.fixture(scope="session")
    def vfio_fake():
        return FakeEdu("0000:00:10.0")
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder with tests of its own, and no plugin but this one, whether or not it is installed."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return pytester


def test_without_a_device_its_tests_are_skipped_and_say_why(run: pytest.Pytester) -> None:
    run.makepyfile(
        """
        def test_device(vfio_device): assert False
        def test_arena(vfio_arena): assert False
        def test_mode(vfio_device, vfio_iommu_mode): assert False
        def test_bound(vfio_bound): assert vfio_bound == []
        """
    )
    result = run.runpytest(*PLUGIN, "-rs")
    result.assert_outcomes(passed=1, skipped=2 + len(MODES))
    result.stdout.fnmatch_lines(["SKIPPED * no --vfio-device ADDRESS was given"])


def test_a_driver_runs_on_a_fake_in_each_mode(run: pytest.Pytester) -> None:
    run.makeconftest(FAKE)
    run.makepyfile(
        """
        def test_ident(vfio_device, vfio_iommu_mode):
            assert vfio_device.dma.iommu.mode.value == vfio_iommu_mode
            with vfio_device.regions.bar0.map() as bar0:
                assert bar0.read32(0) == 0x010000ED

        def test_once(vfio_device, vfio_address):
            assert vfio_device.name == vfio_address == "0000:00:10.0"
        """
    )
    result = run.runpytest(*PLUGIN, "-v")
    result.assert_outcomes(passed=len(MODES) + 1)
    result.stdout.fnmatch_lines([f"*test_ident?{mode}? PASSED*" for mode in MODES])
    run.runpytest(*PLUGIN, "--vfio-iommu", "iommufd").assert_outcomes(passed=2)


def test_an_arena_is_as_the_test_wants_it(run: pytest.Pytester) -> None:
    run.makeconftest(FAKE)
    run.makepyfile(
        """
        import pytest

        def test_default(vfio_arena):
            assert vfio_arena.size == 1 << 20

        @pytest.mark.vfio_arena(size=8192, iova_max=(1 << 28) - 1)
        def test_marked(vfio_device, vfio_arena):
            assert vfio_arena.size == 8192
            assert vfio_arena.iova < 1 << 28
            assert vfio_device.dma.mapped == (vfio_arena,)
        """
    )
    run.runpytest(*PLUGIN, "--strict-markers").assert_outcomes(passed=2)


LEAKS = {
    "vfio_device.dma.alloc(4096)": "<Buffer of 0x1000 bytes*",
    "vfio_device.irqs.msi.enable()": "MSI enabled",
    "kept.append(vfio_device.regions.bar0.map())": "mapped registers",
}


@pytest.mark.parametrize("leak", LEAKS)
def test_what_a_test_leaves_fails_it(run: pytest.Pytester, leak: str) -> None:
    run.makeconftest(FAKE)
    run.makepyfile(f"kept = []\ndef test_leaking(vfio_device): {leak}\ndef test_after(vfio_device): pass")
    result = run.runpytest(*PLUGIN, "-Wignore")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines([f"*the test did not close: {LEAKS[leak]}*"])


def test_a_file_that_a_test_leaves_open_fails_it(run: pytest.Pytester) -> None:
    run.makeconftest(FAKE)
    run.makepyfile("import os\ndef test_leaking(vfio_address): os.eventfd(0)")
    result = run.runpytest(*PLUGIN)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*the test left open: *eventfd*"])


def test_a_device_that_a_test_has_closed_is_no_leak(run: pytest.Pytester) -> None:
    run.makeconftest(FAKE)
    run.makepyfile(
        """
        def test_given_back(vfio_device):
            buffer = vfio_device.dma.alloc(4096)
            vectors = vfio_device.irqs.msi.enable()
            vfio_device.close()
        """
    )
    run.runpytest(*PLUGIN).assert_outcomes(passed=1)


def test_what_is_no_device_is_said_once_and_plainly(run: pytest.Pytester) -> None:
    run.makepyfile("def test_one(vfio_device): pass\ndef test_two(vfio_device): pass")
    result = run.runpytest(*PLUGIN, "--vfio-device", "ffff:1f:1f.7")
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*ffff:1f:1f.7*"])


def test_each_device_that_is_given_is_tested(run: pytest.Pytester) -> None:
    run.makepyfile("def test_one(vfio_address): pass")
    options = ("--vfio-device", "0000:00:10.0", "--vfio-device", "0000:00:12.0", "--collect-only", "-q")
    result = run.runpytest(*PLUGIN, *options)
    result.stdout.fnmatch_lines(["*test_one?0000:00:10.0?", "*test_one?0000:00:12.0?"])


def test_a_pytest_that_needs_no_device_imports_nothing_of_vfiotool() -> None:
    program = (
        "import sys, pytest; before = set(sys.modules); import vfiotool.testing.plugin; "
        "print(sorted(name for name in set(sys.modules) - before if not name.startswith('vfiotool')),"
        " sorted(name for name in sys.modules if name.startswith('vfiotool')))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout == "[] ['vfiotool', 'vfiotool.testing', 'vfiotool.testing.plugin']\n"


def test_the_example_of_the_guide_runs_on_its_model(run: pytest.Pytester) -> None:
    files = ["squares.py", "test_squares.py", "conftest.py", "test_no_memory.py"]
    assert write_files("docs/testing.md", run.path) == files
    # Since 9.2, pytest warns of a plugin that was imported before it could rewrite it: as in this process.
    result = run.runpytest_subprocess(*PLUGIN, "--strict-markers", "-Werror")
    result.assert_outcomes(passed=2 + len(MODES))


def test_the_vf_token_of_the_command_line_opens_the_device(run: pytest.Pytester) -> None:
    """iommufd of an older kernel takes no token: tests of all modes leave it out."""
    run.makeconftest(
        """
        from contextlib import nullcontext
        import vfiotool.binding.operations, vfiotool.testing.plugin, vfiotool.vfio.device, vfiotool.vfio.iommu
        from vfiotool.errors import UnsupportedError

        def open_device(address, *, iommu, vf_token):
            if iommu == "iommufd":
                raise UnsupportedError("the cdev takes no VF token")
            return nullcontext((address, iommu, str(vf_token)))

        vfiotool.binding.operations.bound = lambda *addresses: nullcontext()
        vfiotool.vfio.device.open_device = open_device
        vfiotool.vfio.iommu.offered_modes = lambda address: ("iommufd", "type1v2")
        vfiotool.testing.plugin._possible_modes = lambda is_real: ["iommufd", "type1v2"]
        vfiotool.testing.plugin._left_by = lambda device: []
        """
    )
    run.makepyfile(
        """
        def test_vf(vfio_device):
            assert vfio_device == ("0000:01:00.1", "auto", "b7a4c2d0-1e2f-4a5b-8c9d-0123456789ab")

        def test_modes(vfio_device, vfio_iommu_mode):
            assert vfio_device[1] == vfio_iommu_mode == "type1v2"
        """
    )
    device = ("--vfio-device", "0000:01:00.1")
    token = ("--vf-token", "B7A4C2D0-1E2F-4A5B-8C9D-0123456789AB")
    run.runpytest_subprocess(*PLUGIN, *device, *token).assert_outcomes(passed=2, skipped=1)
    refused = run.runpytest_subprocess(*PLUGIN, *device, *token, "--vfio-iommu", "iommufd")
    refused.assert_outcomes(errors=2)
    wrong = run.runpytest(*PLUGIN, "--vf-token", "secret")
    assert wrong.ret == pytest.ExitCode.USAGE_ERROR
    wrong.stderr.fnmatch_lines(["*argument --vf-token: 'secret' is not a UUID*"])
