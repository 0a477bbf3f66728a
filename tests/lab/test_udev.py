"""The events that verify a bind come from udevd, or from the kernel if no udevd runs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.guest import E1000E, await_, command, done, driver, needs_iommu, output, settle
from vfiotool.events.udev import DeviceEvents

pytestmark = [pytest.mark.needs_guest, needs_iommu]


@pytest.fixture
def no_udevd() -> Iterator[None]:
    pid, *_workers = output("pidof", "systemd-udevd").split()
    with open(f"/proc/{pid}/cmdline", encoding="utf-8") as cmdline:
        program = cmdline.read().partition("\0")[0]  # not its exe: that is udevadm
    output("udevadm", "control", "--exit")
    await_("udevd ends", lambda: command("pidof", "systemd-udevd").status != 0)
    yield
    output(program, "--daemon")
    settle()


def test_events_come_from_udevd() -> None:
    events = DeviceEvents()
    assert events.source == "udev"
    events.close()


@pytest.mark.usefixtures("no_udevd")
def test_a_bind_is_verified_without_udevd() -> None:
    assert os.path.exists("/run/udev/control")
    events = DeviceEvents()
    assert events.source == "kernel"
    done("bind", E1000E)
    assert not events.missing({("unbind", E1000E), ("bind", E1000E)}, timeout=1)
    events.close()
    assert driver(E1000E) == "vfio-pci"
    done("restore", "--all")
    assert driver(E1000E) == "e1000e"
