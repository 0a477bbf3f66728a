"""The power of idle devices on real kernels, by the device's own power management registers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.guest import (
    E1000E,
    RELEASE,
    as_before,
    await_,
    done,
    needs_iommu,
    path,
    read,
    settle,
    to_vfio,
    vfiotool,
)
from vfiotool.vfio import open_device

pytestmark = [pytest.mark.needs_guest, needs_iommu]

BY_POLICY = RELEASE >= (5, 19)
POLICIES = ("power/control", "d3cold_allowed")


def power() -> dict[str, Any]:
    found: dict[str, Any] = done("show", E1000E)["power"]
    return found


def policies() -> list[str | None]:
    return [read(path(E1000E, name)) for name in POLICIES]


def check() -> dict[str, Any]:
    checks = vfiotool("doctor", "--json").document["checks"]
    found: dict[str, Any] = next(one for one in checks if one["name"] == "power")
    return found


def test_power_on_keeps_an_idle_device_awake_until_it_is_restored() -> None:
    before = policies()
    result = vfiotool("bind", "--power", "on", E1000E)
    assert (result.status, "disable_idle_d3=1" in result.stderr) == (0, not BY_POLICY), result
    try:
        settle()
        assert policies() == ["on", None if before[1] is None else "0"]
        assert power()["state"] == ("D0" if BY_POLICY else "D3hot")
        with open_device(E1000E):
            pass
        settle()
        assert power()["state"] == ("D0" if BY_POLICY else "D3hot"), "it stays so when its user has gone"
        assert check()["ok"] is True
    finally:
        assert vfiotool("restore", E1000E).status == 0
    assert policies() == before
    assert power()["state"] == "D0"


@pytest.mark.usefixtures("vfio_pci")
def test_a_device_that_sleeps_is_shown_and_is_no_failure() -> None:
    with as_before(E1000E):
        to_vfio(E1000E)
        await_("it sleeps", lambda: read(path(E1000E, "power_state")) == "D3hot")
        shown = power()
        assert (shown["state"], shown["control"]) == ("D3hot", "auto" if BY_POLICY else "on")
        assert shown["runtime_status"] == read(path(E1000E, "power/runtime_status"))
        assert shown["disable_idle_d3"] is False
        found = check()
        assert (found["ok"], f"{E1000E} in D3hot" in found["detail"]) == (True, True)
        assert vfiotool("bind", "--power", "on", E1000E).status == 0
        assert power()["state"] == ("D0" if BY_POLICY else "D3hot"), "a device that sleeps is woken"
        assert vfiotool("restore", E1000E).status == 0
