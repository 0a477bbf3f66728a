"""The defects that the kernel reported during all other tests. These tests run last."""

from __future__ import annotations

import os
import re

import pytest

from tests.support.guest import kernel_log

pytestmark = [pytest.mark.needs_guest, pytest.mark.after_all]

KMEMLEAK = "/sys/kernel/debug/kmemleak"
# The first line of a report, of any of the kernel's checks.
REPORT = re.compile(
    r"WARNING: |BUG: |KASAN|possible (circular|recursive|irq) |suspicious RCU|inconsistent lock state"
    r"|sleeping function called|refcount_t: |UBSAN|blocked for more than|Oops|general protection"
)


def test_the_kernel_reports_no_bug() -> None:
    assert [line for line in kernel_log() if REPORT.search(line)] == []


@pytest.mark.skipif(not os.path.exists(KMEMLEAK), reason="this kernel does not look for leaks")
def test_the_kernel_leaked_no_memory() -> None:
    """New memory can look leaked for a moment, so a leak is what two scans find."""
    for _ in range(2):
        with open(KMEMLEAK, "w", encoding="ascii") as scan:
            scan.write("scan")
    with open(KMEMLEAK, encoding="utf-8", errors="replace") as found:
        leaks = found.read()
    assert not [line for line in leaks.splitlines() if "vfio" in line or "iommu" in line], leaks
