"""Host drivers: which of them serves a device, the refusal of the others, and the way home."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from vfiotool.binding.operations import Binding
from vfiotool.binding.plan import EMPTY_PLAN
from vfiotool.cli.driver_changes import run_and_print
from vfiotool.errors import BindError, BlockedError, UnsupportedError, VfioToolError
from vfiotool.host.attributes import DRIVERS, device_path
from vfiotool.host.device_state import read_states
from vfiotool.host.driver_ids import native_drivers, serves, takes_any_device
from vfiotool.host.era import modules_folder
from vfiotool.host.refusals import PlanRefusedError
from vfiotool.testing import FakeHost

NIC, EDU = "0000:00:12.0", "0000:00:10.0"
NIC_ALIAS = "pci:v00008086d000010D3sv00001AF4sd00001100bc02sc00i00"
EDU_ALIAS = "pci:v00001234d000011E8sv00000000sd00000000bc00scFFi00"
ALIASES = """# Aliases extracted from modules themselves.
alias pci:v00008086d000010D3sv*sd*bc*sc*i* e1000e
alias pci:v*d*sv*sd*bc01sc08i02* nvme
alias vfio_pci:v00008086d000010D3sv*sd*bc*sc*i* some_vfio_pci
alias usb:v1234p*d*dc*dsc*dp*ic*isc*ip*in* e1000e
alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio-pci
"""
BUILT_IN = "ahci.license=GPL\0ahci.alias=pci:v00008086d00002922sv*sd*bc*sc*i*\0ahci.alias=platform:x\0"


@pytest.fixture
def machine(host: FakeHost) -> FakeHost:
    host.put(f"{modules_folder(host.tree)}/modules.alias", ALIASES)
    host.put(f"{modules_folder(host.tree)}/modules.builtin.modinfo", BUILT_IN)
    host.add_device(NIC, vendor=0x8086, device=0x10D3, class_code=0x020000, driver="e1000e", group=1)
    host.add_device(EDU, group=2)
    host.add_driver("vfio-pci")
    host.add_driver("nvme")
    return host


@pytest.mark.parametrize(
    ("driver", "alias", "expected"),
    [
        ("e1000e", NIC_ALIAS, True),
        ("e1000e", EDU_ALIAS, False),
        ("nvme", "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02", True),
        ("nvme", "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i01", False),
        ("ahci", "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01", True),
        ("ahci", EDU_ALIAS, False),
        ("virtio-pci", EDU_ALIAS, False),
        ("virtio_pci", EDU_ALIAS, False),
        ("out-of-tree", EDU_ALIAS, None),
        ("some_vfio_pci", EDU_ALIAS, None),
    ],
)
def test_a_driver_serves_the_ids_of_its_module(
    machine: FakeHost, driver: str, alias: str, expected: bool | None
) -> None:
    assert serves(machine.tree, driver, alias) is expected


def test_a_loaded_driver_names_its_module(machine: FakeHost) -> None:
    machine.add_driver("e1000e-driver")
    assert serves(machine.tree, "e1000e-driver", NIC_ALIAS) is None
    machine.link(f"{DRIVERS}/e1000e-driver/module", "/sys/module/e1000e")
    assert serves(machine.tree, "e1000e-driver", NIC_ALIAS) is True


def test_without_files_of_aliases_nothing_is_known(host: FakeHost) -> None:
    assert serves(host.tree, "e1000e", EDU_ALIAS) is None


@pytest.mark.parametrize(
    "driver", ["vfio-pci", "mlx5_vfio_pci", "pci-stub", "uio_pci_generic", "igb_uio", "pciback"]
)
def test_drivers_that_take_any_device(driver: str) -> None:
    assert takes_any_device(driver)


@pytest.mark.parametrize("driver", ["e1000e", "nvme", "pcieport", "uio_hv_generic", ""])
def test_drivers_with_ids_of_their_own(driver: str) -> None:
    assert not takes_any_device(driver)


def test_a_driver_of_other_devices_is_refused_and_nothing_is_written(
    machine: FakeHost, state_dir: str
) -> None:
    with pytest.raises(
        PlanRefusedError, match=f"{EDU}: e1000e does not serve this device.* 1234:11e8"
    ) as caught:
        Binding(machine=machine, state_dir=state_dir).bind([EDU], "e1000e")
    assert [(one.rule, one.flag) for one in caught.value.refusals] == [("ids", "--allow-ids")]
    assert machine.writes == []


def test_a_lifted_rule_leaves_the_decision_to_the_kernel(machine: FakeHost, state_dir: str) -> None:
    with pytest.raises(BindError, match="ENODEV"):
        Binding(machine=machine, state_dir=state_dir, allowed=["ids"]).bind([EDU], "e1000e")
    assert machine.driver(EDU) is None


def test_a_device_that_is_on_the_driver_already_is_not_refused(machine: FakeHost, state_dir: str) -> None:
    """By ``new_id``, say."""
    machine.set_driver(EDU, "e1000e")
    assert Binding(machine=machine, state_dir=state_dir).bind([EDU], "e1000e").steps == ()


def test_a_host_driver_is_bound_without_an_override(machine: FakeHost, state_dir: str) -> None:
    binding = Binding(machine=machine, state_dir=state_dir)
    binding.bind([NIC])
    binding.bind([NIC], "e1000e")
    assert machine.driver(NIC) == "e1000e"
    assert machine.tree.read(f"{device_path(NIC)}/driver_override") == "(null)"


# The way home


def test_the_native_driver_has_the_fewest_wildcards(machine: FakeHost) -> None:
    assert native_drivers(machine.tree, NIC_ALIAS) == ["e1000e"]
    assert native_drivers(machine.tree, EDU_ALIAS) == []
    aliases = (
        ALIASES + "alias pci:v*d*sv*sd*bc02sc00i* any_nic\nalias pci:v00008086d*sv*sd*bc*sc*i* pci_stub\n"
    )
    machine.put(f"{modules_folder(machine.tree)}/modules.alias", aliases)
    assert native_drivers(machine.tree, NIC_ALIAS) == ["e1000e"]
    assert native_drivers(machine.tree, NIC_ALIAS.replace("10D3", "10D4")) == ["any_nic"]


def test_a_loaded_module_names_its_drivers(machine: FakeHost) -> None:
    machine.put("/sys/module/e1000e/drivers/pci:e1000e-driver/uevent", "")
    assert native_drivers(machine.tree, NIC_ALIAS) == ["e1000e-driver"]


@pytest.mark.parametrize("former", ["another tool", "a lost state folder"])
def test_native_brings_a_device_home_whoever_took_it_away(
    machine: FakeHost, state_dir: str, former: str
) -> None:
    if former == "another tool":
        machine.put(f"{device_path(NIC)}/driver_override", "vfio-pci")
        machine.set_driver(NIC, "vfio-pci")
    else:
        Binding(machine=machine, state_dir=f"{state_dir}/lost").bind([NIC])
    binding = Binding(machine=machine, state_dir=state_dir)
    with pytest.raises(VfioToolError, match=f"nothing is recorded of {NIC}") as caught:
        binding.restore([NIC])
    assert f"'vfiotool bind --driver native {NIC}'" in caught.value.hint
    plan = binding.bind([NIC], "native")
    assert [(one.before, one.after) for one in plan.changes] == [("vfio-pci", "e1000e")]
    assert machine.driver(NIC) == "e1000e"
    assert machine.tree.read(f"{device_path(NIC)}/driver_override") == "(null)"


def test_native_clears_an_override_that_was_left(machine: FakeHost, state_dir: str) -> None:
    machine.put(f"{device_path(NIC)}/driver_override", "e1000e")
    Binding(machine=machine, state_dir=state_dir).bind([NIC], "native")
    assert machine.driver(NIC) == "e1000e"
    assert machine.tree.read(f"{device_path(NIC)}/driver_override") == "(null)"


def test_a_device_without_a_native_driver_is_said_to_have_none(machine: FakeHost, state_dir: str) -> None:
    with pytest.raises(UnsupportedError, match=f"no driver of this kernel serves {EDU}.* 1234:11e8"):
        Binding(machine=machine, state_dir=state_dir).bind([EDU], "native")
    assert machine.writes == []


def test_two_drivers_that_match_alike_must_be_named(machine: FakeHost, state_dir: str) -> None:
    aliases = ALIASES + "alias pci:v00008086d000010D3sv*sd*bc*sc*i* other\n"
    machine.put(f"{modules_folder(machine.tree)}/modules.alias", aliases)
    binding = Binding(machine=machine, state_dir=state_dir)
    assert binding.bind([NIC], "native").changes == ()  # it is on one of them
    machine.set_driver(NIC, None)
    with pytest.raises(UnsupportedError, match="e1000e, other") as caught:
        binding.bind([NIC], "native")
    assert "--driver e1000e" in caught.value.hint


@pytest.mark.parametrize(
    ("address", "driver", "reason", "hint"),
    [
        (NIC, "e1000e", "it is on e1000e, its own driver", "nothing to restore"),
        (NIC, "vfio-pci", "has not changed it", "bind --driver native"),
        (NIC, None, "has not changed it", "bind --driver native"),
        (EDU, None, "it has no driver, and no module declares its ids", "nothing to restore"),
        (EDU, "vfio-pci", "has not changed it", "vfiotool unbind"),
    ],
)
def test_a_restore_without_a_record_advises_what_works(
    machine: FakeHost, state_dir: str, address: str, driver: str | None, reason: str, hint: str
) -> None:
    machine.set_driver(address, driver)
    with pytest.raises(VfioToolError, match=f"nothing is recorded of {address}: .*{reason}") as caught:
        Binding(machine=machine, state_dir=state_dir).restore([address])
    assert hint in caught.value.hint


# Records that cannot be used


def test_one_bad_record_stops_no_other(machine: FakeHost, state_dir: str) -> None:
    for slot in (3, 4, 5, 6):
        machine.add_device(f"0000:00:0{slot}.0", driver="nvme", group=slot)
    changed, gone, damaged, good = (f"0000:00:0{slot}.0" for slot in (3, 4, 5, 6))
    binding = Binding(machine=machine, state_dir=state_dir)
    binding.bind([changed, gone, damaged, good, NIC])
    machine.put(f"{device_path(changed)}/device", "0xbeef")
    machine.remove_device(gone)
    Path(state_dir, "journal", f"{damaged}.json").write_text("{")
    plan = binding.restore_all()
    assert [(one.address, one.after) for one in plan.changes] == [(good, "nvme"), (NIC, "e1000e")]
    assert damaged in str(plan.failures[0])
    assert len(plan.failures) == 1
    assert [warning.partition(" ")[0] for warning in plan.warnings] == [gone, changed]
    assert plan.warnings[1].endswith(f"'vfiotool unbind {changed}'")
    assert machine.driver(changed) == "vfio-pci"
    assert binding.recorded() == [damaged]
    assert Path(state_dir, "journal", f"{gone}.json").exists()
    assert not Path(state_dir, "journal", f"{changed}.json").exists()


def test_a_device_that_cannot_be_restored_stops_no_other(machine: FakeHost, state_dir: str) -> None:
    binding = Binding(machine=machine, state_dir=state_dir)
    binding.bind([NIC, EDU])
    machine.block(EDU)
    plan = binding.restore_all()
    assert [one.address for one in plan.changes] == [NIC]
    assert [str(one) for one in plan.failures if EDU in str(one)] != []
    assert binding.recorded() == [EDU]


def test_another_device_at_a_recorded_address_loses_the_record(machine: FakeHost, state_dir: str) -> None:
    binding = Binding(machine=machine, state_dir=state_dir)
    binding.bind([NIC])
    machine.put(f"{device_path(NIC)}/device", "0xbeef")
    with pytest.raises(VfioToolError, match="was 8086:10d3 when it was recorded, and is 8086:beef now"):
        binding.restore([NIC])
    assert binding.recorded() == []
    with pytest.raises(VfioToolError, match="nothing is recorded"):
        binding.restore([NIC])


def test_a_dry_run_removes_no_record(machine: FakeHost, state_dir: str) -> None:
    Binding(machine=machine, state_dir=state_dir).bind([NIC])
    machine.put(f"{device_path(NIC)}/device", "0xbeef")
    plan = Binding(machine=machine, state_dir=state_dir, dry_run=True).restore_all()
    assert (plan.steps, len(plan.warnings)) == ((), 1)
    assert Binding(machine=machine, state_dir=state_dir).recorded() == [NIC]


def test_a_device_that_came_back_on_its_driver_is_said_to_be_there(machine: FakeHost, state_dir: str) -> None:
    binding = Binding(machine=machine, state_dir=state_dir)
    binding.bind([NIC])
    machine.put(f"{device_path(NIC)}/driver_override", "(null)")  # as a remove and rescan leave it
    machine.set_driver(NIC, "e1000e")
    plan = binding.restore([NIC])
    assert (plan.changes, plan.warnings) == ((), (f"{NIC} was on e1000e already",))
    assert binding.recorded() == []


def test_restore_comes_back_to_the_first_state(machine: FakeHost, state_dir: str) -> None:
    binding = Binding(machine=machine, state_dir=state_dir)
    machine.add_driver("pci-stub")
    for address in (NIC, EDU):
        before = read_states(machine.tree, [address])
        binding.bind([address], "pci-stub")
        binding.unbind([address])
        binding.restore([address])
        assert read_states(machine.tree, [address]) == before


def test_the_command_line_says_each_failure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failures = (BlockedError(f"{EDU}: held", holders=()), VfioToolError(f"{NIC}: damaged", hint="remove it"))
    plan = replace(EMPTY_PLAN, warnings=("one is gone",), failures=failures)
    with pytest.raises(VfioToolError, match="damaged"):
        run_and_print("restore", lambda: plan, as_json=True, dry_run=False)
    printed = capsys.readouterr()
    assert printed.err.splitlines() == ["warning: one is gone", f"error: {EDU}: held"]
    assert json.loads(printed.out)["changed"] == []
