"""Whether a driver serves a device, and the refusal of one that does not."""

from __future__ import annotations

import pytest

from vfiotool.binding.operations import Binding
from vfiotool.binding.refusals import PlanRefusedError
from vfiotool.errors import BindError
from vfiotool.host.attributes import DRIVERS, device_path
from vfiotool.host.driver_ids import serves, takes_any_device
from vfiotool.host.era import modules_folder
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
