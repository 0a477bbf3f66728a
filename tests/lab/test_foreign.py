"""Other programs see the devices that vfiotool hands over as bound, and after restore nothing is left."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.guest import (
    E1000_PAIR,
    E1000E,
    EDU,
    MACHINE,
    NVME,
    await_,
    done,
    kernel_complaints,
    listing,
    needs_iommu,
    output,
    settle,
)

pytestmark = [pytest.mark.needs_guest, pytest.mark.full, needs_iommu]

# The virtio-iommu machine lacks the pair; on 6.12 it gives edu no group before its first driver.
_NETWORK = (E1000E,) if MACHINE == "virtio-iommu" else (E1000E, *E1000_PAIR)
HANDED_OVER = (NVME, *_NETWORK) if MACHINE == "virtio-iommu" else (EDU, NVME, *_NETWORK)


@pytest.fixture(scope="module")
def before() -> dict[str, dict[str, Any]]:
    return listing()


@pytest.fixture(scope="module")
def complaints() -> list[str]:
    return kernel_complaints()


@pytest.fixture(scope="module")
def bound(before: dict[str, dict[str, Any]], complaints: list[str]) -> Iterator[None]:
    """The devices are on vfio-pci, by one command."""
    changed = {one["address"]: one["to"] for one in done("bind", *HANDED_OVER)["changed"]}
    try:
        assert changed == dict.fromkeys(HANDED_OVER, "vfio-pci")
        yield
    finally:
        done("restore", "--all")


@pytest.mark.usefixtures("bound")
def test_lspci_sees_them_bound() -> None:
    records = output("lspci", "-vmm", "-D", "-k").strip().split("\n\n")
    said = [dict(line.split(":\t", 1) for line in record.splitlines()) for record in records]
    assert {one["Slot"] for one in said if one.get("Driver") == "vfio-pci"} == set(HANDED_OVER)


@pytest.mark.usefixtures("bound")
def test_driverctl_sees_them_bound() -> None:
    """It marks those that have an override."""
    devices = output("driverctl", "list-devices").splitlines()
    expected = {f"{address} vfio-pci [*]" for address in HANDED_OVER}
    assert {line for line in devices if "vfio-pci" in line or "[*]" in line} == expected


@pytest.mark.usefixtures("bound")
def test_dpdk_devbind_sees_the_network_devices_bound() -> None:
    status = output("dpdk-devbind.py", "--status-dev", "net")
    section = status.partition("using DPDK-compatible driver")[2].partition("using kernel driver")[0]
    assert re.findall(r"^(\S+) '.*' drv=vfio-pci ", section, re.MULTILINE) == sorted(_NETWORK)


@pytest.mark.skipif(MACHINE == "virtio-iommu", reason="it does not remap interrupts: VFIO refuses it")
@pytest.mark.usefixtures("bound")
def test_qemu_takes_them() -> None:
    """A guest within the guest: created, and not started."""
    ids: dict[str, tuple[int, int]] = {}
    with subprocess.Popen(qemu_arguments(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as qemu:
        assert qemu.stdin
        assert qemu.stdout
        for order in ("qmp_capabilities", "query-pci", "quit"):
            qemu.stdin.write(json.dumps({"execute": order, "id": order}) + "\n")
        qemu.stdin.flush()
        answers = {one.get("id"): one for one in map(json.loads, qemu.stdout)}
        assert qemu.wait(60) == 0
    for bus in answers["query-pci"]["return"]:
        ids |= {one["qdev_id"]: (one["id"]["vendor"], one["id"]["device"]) for one in bus["devices"]}
    expected = {a: (one["vendor_id"], one["device_id"]) for a, one in listing().items() if a in HANDED_OVER}
    assert {address: ids[name_in_qemu(address)] for address in HANDED_OVER} == expected


def qemu_arguments() -> list[str]:
    arguments = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"]
    arguments += ["-S", "-machine", "q35", "-accel", "tcg", "-m", "32M", "-qmp", "stdio"]
    for address in HANDED_OVER:
        arguments += ["-device", f"vfio-pci,host={address},id={name_in_qemu(address)}"]
    return arguments


def name_in_qemu(address: str) -> str:
    return "host-" + address.translate(str.maketrans(":.", "--"))


def test_restore_brings_all_back(
    bound: None, before: dict[str, dict[str, Any]], complaints: list[str]
) -> None:
    """All fields are as they were, but that the kernel now knows the power state of a device that it
    had never looked at: edu, which no driver had had.
    """
    assert {one["address"] for one in done("restore", "--all")["changed"]} == set(HANDED_OVER)
    settle()
    expected = {address: one | {"power_state": woken(one)} for address, one in before.items()}
    await_("all is as before", lambda: listing_woken() == expected, seconds=10)
    assert kernel_complaints() == complaints


def listing_woken() -> dict[str, dict[str, Any]]:
    return {address: one | {"power_state": woken(one)} for address, one in listing().items()}


def woken(one: dict[str, Any]) -> str | None:
    """The power state, with one that the kernel does not know taken for that of a device in use."""
    state: str | None = one["power_state"]
    return "D0" if state == "unknown" else state
