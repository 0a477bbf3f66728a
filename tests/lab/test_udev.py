"""The events that verify a bind come from udevd, or from the kernel if no udevd runs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.guest import (
    E1000E,
    PROGRAM,
    await_,
    command,
    done,
    driver,
    needs_iommu,
    output,
    settle,
    tell_udevd,
    vfiotool,
)
from vfiotool.binding import plan_writer
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


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Give the device back after a failure too, for the tests that follow."""
    yield
    done("restore", "--all")


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


@pytest.fixture
def stopped_udevd() -> Iterator[None]:
    """Have udevd receive uevents, and run no rules."""
    settle()
    tell_udevd("--stop-exec-queue")
    yield
    tell_udevd("--start-exec-queue")
    settle()


@pytest.mark.usefixtures("stopped_udevd")
def test_a_bind_is_kept_if_udevd_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_writer, "UDEV_SECONDS", 1.0)
    for verb, now in (("bind", "vfio-pci"), ("restore", "e1000e")):
        result = vfiotool(verb, E1000E)
        assert result.status == 0, result
        assert result.stderr.startswith("warning: udevd did not report 'unbind' of")
        assert len(result.stderr.splitlines()) == 1
        assert driver(E1000E) == now


def test_a_bind_from_another_network_namespace_is_kept() -> None:
    for verb, now in (("bind", "vfio-pci"), ("restore", "e1000e")):
        result = command("unshare", "--net", PROGRAM, verb, "--allow-network", "--allow-route", E1000E)
        assert result.status == 0, result
        assert len(result.stderr.splitlines()) == 1
        assert result.stderr.startswith("warning: udevd is in another network namespace, so ")
        assert driver(E1000E) == now
        settle()


@pytest.mark.full
def test_a_bind_from_other_namespaces_of_pids_and_networks_is_kept() -> None:
    """The udevd cannot be seen to be in another network namespace from there."""
    for verb, now in (("bind", "vfio-pci"), ("restore", "e1000e")):
        words = ["unshare", "--net", "--pid", "--fork", "--mount-proc", PROGRAM, verb, E1000E]
        result = command(*words, "--allow-network", "--allow-route", "--allow-namespace", "--allow-opened")
        assert result.status == 0, result
        assert result.stderr.startswith("warning: ")
        assert driver(E1000E) == now
        settle()
