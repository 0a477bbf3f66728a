"""Devices go to drivers that take any device, and come back to their own, whatever became of the records."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.guest import (
    BUS,
    E1000E,
    EDU,
    NVME,
    TESTDEV,
    done,
    driver,
    kernel_complaints,
    listing,
    needs_iommu,
    output,
    path,
    read,
    rescan,
    settle,
    vfiotool,
    write,
)

pytestmark = [pytest.mark.needs_guest, needs_iommu]

JOURNAL = Path("/run/vfiotool/journal")


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    """Check that all devices are as before, and that the kernel has nothing to complain of."""
    before, complaints = described(), kernel_complaints()
    yield
    settle()
    assert described() == before
    assert kernel_complaints() == complaints


def described() -> dict[str, Any]:
    """Return the listing without power states: a device that was never enabled has "unknown", and then D0."""
    return {address: one | {"power_state": ""} for address, one in listing().items()}


def states(*addresses: str) -> dict[str, tuple[str | None, str | None]]:
    """Return the driver and the raw override of devices."""
    return {address: (driver(address), read(path(address, "driver_override"))) for address in addresses}


@pytest.mark.full
def test_from_another_tool() -> None:
    output("modprobe", "vfio-pci")
    write(path(NVME, "driver_override"), "vfio-pci")
    write(path(NVME, "driver/unbind"), NVME)
    write(f"{BUS}/drivers/vfio-pci/bind", NVME)
    refused = vfiotool("restore", NVME)
    assert refused.status == 1
    assert f"'vfiotool bind --driver native {NVME}'" in refused.stderr
    done("bind", "--driver", "native", NVME)
    assert states(NVME) == {NVME: ("nvme", "(null)")}
    done("restore", NVME)  # to vfio-pci, where it was before the first change
    assert driver(NVME) == "vfio-pci"
    done("bind", "--driver", "native", NVME)
    shutil.rmtree(JOURNAL)


@pytest.mark.full
def test_after_a_lost_state_folder() -> None:
    done("bind", E1000E)
    shutil.rmtree(JOURNAL)
    done("bind", "--driver", "native", E1000E)
    assert states(E1000E) == {E1000E: ("e1000e", "(null)")}
    shutil.rmtree(JOURNAL)


def test_to_the_first_state() -> None:
    before = states(E1000E, EDU)
    done("bind", "--driver", "pci-stub", E1000E, EDU)
    done("unbind", E1000E, EDU)
    done("bind", E1000E, EDU)
    done("restore", E1000E, EDU)
    assert states(E1000E, EDU) == before


def test_after_a_removal_and_a_rescan() -> None:
    done("bind", NVME)
    write(path(NVME, "remove"), "1")
    gone = vfiotool("restore", "--all")
    assert (gone.status, gone.stdout) == (0, "")
    assert f"{NVME} is not present" in gone.stderr
    rescan(NVME)
    assert driver(NVME) == "nvme"
    back = vfiotool("restore", "--all")
    assert (back.status, back.stdout) == (0, "")
    assert f"{NVME} was on nvme already" in back.stderr
    assert not list(JOURNAL.glob("*.json"))


def test_past_a_damaged_record_and_one_of_another_device() -> None:
    before = states(E1000E, EDU, NVME, TESTDEV)
    done("bind", E1000E, EDU, NVME, TESTDEV)
    record = JOURNAL / f"{EDU}.json"
    kept = record.read_text()
    record.write_text("{")
    other = JOURNAL / f"{TESTDEV}.json"
    other.write_text(other.read_text().replace('"device_id": 5', '"device_id": 6'))
    result = vfiotool("restore", "--all")
    assert result.status == 1
    assert states(E1000E, NVME) == {address: before[address] for address in (E1000E, NVME)}
    assert f"{TESTDEV} was 1b36:0006 when it was recorded, and is 1b36:0005 now" in result.stderr
    assert EDU in result.stderr
    record.write_text(kept)
    done("restore", EDU)
    done("unbind", TESTDEV)
    write(path(TESTDEV, "driver_override"), "\n")
    shutil.rmtree(JOURNAL)
    assert states(EDU, TESTDEV) == {address: before[address] for address in (EDU, TESTDEV)}


def test_a_driver_without_ids_takes_any_device() -> None:
    for name in ("uio_pci_generic", "pci-stub"):
        done("bind", "--driver", name, TESTDEV)
        assert driver(TESTDEV) == name
        done("restore", TESTDEV)


def test_a_host_driver_gets_no_override() -> None:
    done("bind", NVME)
    for name in ("nvme", "native"):
        done("bind", "--driver", name, NVME)
        assert states(NVME) == {NVME: ("nvme", "(null)")}
        done("bind", NVME)
    done("restore", NVME)
