"""Features of devices, and low power, on real kernels."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

import vfiotool
from tests.support.address_spaces import open_fds
from tests.support.binding_bench import NVME
from tests.support.guest import await_, kernel_complaints, path, read
from vfiotool.errors import AccessError, KernelError, UnsupportedError
from vfiotool.vfio.device import Device, open_device
from vfiotool.vfio.uapi import DeviceFeature, DeviceFeatureFlags

pytestmark = pytest.mark.needs_guest

RELEASE = tuple(int(part) for part in os.uname().release.split(".")[:2])
PF = "0000:01:00.0"
NVME_VERSION = 0x08
SOON = 30.0

can_sleep = pytest.mark.skipif(RELEASE < (6, 1), reason="low power came with Linux 6.1")


@pytest.fixture(scope="module", autouse=True)
def bound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The devices on vfio-pci for all of these tests; the kernel must log no complaint."""
    before = kernel_complaints()
    with vfiotool.bound(NVME, PF, state_dir=str(tmp_path_factory.mktemp("state"))):
        yield
    assert kernel_complaints() == before


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds() == before


@pytest.fixture
def nvme() -> Iterator[Device]:
    with open_device(NVME) as device:
        yield device


def test_the_features_of_each_device(nvme: Device) -> None:
    sleep = DeviceFeatureFlags.SET if RELEASE >= (6, 1) else DeviceFeatureFlags(0)
    expected = {
        DeviceFeature.PCI_VF_TOKEN: DeviceFeatureFlags(0),
        DeviceFeature.MIGRATION: DeviceFeatureFlags(0),
        DeviceFeature.LOW_POWER_ENTRY: sleep,
        DeviceFeature.LOW_POWER_ENTRY_WITH_WAKEUP: sleep,
        DeviceFeature.LOW_POWER_EXIT: sleep,
    }
    assert {feature: nvme.features.probe(feature) for feature in expected} == expected


def test_only_a_pf_has_a_token(nvme: Device) -> None:
    with pytest.raises(UnsupportedError, match="has no VF token"):
        nvme.features.set_vf_token(uuid.uuid4())
    with open_device(PF) as pf:
        if not os.path.exists(path(PF, "sriov_totalvfs")):
            pytest.skip("a kernel without CONFIG_PCI_IOV has no PFs")
        assert pf.features.probe(DeviceFeature.PCI_VF_TOKEN) == DeviceFeatureFlags.SET
        pf.features.set_vf_token(uuid.uuid4())


@pytest.mark.skipif(RELEASE >= (6, 1), reason="this kernel lets devices sleep")
def test_an_old_kernel_has_no_low_power(nvme: Device) -> None:
    with nvme.regions.bar0.map() as registers:
        version = registers.read32(NVME_VERSION)
        for wakeup in (False, True):
            with pytest.raises(UnsupportedError) as caught:
                nvme.features.low_power(wakeup=True) if wakeup else nvme.features.low_power()
            assert "6.1" in caught.value.hint
        assert registers.read32(NVME_VERSION) == version, "the device stays awake"


@can_sleep
def test_low_power_blocks_mapped_registers_until_it_ends(nvme: Device) -> None:
    with nvme.regions.bar0.map() as registers:
        version = registers.read32(NVME_VERSION)
        assert version & 0xFFFF0000 == 0x00010000
        for _ in range(3):
            with nvme.features.low_power():
                await_("it sleeps", lambda: read(path(NVME, "power/runtime_status")) == "suspended")
                assert read(path(NVME, "power_state")) == "D3hot"
                with pytest.raises(AccessError, match="in low power"):
                    registers.read32(NVME_VERSION)
                with nvme.regions.bar0.map() as other, pytest.raises(AccessError):
                    other.read32(NVME_VERSION)
            assert registers.read32(NVME_VERSION) == version
            assert read(path(NVME, "power_state")) == "D0"


@can_sleep
def test_a_system_call_wakes_a_device_for_its_duration(nvme: Device) -> None:
    with nvme.features.low_power():
        await_("it sleeps", lambda: read(path(NVME, "power/runtime_status")) == "suspended")
        assert nvme.config.read32(0) == 0x00101B36
        await_("it sleeps again", lambda: read(path(NVME, "power/runtime_status")) == "suspended")


@can_sleep
def test_low_power_cannot_be_entered_twice(nvme: Device) -> None:
    with nvme.features.low_power(), pytest.raises(KernelError):
        nvme.features.low_power()


@can_sleep
def test_a_wakeup_is_signalled(nvme: Device) -> None:
    with nvme.regions.bar0.map() as registers:
        version = registers.read32(NVME_VERSION)
        with nvme.features.low_power(wakeup=True) as sleep:
            await_("it sleeps", lambda: read(path(NVME, "power/runtime_status")) == "suspended")
            assert sleep.wakeup.read() == 0
            nvme.info()
            assert sleep.wakeup.wait(SOON) == 1
            assert read(path(NVME, "power/runtime_status")) == "active", "the device stays awake"
            with pytest.raises(AccessError):
                registers.read32(NVME_VERSION)
        assert registers.read32(NVME_VERSION) == version
        with nvme.features.low_power():
            pass


@can_sleep
def test_a_device_in_low_power_can_be_closed(nvme: Device) -> None:
    sleep = nvme.features.low_power()
    nvme.close()
    sleep.__exit__(None, None, None)
    with open_device(NVME) as again, again.regions.bar0.map() as registers:
        assert registers.read32(NVME_VERSION) & 0xFFFF0000 == 0x00010000
