"""Topological paths, the udev rules that match them, and the files of persistent bindings."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import stat
import subprocess
import time
from pathlib import Path

import pytest

from tests.unit.conftest import Run
from vfiotool.binding import ownership
from vfiotool.binding.ownership import Owner
from vfiotool.binding.persist import arrival_rule, topology_path
from vfiotool.binding.persist.check import check
from vfiotool.binding.persist.entries import add_all, entries, entry_for, present_at, remove_all
from vfiotool.binding.persist.initramfs_hooks import rebuild_commands
from vfiotool.binding.persist.udev_rule import RULES_DIR, PersistEntry, rule_text, stamp_path
from vfiotool.errors import RefusedError, UnsupportedError, VfioToolError
from vfiotool.host.attributes import device_path
from vfiotool.testing import FakeHost

PORT, NVME, TWIN, NIC, PF, VF = (
    "0000:00:02.0",
    "0000:01:00.0",
    "0000:00:13.0",
    "0000:00:12.0",
    "0000:02:00.0",
    "0000:03:00.0",
)
PATH = "pci0000:00/02.0/00.0"
RULE = f"{RULES_DIR}/40-vfiotool-pci0000-00-02.0-00.0.rules"


PROGRAM = "/usr/bin/vfiotool"


@pytest.fixture(autouse=True)
def program(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vfiotool that runs is a file that only root can change."""
    host.put(PROGRAM, "")
    monkeypatch.setattr(arrival_rule, "this_program", lambda: PROGRAM)
    monkeypatch.setattr(arrival_rule, "unsafe_part", lambda tree, program: None)


@pytest.fixture(autouse=True)
def machine(host: FakeHost) -> FakeHost:
    host.add_driver("vfio-pci", module_loaded=False)
    host.add_device(PORT, class_code=0x060400, group=2)
    host.add_device(NVME, vendor=0x1B36, device=0x10, driver="nvme", group=3, bridge=PORT)
    host.add_device(TWIN, vendor=0x1B36, device=0x10, driver="nvme", group=4)
    host.add_device(NIC, vendor=0x8086, device=0x10D3, driver="e1000e", group=5)
    for folder in (RULES_DIR, "/etc/initramfs-tools/hooks", "/etc/dracut.conf.d", "/run/udev"):
        os.makedirs(host.tree.path(folder))
    for program in ("/usr/sbin/mkinitramfs", "/usr/bin/dracut"):
        host.put(program, "")
    return host


def add(host: FakeHost, address: str, driver: str = "vfio-pci") -> PersistEntry:
    entry = entry_for(host.tree, address, driver)
    add_all(host.tree, [entry])
    return entry


def etc(host: FakeHost) -> dict[str, tuple[int, bytes]]:
    """Return the mode and the content of everything below /etc."""
    root = Path(host.tree.path("/etc"))
    return {
        str(path.relative_to(root)): (path.lstat().st_mode, b"" if path.is_dir() else path.read_bytes())
        for path in root.rglob("*")
    }


def move(host: FakeHost, address: str, folder: str) -> None:
    """Move a device to another folder of /sys/devices, as on another machine or after a reboot."""
    os.makedirs(os.path.dirname(host.tree.path(folder)), exist_ok=True)
    os.rename(host.tree.path(host.devices[address].folder), host.tree.path(folder))
    host.remove(device_path(address))
    host.link(device_path(os.path.basename(folder)), folder)


@pytest.mark.parametrize(
    ("folder", "path", "pattern"),
    [
        ("pci0000:00/0000:00:13.0", "pci0000:00/13.0", "pci0000:00/0000:00:13.0"),
        (
            "pci0000:00/0000:00:02.0/0000:01:00.0",
            "pci0000:00/02.0/00.0",
            "pci0000:00/0000:00:02.0/0000:??:00.0",
        ),
        (
            "pci0000:80/0000:80:04.0/0000:81:00.0/0000:82:01.0/0000:83:00.7",
            "pci0000:80/04.0/00.0/01.0/00.7",
            "pci0000:80/0000:80:04.0/0000:??:00.0/0000:??:01.0/0000:??:00.7",
        ),
        (
            "pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:02.0/10000:e1:00.0",
            "pci0000:00/0e.0/pci10000:e0/02.0/00.0",
            "pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:02.0/10000:??:00.0",
        ),
        (
            "platform/4010000000.pcie/pci0000:00/0000:00:01.0",
            "platform/4010000000.pcie/pci0000:00/01.0",
            "platform/4010000000.pcie/pci0000:00/0000:00:01.0",
        ),
    ],
)
def test_path_has_slots_and_no_bus_numbers(host: FakeHost, folder: str, path: str, pattern: str) -> None:
    address = os.path.basename(folder)
    for other in (NVME, PORT, TWIN):
        host.remove_device(other)
    move(host, NIC, f"/sys/devices/{folder}")
    assert topology_path.read_path(host.tree, address) == path
    assert topology_path.devpath_pattern(path) == f"/devices/{pattern}"
    assert fnmatch.fnmatchcase(f"/devices/{folder}", topology_path.devpath_pattern(path))
    assert topology_path.find_at(host.tree, path) == address


