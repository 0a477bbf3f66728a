"""The command line: documents, tables, errors, exit statuses."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from typing import Any

import pytest

from tests.unit.conftest import Run
from vfiotool import cli
from vfiotool.host.attributes import device_path
from vfiotool.testing import FakeHost, config_space

EDU, NIC, SISTER, BRIDGE, LONER = (
    "0000:00:10.0",
    "0000:00:12.0",
    "0000:00:12.1",
    "0000:00:1e.0",
    "0000:00:1f.0",
)
CHANGING = [
    ("bind", NIC),
    ("unbind", NIC),
    ("restore", NIC),
    ("persist", "add", NIC),
    ("persist", "remove", NIC),
    ("stress", "bind", NIC),
]


@pytest.fixture(autouse=True)
def machine(host: FakeHost) -> FakeHost:
    host.add_driver("vfio-pci", module_loaded=False)
    host.add_device(EDU, group=5, config=config_space(capabilities=[(0x05, 0x40, bytes(12))]))
    for address in (NIC, SISTER):
        host.add_device(address, vendor=0x8086, device=0x10D3, driver="e1000e", group=7)
    host.add_device(BRIDGE, class_code=0x060400, group=8)
    host.add_device(LONER)
    host.put(f"{device_path(EDU)}/resource", "0xfde00000 0xfdefffff 0x40200")
    return host


def keys(items: list[dict[str, Any]]) -> set[str]:
    assert items
    return set().union(*items)


def fields(text: str) -> set[str]:
    return set(text.split())


@pytest.mark.parametrize(
    ("args", "status", "error"),
    [
        ("show 00:12", 2, "'00:12' is not a PCI address"),
        ("show a/b", 2, "'a/b' is not a valid ADDRESS"),
        ("show 0000:00:1d.0", 1, "no PCI device matches '0000:00:1d.0'"),
        ("show eth7", 1, "no PCI device matches 'eth7'"),
        ("show 8086:10d3", 2, f"'8086:10d3' matches 2 devices: {NIC}, {SISTER}"),
        ("list 8086:ffff", 1, "no PCI device matches '8086:ffff'"),
        ("groups 99", 1, "there is no IOMMU group 99"),
        ("groups x", 2, "'x' is not a group"),
        ("groups " + "9" * 5000, 2, "'999"),
        ("bind 8086:10d3", 2, f"'8086:10d3' matches 2 devices: {NIC}, {SISTER}"),
        (f"bind {EDU} --driver a/b", 2, "'a/b' is not a driver's name"),
        (f"bind {EDU} --driver no-such", 1, "the module of driver no-such cannot be loaded"),
        (f"bind {BRIDGE}", 3, f"refused: {BRIDGE}: it is a bridge"),
        (f"bind {LONER}", 4, f"{LONER} is in no IOMMU group"),
        (f"bind --group {LONER}", 4, f"{LONER} is in no IOMMU group"),
        (f"restore {EDU}", 1, f"nothing is recorded of {EDU}"),
        ("restore", 2, "name the devices to restore"),
        (f"restore --all {EDU}", 2, "name the devices to restore"),
        ("bind", 2, "missing argument 'ADDRESS...'"),
        (f"bind {EDU} --timeout 0", 2, "invalid value for '--timeout'"),
        ("no-such-verb", 2, "no such command 'no-such-verb'"),
        ("list --no-such-option", 2, "no such option"),
        ("--sysroot /no/such/folder list", 2, "invalid value for '--sysroot'"),
    ],
)
def test_an_error_sets_the_status_and_prints_an_error_and_a_hint_line(
    vfiotool: Run, host: FakeHost, args: str, status: int, error: str
) -> None:
    result = vfiotool(*args.split())
    assert (result.status, result.stdout) == (status, ""), result.stderr
    first, hint = result.stderr.splitlines()
    assert first.startswith(f"error: {error}")
    assert hint.startswith("hint: ")
    assert host.writes == []


def test_a_refusal_names_the_option_that_lifts_its_rule(vfiotool: Run, host: FakeHost) -> None:
    host.put(f"{host.devices[NIC].folder}/boot_vga", "1")
    refused = vfiotool("bind", NIC)
    assert (refused.status, host.writes) == (3, [])
    assert "hint: to do it anyway, add --allow-vga" in refused.stderr
    assert vfiotool("bind", NIC, "--allow-vga").status == 0
    assert host.driver(NIC) == "vfio-pci"


def test_a_failed_step_restores_all_devices(vfiotool: Run, host: FakeHost) -> None:
    host.fail("/sys/bus/pci/drivers/vfio-pci/bind", errno.EIO)
    result = vfiotool("bind", NIC, SISTER)
    assert (result.status, result.stdout) == (1, "")
    assert "all devices are as they were before" in result.stderr
    assert [host.driver(address) for address in (NIC, SISTER)] == ["e1000e", "e1000e"]


def test_a_blocked_unbind_names_its_holder(vfiotool: Run, host: FakeHost) -> None:
    vfiotool("bind", EDU)
    host.block(EDU, pid=77, comm="qemu")
    refused = vfiotool("unbind", EDU)
    assert refused.status == 3
    assert "in use by pid 77 (qemu)" in refused.stderr
    assert "--allow-held" in refused.stderr
    result = vfiotool("unbind", EDU, "--timeout", "1", "--allow-held")
    assert (result.status, result.stdout) == (5, "")
    assert "held by pid 77 (qemu), fd 3 on /dev/vfio/5" in result.stderr
    assert vfiotool("list", "--json", EDU).document["devices"][0]["blocked"]
    assert vfiotool("bind", EDU).status == 5
    host.release(EDU)
    assert not vfiotool("list", "--json", EDU).document["devices"][0]["blocked"]
    assert vfiotool("restore", EDU).status == 0


def test_a_host_driver_that_waits_is_not_said_to_be_held(vfiotool: Run, host: FakeHost) -> None:
    """Why a host driver waits in its removal is not known: no process needs to have the device open."""
    host.block(NIC, pid=77, comm="qemu")
    result = vfiotool("unbind", NIC, "--timeout", "1", "--allow-held")
    assert (result.status, result.stdout) == (5, "")
    assert f"error: {NIC}: its driver did not release it within 1 s; e1000e has not finished its removal" in (
        result.stderr
    )
    assert "held by" not in result.stderr
    host.release(NIC)
    assert vfiotool("recover").status == 0


def test_verbs_that_change_drivers_refuse_a_sysroot(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["--sysroot", host.root, "list", "--json"]) == 0
    assert [device["address"] for device in json.loads(capsys.readouterr().out)["devices"]][:2] == [EDU, NIC]
    for *verb, address in CHANGING:
        assert cli.run(["--sysroot", host.root, *verb, address]) == 2
        error = f"--sysroot is read-only: 'vfiotool {' '.join(verb)}' works only on the running machine"
        assert capsys.readouterr().err == f"error: {error}\nhint: see 'vfiotool {' '.join(verb)} --help'\n"
    assert host.writes == []


def test_the_document_of_list(vfiotool: Run) -> None:
    document = vfiotool("list", "--json").document
    assert set(document) == {"schema", "devices"}
    assert document["schema"] == "vfiotool.list/1"
    assert [device["address"] for device in document["devices"]] == [EDU, NIC, SISTER, BRIDGE, LONER]
    assert keys(document["devices"]) == fields(
        "address vendor_id device_id subsystem_vendor_id subsystem_device_id revision class_code vendor "
        "class_name interface_name subsystem_vendor subsystem_device "
        "device driver driver_override iommu_group numa_node is_vf physfn vfs sriov_totalvfs sriov_numvfs "
        "reset_methods power_state answers cdev blocked unavailable"
    )
    loner = document["devices"][-1]
    assert (loner["vendor_id"], loner["class_code"], loner["iommu_group"]) == (0x1234, 0x00FF00, None)
    assert (loner["vfs"], loner["reset_methods"], loner["blocked"]) == ([], ["flr"], False)


def test_list_prints_the_selected_devices_in_order(vfiotool: Run) -> None:
    devices = vfiotool("list", "--json", "group:7", EDU).document["devices"]
    assert [device["address"] for device in devices] == [NIC, SISTER, EDU]


def test_the_document_of_groups(vfiotool: Run, host: FakeHost) -> None:
    host.add_process(9, "qemu", {3: "/dev/vfio/7"})
    host.add_driver("vfio-pci")
    document = vfiotool("groups", "--json").document
    assert set(document) == {"schema", "groups"}
    assert document["schema"] == "vfiotool.groups/1"
    assert [group["id"] for group in document["groups"]] == [5, 7, 8]
    assert keys(document["groups"]) >= fields(
        "id type viable blockers devices reserved_regions node holders why"
    )
    group = vfiotool("groups", "--json", "7").document["groups"][0]
    assert (group["devices"], group["viable"], len(group["why"])) == ([NIC, SISTER], False, 1)
    assert keys(group["blockers"]) == fields("address driver reason")
    assert keys(group["reserved_regions"]) == fields("start end type")
    assert keys(group["holders"]) == fields("pid comm fd node")


def test_the_document_of_show(vfiotool: Run) -> None:
    document = vfiotool("show", "--json", EDU).document
    assert set(document) >= fields("schema device capabilities bars usage")
    assert document["schema"] == "vfiotool.show/1"
    assert document["device"]["address"] == EDU
    assert document["capabilities"] == [
        {"id": 5, "offset": 0x40, "extended": False, "name": "MSI", "version": None}
    ]
    assert document["bars"] == [
        {
            "index": 0,
            "start": 0xFDE00000,
            "size": 0x100000,
            "type": "memory32",
            "prefetchable": False,
            "disabled": True,
        }
    ]
    assert keys([document["placement"]]) == fields(
        "parent domain_maker slot label firmware_index acpi_index unavailable"
    )
    assert set(document) >= fields("link_downgraded modules irq msi_irqs")


def test_the_documents_of_bind_and_restore(vfiotool: Run, host: FakeHost) -> None:
    bound = vfiotool("bind", "--json", NIC)
    assert bound.document == {
        "schema": "vfiotool.bind/1",
        "changed": [{"address": NIC, "from": "e1000e", "to": "vfio-pci"}],
        "steps": [
            {"path": "modprobe", "value": "vfio-pci"},
            {"path": f"/sys/bus/pci/devices/{NIC}/driver_override", "value": "vfio-pci"},
            {"path": "/sys/bus/pci/drivers/e1000e/unbind", "value": NIC},
            {"path": "/sys/bus/pci/drivers/vfio-pci/bind", "value": NIC},
        ],
        "refused": [],
    }
    assert bound.stderr.startswith(f"warning: group 7 is not viable while {SISTER} is on e1000e")
    restored = vfiotool("restore", "--all", "--json").document
    assert restored["schema"] == "vfiotool.restore/1"
    assert restored["changed"] == [{"address": NIC, "from": "vfio-pci", "to": "e1000e"}]
    assert [step["value"] for step in restored["steps"]] == ["\n", NIC, NIC, "on"]
    assert vfiotool("restore", "--all", "--json").document["changed"] == []


def test_the_document_of_a_refusal(vfiotool: Run) -> None:
    result = vfiotool("bind", "--json", BRIDGE)
    assert result.status == 3
    (refused,) = result.document["refused"]
    assert set(refused) == fields("address rule reason flag")
    assert (refused["address"], refused["rule"], refused["flag"]) == (BRIDGE, "bridge", None)
    assert (result.document["changed"], result.document["steps"]) == ([], [])


def test_a_dry_run_prints_the_writes_and_makes_none(vfiotool: Run, host: FakeHost) -> None:
    result = vfiotool("bind", "--dry-run", EDU)
    assert result.stdout.splitlines() == [
        "modprobe vfio-pci",
        f"write 'vfio-pci' to /sys/bus/pci/devices/{EDU}/driver_override",
        f"write '{EDU}' to /sys/bus/pci/drivers/vfio-pci/bind",
    ]
    assert vfiotool("bind", "--dry-run", "--json", EDU).document["steps"]
    assert (host.writes, host.driver(EDU)) == ([], None)


def test_a_whole_group_is_bound_and_restored(vfiotool: Run, host: FakeHost) -> None:
    assert vfiotool("bind", "--group", NIC).stdout.splitlines() == [
        f"{NIC}: e1000e -> vfio-pci",
        f"{SISTER}: e1000e -> vfio-pci",
    ]
    assert vfiotool("groups", "--json", "7").document["groups"][0]["viable"]
    assert vfiotool("unbind", "8086:10d3", "--all").stdout == f"{NIC}: vfio-pci -> no driver\n" + (
        f"{SISTER}: vfio-pci -> no driver\n"
    )
    assert vfiotool("restore", "--all").status == 0
    assert [host.driver(address) for address in (NIC, SISTER)] == ["e1000e", "e1000e"]


@pytest.mark.parametrize("args", ["list", "groups", f"show {EDU}", f"show {LONER}", f"list {NIC}"])
def test_tables_show_each_selected_device(vfiotool: Run, args: str) -> None:
    result = vfiotool(*args.split())
    assert (result.status, result.stderr) == (0, "")
    wanted = {"list": [EDU, NIC, SISTER, BRIDGE, LONER], "groups": [EDU, NIC, SISTER, BRIDGE]}
    for address in wanted.get(args, args.split()[1:]):
        assert address in result.stdout


def test_help_and_version_need_no_machine() -> None:
    for option in ("--help", "--version"):
        command = [sys.executable, "-c", "import vfiotool.cli; vfiotool.cli.main()", option]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert (bool(result.stdout), result.stderr) == (True, "")


def test_a_traceback_is_printed_only_with_debug(vfiotool: Run) -> None:
    assert "Traceback" not in vfiotool("show", "eth7").stderr
    assert "Traceback" in vfiotool("--debug", "show", "eth7").stderr


def test_list_loads_no_module_of_stress_or_tables(host: FakeHost) -> None:
    program = (
        "import sys; from vfiotool import cli; "
        "status = cli.run(['--sysroot', sys.argv[1], 'list', '--json']); "
        "names = 'hdrh', 'jinja2', 'rich', 'vfiotool.stress'; "
        "print(status, [name for name in names if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, host.tree.path("/")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "0 []"
