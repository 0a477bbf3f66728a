"""A kernel's own bug, done on purpose in a guest of its own, and what the same operations give on others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import need_guests
from tests.support.guest import E1000_PAIR, ONE_CPU

pytestmark = pytest.mark.full

_MARK = "--- the report"
_RUN = f"""
sysctl -q kernel.panic_on_oops=0
vfiotool stress viability {" ".join(E1000_PAIR)} --cycles 1 --seed 1 --allow-kernel-crash --report /tmp/report
echo "ended with $?"
echo "{_MARK}"
cat /tmp/report/report.json
"""


def run(kernel: str) -> tuple[str, dict[str, Any]]:
    """Run it in a guest; return what was printed, and the report."""
    folder = os.path.dirname(sys.executable)
    words = [f"{folder}/vfiotool", "lab", "run", "--kernel", kernel, *ONE_CPU, "--timeout", "300", "--"]
    ended = subprocess.run(
        [*words, "sh", "-c", f"PATH={folder}:$PATH\n{_RUN}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    printed, found, report = ended.stdout.partition(_MARK)
    assert found, ended.stdout + ended.stderr
    decoded: dict[str, Any] = json.JSONDecoder().raw_decode(report.strip())[0]
    return printed, decoded


@pytest.fixture(scope="module", autouse=True)
def lab() -> None:
    """Skip the tests if no guest can be started."""
    need_guests()


def test_the_bug_of_an_old_kernel_is_reported_with_its_function() -> None:
    """BUG_ON(vfio_group_nb_verify(group, dev)) in vfio_iommu_group_notifier(), up to 5.18."""
    printed, report = run("5.10")
    assert "ended with 1" in printed
    assert report["verdict"] == "fail"
    bugs = [line for line in report["kernel_log"] if line["kind"] == "bug"]
    assert "vfio_iommu_group_notifier" in bugs[0]["where"], report
    assert "drivers/vfio/vfio.c" in bugs[0]["where"], report


def test_a_newer_kernel_refuses_the_same() -> None:
    printed, report = run("6.12")
    assert "ended with 0" in printed
    assert (report["verdict"], report["operations"]["bind"]["errors"]) == ("pass", {"EBUSY": 1})
