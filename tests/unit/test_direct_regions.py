"""Reserved regions that are ``direct``: which are, and what warns of them."""

from __future__ import annotations

import os

import pytest

from tests.unit.conftest import Run
from vfiotool.host.direct_regions import OTHER_FIRMWARE, direct_note
from vfiotool.host.doctor import Check, examine
from vfiotool.host.groups import read_groups
from vfiotool.testing import FakeHost
from vfiotool.testing.fake_tree import MSI_REGION

NIC, EDU = "0000:04:00.0", "0000:00:10.0"
RMRR = "0x000000007d600000 0x000000007d6fffff direct"
RELAXABLE = "0x0000000000000000 0x0000000000ffffff direct-relaxable"
NOTE = "0x7d600000 to 0x7d6fffff mapped 1:1"


@pytest.fixture
def machine(host: FakeHost) -> FakeHost:
    """A NIC with an RMRR, and a device whose region is harmless."""
    host.add_driver("vfio-pci")
    host.add_device(NIC, vendor=0x8086, class_code=0x020000, driver="igb", group=7)
    host.add_device(EDU, group=5)
    host.add_group(7, reserved_regions=f"{RMRR}\n{MSI_REGION}")
    host.add_group(5, reserved_regions=f"{RELAXABLE}\n{MSI_REGION}")
    return host


def test_only_a_direct_region_is_worth_a_note(machine: FakeHost) -> None:
    with_rmrr, harmless = read_groups(machine.tree, [7, 5], ())
    assert NOTE in direct_note(with_rmrr)
    assert (harmless.direct_regions, direct_note(harmless)) == ((), "")


def test_a_firmware_with_many_regions_is_one_line(machine: FakeHost) -> None:
    lines = [f"0x{n << 20:x} 0x{(n << 20) + 0xFFF:x} direct" for n in range(1, 500)]
    machine.add_group(7, reserved_regions="\n".join(lines))
    (group,) = read_groups(machine.tree, [7], ())
    note = direct_note(group)
    assert "0x300000 to 0x300fff and 496 more mapped" in note
    assert "0x400000" not in note


def test_show_groups_and_bind_warn(machine: FakeHost, vfiotool: Run) -> None:
    shown = " ".join(vfiotool("show", NIC).stdout.split())
    assert NOTE in shown
    assert "how to free 'vfiotool bind 0000:04:00.0' binds it, but VFIO may not open it" in shown
    listed = " ".join(vfiotool("groups").stdout.split())
    assert f"group 7: the firmware needs {NOTE}" in listed
    assert "group 5: reserved (direct-relaxable): 0x0-0xffffff" in listed
    assert "group 5: the firmware" not in listed
    for result in (vfiotool("bind", "--dry-run", NIC), vfiotool("bind", NIC)):
        assert (result.status, NOTE in result.stderr) == (0, True)
    assert "direct" not in vfiotool("bind", EDU).stderr
    assert "direct" not in vfiotool("restore", NIC).stderr, "a host driver may use it"


@pytest.mark.parametrize(("unit", "ok"), [("dmar0", False), ("ivhd0", None), ("smmu3.0x9050000", None)])
def test_doctor_judges_the_groups_of_devices_on_vfio(
    machine: FakeHost, vfiotool: Run, unit: str, ok: bool | None
) -> None:
    """Intel's driver has always refused; of the others doctor does not know if this kernel does."""
    os.makedirs(machine.tree.path(f"/sys/class/iommu/{unit}"))
    assert verdict(machine).ok is True
    vfiotool("bind", EDU)
    assert verdict(machine).ok is True
    vfiotool("bind", "--allow-direct", NIC)
    found = verdict(machine)
    assert (found.ok, found.remedy) == (ok, OTHER_FIRMWARE)
    assert f"group 7: the firmware needs {NOTE}" in found.detail
    machine.remove("/sys/kernel/iommu_groups/7/reserved_regions")
    assert verdict(machine).ok is None


def verdict(machine: FakeHost) -> Check:
    (found,) = [one for one in examine(machine.tree) if one.name == "direct-regions"]
    return found