@pytest.mark.parametrize(
    ("folder", "matches"),
    [
        ("pci0000:00/0000:00:02.0/0000:01:00.0", True),
        ("pci0000:00/0000:00:02.0/0000:7f:00.0", True),  # a shifted bus
        ("pci0000:00/0000:00:03.0/0000:01:00.0", False),  # the same address in another slot
        ("pci0000:00/0000:00:02.0/0000:01:00.1", False),
        ("pci0000:00/0000:00:02.0/0000:01:01.0", False),
        ("pci0000:00/0000:00:02.0/0000:01:00.0/0000:02:00.0", False),
        ("pci0000:80/0000:80:02.0/0000:81:00.0", False),
        ("pci0001:00/0001:00:02.0/0001:01:00.0", False),
    ],
)
def test_pattern_matches_the_slot_on_any_bus(folder: str, matches: bool) -> None:
    assert fnmatch.fnmatchcase(f"/devices/{folder}", topology_path.devpath_pattern(PATH)) is matches


@pytest.mark.parametrize(
    "text",
    ["", "00.0", "pci0000:00", "pci0000:00/13.0/", "/pci0000:00/13.0", "../pci0000:00/13.0", "a/13.0"]
    + [f"pci0000:00/{odd}/13.0" for odd in ("*", 'a"b', "a b", "a|b", "..", "$d", "%k", "ä", "a\n")],
)
def test_characters_special_to_udev_or_a_shell_are_refused(text: str) -> None:
    assert not topology_path.is_path(text)


def test_unusual_place_is_refused(host: FakeHost) -> None:
    move(host, NIC, "/sys/devices/a b/pci0000:00/0000:00:12.0")
    with pytest.raises(UnsupportedError, match="no place that lasts"):
        add(host, NIC)
    assert entries(host.tree) == []


def test_add_and_remove_leave_no_trace(host: FakeHost) -> None:
    before = etc(host)
    entry = add(host, NVME)
    assert entry == PersistEntry(NVME, PATH, 0x1B36, 0x10, "vfio-pci")
    added = etc(host)
    assert set(added) - set(before) == {
        RULE.removeprefix("/etc/"),
        arrival_rule.PATH.removeprefix("/etc/"),
        "initramfs-tools/hooks/vfiotool",
        "dracut.conf.d/90-vfiotool.conf",
    }
    modes = {name: stat.S_IMODE(mode) for name, (mode, _) in added.items() if name not in before}
    assert modes == dict.fromkeys(modes, 0o644) | {"initramfs-tools/hooks/vfiotool": 0o755}
    assert entries(host.tree) == [entry]
    assert add(host, NVME) == entry
    assert etc(host) == added
    assert host.tree.exists(stamp_path(entry))
    remove_all(host.tree, [entry])
    assert etc(host) == before
    assert os.listdir(host.tree.path("/run/udev")) == []


def test_hooks_are_removed_with_the_last_entry(host: FakeHost) -> None:
    before = etc(host)
    first, second = (add(host, address) for address in (NVME, TWIN))
    remove_all(host.tree, [first])
    assert "initramfs-tools/hooks/vfiotool" in etc(host)
    remove_all(host.tree, [second])
    assert etc(host) == before


def test_only_installed_builders_get_a_hook(host: FakeHost) -> None:
    host.remove("/usr/bin/dracut")
    add(host, NVME)
    assert rebuild_commands(host.tree) == ["update-initramfs -u"]
    assert os.listdir(host.tree.path("/etc/dracut.conf.d")) == []  # as an uninstalled package leaves it


def test_machine_without_udev_is_unsupported(host: FakeHost) -> None:
    os.rmdir(host.tree.path(RULES_DIR))
    with pytest.raises(UnsupportedError, match=f"no folder {RULES_DIR}"):
        add(host, NVME)


@pytest.mark.parametrize("driver", ["e1000e", "pci-stub", 'vfio"', "vfio-pci\n", "vfio pci", "../vfio", ""])
def test_only_vfio_drivers_are_accepted(host: FakeHost, driver: str) -> None:
    with pytest.raises(RefusedError):
        add(host, NVME, driver)
    assert entries(host.tree) == []


