"""Advice is what the rules allow: a command that is named is planned, or the text says why it is refused.

The machines are the folders in tests/data/machines, and fakes with one obstacle each.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest

from vfiotool.binding.operations import Binding
from vfiotool.errors import KernelError, VfioToolError
from vfiotool.host import bounded_reads, plan_context, taking
from vfiotool.host.attributes import addresses, device_path
from vfiotool.host.bounded_reads import ReadResult
from vfiotool.host.checks.groups import check_viability
from vfiotool.host.devices import PciDevice, read_devices
from vfiotool.host.doctor import examine
from vfiotool.host.freeing import how_to_free
from vfiotool.host.groups import group_ids, read_groups
from vfiotool.host.selectors import select
from vfiotool.host.tree import Tree
from vfiotool.pci.names import PciNames
from vfiotool.testing import FakeHost, config_space

MACHINES = Path(__file__).parents[1] / "data" / "machines"
NIC, SISTER, PORT, VMD = "0000:01:00.0", "0000:01:00.1", "0000:00:01.0", "0000:00:0e.0"
_COMMAND = re.compile(r"'vfiotool (bind|unbind|restore|sriov) ([^']*)'( refuses it: | would be refused: )?")


def alone(host: FakeHost) -> None:
    host.add_device(NIC, driver="e1000e", group=1)


def without_driver(host: FakeHost) -> None:
    host.add_device(NIC, group=1)


def shared(host: FakeHost) -> None:
    host.add_device(PORT, class_code=0x060400, driver="pcieport", group=1)
    host.add_device(NIC, driver="e1000e", group=1)
    host.add_device(SISTER, driver="snd", group=1)


def sister_in_use(host: FakeHost) -> None:
    shared(host)
    host.add_device("0000:01:00.2", driver="nvme", group=1)
    disk = f"{host.devices['0000:01:00.2'].folder}/nvme/nvme0/nvme0n1"
    host.add_class("block", "nvme0n1", disk, dev="259:0")
    host.mount("/dev/nvme0n1", "/srv")


def half_on_vfio(host: FakeHost) -> None:
    shared(host)
    host.set_driver(NIC, None)
    host.add_driver("vfio-pci")
    host.set_driver(NIC, "vfio-pci")


def held(host: FakeHost) -> None:
    host.add_device(NIC, driver="vfio-pci", group=1)
    host.block(NIC)


def on_vfio(host: FakeHost) -> None:
    host.add_device(NIC, driver="vfio-pci", group=1)


def on_vfio_with_own_driver(host: FakeHost) -> None:
    host.add_device(NIC, vendor=0x8086, device=0x10D3, driver="vfio-pci", group=1)
    alias = "alias pci:v00008086d000010D3sv*sd*bc*sc*i* e1000e"
    host.put("/lib/modules/6.12.0/modules.alias", alias)
    host.add_driver("e1000e", ids=[(0x8086, 0x10D3)])


def pf_with_vfs(host: FakeHost) -> None:
    host.add_device(NIC, driver="igb", group=1, totalvfs=2)
    host.add_device("0000:01:10.0", driver="igbvf", group=2, physfn=NIC)


def dead(host: FakeHost) -> None:
    host.add_device(NIC, driver="nvidia", group=1, config=b"\xff" * 256)


def bridge_by_header(host: FakeHost) -> None:
    host.add_device(NIC, group=1, config=config_space(header_type=1))


def denied(host: FakeHost) -> None:
    host.add_device(NIC, driver="e1000e", group=1)
    host.put("/etc/vfiotool/denylist", NIC)


def broken_denylist(host: FakeHost) -> None:
    host.add_device(NIC, driver="e1000e", group=1)
    host.put("/etc/vfiotool/denylist", "00:zz.0")


def qat(host: FakeHost) -> None:
    host.add_device(NIC, vendor=0x8086, device=0x37C9, driver="c6xxvf", group=1)


def direct(host: FakeHost) -> None:
    alone(host)
    host.add_group(1, reserved_regions="0x0000000000001000 0x0000000000001fff direct")
    host.put("/sys/class/iommu/dmar0/name", "")


def direct_elsewhere(host: FakeHost) -> None:
    direct(host)
    host.remove("/sys/class/iommu/dmar0/name")
    Path(host.tree.path("/sys/class/iommu/dmar0")).rmdir()


def no_group(host: FakeHost) -> None:
    host.add_device(NIC, driver="e1000e")


def noiommu(host: FakeHost) -> None:
    no_group(host)
    host.put("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y")


def vmd(host: FakeHost) -> None:
    host.add_device("0000:00:0e.0", class_code=0x010400, driver="vmd", group=1)
    host.add_device(
        "10000:e0:06.0", class_code=0x060400, driver="pcieport", group=1, domain_of="0000:00:0e.0"
    )
    host.add_device("10000:e1:00.0", driver="nvme", group=1, bridge="10000:e0:06.0")


def vmd_half_on_vfio(host: FakeHost) -> None:
    vmd(host)
    host.add_driver("vfio-pci")
    host.set_driver("10000:e1:00.0", "vfio-pci")


Maker = Callable[[FakeHost], None]
FAKES: dict[str, Maker] = {
    maker.__name__: maker
    for maker in (
        alone, without_driver, shared, sister_in_use, half_on_vfio, held, on_vfio, on_vfio_with_own_driver,
        pf_with_vfs, dead, bridge_by_header, denied, broken_denylist, qat, direct, direct_elsewhere, no_group,
        noiommu, vmd, vmd_half_on_vfio,
    )
}  # fmt: skip


def advice(tree: Tree, devices: list[PciDevice], state_dir: str) -> Iterator[str]:
    """Yield what each verb advises on a machine."""
    for device in devices:
        yield how_to_free(tree, devices, device.address, state_dir=state_dir)
    for group in read_groups(tree, group_ids(tree), devices):
        yield from (blocker.reason for blocker in group.blockers)
    for check in examine(tree, state_dir=state_dir):
        parts = (check.remedy or "").split("; ")
        yield from (f"'{one}'" if one.startswith("vfiotool") else one for one in parts)


def hints(host: FakeHost, address: str) -> Iterator[str]:
    """Yield the hints of the errors that dry runs raise. That of a refusal names the options alone."""
    binding = Binding(state_dir=host.state_dir, dry_run=True, machine=host)
    for change in (partial(binding.bind, driver="native"), binding.bind, binding.restore, binding.unbind):
        try:
            change([address])
        except VfioToolError as error:
            yield error.hint


def is_planned(host: FakeHost, verb: str, line: str) -> bool:
    """Return True if a command is planned; nothing is changed."""
    words = shlex.split(line)
    binding = Binding(state_dir=host.state_dir, dry_run=True, machine=host)
    driver = "vfio-pci"
    if "--driver" in words:
        at = words.index("--driver")
        driver = words[at + 1]
        del words[at : at + 2]
    if "--power" in words:
        at = words.index("--power")
        del words[at : at + 2]
    is_group = "--group" in words
    found = select(host.tree, [word for word in words if not word.startswith("--")])
    try:
        if verb == "bind":
            binding.bind(binding.group_members(found) if is_group else found, driver)
        elif verb == "unbind":
            binding.unbind(found)
        else:
            binding.restore(found)
    except KernelError:
        return True  # a folder that was cut down has no driver_override, which no rule is about
    except VfioToolError:
        return False
    return True


def judge(host: FakeHost) -> list[tuple[str, bool, bool]]:
    """Return each advised command, whether its text says that it is refused, and whether it is planned."""
    devices = read_devices(host.tree, addresses(host.tree), PciNames(b""), state_dir=host.state_dir)
    texts = list(advice(host.tree, devices, host.state_dir))
    texts += [hint for device in devices for hint in hints(host, device.address)]
    found = {match[0]: match for text in texts for match in _COMMAND.finditer(text)}
    return [
        (command, match[3] is not None, is_planned(host, match[1], match[2]))
        for command, match in found.items()
    ]


@pytest.mark.parametrize("name", FAKES)
def test_advice_is_what_the_rules_allow(host: FakeHost, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(Tree, "is_live", True)
    FAKES[name](host)
    if "vfio-pci" not in host.drivers:
        host.add_driver("vfio-pci")
    for command, is_said_to_be_refused, is_allowed in judge(host):
        assert is_said_to_be_refused is not is_allowed, command


def test_the_fakes_have_advice_of_either_kind(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tree, "is_live", True)
    alone(host)
    vmd(host)
    assert {planned for _, _, planned in judge(host)} == {True, False}


def test_advice_touches_no_group_and_wakes_no_device(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """An open of a group's node, however short, keeps another process from opening it."""
    host.add_device(NIC, driver="vfio-pci", group=1)
    host.add_device(SISTER, driver="e1000e", group=2, power_state="D3cold")
    monkeypatch.setattr(Tree, "is_live", True)
    monkeypatch.setattr(plan_context, "is_group_open", lambda _: pytest.fail("a node was opened"))
    watched = bounded_reads.read_all

    def read_all(tree: Tree, paths: Sequence[str], **more: Mapping[str, int]) -> Mapping[str, ReadResult]:
        assert f"{device_path(SISTER)}/config" not in paths
        return watched(tree, paths, **more)

    monkeypatch.setattr(bounded_reads, "read_all", read_all)
    devices = read_devices(host.tree, addresses(host.tree), PciNames(b""), state_dir=host.state_dir)
    for address in (NIC, SISTER):
        assert taking.take_device(host.tree, devices, address).command
        assert how_to_free(host.tree, devices, address, state_dir=host.state_dir)


def test_doctor_says_why_a_group_cannot_be_freed(host: FakeHost) -> None:
    sister_in_use(host)
    host.add_driver("vfio-pci")
    host.set_driver(NIC, "vfio-pci")
    remedy = check_viability(host.tree, host.state_dir).remedy or ""
    assert remedy.startswith("'vfiotool bind --group group:1' would be refused: ")
    assert "nvme0n1 is mounted on /srv" in remedy


@pytest.mark.parametrize("name", sorted(one.name for one in MACHINES.iterdir()))
def test_advice_on_real_machines(tmp_path: Path, name: str) -> None:
    host = FakeHost(str(tmp_path / "unused"), state_dir=str(tmp_path / "state"))
    host.tree = Tree(str(MACHINES / name))
    for command, is_said_to_be_refused, is_allowed in judge(host):
        assert is_said_to_be_refused is not is_allowed, command
