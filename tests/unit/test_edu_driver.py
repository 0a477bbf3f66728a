"""The driver of edu with behaviour that QEMU's device seldom or never shows."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

import pytest

from tests.support.device_models import FakeIgb
from vfiotool.drivers.edu import Edu
from vfiotool.errors import ClosedError, IrqTimeoutError, KernelError, RegisterTimeoutError, UnsupportedError
from vfiotool.testing import FakeEdu, open_fake
from vfiotool.vfio.device import Device
from vfiotool.vfio.irqs.irqs import Vector

DMA_COMMAND, ACKNOWLEDGE = 0x98, 0x64
OTHER_CAUSE = 0x8000_0000


class PatientEdu(FakeEdu):
    """Starts no DMA until ``waits_for`` is set, and reports DMA in progress meanwhile."""

    waits_for: Callable[[int, int], bool] = staticmethod(lambda _offset, _value: False)
    waiting = 0

    def write(self, bar: int, offset: int, width: int, value: int) -> None:
        if offset == DMA_COMMAND:
            self.waiting = value
            self._dma[offset] = value
            self._raise(OTHER_CAUSE)
            return
        super().write(bar, offset, width, value)
        if self.waiting and self.waits_for(offset, value):
            value, self.waiting = self.waiting, 0
            super().write(bar, DMA_COMMAND, 64, value)


def test_another_device_is_left_alone() -> None:
    with open_fake(FakeIgb()) as device, pytest.raises(UnsupportedError, match="is not edu"):
        Edu(device).start()


@pytest.mark.parametrize("kind", ["msi", "intx"])
def test_an_interrupt_for_something_else_does_not_end_a_copy(kind: str) -> None:
    model = PatientEdu()
    model.waits_for = lambda offset, value: offset == ACKNOWLEDGE and bool(value & OTHER_CAUSE)
    with open_fake(model) as device, Edu(device, irq=getattr(device.irqs, kind)) as edu:
        edu.copy_to_device(7, b"ping")
        assert model.buffer[7:11] == b"ping"
        assert edu.interrupt() == 1


@pytest.mark.parametrize("kind", ["", "msi"])
def test_a_device_that_does_not_end_its_dma_loses_its_mappings(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vfiotool.drivers.edu._TIMEOUT", 0.01)
    with open_fake(PatientEdu()) as device:
        edu = Edu(device, irq=device.irqs.msi if kind else None)
        edu.start()
        with pytest.raises(IrqTimeoutError if kind else RegisterTimeoutError):
            edu.fetch(0, 0, 1, timeout=0.01)
        with pytest.raises(RegisterTimeoutError, match="dma_command"):
            edu.stop()
        assert not device.bus_master
        assert device.dma.mapped == ()
        assert not device.irqs.msi.enabled
        edu.stop()


def test_the_driver_stops_when_the_kernel_requests_its_device() -> None:
    model, stopped = FakeEdu(), threading.Event()
    with open_fake(model) as device:
        edu = Edu(device, irq=device.irqs.msi)
        edu.start()
        handler, seen = device.on_request, list[bool]()
        assert handler is not None

        def noticed(one: Device) -> None:
            handler(one)
            seen.extend((edu.started, device.bus_master, device.closed))
            stopped.set()

        device.on_request = noticed
        model.ask_back()
        assert stopped.wait(30)
    assert seen == [False, False, False]


def test_intx_that_is_disabled_while_it_is_unmasked_ends_the_call_as_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open_fake(FakeEdu()) as device, Edu(device, irq=device.irqs.intx) as edu:

        def too_late(_vector: Vector) -> None:
            edu.stop()
            raise KernelError(errno.EINVAL, "VFIO_DEVICE_SET_IRQS", device.name)

        monkeypatch.setattr(Vector, "unmask", too_late)
        with pytest.raises(ClosedError):
            edu.interrupt()