def test_vf_is_unsupported(host: FakeHost) -> None:
    before = etc(host)
    host.add_device(PF, vendor=0x8086, device=0x10C9, totalvfs=7)
    host.add_device(VF, vendor=0x8086, device=0x10CA, physfn=PF)
    with pytest.raises(UnsupportedError, match="is a VF"):
        add(host, VF)
    assert etc(host) == before


def test_vf_with_the_path_of_its_pf_is_ignored(host: FakeHost) -> None:
    """VFs of an NVMe PF have its ids; the kernel can place a VF on the next bus, as device 0, function 0."""
    host.add_device(PF, vendor=0x1B36, device=0x10, bridge=PORT, totalvfs=4)
    host.add_device(VF, vendor=0x1B36, device=0x10, bridge=PORT, physfn=PF)
    host.remove_device(NVME)
    assert topology_path.find_at(host.tree, PATH) == PF


@pytest.mark.parametrize("name", [RULE, "/etc/initramfs-tools/hooks/vfiotool"])
@pytest.mark.parametrize("kind", ["link", "foreign", "folder"])
def test_files_of_others_are_not_changed(host: FakeHost, name: str, kind: str, tmp_path: Path) -> None:
    path = Path(host.tree.path(name))
    victim = tmp_path / "victim"
    victim.write_text("theirs")
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_text("theirs")
    before = etc(host)
    with pytest.raises(VfioToolError, match=r"cannot be used|not vfiotool's own"):
        add(host, NVME)
    assert etc(host) == before
    assert victim.read_text() == "theirs"


@pytest.mark.parametrize("line", ["", "# {}", "# []", "# {", '# {"address": 1}', "# " + "[" * 100_000])
def test_rule_without_an_entry_is_an_error(host: FakeHost, line: str) -> None:
    host.put(RULE, f"# Written by vfiotool\n{line}\n")
    with pytest.raises(VfioToolError, match="does not say which device"):
        entries(host.tree)


@pytest.mark.parametrize(
    "change",
    [("pci0000:00/02.0/00.0", "../../x/00.0"), ("vfio-pci", "e1000e"), ("6966", "-1"), ("6966", "true")]
    + [("null", owner) for owner in ("1", "{}", "[0]", '{"uid": -1}', '{"uid": true}', '{"uid": 4294967295}')]
    + [("[]", allowed) for allowed in ("1", '["mounted"]', '["x"]', "[[]]", "null")]
    + [("null", '{"uid": 1, "gid": "8\\", RUN+=\\"x"}')],
)
def test_rule_with_another_entry_is_an_error(host: FakeHost, change: tuple[str, str]) -> None:
    add(host, NVME)
    text = host.tree.read(RULE)
    host.put(RULE, text.replace(*change))
    with pytest.raises(VfioToolError, match="does not say which device"):
        entries(host.tree)


def shell_command(entry: PersistEntry) -> str:
    """Return the command that udev gives to the shell: the rule's PROGRAM, with ``$$`` as ``$``."""
    match = re.search(r'PROGRAM="(.*)"\n', rule_text(entry))
    assert match
    shell, option, command = shlex.split(match[1].replace("$$", "$"))
    assert (shell, option) == ("/bin/sh", "-c")
    return command


def arm(host: FakeHost, entry: PersistEntry) -> None:
    """Run, on the fake's files, the command that the first PCI uevent after a reboot runs."""
    os.unlink(host.tree.path(stamp_path(entry)))
    command = shell_command(entry).replace("/sys/", f"{host.root}/sys/").replace("/run/", f"{host.root}/run/")
    subprocess.run(["/bin/sh", "-c", command], check=True)


def override(host: FakeHost, address: str) -> str:
    return host.tree.read(f"{device_path(address)}/driver_override")


OWNER = Owner(1000, 107)


def owned(host: FakeHost, entry: PersistEntry, kernel_name: str) -> bool:
    """Run the command by which udev decides whether a node is given to the entry's owner."""
    (line,) = [one for one in rule_text(entry).splitlines() if "PROGRAM==" in one]
    match = re.search(r'PROGRAM=="(.*)", OWNER:="1000", GROUP:="107", MODE:="0660"$', line)
    assert match
    shell, option, command = shlex.split(match[1].replace("$$", "$").replace("%k", kernel_name))
    assert (shell, option) == ("/bin/sh", "-c")
    command = command.replace("/sys/", f"{host.root}/sys/").replace("/run/", f"{host.root}/run/")
    return subprocess.run(["/bin/sh", "-c", command], check=False).returncode == 0


