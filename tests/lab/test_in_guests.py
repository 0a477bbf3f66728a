"""The tests that need a guest, on every kernel: one guest for each kernel and machine, two at a time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import need_guests
from tests.lab.support import ONE_CPU

ROOT = Path(__file__).parents[2]
ALL = ("tests/contract", "tests/lab")
# What another IOMMU may change.
SEE_AND_BIND = ("tests/lab/test_see.py", "tests/lab/test_foreign.py", "tests/lab/test_doctor.py")
# Driving devices: in all modes, and with the kernel's own checks on.
DRIVE = (
    "tests/contract/test_opening.py",
    "tests/contract/test_vfio.py",
    "tests/contract/test_dma.py",
    "tests/contract/test_regions.py",
    "tests/contract/test_irqs.py",
    "tests/contract/test_reset.py",
    "tests/contract/test_features.py",
    "tests/contract/test_edu.py",
    "tests/contract/test_testdev.py",
    "tests/contract/test_nvme.py",
    "tests/contract/test_driver_contract.py",
    "tests/lab/test_kernel_log.py",
)
# What each kernel is judged by; that broken things are found is no kernel's doing.
STRESS = (
    "tests/lab/test_stress.py::test_all_passes",
    "tests/lab/test_stress.py::test_a_host_driver_that_comes_into_a_live_group",
)
# What may differ between two kernels with the same rules: all of it runs on the reference, 6.12.
BETWEEN_KERNELS = (
    *DRIVE,
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/lab/test_traps_*.py")),
    "tests/contract/test_binding.py",
    "tests/lab/test_cycles.py",
    "tests/lab/test_foreign.py",
    "tests/lab/test_memory.py",
    "tests/lab/test_model.py",
    "tests/lab/test_rules.py",
    "tests/lab/test_see.py",
    "tests/lab/test_stress_hotplug.py",
    "tests/lab/test_udev.py",
    "tests/lab/test_watch.py",
    *STRESS,
)
# And what the oldest, which has other rules, may do otherwise.
OLDEST = (
    *BETWEEN_KERNELS,
    "tests/contract/test_locking.py",
    "tests/contract/test_recovery.py",
    "tests/contract/test_sriov.py",
    "tests/lab/test_doctor.py",
    "tests/lab/test_refusals.py",
    "tests/lab/test_sriov.py",
    "tests/lab/test_stress_operations.py",
)
PAIRS = {
    ("6.12", "default"): ALL,
    ("5.10", "default"): OLDEST,
    ("debug", "default"): (
        *DRIVE,
        "tests/lab/test_model.py",  # whose rules are those of cdevs there
        "tests/lab/test_rules.py",
        "tests/lab/test_stress.py::test_all_passes",
    ),
    ("6.1", "default"): BETWEEN_KERNELS,
    ("7", "default"): BETWEEN_KERNELS,
    ("debug", "none"): ("tests/lab/test_noiommu.py",),
    ("6.12", "amd"): SEE_AND_BIND,
    ("6.12", "virtio-iommu"): SEE_AND_BIND,
    ("6.12", "none"): (
        "tests/lab/test_see.py",
        "tests/lab/test_bad_input.py",
        "tests/lab/test_doctor.py",
        "tests/lab/test_traps_bind.py",
    ),
}
AT_A_TIME = 2  # pytest in a guest keeps one processor busy
SECONDS = 2700
STUCK = 600  # seconds of one test, which then says where it stands
NO_TEST_RAN, LOST = 5, 125

_SUMMARY = re.compile(r"^=+ (.*\b(?:passed|failed|error).* in .*?) =+$", re.MULTILINE)
_REPORT = re.compile(r"^=+ (?:FAILURES|ERRORS) =+$", re.MULTILINE)
_QEMU_DIED = re.compile(r"^error: the guest was lost: QEMU was killed by SIGSEGV", re.MULTILINE)

Run = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def runs(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], Future[Run]]]:
    """The runs of all pairs that were selected, started in their order."""
    need_guests()
    selected = [
        (str(item.callspec.params["kernel"]), str(item.callspec.params["machine"]))
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.function is test_in_guest
    ]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        yield {pair: pool.submit(run_in_guest, *pair) for pair in selected}
        pool.shutdown(cancel_futures=True)


def run_in_guest(kernel: str, machine: str) -> Run:
    """Run pytest in a guest, and in another one where QEMU itself has died under it.

    QEMU 7.2 does so once in many hours: where two processors are emulated, one writes to a device's memory
    while the other has it moved, and ``memory_region_dispatch_write`` follows a pointer into what was freed.
    A guest that ends in any other way has found something.
    """
    run = run_once(kernel, machine)
    died = _QEMU_DIED.search(run.stdout)
    if died is None:
        return run
    again = run_once(kernel, machine)
    again.stdout = f"{died[0]}; it was started once more\n{again.stdout}"
    return again


def run_once(kernel: str, machine: str) -> Run:
    """Run pytest in a guest; what it and the guest printed comes as one text."""
    lab = [program("vfiotool"), "lab", "run", "--kernel", kernel, "--machine", machine, "--times"]
    lab += [*ONE_CPU, "--timeout", str(SECONDS)]
    inner = [program("pytest"), "-p", "no:cacheprovider", "--color=no", "-ra", "--tb=short", "--durations=5"]
    inner += ["-o", f"faulthandler_timeout={STUCK}", "-o", "faulthandler_exit_on_timeout=true"]
    return subprocess.run(
        [*lab, "--", *inner, *PAIRS[kernel, machine]],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def program(name: str) -> str:
    """The path of a program of this Python environment."""
    return os.path.join(os.path.dirname(sys.executable), name)


@pytest.mark.parametrize(("kernel", "machine"), PAIRS)
def test_in_guest(
    kernel: str,
    machine: str,
    runs: dict[tuple[str, str], Future[Run]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = runs[kernel, machine].result()
    print(run.stdout[found.start() :] if (found := _REPORT.search(run.stdout)) else run.stdout)
    with capsys.disabled():
        print(f"\n{kernel} on {machine}: {''.join(_SUMMARY.findall(run.stdout)) or 'lost'}")
        if died := _QEMU_DIED.search(run.stdout):
            print(died[0])
    assert run.returncode != LOST, "the guest was lost"
    assert run.returncode != NO_TEST_RAN, "no test ran in the guest"
    assert run.returncode == 0, "tests failed in the guest"
    assert " passed" in "".join(_SUMMARY.findall(run.stdout))
