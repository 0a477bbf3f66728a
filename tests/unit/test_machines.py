"""Cut-down copies of real machines: what is right of them, by lspci and by their raw bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.cli_result import Result
from vfiotool import cli

MACHINES = os.path.join(os.path.dirname(os.path.dirname(__file__)), "data", "machines")

Look = Callable[..., Result]


@pytest.fixture
def look(state_dir: str, capsys: pytest.CaptureFixture[str]) -> Look:
    """Run a reading verb on a machine."""

    def run(machine: str, *args: str) -> Result:
        capsys.readouterr()
        status = cli.run(["--state-dir", state_dir, "--sysroot", f"{MACHINES}/{machine}", *args])
        return Result(status, *capsys.readouterr())

    return run


DEVICES: dict[str, dict[str, dict[str, Any]]] = {
    "no-revision": {
        "0000:00:03.0": {
            "vendor_id": 0x1AF4,
            "device_id": 0x1000,
            "subsystem_vendor_id": 0x1AF4,
            "subsystem_device_id": 0x0001,
            "revision": 0,
            "class_code": 0x020000,
            "driver": "virtio-pci",
            "answers": True,
        }
    },
    "dead-device": {
        "0000:2f:00.0": {
            "vendor_id": 0x17A0,
            "device_id": 0x9755,
            "revision": 1,
            "class_code": 0x080501,
            "answers": False,
        }
    },
}


@pytest.mark.parametrize("machine", DEVICES)
def test_the_devices_of_a_machine(look: Look, machine: str) -> None:
    result = look(machine, "list", "--json")
    assert (result.status, result.stderr) == (0, "")
    found = {device["address"]: device for device in result.document["devices"]}
    expected = DEVICES[machine]
    seen = {address: {name: found[address][name] for name in fields} for address, fields in expected.items()}
    assert (seen, list(found)) == (expected, list(expected))
    for address, fields in expected.items():
        assert set(fields).isdisjoint(found[address]["unavailable"])


def test_the_revision_of_an_old_kernel_is_that_of_the_registers(look: Look) -> None:
    (device,) = look("no-revision", "list", "--json").document["devices"]
    folder = f"{MACHINES}/no-revision/sys/bus/pci/devices/{device['address']}"
    with open(f"{folder}/config", "rb") as file:
        assert file.read()[8] == device["revision"]
    assert not os.path.exists(f"{folder}/revision")


def test_groups_come_from_the_links_of_the_devices(look: Look) -> None:
    """The copy has no /sys/kernel/iommu_groups."""
    (device,) = look("group-link-only", "list", "--json").document["devices"]
    (group,) = look("group-link-only", "groups", "--json").document["groups"]
    shown = look("group-link-only", "show", device["address"], "--json").document
    assert (device["iommu_group"], group["id"], group["devices"]) == (0, 0, [device["address"]])
    assert (shown["group"], shown["device"]) == (group, device)
    assert look("group-link-only", "list", "group:0").status == 0
    assert (group["type"], group["viable"], group["reserved_regions"]) == (None, False, None)
    assert {"type", "reserved_regions", "node", "holders"} <= set(group["unavailable"])


def test_a_copy_without_osrelease_has_its_release_in_the_version(look: Look) -> None:
    result = look("no-osrelease", "groups")
    assert (result.status, result.stdout) == (0, "")
    assert "does not show its IOMMU groups" in result.stderr
    (kernel,) = [
        one for one in look("no-osrelease", "doctor", "--json").document["checks"] if one["name"] == "kernel"
    ]
    assert kernel["detail"].startswith("5.14.0 ")


@pytest.mark.parametrize("machine", sorted(os.listdir(MACHINES)))
def test_doctor_says_nothing_about_what_a_copy_left_out(look: Look, machine: str) -> None:
    result = look(machine, "doctor", "--json")
    root = f"{MACHINES}/{machine}"
    verdicts = {check["name"]: check["ok"] for check in result.document["checks"]}
    for check, path in {
        "modules": "lib/modules",
        "nodes": "dev",
        "leftovers": "run",
        "lockdown": "sys/kernel/security",
        "hugepages": "sys/kernel/mm",
        "interrupt-remapping": "proc/interrupts",
    }.items():
        assert not os.path.exists(f"{root}/{path}")
        assert verdicts[check] is None, check


@pytest.mark.parametrize("machine", sorted(os.listdir(MACHINES)))
def test_a_copy_without_mounts_and_processes_does_not_say_that_a_device_is_idle(
    look: Look, machine: str
) -> None:
    for device in look(machine, "list", "--json").document["devices"]:
        address = device["address"]
        document = look(machine, "show", address, "--json").document
        assert "usage" in document["unavailable"]
        assert document["usage"] != []
        assert "mounts (/proc/self/mountinfo)" in document["unseen_uses"]
        text = look(machine, "show", address).stdout
        assert "not in use" not in text
        assert "not all in sight: " in text


def test_a_dead_device_does_not_answer_in_any_verb(look: Look) -> None:
    (device,) = look("dead-device", "list", "--json").document["devices"]
    address = device["address"]
    shown = look("dead-device", "show", address, "--json").document
    config = look("dead-device", "config", address, "--json").document
    assert (device["answers"], shown["device"]["answers"], config["answers"]) == (False, False, False)
    assert (shown["capabilities"], config["value"]) == (None, None)
    assert "capabilities" in shown["unavailable"]
    assert config["unavailable"] == ["value"]
    for verb in ("list", "show", "config"):
        assert f"nothing answers at {address}: " in look("dead-device", verb, address).stdout


def test_no_link_is_shown_of_an_integrated_endpoint_with_fields_of_noise(look: Look) -> None:
    """Case link-unknown: the kernel's attributes say Unknown, 0 lanes and 255 lanes."""
    shown = look("link-unknown", "show", "0000:00:04.0")
    assert (shown.status, shown.stderr) == (0, "")
    labels = [line[2:].partition("  ")[0] for line in shown.stdout.splitlines() if line[:3] != "   "]
    assert "link" not in labels
    assert look("link-unknown", "show", "0000:00:04.0", "--json").document["link"] == {}
