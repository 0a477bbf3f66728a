"""vfiotool.vfio.irqs.device_request: a device is released after its driver was asked to stop."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.support.irq_device import ADDRESS, REQ, IrqDevice
from vfiotool.errors import ClosedError, IrqError
from vfiotool.vfio.irqs.device_request import REASON, DeviceRequestHandler
from vfiotool.vfio.irqs.irqs import Irqs


class Driver:
    """A driver that is called before its device is released."""

    def __init__(self) -> None:
        self.asked = 0
        self.does: Callable[[], object] = lambda: None

    def ask(self) -> None:
        self.asked += 1
        self.does()


@pytest.fixture
def device() -> Iterator[IrqDevice]:
    opened = IrqDevice()
    yield opened
    opened.close()


@pytest.fixture
def irqs(device: IrqDevice) -> Iterator[Irqs]:
    made = Irqs(device)
    yield made
    made.close()


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture
def request_(device: IrqDevice, irqs: Irqs, driver: Driver) -> Iterator[DeviceRequestHandler]:
    made = DeviceRequestHandler(device, irqs, driver.ask)
    yield made
    made.close()


class Gone:
    """Records when a device is released, and why."""

    def __init__(self, device: IrqDevice) -> None:
        self.reason = ""
        self._event = threading.Event()
        device.on_close(self)

    def revoke(self, reason: str) -> None:
        self.reason = reason
        self._event.set()

    def wait(self) -> str:
        assert self._event.wait(30)
        return self.reason


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == f"REQ of {ADDRESS}"}


def test_a_requested_device_is_released(
    device: IrqDevice, irqs: Irqs, driver: Driver, request_: DeviceRequestHandler
) -> None:
    states: list[bool] = []
    driver.does = lambda: states.append(device.closed)
    gone = Gone(device)
    with irqs.msi.enable() as (vector,):
        (thread,) = threads()
        device.raise_irq(REQ)
        with pytest.raises(ClosedError) as caught:
            vector.wait(30)
        thread.join(30)
    assert caught.value.hint == gone.reason == REASON
    assert states == [False], "the driver could still use the device"
    assert not request_.waiting


def test_the_driver_is_called_once(device: IrqDevice, driver: Driver, request_: DeviceRequestHandler) -> None:
    driver.does = lambda: device.raise_irq(REQ)  # the kernel repeats its request every 10 s
    (thread,) = threads()
    device.raise_irq(REQ)
    thread.join(30)
    assert driver.asked == 1
    assert not request_.waiting


@pytest.mark.parametrize("error", [RuntimeError("no"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_the_device_of_a_failing_driver_is_released_and_the_error_logged(
    device: IrqDevice,
    driver: Driver,
    request_: DeviceRequestHandler,
    error: BaseException,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> None:
        raise error

    driver.does = fail
    gone = Gone(device)
    device.raise_irq(REQ)
    assert gone.wait() == REASON
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert ADDRESS in record.getMessage()


def test_close_ends_the_thread_without_calling_the_driver(
    device: IrqDevice, driver: Driver, request_: DeviceRequestHandler
) -> None:
    assert request_.waiting
    request_.close()
    assert not threads()
    assert device.armed(REQ) == 0
    assert driver.asked == 0
    assert not device.closed


@pytest.mark.parametrize("end", [IrqDevice.close, lambda device: device.revoke("the test")])
def test_the_end_of_the_device_ends_the_thread(
    device: IrqDevice, driver: Driver, request_: DeviceRequestHandler, end: Callable[[IrqDevice], None]
) -> None:
    (thread,) = threads()
    end(device)
    thread.join(30)
    assert not thread.is_alive()
    assert driver.asked == 0


def test_a_driver_may_close_the_device_when_it_is_called(
    device: IrqDevice, irqs: Irqs, driver: Driver, request_: DeviceRequestHandler
) -> None:
    def close() -> None:
        irqs.close()
        device.close()
        request_.close()

    driver.does = close
    (thread,) = threads()
    device.raise_irq(REQ)
    thread.join(30)
    assert not thread.is_alive()


def test_close_does_not_wait_for_a_driver_that_waits_for_the_closing_thread(
    device: IrqDevice, driver: Driver, request_: DeviceRequestHandler
) -> None:
    asked, closed = threading.Event(), threading.Event()

    def wait() -> None:
        asked.set()
        assert closed.wait(30)

    driver.does = wait
    (thread,) = threads()
    device.raise_irq(REQ)
    assert asked.wait(30)
    request_.close()
    closed.set()
    thread.join(30)
    assert not thread.is_alive()


def test_req_cannot_be_enabled_twice(irqs: Irqs, request_: DeviceRequestHandler) -> None:
    with pytest.raises(IrqError, match=r"REQ of .* is enabled already") as caught:
        irqs.req.enable()
    assert "honour_requests=False" in caught.value.hint


def test_a_device_without_the_interrupt_has_no_thread(device: IrqDevice, irqs: Irqs, driver: Driver) -> None:
    device.info_flags = 0  # not PCI
    request = DeviceRequestHandler(device, irqs, driver.ask)
    assert not request.waiting
    assert device.set_irqs == []
    request.close()


def test_the_thread_holds_neither_device_nor_driver(device: IrqDevice, irqs: Irqs) -> None:
    driver = Driver()
    request = DeviceRequestHandler(device, irqs, driver.ask)
    (thread,) = threads()
    gone = Gone(device)
    del driver
    device.raise_irq(REQ)
    assert gone.wait() == REASON
    del request
    thread.join(30)
    assert not thread.is_alive()


def test_a_lost_request_ends_its_thread(device: IrqDevice, irqs: Irqs, driver: Driver) -> None:
    request = DeviceRequestHandler(device, irqs, driver.ask)
    (thread,) = threads()
    del request
    thread.join(30)
    assert not thread.is_alive()
    assert driver.asked == 0


def test_a_forked_child_has_no_thread(device: IrqDevice, request_: DeviceRequestHandler) -> None:
    pid = os.fork()
    if not pid:
        alone = not request_.waiting and not threads()
        request_.close()
        os._exit(0 if alone else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert request_.waiting
    assert device.armed(REQ) == 1
