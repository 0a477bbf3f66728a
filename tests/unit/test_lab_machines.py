"""All machines have the same devices at the same, fixed addresses."""

from __future__ import annotations

import re

import pytest

from vfiotool.errors import SelectorError
from vfiotool.lab import machines

ALL = frozenset({"igb"})
DRIVES = {device.drive: f"/{device.drive}" for device in machines.DEVICES if device.drive}


@pytest.mark.parametrize("name", machines.MACHINES)
def test_machines_differ_only_in_the_iommu_and_the_devices_it_lacks(name: str) -> None:
    arguments = machines.get(name).arguments(ALL, DRIVES)
    everything = machines.get("none").arguments(ALL, DRIVES)
    left_out = {
        argument
        for d in machines.DEVICES
        if d.address in machines.get(name).without
        for argument in (
            *(d.qemu, *d.more),
            f"hubport,id={d.netdev},hubid=0",
            machines.blockdev(d.drive, f"/{d.drive}"),
        )
    }
    devices = [
        argument
        for option, value in zip(everything[::2], everything[1::2], strict=True)
        if value not in left_out
        for argument in (option, value)
    ]
    assert arguments[len(arguments) - len(devices) :] == devices
    assert [a for a in arguments if "iommu" in a] == [a for a in machines.get(name).qemu if "iommu" in a]


def test_a_model_that_qemu_lacks_leaves_the_other_devices_as_they_are() -> None:
    without = machines.get("default").arguments(frozenset(), DRIVES)
    assert not [a for a in without if a.startswith("igb")]
    assert [d for d in machines.devices(ALL) if d.ids != "8086:10c9"] == list(machines.devices(frozenset()))


def test_devices_on_the_root_bus_have_the_address_in_qemus_arguments() -> None:
    for device in machines.DEVICES:
        bus, slot, function = re.split("[:.]", device.address)
        if bus == "00":
            assert f"addr={int(slot, 16):x}" in device.qemu.split(",")
            assert function == "0"


def test_addresses_are_unique() -> None:
    addresses = [device.address for device in machines.DEVICES]
    assert sorted(set(addresses)) == sorted(addresses)


def test_the_error_for_an_unknown_machine_has_the_known_names() -> None:
    with pytest.raises(SelectorError, match="'nosuch'") as caught:
        machines.get("nosuch")
    assert caught.value.exit_status == 2
    assert all(name in caught.value.hint for name in machines.MACHINES)
