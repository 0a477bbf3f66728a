"""vfiotool.vfio.features: probes and low power, with IrqDevice in place of the kernel."""

from __future__ import annotations

import errno
import struct
import uuid
from collections.abc import Iterator

import pytest

from tests.support.irq_device import (
    ADDRESS,
    GET,
    LOW_POWER_ENTRY,
    LOW_POWER_EXIT,
    LOW_POWER_WAKEUP,
    PROBE,
    SET,
    IrqDevice,
)
from vfiotool.errors import ClosedError, KernelError, UnsupportedError
from vfiotool.vfio.features import Features
from vfiotool.vfio.uapi import DeviceFeature, DeviceFeatureFlags, DeviceIoctl

TOKEN = uuid.UUID("b7a4c2d0-1e2f-4a5b-8c9d-0123456789ab")


@pytest.fixture
def device() -> Iterator[IrqDevice]:
    with IrqDevice() as opened:
        yield opened


@pytest.fixture
def features(device: IrqDevice) -> Features:
    return Features(device)


def low_power_calls(device: IrqDevice) -> list[int]:
    return [struct.unpack_from("=I", call, 4)[0] & ~SET for call in device.feature_calls]


@pytest.mark.parametrize("offered", [GET, SET, GET | SET])
def test_an_existing_feature_is_probed(device: IrqDevice, features: Features, offered: int) -> None:
    device.features[DeviceFeature.MIGRATION] = offered
    assert features.probe(DeviceFeature.MIGRATION) == DeviceFeatureFlags(offered)
    assert device.feature_calls == [
        struct.pack("=2I", 8, PROBE | GET | 1),
        struct.pack("=2I", 8, PROBE | SET | 1),
    ]


def test_a_missing_feature_has_no_operation(device: IrqDevice, features: Features) -> None:
    assert features.probe(DeviceFeature.DMA_BUF) == DeviceFeatureFlags(0)


def test_a_feature_that_the_driver_lacks_is_missing(device: IrqDevice, features: Features) -> None:
    device.answers[DeviceIoctl.VFIO_DEVICE_FEATURE] = lambda data: -errno.EOPNOTSUPP
    assert features.probe(DeviceFeature.DMA_BUF) == DeviceFeatureFlags(0)


def test_other_errors_of_a_probe_do_not_mean_missing(device: IrqDevice, features: Features) -> None:
    device.answers[DeviceIoctl.VFIO_DEVICE_FEATURE] = lambda data: -errno.EIO
    with pytest.raises(KernelError):
        features.probe(DeviceFeature.MIGRATION)


def test_a_pfs_owner_sets_the_token_in_the_order_of_its_bytes(device: IrqDevice, features: Features) -> None:
    features.set_vf_token(TOKEN)
    token = bytes.fromhex("b7a4c2d01e2f4a5b8c9d0123456789ab")
    assert device.feature_calls == [struct.pack("=2I", 24, SET) + token]


def test_a_device_that_is_no_pf_has_no_token(device: IrqDevice, features: Features) -> None:
    del device.features[0]
    with pytest.raises(UnsupportedError, match=f"{ADDRESS} has no VF token") as caught:
        features.set_vf_token(TOKEN)
    assert "only a PF on vfio-pci" in caught.value.hint
    assert str(TOKEN) not in f"{caught.value} {caught.value.hint}"


def test_low_power_blocks_mapped_registers(device: IrqDevice, features: Features) -> None:
    with features.low_power() as sleep:
        assert device.sleeps == [True]
    sleep.close()
    assert device.sleeps == [True, False]
    assert low_power_calls(device) == [LOW_POWER_ENTRY, LOW_POWER_EXIT]


def test_low_power_can_be_entered_again_but_not_twice(device: IrqDevice, features: Features) -> None:
    with features.low_power():
        with pytest.raises(KernelError) as caught:
            features.low_power(wakeup=True)
        assert caught.value.errno == errno.EINVAL
        assert device.sleeps == [True], "the registers stay blocked"
    with features.low_power():
        assert device.sleeps == [True, False, True]


@pytest.mark.parametrize("wakeup", [False, True])
def test_an_old_kernel_has_no_low_power_and_blocks_nothing(
    device: IrqDevice, features: Features, wakeup: bool
) -> None:
    device.features.clear()
    with pytest.raises(UnsupportedError, match="has no low power") as caught:
        features.low_power(wakeup=True) if wakeup else features.low_power()
    assert "Linux 6.1" in caught.value.hint
    assert device.sleeps == [True, False]


def test_registers_stay_blocked_if_the_device_does_not_wake(device: IrqDevice, features: Features) -> None:
    sleep = features.low_power()
    device.answers[DeviceIoctl.VFIO_DEVICE_FEATURE] = lambda data: -errno.EIO
    with pytest.raises(KernelError):
        sleep.close()
    assert device.sleeps == [True]
    device.answers.clear()
    sleep.close()
    assert device.sleeps == [True, False]


def test_a_released_device_needs_no_wake(device: IrqDevice, features: Features) -> None:
    with features.low_power():
        device.revoke("the test")
    assert low_power_calls(device) == [LOW_POWER_ENTRY]


def test_a_wakeup_is_signalled(device: IrqDevice, features: Features) -> None:
    with features.low_power(wakeup=True) as sleep:
        assert device.feature_calls == [
            struct.pack("=2IiI", 16, SET | LOW_POWER_WAKEUP, sleep.wakeup.fileno(), 0)
        ]
        assert sleep.wakeup.read() == 0
    assert sleep.wakeup.closed
    assert low_power_calls(device) == [LOW_POWER_WAKEUP, LOW_POWER_EXIT]


def test_a_wait_for_a_wakeup_ends_with_the_device(device: IrqDevice, features: Features) -> None:
    with features.low_power(wakeup=True) as sleep:
        device.revoke("the test")
        with pytest.raises(ClosedError):
            sleep.wakeup.wait(30)
