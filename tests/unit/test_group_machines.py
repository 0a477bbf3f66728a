"""Groups of real machines, whose folders are in tests/data/machines: what vfiotool says of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from vfiotool import cli
from vfiotool.binding.plan import Plan, bound_to
from vfiotool.binding.planner import Planner
from vfiotool.host.attributes import addresses
from vfiotool.host.checks.architecture import Architecture
from vfiotool.host.checks.iommu import read_facts
from vfiotool.host.devices import read_devices
from vfiotool.host.groups import IommuGroup, group_ids, read_groups
from vfiotool.host.refusals import PlanRefusedError
from vfiotool.host.tree import Tree
from vfiotool.pci.names import PciNames
from vfiotool.testing import FakeHost, config_space

MACHINES = Path(__file__).parents[1] / "data" / "machines"
VMD, NIC = "0000:00:0e.0", "0000:00:12.0"
DOMAIN = ["10000:e0:06.0", "10000:e0:1b.0", "10000:e0:1b.4", "10000:e1:00.0", "10000:e2:00.0"]


def machine(name: str) -> Tree:
    return Tree(str(MACHINES / name))


def groups(tree: Tree) -> dict[int, IommuGroup]:
    devices = read_devices(tree, addresses(tree), PciNames(b""))
    return {group.id: group for group in read_groups(tree, group_ids(tree), devices)}


def test_a_vmd_issues_the_dma_of_its_domain() -> None:
    (group,) = groups(machine("vmd")).values()
    assert group.devices == (VMD, *DOMAIN)
    assert group.why == (
        f"{', '.join(DOMAIN)}: in PCI domain 10000, which {VMD} (vmd) makes and whose DMA it issues "
        "under its own requester id",
    )


def plan(tree: Tree, *devices: str, allowed: Sequence[str] = ()) -> Plan | PlanRefusedError:
    """Plan to bind devices of a machine to vfio-pci."""
    planner = Planner(tree, "/nowhere")
    try:
        return planner.plan(devices, lambda _, now: bound_to(now, "vfio-pci"), frozenset(allowed))[0]
    except PlanRefusedError as error:
        return error


def refused(result: Plan | PlanRefusedError) -> list[tuple[str, str, str | None]]:
    found = result.refusals
    return [(one.address, one.rule, one.flag) for one in found]


def test_a_vmd_takes_its_domain_away() -> None:
    tree = machine("vmd")
    result = plan(tree, VMD)
    assert refused(result) == [(VMD, "domain", "--allow-domain")]
    assert "it is on vmd, and PCI domain 10000 goes with it: 10000:e0:06.0, " in str(result)
    assert refused(plan(tree, VMD, allowed=["domain"])) == []


def test_a_device_of_the_domain_of_a_vmd_does_not_go_alone() -> None:
    tree = machine("vmd")
    result = plan(tree, "10000:e1:00.0")
    assert refused(result) == [("10000:e1:00.0", "domain", "--allow-domain")]
    assert f"{VMD} (vmd) issues the DMA of PCI domain 10000, and without vmd the domain is gone" in str(
        result
    )
    allowed = plan(tree, "10000:e1:00.0", allowed=["domain"])
    assert isinstance(allowed, Plan)
    assert [one for one in allowed.warnings if "bind it too" in one] == []
    assert f"group 8 is not viable while {VMD} is on vmd: {VMD} (vmd) issues" in " ".join(allowed.warnings)


def test_a_vmd_does_not_go_together_with_its_domain() -> None:
    assert (VMD, "domain", None) in refused(plan(machine("vmd"), VMD, "10000:e0:1b.0", allowed=["domain"]))


def test_a_domain_whose_maker_has_no_driver_refuses_nothing(host: FakeHost) -> None:
    host.add_device(VMD, class_code=0x010400, group=1)
    host.add_device("10000:e1:00.0", domain_of=VMD, driver="nvme", group=1)
    assert refused(plan(host.tree, VMD)) == []
    assert refused(plan(host.tree, "10000:e1:00.0")) == []


def test_the_disks_below_a_vmd_are_its_uses(host: FakeHost) -> None:
    host.add_device(VMD, class_code=0x010400, driver="vmd", group=1)
    disk = "10000:e1:00.0"
    host.add_device(disk, domain_of=VMD, driver="nvme", group=1)
    host.add_class("block", "nvme0n1", f"{host.devices[disk].folder}/nvme/nvme0/nvme0n1", dev="259:0")
    host.mount("/dev/nvme0n1", "/")
    result = plan(host.tree, VMD)
    assert [(address, rule) for address, rule, _ in refused(result)] == [(VMD, "root"), (VMD, "domain")]
    assert f"{VMD}: its disk nvme0n1 holds / of this machine" in str(result)


def test_what_a_driver_keeps_elsewhere_below_a_vmd_is_its_use(host: FakeHost) -> None:
    host.add_device(VMD, class_code=0x010400, driver="vmd", group=1)
    host.add_device("10000:e1:00.0", domain_of=VMD, driver="megaraid_sas", group=1)
    host.put("/dev/megaraid_sas_ioctl_node", "")
    host.add_process(31, "tool", {3: "/dev/megaraid_sas_ioctl_node"})
    assert (VMD, "opened", "--allow-opened") in refused(plan(host.tree, VMD))


@pytest.mark.parametrize("config", [b"\xff" * 64, b"\xff" * 256, b"\xff" * 4096])
def test_a_device_that_does_not_answer_does_not_go_to_vfio(host: FakeHost, config: bytes) -> None:
    host.add_device(NIC, driver="e1000e", group=1, config=config)
    assert refused(plan(host.tree, NIC)) == [(NIC, "silent", "--allow-silent")]
    assert refused(plan(host.tree, NIC, allowed=["silent"])) == []


@pytest.mark.parametrize(("header", "rules"), [(0, []), (1, ["bridge"]), (2, ["bridge"]), (0x81, ["bridge"])])
def test_a_bridge_is_one_by_its_header_too(host: FakeHost, header: int, rules: list[str]) -> None:
    host.add_device(NIC, class_code=0x068000, group=1, config=config_space(header_type=header))
    assert [rule for _, rule, _ in refused(plan(host.tree, NIC))] == rules


def test_direct_regions_refuse_where_the_kernel_is_known_to(host: FakeHost) -> None:
    host.add_device(NIC, driver="igb", group=1)
    host.add_group(1, reserved_regions="0x0000000000001000 0x0000000000001fff direct")
    assert refused(plan(host.tree, NIC)) == []
    host.put("/sys/class/iommu/dmar0/name", "")
    assert refused(plan(host.tree, NIC)) == [(NIC, "direct", "--allow-direct")]
    host.add_group(1, reserved_regions="0x0000000000001000 0x0000000000001fff direct-relaxable")
    assert refused(plan(host.tree, NIC)) == []


def said(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run the command line on the folder of a machine; return what it prints, in one line."""
    name, *rest = args
    capsys.readouterr()
    cli.run(["--sysroot", str(MACHINES / name), *rest])
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def test_show_says_what_a_vmd_takes_away(capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys, "vmd", "show", VMD)
    assert f"'vfiotool bind {VMD}' refuses it: it is on vmd, and PCI domain 10000 goes with it: " in shown
    assert "a PCI bridge" not in shown
    disk = said(capsys, "vmd", "show", "10000:e1:00.0")
    assert f"'vfiotool bind 10000:e1:00.0' refuses it: VFIO cannot use it: {VMD} (vmd) issues the DMA" in disk
    listed = said(capsys, "vmd", "groups")
    assert f"{VMD}: vmd makes PCI domain 10000, which goes with it" in listed
    assert "move the card" not in listed
    assert "vfiotool bind" not in listed


def test_nothing_hands_a_root_port_over(capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys, "bridge-and-width", "show", "0000:00:1c.0")
    assert "how to free nothing hands a bridge over" in shown
    assert "vfiotool bind" not in shown


def test_a_direct_region_of_a_capture(capsys: pytest.CaptureFixture[str]) -> None:
    """The folder does not show whose IOMMU it is, so what this kernel does is not claimed."""
    shown = said(capsys, "rmrr-direct", "show", "0000:00:1f.0")
    assert "binds it, but VFIO may not open it: the firmware needs 0x0 to 0xffffff, " in shown
    (group,) = groups(machine("rmrr-direct")).values()
    assert [region.type for region in group.direct_regions] == ["direct", "direct"]


def test_s390_gets_no_advice_about_vt_d(capsys: pytest.CaptureFixture[str]) -> None:
    said_of = said(capsys, "s390", "groups") + said(capsys, "s390", "doctor")
    assert not re.search("VT-d|AMD-Vi|intel_iommu", said_of)
    assert "does not show its IOMMU groups" in said_of
    assert read_facts(machine("s390")).architecture is Architecture.S390
