"""What ``groups`` says of each device of a group: the reset mark, the NUMA node, USB devices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.conftest import Run
from vfiotool import cli
from vfiotool.host.usb_devices import UsbDevice, read_usb_devices
from vfiotool.testing import FakeHost

XHCI, BELOW_VMD, NIC, VMD = "0000:00:14.0", "10000:e1:00.0", "0000:00:12.0", "0000:00:0e.0"


def plug(host: FakeHost, controller: str, name: str, bus: str = "1", **attributes: str) -> None:
    """Plug a USB device in, with an interface, below the root hub of a controller."""
    root = f"{host.devices[controller].folder}/usb{bus}"
    device = f"{root}/{name}"
    places = {f"usb{bus}": root, name: device, f"{name}:1.0": f"{device}/{name}:1.0"}
    for entry, folder in places.items():
        if not host.tree.exists(f"/sys/bus/usb/devices/{entry}"):
            host.link(f"/sys/bus/usb/devices/{entry}", folder)
        host.put(f"{folder}/busnum", bus)
    for attribute, text in attributes.items():
        host.put(f"{device}/{attribute}", text)


@pytest.fixture
def machine(host: FakeHost) -> FakeHost:
    """Two USB controllers, one of them in a PCI domain that a VMD makes, and a network card."""
    host.add_device(XHCI, class_code=0x0C0330, driver="xhci_hcd", group=3, numa_node="1")
    host.add_device(VMD, class_code=0x010400, driver="vmd", group=4)
    host.add_device(BELOW_VMD, class_code=0x0C0330, driver="xhci_hcd", domain_of=VMD, group=4)
    host.add_device(NIC, class_code=0x020000, group=5)
    mouse = {
        "devnum": "7",
        "idVendor": "046d",
        "idProduct": "c077",
        "manufacturer": "A Maker",
        "product": "Mouse",
    }
    plug(host, XHCI, "1-2", **mouse)
    plug(host, XHCI, "1-10.3", devnum="5", idVendor="1d6b", idProduct="0104", product=" Gadget ")
    plug(host, BELOW_VMD, "3-1", bus="3", devnum="2", idVendor="0781", idProduct="5583")
    return host


def test_the_usb_devices_below_each_controller(machine: FakeHost) -> None:
    assert read_usb_devices(machine.tree, [XHCI, BELOW_VMD]) == {
        XHCI: (UsbDevice(1, 5, 0x1D6B, 0x0104, "Gadget"), UsbDevice(1, 7, 0x046D, 0xC077, "A Maker Mouse")),
        BELOW_VMD: (UsbDevice(3, 2, 0x0781, 0x5583, None),),
    }


@pytest.mark.parametrize("content", [b"", b"\0\xff", b"046d\n\x1b[2J", b"g" * 5000, b"-1"])
def test_odd_attributes_of_a_usb_device_are_unknown(machine: FakeHost, content: bytes) -> None:
    for name in ("busnum", "devnum", "idVendor", "idProduct"):
        machine.put(f"{machine.devices[BELOW_VMD].folder}/usb3/3-1/{name}", content)
    ((device,),) = (read_usb_devices(machine.tree, [BELOW_VMD]) or {}).values()
    assert (device.vendor_id, device.product_id, device.name) == (None, None, None)
    assert device.bus in (None, -1)


def test_a_link_that_dangles_is_left_out(machine: FakeHost) -> None:
    machine.link("/sys/bus/usb/devices/9-9", "/sys/devices/nowhere/9-9")
    assert len((read_usb_devices(machine.tree, [XHCI]) or {})[XHCI]) == 2


def test_a_copy_without_the_bus_does_not_know_the_usb_devices(tmp_path: Path) -> None:
    from vfiotool.host.capture.captured_tree import open_tree

    (tmp_path / "sys").mkdir()
    assert read_usb_devices(open_tree(str(tmp_path)), [XHCI]) is None


def test_the_members_of_the_groups(machine: FakeHost, vfiotool: Run) -> None:
    machine.put(f"{machine.devices[XHCI].folder}/reset_method", "")
    machine.put(f"{machine.devices[NIC].folder}/reset_method", "pm bus")
    found = {
        member["address"]: member
        for group in vfiotool("groups", "--json").document["groups"]
        for member in group["members"]
    }
    assert sorted(found) == sorted([XHCI, VMD, BELOW_VMD, NIC])
    assert [(found[one]["can_be_reset"], found[one]["numa_node"]) for one in (XHCI, NIC)] == [
        (False, 1),
        (True, -1),
    ]
    assert [one["name"] for one in found[XHCI]["usb_devices"]] == ["Gadget", "A Maker Mouse"]
    assert (found[NIC]["usb_devices"], found[NIC]["class_code"]) == (None, 0x020000)
    shown = vfiotool("show", "--json", XHCI).document
    assert shown["group"]["members"] == [found[XHCI]]


def test_the_reset_file_of_an_old_kernel_is_a_mark(machine: FakeHost, vfiotool: Run) -> None:
    folder = machine.devices[NIC].folder
    machine.remove(f"{folder}/reset_method")
    for has_file in (False, True):
        if has_file:
            machine.put(f"{folder}/reset", "")
        (group,) = json.loads(vfiotool("groups", "--json", "5").stdout)["groups"]
        assert group["members"][0]["can_be_reset"] is has_file


def test_a_real_copy_says_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    machines = Path(__file__).parents[1] / "data" / "machines"
    assert cli.run(["--sysroot", str(machines / "bridge-and-width"), "groups", "--json", "3"]) == 0
    (group,) = json.loads(capsys.readouterr().out)["groups"]
    (controller,) = [one for one in group["members"] if one["class_code"] >> 8 == 0x0C03]
    assert (controller["usb_devices"], controller["can_be_reset"]) == (None, None)
    assert {"usb_devices", "can_be_reset"} <= set(controller["unavailable"])