def test_owner_is_given_the_nodes_of_the_device_alone(host: FakeHost) -> None:
    entry = entry_for(host.tree, NVME, "vfio-pci", OWNER)
    add_all(host.tree, [entry])
    host.put(f"{device_path(NVME)}/vfio-dev/vfio0/dev", "510:0")
    host.put(f"{device_path(TWIN)}/vfio-dev/vfio1/dev", "510:1")
    given = [
        name for name in ("3", "4", "5", "33", "vfio0", "vfio1", "noiommu-3") if owned(host, entry, name)
    ]
    assert given == ["3", "vfio0"]


def test_owner_follows_the_device_to_another_bus_and_not_other_ids(host: FakeHost) -> None:
    entry = entry_for(host.tree, NVME, "vfio-pci", OWNER)
    moved = "0000:42:00.0"
    move(host, NVME, f"/sys/devices/pci0000:00/0000:00:02.0/{moved}")
    host.link(f"/sys/kernel/iommu_groups/9/devices/{moved}", f"/sys/devices/pci0000:00/0000:00:02.0/{moved}")
    assert owned(host, entry, "9")
    host.put(f"{device_path(moved)}/device", "0x0011")
    assert not owned(host, entry, "9")


def test_owner_of_this_boot_takes_precedence(host: FakeHost) -> None:
    entry = entry_for(host.tree, NVME, "vfio-pci", OWNER)
    host.put(ownership.rule_path(NVME), "")
    assert not owned(host, entry, "3")


def test_owner_is_read_back(host: FakeHost) -> None:
    for owner in (None, Owner(0), Owner(7, 8)):
        entry = entry_for(host.tree, NVME, "vfio-pci", owner)
        add_all(host.tree, [entry])
        assert entries(host.tree) == [entry]


def test_rule_of_an_earlier_version_has_no_owner(host: FakeHost) -> None:
    entry = add(host, NVME)
    host.put(RULE, host.tree.read(RULE).replace(', "owner": null', ""))
    assert entries(host.tree) == [entry]


def test_group_has_one_owner_over_boots(host: FakeHost) -> None:
    sister = "0000:00:12.1"
    host.add_device(sister, vendor=0x8086, device=0x10D3, group=5)
    add_all(host.tree, [entry_for(host.tree, NIC, "vfio-pci", Owner(7))])
    before = etc(host)
    with pytest.raises(VfioToolError, match="a group has one node"):
        add_all(host.tree, [entry_for(host.tree, sister, "vfio-pci", Owner(8))])
    assert etc(host) == before
    add_all(host.tree, [entry_for(host.tree, sister, "vfio-pci", owner) for owner in (None, Owner(7))])
    add_all(host.tree, [entry_for(host.tree, one, "vfio-pci", Owner(8)) for one in (NIC, sister)])
    assert {entry.owner for entry in entries(host.tree)} == {Owner(8)}


@pytest.mark.parametrize("verb", ["bind --persist", "persist add"])
def test_owner_is_persisted(vfiotool: Run, host: FakeHost, verb: str) -> None:
    assert vfiotool(*verb.split(), "--owner", "0:0", NVME).status == 0
    (entry,) = vfiotool("persist", "list", "--json").document["entries"]
    assert entry["owner"] == {"uid": 0, "gid": 0}
    assert "0:0" in vfiotool("persist", "list").stdout


def test_dry_run_shows_the_owner(vfiotool: Run, host: FakeHost) -> None:
    steps = vfiotool("bind", "--dry-run", "--persist", "--owner", "0", "--json", NVME).document["steps"]
    assert steps[-1]["path"] == RULE
    assert 'OWNER:="0", GROUP:="0", MODE:="0600"' in steps[-1]["value"]


def test_check_compares_the_owner(host: FakeHost) -> None:
    me = Owner(os.getuid(), os.getgid())
    entry = entry_for(host.tree, NVME, "vfio-pci", me)
    add_all(host.tree, [entry])
    assert verdicts(host, entry)["owner"] is None
    host.put("/sys/class/vfio/3/dev", "244:0")
    host.put("/dev/vfio/3", "")
    for mode, ok in ((0o660, True), (0o600, False), (0o666, False)):
        os.chmod(host.tree.path("/dev/vfio/3"), mode)
        assert verdicts(host, entry)["owner"] is ok
    (failed,) = [one for one in check(host.tree, entry) if one.name == "owner"]
    assert failed.remedy == f"vfiotool bind --owner {me} {NVME}"


