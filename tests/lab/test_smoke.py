"""vfiotool works on this kernel and this machine: what the quick tier runs on all but the reference."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

import vfiotool as api
from tests.support.guest import (
    E1000E,
    EDU,
    KERNEL,
    MACHINE,
    NVME,
    done,
    kernel_complaints,
    listing,
    needs_iommu,
    settle,
    vfiotool,
)
from vfiotool.errors import VfioToolError

pytestmark = pytest.mark.needs_guest

SECONDS = 60
IDS = {E1000E: "8680d310", NVME: "361b1000"}
"""Devices that every machine has, each with a driver and a group of its own, and their first four bytes."""
# On the debug kernel one device has to do: each bind takes half a minute there.
BOUND = {NVME: IDS[NVME]} if KERNEL == "debug" else IDS
STRESSED = (NVME,) if KERNEL == "debug" else (EDU, NVME)


def drivers() -> dict[str, Any]:
    """Return the driver of each of the devices, as ``list`` reports it."""
    return {address: listing()[address]["driver"] for address in IDS}


@needs_iommu
def test_bind_open_and_restore() -> None:
    """Devices are listed, bound, opened in every mode that the kernel offers, and restored."""
    complaints, before = kernel_complaints(), drivers()
    assert before == {E1000E: "e1000e", NVME: "nvme"}
    assert {one["address"] for one in done("bind", *BOUND)["changed"]} == set(BOUND)
    try:
        assert drivers() == before | dict.fromkeys(BOUND, "vfio-pci")
        for address, ids in BOUND.items():
            modes = api.offered_modes(address)
            assert len(modes) == (5 if os.path.exists("/dev/iommu") else 2), modes
            for mode in modes:
                open_in(mode.value, address, bytes.fromhex(ids))
    finally:
        done("restore", "--all")
    settle()
    assert drivers() == before
    assert kernel_complaints() == complaints


def open_in(mode: str, address: str, ids: bytes) -> None:
    """Open a device, read its registers, and map memory for it."""
    if MACHINE == "virtio-iommu":  # it does not remap interrupts: VFIO refuses it
        with pytest.raises(VfioToolError):
            api.open_device(address, iommu=mode)
        return
    with api.open_device(address, iommu=mode) as device:
        assert device.config.read(4) == ids
        with device.dma.alloc(4096) as memory:
            memory[:5] = b"hello"
            assert device.dma.mapped


@pytest.mark.skipif(MACHINE != "none", reason="this machine has an IOMMU")
def test_without_an_iommu_devices_are_listed_and_not_bound() -> None:
    before = drivers()
    assert before == {E1000E: "e1000e", NVME: "nvme"}
    refused = vfiotool("bind", *IDS)
    assert refused.status == 4, refused
    assert "IOMMU" in refused.stderr
    assert drivers() == before


@needs_iommu
@pytest.mark.usefixtures("vfio_pci")
def test_a_minute_of_stress(tmp_path: Any) -> None:
    """Every workload finds nothing, and gives the devices back."""
    complaints, before = kernel_complaints(), listing()
    words = ("all", *STRESSED, "--duration", str(SECONDS), "--seed", "7")
    result = vfiotool("stress", *words, "--report", str(tmp_path / "report"))
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert (report["unexpected"], report["reasons"]) == ([], [])
    assert (result.status, report["verdict"], report["restored"]) == (0, "pass", True), result
    assert sum(one["count"] for one in report["operations"].values()) > 25 * len(STRESSED)
    settle()
    after = {address: one["driver"] for address, one in listing().items()}
    assert after == {address: one["driver"] for address, one in before.items()}
    assert kernel_complaints() == complaints
