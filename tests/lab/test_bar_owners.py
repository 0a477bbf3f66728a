"""A BAR that something else has: ramoops has a part of edu's, as a frame buffer may have of a GPU's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.guest import (
    EDU,
    as_before,
    command,
    done,
    output,
    path,
    read,
    to_vfio,
    vfiotool,
    vfiotool_as_nobody,
)

pytestmark = pytest.mark.needs_guest

_BEYOND_THE_REGISTERS = 0x10000
_SIZES = ("mem_size=0x4000", "record_size=0x1000", "console_size=0", "ftrace_size=0", "pmsg_size=0")


@pytest.fixture
def claimed(vfio_pci: None) -> Iterator[None]:
    """edu on vfio-pci, with a part of its BAR that ramoops has."""
    if command("modprobe", "-n", "ramoops").status != 0:
        pytest.skip("this kernel has no ramoops module")
    start = int((read(path(EDU, "resource")) or "").split()[0], 16)
    with as_before(EDU):
        to_vfio(EDU)
        output("modprobe", "ramoops", f"mem_address={start + _BEYOND_THE_REGISTERS:#x}", *_SIZES)
        try:
            yield
        finally:
            command("modprobe", "-r", "ramoops")


def bars() -> dict[str, Any]:
    checks = vfiotool("doctor", "--json").document["checks"]
    found: dict[str, Any] = next(check for check in checks if check["name"] == "bars")
    return found


@pytest.mark.usefixtures("claimed")
def test_a_bar_that_something_else_has_is_named_with_a_remedy_that_works() -> None:
    assert "ramoops" in (read("/proc/iomem") or "")
    result = vfiotool("peek", EDU, "bar0", "0")
    assert (result.status, "ramoops" in result.stderr, "(EBUSY)" in result.stderr) == (1, True, True), result
    assert "hint: modprobe -r ramoops\n" in result.stderr
    found = bars()
    assert (found["ok"], found["remedy"]) == (False, "modprobe -r ramoops")
    assert f"has bar0 of {EDU}" in found["detail"]
    nobody = vfiotool_as_nobody("doctor").stdout
    assert "ramoops" in nobody, "the names are everyone's to read"
    output(*found["remedy"].split())
    assert bars()["ok"] is True
    assert done("peek", EDU, "bar0", "0")["value"] == 0x010000ED
    assert bars()["ok"] is True, "VFIO's own claim counts for nothing"