def test_first_event_sets_the_override_of_the_device(host: FakeHost) -> None:
    for address in (NVME, TWIN):
        host.set_driver(address, None)
    entry = add(host, NVME)
    move(host, NVME, "/sys/devices/pci0000:00/0000:00:02.0/0000:42:00.0")
    arm(host, entry)
    assert override(host, "0000:42:00.0") == "vfio-pci"
    assert override(host, TWIN) == "(null)"
    assert host.tree.exists(stamp_path(entry))


def test_first_event_ignores_other_ids(host: FakeHost) -> None:
    host.set_driver(NVME, None)
    entry = add(host, NVME)
    host.put(f"{device_path(NVME)}/device", "0x0011")
    arm(host, entry)
    assert override(host, NVME) == "(null)"
    assert present_at(host.tree, entry) is None


def test_first_event_ignores_a_device_with_a_driver(host: FakeHost) -> None:
    entry = add(host, NVME)
    arm(host, entry)
    assert override(host, NVME) == "(null)"


def test_first_event_without_the_device_succeeds(host: FakeHost) -> None:
    entry = add(host, NVME)
    host.remove_device(NVME)
    arm(host, entry)


def arrive(host: FakeHost, tmp_path: Path, folder: str) -> list[str]:
    """Run the command that udevd runs for a device that arrived; return what it runs in the end."""
    for name in ("vfiotool", "systemd-run"):
        file = tmp_path / name
        file.write_text('#!/bin/sh\necho "${0##*/} $*"\n')
        file.chmod(0o755)
    if folder:
        (tmp_path / folder).mkdir(parents=True)
    text = arrival_rule.arrival_rule(str(tmp_path / "vfiotool"))
    assert arrival_rule.written_program(text) == str(tmp_path / "vfiotool")
    match = re.search(r'^ENV\{\.VFIOTOOL_ARRIVED\}=="1", RUN\+="(.*)"$', text, re.MULTILINE)
    assert match
    shell, option, command = shlex.split(match[1].replace("$$", "$").replace("%k", NVME))
    assert (shell, option) == ("/bin/sh", "-c")
    command = command.replace("/run/systemd", f"{tmp_path}/run/systemd").replace("/dev/kmsg", "/dev/stdout")
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    ended = subprocess.run(
        ["/bin/sh", "-c", command], check=True, env=environment, capture_output=True, text=True
    )
    return ended.stdout.splitlines()


def test_arrival_runs_vfiotool(host: FakeHost, tmp_path: Path) -> None:
    assert arrive(host, tmp_path, "") == [f"vfiotool: vfiotool persist apply {NVME}"]


def test_arrival_runs_vfiotool_below_systemd(host: FakeHost, tmp_path: Path) -> None:
    (ran,) = arrive(host, tmp_path, "run/systemd/system")
    assert ran.startswith("systemd-run --no-block ")
    assert ran.endswith(f" {tmp_path}/vfiotool persist apply {NVME}")


def test_arrival_without_the_program_has_no_effect(host: FakeHost, tmp_path: Path) -> None:
    text = arrival_rule.arrival_rule(f"{tmp_path}/gone")
    match = re.search(r"-c '(.*)'", text)
    assert match
    assert subprocess.run(["/bin/sh", "-c", match[1].replace("$$", "$")], check=False).returncode == 0


