"""A machine without an IOMMU: VFIO gives a device out there too, to who asks for that by its name."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import vfiotool
from tests.support.guest import EDU, output
from vfiotool.errors import UnsupportedError
from vfiotool.vfio import Device

UNSAFE = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
EDU_IDENTITY = 0x010000ED

pytestmark = [
    pytest.mark.needs_guest,
    pytest.mark.skipif(os.path.exists("/sys/class/iommu/dmar0"), reason="this machine has an IOMMU"),
]


@pytest.fixture
def allowed() -> Iterator[None]:
    """Let VFIO hand out devices that no IOMMU isolates."""
    output("modprobe", "vfio-pci")
    if not os.path.exists(UNSAFE):
        pytest.skip("this kernel was built without CONFIG_VFIO_NOIOMMU")
    with open(UNSAFE, "w", encoding="ascii") as switch:
        switch.write("Y")
    yield
    with open(UNSAFE, "w", encoding="ascii") as switch:
        switch.write("N")


def opened(mode: str) -> Device:
    return vfiotool.open_device(EDU, iommu=mode)


def test_a_device_is_not_bound_unless_the_kernel_was_told_so() -> None:
    with pytest.raises(UnsupportedError, match="no IOMMU group"), vfiotool.bound(EDU):
        pass


def test_no_mode_but_the_one_of_that_name_opens_it(allowed: None) -> None:
    with vfiotool.bound(EDU):
        for mode in ("auto", "type1v2", "type1"):
            with pytest.raises(UnsupportedError, match="no IOMMU isolates") as caught:
                opened(mode)
            assert "iommu='noiommu'" in caught.value.hint


def test_registers_and_interrupts_work_and_nothing_is_mapped(allowed: None) -> None:
    with vfiotool.bound(EDU), opened("noiommu") as device, device.regions.bar0.map() as bar0:
        assert bar0.read32(0) == EDU_IDENTITY
        with device.irqs.msi.enable() as (vector,):
            vector.trigger()
            assert vector.wait(10) == 1
        with pytest.raises(UnsupportedError, match="without an IOMMU"):
            device.dma.alloc(4096)
