"""The tests of igb, in guests of a QEMU that has one, which ``scripts/test`` fetches where need be."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.lab.support import ONE_CPU
from tests.lab.test_in_guests import ROOT, SECONDS, program
from vfiotool.errors import LabError
from vfiotool.lab import qemu

FETCHED = os.environ.get("VFIOTOOL_IGB_QEMU", "")
KERNELS = ("6.12",)
TESTS = ("tests/contract/test_igb.py", "tests/contract/test_driver_contract.py", "-k", "igb")

Run = subprocess.CompletedProcess[str]


def why_not() -> str:
    """Return why there is nothing to do here."""
    try:
        if "igb" in qemu.models():
            return "this machine's QEMU has igb, so the other guests have run its tests"
    except LabError as error:
        return error.message
    return "" if FETCHED else "QEMU before 8 has no igb, and scripts/test has not fetched another one"


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Run]]]:
    """The runs on all kernels that were selected, side by side."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    selected = [
        str(item.callspec.params["kernel"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.function is test_igb_in_a_guest
    ]
    with ThreadPoolExecutor(len(KERNELS)) as pool:
        yield {kernel: pool.submit(run_in_guest, kernel) for kernel in selected}


def run_in_guest(kernel: str) -> Run:
    """Run the tests in a guest; what it and they print comes as one text."""
    lab = [program("vfiotool"), "lab", "run", "--kernel", kernel]
    lab += [*ONE_CPU, "--timeout", str(SECONDS)]
    inner = [program("pytest"), "-p", "no:cacheprovider", "--color=no", "-ra", "--tb=short"]
    return subprocess.run(
        [*lab, "--", *inner, *TESTS],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{FETCHED}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_igb_in_a_guest(
    kernel: str, runs: dict[str, Future[Run]], capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs[kernel].result()
    print(run.stdout)
    summary = run.stdout.rstrip().rpartition("\n")[2].strip("= ")
    with capsys.disabled():
        print(f"\nigb on {kernel}: {summary}")
    assert run.returncode == 0
    assert " passed" in summary
    assert "skipped" not in summary