@pytest.mark.parametrize(
    "path", ["/opt/my tools/vfiotool", "/opt/a'b/vfiotool", "/opt/$x/vfiotool", "/ö/vfiotool"]
)
def test_program_with_special_characters_is_not_run(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("sys.argv", [path])
    monkeypatch.setattr("sys.executable", f"{os.path.dirname(path)}/python")
    monkeypatch.setattr("shutil.which", lambda name: path)
    monkeypatch.setattr("os.access", lambda path, mode: True)
    assert arrival_rule.this_program() is None
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/vfiotool")
    assert arrival_rule.this_program() == "/usr/bin/vfiotool"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of other users")
@pytest.mark.parametrize("part", ["opt/v/bin/vfiotool", "opt/v/bin", "opt", "real/vfiotool", "real"])
@pytest.mark.parametrize("change", ["owner", "group", "world"])
def test_program_that_others_can_change_is_unsafe(
    tmp_path: Path, part: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    host = FakeHost(str(tmp_path / "root"))
    (tmp_path / "root/real").mkdir(parents=True)
    (tmp_path / "root/opt/v/bin").mkdir(parents=True)
    (tmp_path / "root/real/vfiotool").touch()
    program = tmp_path / "root/opt/v/bin/vfiotool"
    program.symlink_to("../../../real/vfiotool")
    assert arrival_rule.unsafe_part(host.tree, "/opt/v/bin/vfiotool") is None
    changed = tmp_path / "root" / part
    if change == "owner":
        os.chown(changed, 1000, 0)
    else:
        os.chown(changed, 0, 100)
        changed.chmod(0o775 if change == "group" else 0o757)
    found = arrival_rule.unsafe_part(host.tree, "/opt/v/bin/vfiotool")
    expected = changed.resolve() if part.endswith("bin/vfiotool") else changed
    assert found is not None
    assert Path(found).resolve() == expected


def test_program_that_others_can_change_gets_no_rule(
    host: FakeHost, good: PersistEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert host.tree.exists(arrival_rule.PATH)
    monkeypatch.setattr(arrival_rule, "unsafe_part", lambda tree, program: "/opt")
    assert failing(host, good) == {"hotplug": False}
    add(host, NVME)
    assert not host.tree.exists(arrival_rule.PATH)
    (unknown,) = [one for one in check(host.tree, good) if not one.ok]
    assert (unknown.name, unknown.ok) == ("hotplug", None)
    assert unknown.remedy == f"after the device has arrived: vfiotool persist apply {PATH}"
    monkeypatch.setattr(arrival_rule, "this_program", lambda: None)
    assert failing(host, good) == {"hotplug": None}


def test_check_finds_a_changed_arrival_rule(host: FakeHost, good: PersistEntry) -> None:
    text = host.tree.read(arrival_rule.PATH) + "\n"
    for changed in (text.replace("RUN+=", "RUN="), text.replace(PROGRAM, "/usr/bin/gone")):
        host.put(arrival_rule.PATH, changed)
        assert failing(host, good) == {"hotplug": False}
    host.remove(arrival_rule.PATH)
    assert failing(host, good) == {"hotplug": False}
    add(host, NVME)
    assert failing(host, good) == {}


def test_apply_lifts_what_was_lifted_and_is_not_about_use(vfiotool: Run, host: FakeHost) -> None:
    host.add_class("block", "nvme0n1", f"{host.devices[NVME].folder}/block/nvme0n1", dev="259:0")
    host.put("/run/udev/data/b259:0", "E:ID_PART_TABLE_TYPE=gpt")
    assert vfiotool("persist", "add", NVME).status == 3
    assert vfiotool("persist", "add", NVME, "--allow-partitions", "--allow-mounted").status == 0
    (entry,) = entries(host.tree)
    assert entry.allowed == ("partitions",)
    host.mount("/dev/nvme0n1", "/srv")
    assert (vfiotool("persist", "apply", NVME).status, host.driver(NVME)) == (3, "nvme")
    host.put("/proc/self/mountinfo", "")
    assert (vfiotool("persist", "apply", NVME).status, host.driver(NVME)) == (0, "vfio-pci")


def verdicts(host: FakeHost, entry: PersistEntry) -> dict[str, bool | None]:
    return {one.name: one.ok for one in check(host.tree, entry)}


@pytest.fixture
def good(host: FakeHost) -> PersistEntry:
    """An entry in effect: the device is on its driver, the initramfs is new, no native driver is built in."""
    entry = add(host, NVME)
    host.put(f"{device_path(NVME)}/modalias", "pci:v00001B36d00000010sv0000sd0000bc01sc08i02")
    host.put(
        "/lib/modules/6.12.0/modules.builtin.modinfo", b"ahci.alias=pci:v*bc01sc06i01*\0ext4.license=GPL\0"
    )
    host.set_driver(NVME, "vfio-pci")
    host.put("/boot/initrd.img-6.12.0", "")
    assert verdicts(host, entry) == dict.fromkeys(
        ("rule", "device", "driver", "owner", "native", "hotplug", "initramfs-hook", "initramfs"), True
    )
    return entry


def failing(host: FakeHost, entry: PersistEntry) -> dict[str, bool | None]:
    return {name: ok for name, ok in verdicts(host, entry).items() if not ok}


def test_check_finds_a_changed_rule(host: FakeHost, good: PersistEntry) -> None:
    host.put(RULE, host.tree.read(RULE) + "\n#")
    assert failing(host, good)["rule"] is False


def test_check_finds_another_device(host: FakeHost, good: PersistEntry) -> None:
    host.put(f"{device_path(NVME)}/vendor", "0x8086")
    assert failing(host, good) == {"device": False, "driver": None, "native": None}


def test_check_finds_the_native_driver(host: FakeHost, good: PersistEntry) -> None:
    host.set_driver(NVME, "nvme")
    assert failing(host, good) == {"driver": False}


def test_check_finds_a_built_in_driver(host: FakeHost, good: PersistEntry) -> None:
    host.put("/lib/modules/6.12.0/modules.builtin.modinfo", b"nvme.alias=pci:v*d*sv*sd*bc01sc08i02*\0")
    (failed,) = [one for one in check(host.tree, good) if not one.ok]
    assert (failed.name, failed.ok) == ("native", False)
    assert failed.detail.startswith("nvme is built into the kernel")


def test_check_finds_an_old_initramfs(host: FakeHost, good: PersistEntry) -> None:
    old = time.time() - 3600
    os.utime(host.tree.path("/boot/initrd.img-6.12.0"), (old, old))
    (failed,) = [one for one in check(host.tree, good) if not one.ok]
    assert (failed.name, failed.remedy) == ("initramfs", "update-initramfs -u")


def test_check_finds_a_missing_hook(host: FakeHost, good: PersistEntry) -> None:
    host.remove("/etc/initramfs-tools/hooks/vfiotool")
    assert failing(host, good)["initramfs-hook"] is False


def test_check_is_unknown_if_facts_are_missing(host: FakeHost, good: PersistEntry) -> None:
    for program in ("/usr/sbin/mkinitramfs", "/usr/bin/dracut"):
        host.remove(program)
    host.remove("/lib/modules/6.12.0/modules.builtin.modinfo")
    assert failing(host, good) == {"native": None, "initramfs-hook": None}


def test_persist_json_documents(vfiotool: Run, host: FakeHost) -> None:
    added = vfiotool("persist", "add", "--json", NVME).document
    entry = {
        "address": NVME,
        "path": PATH,
        "vendor_id": 0x1B36,
        "device_id": 0x10,
        "driver": "vfio-pci",
        "owner": None,
        "allowed": [],
        "rule": RULE,
        "present_at": NVME,
        "bound_to": "nvme",
    }
    rebuild = ["update-initramfs -u", "dracut -f"]
    assert added == {"schema": "vfiotool.persist/1", "entries": [entry], "rebuild": rebuild}
    assert vfiotool("persist", "list", "--json").document["entries"] == [entry]
    checked = vfiotool("persist", "check", "--json")
    assert checked.status == 1
    (found,) = checked.document["entries"]
    assert set(found["checks"][0]) == {"name", "ok", "detail", "remedy"}
    host.set_driver(NVME, "vfio-pci")
    assert vfiotool("persist", "check").status == 0
    removed = vfiotool("persist", "remove", "--all", "--json").document
    assert [one["address"] for one in removed["entries"]] == [NVME]
    assert vfiotool("persist", "list", "--json").document["entries"] == []
    assert host.writes == []


def test_persist_text_output(vfiotool: Run, host: FakeHost) -> None:
    added = vfiotool("persist", "add", "1b36:0010", "--all")
    assert added.stdout.splitlines() == [
        f"{PATH} ({NVME}): vfio-pci is added"
        if one == NVME
        else f"pci0000:00/13.0 ({TWIN}): vfio-pci is added"
        for one in (TWIN, NVME)
    ]
    assert "now run 'update-initramfs -u' or 'dracut -f'" in added.stderr
    table = vfiotool("persist", "list").stdout
    assert PATH in table
    assert "pci0000:00/13.0" in table
    assert vfiotool("persist", "check").status == 1


@pytest.mark.parametrize("selector", [NVME, "01:00.0", PATH])
def test_remove_accepts_an_address_or_a_path(vfiotool: Run, selector: str) -> None:
    vfiotool("persist", "add", NVME, TWIN)
    assert vfiotool("persist", "remove", selector).status == 0
    assert [one["address"] for one in vfiotool("persist", "list", "--json").document["entries"]] == [TWIN]


def test_address_selects_the_device_that_is_there_now(vfiotool: Run, host: FakeHost) -> None:
    """After bus numbers have shifted, another device may have the recorded address."""
    vfiotool("persist", "add", NVME)
    move(host, NVME, "/sys/devices/pci0000:00/0000:00:02.0/0000:42:00.0")
    assert vfiotool("persist", "list", "--json").document["entries"][0]["present_at"] == "0000:42:00.0"
    assert vfiotool("persist", "remove", NVME).status == 1
    assert vfiotool("persist", "remove", "0000:42:00.0").status == 0


def test_absent_device_can_be_removed_by_its_former_address(vfiotool: Run, host: FakeHost) -> None:
    vfiotool("persist", "add", NVME)
    host.remove_device(NVME)
    assert vfiotool("persist", "list", "--json").document["entries"][0]["present_at"] is None
    assert vfiotool("persist", "remove", NVME).status == 0


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (f"add {PORT}", 3),
        (f"add --driver e1000e {NIC}", 3),
        ("add 0000:09:00.0", 1),
        ("add 1b36:0010", 2),
        ("add", 2),
        (f"remove {NVME}", 1),
        ("remove nothing/00.0", 1),
        ("remove", 2),
        (f"remove --all {NVME}", 2),
    ],
)
def test_error_has_its_exit_status_and_writes_nothing(
    vfiotool: Run, host: FakeHost, args: str, status: int
) -> None:
    before = etc(host)
    result = vfiotool("persist", *args.split())
    assert (result.status, result.stdout) == (status, ""), result.stderr
    assert result.stderr.startswith("error: ")
    assert "\nhint: " in result.stderr
    assert etc(host) == before


def test_apply_binds_a_device_that_came_back(vfiotool: Run, host: FakeHost) -> None:
    """A rescan gives a device to its own driver if that is loaded, and on another bus maybe."""
    vfiotool("persist", "add", NVME, TWIN)
    host.load_module("vfio-pci")
    host.set_driver(TWIN, "vfio-pci")
    moved = "0000:42:00.0"
    host.remove_device(NVME)
    host.add_device(moved, vendor=0x1B36, device=0x10, driver="nvme", group=8, bridge=PORT)
    applied = vfiotool("persist", "apply", "--all", "--json")
    assert applied.status == 0, applied.stderr
    document = applied.document
    assert document["schema"] == "vfiotool.persist/1"
    assert document["changed"] == [{"address": moved, "from": "nvme", "to": "vfio-pci"}]
    assert {one["bound_to"] for one in document["entries"]} == {"vfio-pci"}
    again = vfiotool("persist", "apply", "--all", "--json").document
    assert (again["changed"], again["steps"]) == ([], [])
    assert vfiotool("restore", moved).stdout == f"{moved}: vfio-pci -> nvme\n"


def test_apply_takes_no_device_in_use_and_binds_the_others(vfiotool: Run, host: FakeHost) -> None:
    vfiotool("persist", "add", NVME, TWIN, NIC)
    host.load_module("vfio-pci")
    host.remove_device(NIC)
    host.add_class("block", "nvme0n1", f"{host.devices[NVME].folder}/block/nvme0n1", dev="259:0")
    host.mount("/dev/nvme0n1", "/srv")
    applied = vfiotool("persist", "apply", "--all")
    assert (applied.status, applied.stdout) == (3, f"{TWIN}: nvme -> vfio-pci\n")
    assert "--allow-mounted" in applied.stderr
    assert "warning: no device with the ids of the entry is at pci0000:00/12.0" in applied.stderr
    assert host.driver(NVME) == "nvme"
    assert vfiotool("persist", "apply", NVME, "--allow-mounted").status == 0
    assert host.driver(NVME) == "vfio-pci"


def test_apply_gives_the_nodes_to_the_owner(vfiotool: Run, host: FakeHost) -> None:
    vfiotool("persist", "add", NVME, "--owner", "0:0")
    host.load_module("vfio-pci")
    steps = vfiotool("persist", "apply", NVME, "--json").document["steps"]
    assert steps[-1] == {"path": ownership.rule_path(NVME), "value": "0:0"}


def test_apply_dry_run_writes_nothing(vfiotool: Run, host: FakeHost) -> None:
    vfiotool("persist", "add", NVME)
    shown = vfiotool("persist", "apply", NVME, "--dry-run").stdout
    assert f"write 'vfio-pci' to {device_path(NVME)}/driver_override\n" in shown
    assert (host.writes, host.driver(NVME)) == ([], "nvme")


def test_apply_gives_no_driver_but_the_entrys(vfiotool: Run) -> None:
    """Devices without an entry are not touched, whatever else the command line names."""
    vfiotool("persist", "add", TWIN)
    refused = vfiotool("persist", "apply", NVME)
    assert (refused.status, refused.stdout) == (1, "")
    assert "no entry matches" in refused.stderr
    assert vfiotool("persist", "apply").status == 2


def test_add_refuses_what_bind_refuses(vfiotool: Run, host: FakeHost) -> None:
    host.add_class("block", "nvme0n1", f"{host.devices[NVME].folder}/block/nvme0n1", dev="259:0")
    host.mount("/dev/nvme0n1", "/srv")
    before = etc(host)
    refused = vfiotool("persist", "add", TWIN, NVME)
    assert (refused.status, etc(host)) == (3, before)
    assert "--allow-mounted" in refused.stderr
    assert vfiotool("persist", "add", TWIN, NVME, "--allow-mounted").status == 0
