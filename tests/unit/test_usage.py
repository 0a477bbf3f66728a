from __future__ import annotations

import errno
import json
import os
import socket
import struct
import subprocess
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiotool.host.tree import Tree
from vfiotool.host.usage import device_usage, disks, network, openers, rtnetlink
from vfiotool.host.usage.claim import Claim, some
from vfiotool.host.usage.device_usage import Usage, read_usage
from vfiotool.host.usage.link_sockets import LinkSockets, parse_link_sockets
from vfiotool.host.usage.namespaces import MAY_NOT_INSPECT, NAMESPACE_ALONE
from vfiotool.host.usage.network import CAPTURED, Network, read_network
from vfiotool.host.usage.openers import Openers, find_openers
from vfiotool.host.usage.ssh import connected_address
from vfiotool.testing import FakeHost
from vfiotool.util.text import printable

NIC, NVME, VGA, VMD, BEHIND = "0000:00:12.0", "0000:00:13.0", "0000:00:02.0", "0000:5d:05.5", "10000:e1:00.0"
BLOCK = "/sys/class/block"
VIRTUAL = "/sys/devices/virtual/block"


@pytest.fixture
def machine(host: FakeHost) -> FakeHost:
    """A NIC that is down, and an NVMe with two partitions."""
    host.add_device(NIC, class_code=0x020000, group=7)
    host.add_device(NVME, class_code=0x010802, group=8)
    folder = f"{host.devices[NVME].folder}/nvme/nvme0"
    host.add_class("nvme", "nvme0", folder, state="live")
    host.add_class("block", "nvme0n1", f"{folder}/nvme0n1", dev="259:0")
    for number in (1, 2):
        part = f"{folder}/nvme0n1/nvme0n1p{number}"
        host.add_class("block", f"nvme0n1p{number}", part, dev=f"259:{number}", partition=str(number))
    host.add_class("net", "eth0", f"{host.devices[NIC].folder}/net/eth0", operstate="down", flags="0x1002")
    return host


def claims(host: FakeHost, address: str) -> list[tuple[str, str, str]]:
    """Return the name, the rule and the text of all claims on a device."""
    usage = read_usage(host.tree, [address], ())[address]
    return [(one.name, claim.rule, claim.text) for one in usage for claim in one.claims]


def stack(host: FakeHost, lower: str, upper: str, **attributes: str) -> None:
    """Build a virtual block device on another."""
    folder = f"{VIRTUAL}/{upper}"
    if not host.tree.exists(f"{BLOCK}/{upper}"):
        host.add_class("block", upper, folder)
    for name, text in attributes.items():
        host.put(f"{folder}/{name.replace('_', '/', 1)}", text)
    host.link(f"{BLOCK}/{lower}/holders/{upper}", folder)


def connect(host: FakeHost, **fields: dict[str, list[str]]) -> None:
    host.put(CAPTURED, json.dumps(fields))


# Disks


def test_an_idle_device_has_usage_and_no_claims(machine: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tree, "is_live", True)
    machine.remove(f"{BLOCK}/nvme0n1p1/partition")
    machine.remove(f"{BLOCK}/nvme0n1p2/partition")
    assert read_usage(machine.tree, [NVME], ())[NVME] == (
        Usage("block", "nvme0n1", "not in use"),
        Usage("block", "nvme0n1p1", "not in use"),
        Usage("block", "nvme0n1p2", "not in use"),
        Usage("nvme", "nvme0", "state live"),
    )


def test_partitions_are_a_claim_only_without_another_claim(machine: FakeHost) -> None:
    assert claims(machine, NVME) == [("nvme0n1", "partitions", "has the partitions nvme0n1p1, nvme0n1p2")]
    machine.mount("/dev/nvme0n1p2", "/srv")
    assert claims(machine, NVME) == [("nvme0n1p2", "mounted", "is mounted on /srv")]


def test_a_mount_is_found_by_its_device_number_and_its_blanks_are_decoded(machine: FakeHost) -> None:
    machine.put("/proc/self/mountinfo", r"30 1 259:2 / /my\040disk rw shared:1 master:2 - ext4 /dev/root rw")
    machine.put("/proc/1/mountinfo", "30 1 259:2 / /elsewhere rw - ext4 /dev/root rw")
    assert claims(machine, NVME) == [("nvme0n1p2", "mounted", "is mounted on /my disk, /elsewhere")]


@pytest.mark.parametrize("line", ["", " - ", "1 2 3", "30 1 259:2 / /srv rw - ext4", "a b c d e f"])
def test_a_malformed_mount_is_skipped(machine: FakeHost, line: str) -> None:
    machine.put("/proc/self/mountinfo", line)
    assert claims(machine, NVME)[0][1] == "partitions"


def test_a_disk_with_the_root_file_system(machine: FakeHost) -> None:
    for point in ("/", "/boot/efi", "/srv"):
        machine.mount("/dev/nvme0n1p1", point)
    assert claims(machine, NVME) == [
        ("nvme0n1p1", "root", "holds /, /boot/efi of this machine"),
        ("nvme0n1p1", "mounted", "is mounted on /srv"),
    ]


def test_every_disk_of_a_mounted_btrfs(machine: FakeHost) -> None:
    machine.put("/proc/self/mountinfo", "30 1 0:40 / /data rw - btrfs /dev/sdz rw")
    for name in ("sdz", "nvme0n1p1"):
        machine.put(f"/sys/fs/btrfs/0123/devices/{name}", "")
    assert claims(machine, NVME) == [("nvme0n1p1", "mounted", "is mounted on /data")]


def test_swap(machine: FakeHost) -> None:
    machine.put("/proc/swaps", "Filename Type Size Used Priority\n/dev/nvme0n1p1 partition 9 0 -2")
    assert claims(machine, NVME) == [("nvme0n1p1", "swap", "is swapped to")]


def test_devices_built_on_a_disk_are_followed_to_the_last(machine: FakeHost) -> None:
    """A RAID below an encrypted volume below a mounted LVM volume."""
    stack(machine, "nvme0n1p1", "md0", md_level="raid1")
    stack(machine, "md0", "dm-0", dm_uuid="CRYPT-LUKS2-0-safe", dm_name="safe")
    stack(machine, "dm-0", "dm-1", dm_uuid="LVM-0", dm_name="vg-data", dev="254:1")
    machine.mount("/dev/dm-1", "/srv")
    assert claims(machine, NVME) == [
        ("nvme0n1p1", "md", "is a member of the md array md0"),
        ("nvme0n1p1", "crypt", "is below the encrypted volume safe"),
        ("nvme0n1p1", "lvm", "is a part of the LVM volume vg-data"),
        ("nvme0n1p1", "mounted", "is mounted on /srv, through vg-data"),
    ]


def test_a_loop_in_a_capture_ends(machine: FakeHost) -> None:
    stack(machine, "nvme0n1p1", "dm-0", dm_uuid="mpath-0", dm_name="mpatha")
    stack(machine, "dm-0", "dm-1", dm_name="other")
    stack(machine, "dm-1", "dm-0")
    assert [rule for _, rule, _ in claims(machine, NVME)] == ["stacked", "stacked"]


def test_a_partition_of_an_array_on_a_disk(machine: FakeHost) -> None:
    stack(machine, "nvme0n1", "md0", md_level="raid1")
    machine.add_class("block", "md0p1", f"{VIRTUAL}/md0/md0p1", dev="259:9", partition="1")
    machine.mount("/dev/md0p1", "/srv")
    assert claims(machine, NVME) == [
        ("nvme0n1", "md", "is a member of the md array md0"),
        ("nvme0n1", "mounted", "is mounted on /srv, through md0p1"),
    ]


def test_a_loop_device_on_a_partition(machine: FakeHost) -> None:
    machine.add_class("block", "loop0", f"{VIRTUAL}/loop0")
    machine.put(f"{BLOCK}/loop0/loop/backing_file", "/dev/nvme0n1p2")
    assert claims(machine, NVME) == [("nvme0n1p2", "stacked", "is below loop0")]


@pytest.mark.parametrize(
    ("signature", "rule"),
    [
        ("LVM2_member", "lvm"),
        ("linux_raid_member", "md"),
        ("crypto_LUKS", "crypt"),
        ("zfs_member", "zfs"),
        ("swap", "swap"),
        ("ext4", "partitions"),
    ],
)
def test_the_signature_of_an_idle_disk(machine: FakeHost, signature: str, rule: str) -> None:
    machine.put("/run/udev/data/b259:2", f"I:1\nE:ID_FS_TYPE={signature}\nE:ID_FS_USAGE=x")
    assert [found for _, found, _ in claims(machine, NVME)] == [rule]


@pytest.mark.parametrize("answer", [True, None])
def test_the_kernel_is_asked_about_a_disk_that_only_seems_idle(
    machine: FakeHost, monkeypatch: pytest.MonkeyPatch, answer: bool | None
) -> None:
    """A volume can be active, or a file system mounted, out of sight: its signature does not explain that."""
    machine.put("/run/udev/data/b259:2", "E:ID_FS_TYPE=LVM2_member")
    monkeypatch.setattr(disks, "is_claimed", lambda _: answer)
    machine.tree.root = "/"
    found = disks.disk_claims(machine.tree, ["nvme0n1", "nvme0n1p2"])
    assert [claim.rule for claim in found["nvme0n1p2"]] == ["lvm", "claimed"]
    stack(machine, "nvme0n1p2", "dm-0", dm_uuid="LVM-0", dm_name="vg-data")
    found = disks.disk_claims(machine.tree, ["nvme0n1", "nvme0n1p2"])
    assert [claim.rule for claim in found["nvme0n1p2"]] == ["lvm"]


def test_an_active_member_is_not_claimed_as_idle(machine: FakeHost) -> None:
    machine.put("/run/udev/data/b259:2", "E:ID_FS_TYPE=LVM2_member")
    stack(machine, "nvme0n1p2", "dm-0", dm_uuid="LVM-0", dm_name="vg-data")
    assert claims(machine, NVME) == [("nvme0n1p2", "lvm", "is a part of the LVM volume vg-data")]


def test_processes_with_an_open_node_are_found(machine: FakeHost) -> None:
    machine.add_process(31, "qemu", {3: "/dev/nvme0n1p1", 4: "/dev/nvme0n1p1"})
    machine.add_process(32, "(udev-worker)", {3: "/dev/nvme0n1"})
    machine.add_process(33, "other", {3: "/dev/null"})
    assert ("nvme0n1p1", "opened", "is open in pid 31 (qemu)") in claims(machine, NVME)
    assert [name for name, rule, _ in claims(machine, NVME) if rule == "opened"] == ["nvme0n1p1"]


@pytest.mark.parametrize("why", ["", NAMESPACE_ALONE])
@pytest.mark.parametrize("is_complete", [True, False])
def test_a_node_that_may_be_open_is_a_claim(
    machine: FakeHost, monkeypatch: pytest.MonkeyPatch, why: str, is_complete: bool
) -> None:
    """Each node is open in a process, or not, or that cannot be known; never passed because it is unknown."""
    seen = Openers({"/dev/nvme0n1p1": ("pid 31 (qemu)",)}, is_complete)
    monkeypatch.setattr(device_usage, "find_openers", lambda *_: seen)
    monkeypatch.setattr(device_usage, "why_processes_are_hidden", lambda _: why)
    found = {name: text for name, rule, text in claims(machine, NVME) if rule == "opened"}
    assert found.pop("nvme0n1p1") == "is open in pid 31 (qemu)"
    reason = why or ("" if is_complete else MAY_NOT_INSPECT)
    others = ("nvme0", "nvme0n1", "nvme0n1p2") if reason else ()
    assert found == dict.fromkeys(others, f"may be open in a process out of sight: {reason}")


def test_processes_that_may_not_be_inspected_leave_the_answer_open(
    machine: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.add_process(31, "qemu", {3: "/dev/nvme0n1"})
    nodes = {"/dev/nvme0n1"}
    assert find_openers(machine.tree, nodes) == Openers({"/dev/nvme0n1": ("pid 31 (qemu)",)}, True)
    for error, is_complete in ((PermissionError(13, ""), False), (ProcessLookupError(3, ""), True)):
        monkeypatch.setattr(Tree, "names", Mock(side_effect=error))
        monkeypatch.setattr(Tree, "find_names", lambda *_: ["31"])
        assert find_openers(machine.tree, nodes) == Openers({}, is_complete)


@pytest.mark.parametrize(
    ("answer", "said"),
    [(True, ["is in use by the kernel for"]), (False, []), (None, ["may be in use by the kernel"])],
)
@pytest.mark.parametrize("has_udev", [True, False])
def test_the_kernels_use_of_an_idle_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: bool | None, said: list[str], has_udev: bool
) -> None:
    """What neither the kernel nor udev's database tells is a claim."""
    monkeypatch.setattr(disks, "is_claimed", lambda _: answer)
    monkeypatch.setattr(disks, "_udev_databases", lambda _: (str(tmp_path / ("" if has_udev else "none")),))
    (found,) = disks.disk_claims(Tree(), ["no-such-disk"]).values()
    texts = [claim.text for claim in found]
    if not has_udev:
        assert texts.pop().startswith("may have data on it")
    assert len(texts) == len(said)
    assert all(text.startswith(start) for text, start in zip(texts, said, strict=True))


@pytest.mark.parametrize(
    ("code", "answer"),
    [(None, False), ("EBUSY", True), ("ENOMEDIUM", False), ("EACCES", None), ("EIO", None)],
)
def test_what_an_exclusive_open_tells(
    monkeypatch: pytest.MonkeyPatch, code: str | None, answer: bool | None
) -> None:
    error = None if code is None else OSError(getattr(errno, code), code)
    monkeypatch.setattr(os, "open", Mock(side_effect=error))
    assert openers.is_claimed("/dev/x") is answer


def test_a_group_whose_node_has_gone_is_not_open(tmp_path: Path) -> None:
    """Up to 5.15 a worker of the kernel removes the node after the last device was unbound."""
    node = tmp_path / "8"
    node.mkdir()
    assert openers.is_group_open(str(node)) is None  # an open fails, but not with EBUSY
    node.rmdir()
    assert openers.is_group_open(str(node)) is False


def test_hidden_paths_of_a_disk_are_left_out(machine: FakeHost) -> None:
    folder = f"{machine.devices[NVME].folder}/nvme/nvme0"
    machine.add_class("block", "nvme0c0n1", f"{folder}/nvme0c0n1", hidden="1")
    assert "nvme0c0n1" not in [one.name for one in read_usage(machine.tree, [NVME], ())[NVME]]


def test_a_disk_behind_a_vmd_is_usage_of_the_vmd(host: FakeHost) -> None:
    """Without the driver of an Intel VMD, the disks behind it disappear."""
    host.add_device(VMD, class_code=0x010400)
    folder = f"{host.devices[VMD].folder}/pci10000:e0/10000:e0:00.0/{BEHIND}/nvme/nvme1"
    host.add_class("block", "nvme1n1", f"{folder}/nvme1n1", dev="259:7")
    host.mount("/dev/nvme1n1", "/srv")
    found = read_usage(host.tree, [VMD, BEHIND, "10000:e0:00.0"], ())
    assert {address: [one.name for one in usage] for address, usage in found.items()} == {
        VMD: ["nvme1n1"],
        BEHIND: ["nvme1n1"],
        "10000:e0:00.0": [],
    }


# Network interfaces


@pytest.mark.parametrize(
    ("flags", "addresses", "refused"),
    [
        ("0x1003", ["192.0.2.9/24", "fe80::1/64"], [("network", "is up with 192.0.2.9/24")]),
        ("0x1003", ["2001:db8::9/64"], [("network", "is up with 2001:db8::9/64")]),
        ("0x1003", ["fe80::1/64", "169.254.3.4/16"], []),
        ("0x1003", [], []),
        ("0x1002", ["192.0.2.9/24"], []),
        ("nonsense", ["192.0.2.9/24"], []),
    ],
)
def test_an_interface_is_claimed_while_it_is_up_with_an_address(
    machine: FakeHost, flags: str, addresses: list[str], refused: list[tuple[str, str]]
) -> None:
    machine.put("/sys/class/net/eth0/flags", flags)
    connect(machine, addresses={"eth0": addresses}, routes={})
    assert [(rule, text) for _, rule, text in claims(machine, NIC)] == refused


PACKETS = (  # of a real kernel
    "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n"
    "0000000000000000 3      3    0003   2     1 0      0      20731\n"
    "0000000000000000 3      2    88cc   0     1 0      101    20732\n"
    "0000000000000000 3      3    0003   2     1 0      0      20733\n"
)
SESSIONS = "Id       Address              Device\n00000001 52:54:00:12:34:56         eth0\n"


def test_sockets_on_the_link_are_claims(machine: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """They need no address. A socket that is bound to no interface does not count."""
    links = {"eth0": rtnetlink.Link(2, "eth0", "")}
    view = network.NetworkView("/sys", Network(), links, parse_link_sockets([PACKETS, SESSIONS]))
    machine.add_process(31, "tcpdump", {3: "socket:[20731]"})
    machine.add_process(32, "lldpd", {3: "socket:[20732]"})
    assert list(network.interface_claims(machine.tree, view, "eth0", None)) == []  # it is down
    machine.put("/sys/class/net/eth0/flags", "0x1003")
    assert [claim.text for claim in network.interface_claims(machine.tree, view, "eth0", None)] == [
        "is up with a packet socket of pid 31 (tcpdump)",
        "carries a PPPoE session",
    ]
    machine.end_process(31)
    texts = [claim.text for claim in network.interface_claims(machine.tree, view, "eth0", None)]
    assert texts[0] == "is up with a packet socket of an unknown process"


def test_sockets_of_a_list_are_parsed() -> None:
    found = parse_link_sockets([PACKETS, SESSIONS])
    assert found == LinkSockets({2: ("20731", "20733")}, frozenset({"eth0"}))
    assert parse_link_sockets([SESSIONS]).packets == parse_link_sockets([""]).packets == {}


@given(st.lists(st.text() | st.text(alphabet="skId 0123456789\n").map(lambda text: "sk\n" + text)))
def test_parsing_a_list_of_random_text_ends(texts: list[str]) -> None:
    assert all(index > 0 for index in parse_link_sockets(texts).packets)


def test_the_packet_sockets_of_this_machine() -> None:
    """The kernel lists a socket that this process opens, under the number of its interface."""
    try:
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    except PermissionError:
        pytest.skip("takes root")
    with sniffer:
        sniffer.bind(("lo", 3))
        inode = str(os.fstat(sniffer.fileno()).st_ino)
        assert inode in network.read_view(Tree()).sockets.packets[socket.if_nametoindex("lo")]


def test_a_route_is_a_claim(machine: FakeHost) -> None:
    connect(machine, addresses={}, routes={"eth0": ["default in table 100", "a", "b", "c", "d"]})
    text = "carries the route default in table 100, a, b and 2 more"
    assert claims(machine, NIC) == [("eth0", "route", text)]


@pytest.mark.parametrize(("folder", "kind"), [("bonding", "bond"), ("bridge", "bridge"), ("x", "interface")])
def test_a_member_names_its_master(machine: FakeHost, folder: str, kind: str) -> None:
    master = "/sys/devices/virtual/net/top0"
    machine.add_class("net", "top0", master)
    machine.put(f"{master}/{folder}/id", "")
    for link in ("master", "upper_top0"):
        machine.link(f"/sys/class/net/eth0/{link}", master)
    assert claims(machine, NIC) == [("eth0", "member", f"is a member of the {kind} top0")]


def test_an_interface_below_a_vlan_is_claimed(machine: FakeHost) -> None:
    machine.link("/sys/class/net/eth0/upper_eth0.5", "/sys/devices/virtual/net/eth0.5")
    assert claims(machine, NIC) == [("eth0", "member", "is below eth0.5")]


@pytest.mark.parametrize("text", ["[]", "nonsense", '{"routes": 1}', '{"routes": {"eth0": 1}}', "[" * 9999])
def test_an_unreadable_network_is_not_taken_as_idle(machine: FakeHost, text: str) -> None:
    machine.put(CAPTURED, text)
    assert read_network(machine.tree) is None
    machine.put("/sys/class/net/eth0/flags", "0x1003")
    assert claims(machine, NIC) == [("eth0", "network", "is up; its addresses and routes cannot be read")]


def test_a_network_survives_json(machine: FakeHost) -> None:
    network = Network({"eth0": ("192.0.2.9/24",)}, {"eth0": ("default",)})
    machine.put(CAPTURED, network.to_json())
    assert read_network(machine.tree) == network


def test_the_network_of_the_running_machine() -> None:
    network = read_network(Tree())
    assert network is not None
    assert "127.0.0.1/8" in network.addresses["lo"]


# The SSH connection


def descend(host: FakeHost, *environments: str | None) -> None:
    """Give this process ancestors, each with the environment that it was started with."""
    pids = ["self", *map(str, range(500, 499 + len(environments))), "1"]
    for pid, parent, environment in zip(pids, [*pids[1:], "0"], environments, strict=False):
        host.put(f"/proc/{pid}/stat", f"{pid} (a) b) S {parent} 0")
        if environment is not None:
            host.put(f"/proc/{pid}/environ", environment.encode())


@pytest.mark.parametrize(
    ("environments", "found"),
    [
        (["A=1\0SSH_CONNECTION=192.0.2.1 5 192.0.2.9 22\0B=2"], "192.0.2.9"),
        (["SUDO_USER=a", None, "SSH_CONNECTION=2001:db8::1 5 2001:db8::9 22"], "2001:db8::9"),
        (["SSH_CONNECTION=fe80::1%eth0 5 fe80::9%eth0 22"], "fe80::9"),
        (["SSH_CONNECTION=::ffff:192.0.2.1 5 ::ffff:192.0.2.9 22"], "192.0.2.9"),
        (["SSH_CONNECTION=", "XSSH_CONNECTION=a b c d"], None),
        ([], None),
    ],
)
def test_the_address_of_the_ssh_connection(
    host: FakeHost, environments: list[str | None], found: str | None
) -> None:
    descend(host, *environments)
    assert connected_address(host.tree) == found


def test_a_loop_of_ancestors_ends(host: FakeHost) -> None:
    host.put("/proc/self/stat", "1 (a) S self 0")
    assert connected_address(host.tree) is None


def test_the_ssh_connection_is_found_through_interfaces_above(machine: FakeHost) -> None:
    descend(machine, "SSH_CONNECTION=192.0.2.1 5 192.0.2.9 22")
    for lower, upper in (("eth0", "bond0"), ("bond0", "bond0.5")):
        machine.add_class("net", upper, f"/sys/devices/virtual/net/{upper}")
        machine.link(f"/sys/class/net/{lower}/upper_{upper}", f"/sys/devices/virtual/net/{upper}")
    connect(machine, addresses={"bond0.5": ["192.0.2.9/24"], "eth1": ["192.0.2.9/24"]}, routes={})
    assert claims(machine, NIC)[0] == (
        "eth0",
        "ssh",
        "carries this SSH connection (192.0.2.9), through bond0.5",
    )


# The console


def test_the_boot_vga_and_the_console_on_it(host: FakeHost) -> None:
    host.add_device(VGA, class_code=0x030000, boot_vga="1")
    host.add_device(NIC, boot_vga="0")
    host.add_class("graphics", "fb0", f"{host.devices[VGA].folder}/graphics/fb0")
    host.put("/sys/class/vtconsole/vtcon0/name", "(S) dummy device")
    host.put("/sys/class/vtconsole/vtcon0/bind", "0")
    assert [rule for _, rule, _ in claims(host, VGA)] == ["vga"]
    host.put("/sys/class/vtconsole/vtcon1/name", "(M) frame buffer device")
    host.put("/sys/class/vtconsole/vtcon1/bind", "1")
    assert [(name, rule) for name, rule, _ in claims(host, VGA)] == [(VGA, "vga"), ("fb0", "console")]
    assert claims(host, NIC) == []


def test_a_serial_console_on_a_card(host: FakeHost) -> None:
    host.add_device(NIC)
    host.add_class("tty", "ttyS4", f"{host.devices[NIC].folder}/tty/ttyS4")
    host.add_class("tty", "ttyS0", "/sys/devices/pnp0/00:00/tty/ttyS0")
    host.put("/proc/consoles", "ttyS0                -W- (EC  p a)    4:64\nttyS4 -W- (E p) 4:68\nnetcon0 x")
    assert claims(host, NIC) == [("ttyS4", "console", "has the console ttyS4")]


def test_the_connectors_of_a_graphics_card_are_left_out(host: FakeHost) -> None:
    host.add_device(VGA, class_code=0x030000)
    for name in ("card0", "card0-DP-1", "renderD128"):
        host.add_class("drm", name, f"{host.devices[VGA].folder}/drm/{name}")
    host.add_process(31, "Xorg", {5: "/dev/dri/card0"})
    assert [one.name for one in read_usage(host.tree, [VGA], ())[VGA]] == ["card0", "renderD128"]
    assert claims(host, VGA) == [("card0", "opened", "is open in pid 31 (Xorg)")]


# Nodes of every class


@pytest.mark.parametrize(
    ("kind", "name", "node"),
    [
        ("nvme-generic", "ng0n1", "/dev/ng0n1"),
        ("ptp", "ptp1", "/dev/ptp1"),
        ("sound", "pcmC0D0p", "/dev/snd/pcmC0D0p"),
        ("infiniband_verbs", "uverbs0", "/dev/infiniband/uverbs0"),
        ("tty", "ttyS4", "/dev/ttyS4"),
        ("accel", "accel0", "/dev/accel/accel0"),
        ("watchdog", "watchdog0", "/dev/watchdog0"),
        ("watchdog", "watchdog0", "/dev/watchdog"),
        ("input", "event3", "/dev/input/event3"),
        ("a-class-of-tomorrow", "thing!0", "/dev/thing/0"),
    ],
)
def test_an_open_node_of_any_class_is_a_claim(host: FakeHost, kind: str, name: str, node: str) -> None:
    host.add_device(NIC)
    host.add_class(kind, name, f"{host.devices[NIC].folder}/{kind}/{name}", dev="99:0")
    assert read_usage(host.tree, [NIC], ())[NIC] == ()
    host.add_process(31, "user", {3: node})
    (usage,) = read_usage(host.tree, [NIC], ())[NIC]
    assert (usage.kind, usage.name, usage.claims) == (
        *("node", node),
        (Claim("opened", "is open in pid 31 (user)"),),
    )


def test_the_node_of_a_namespace_below_its_subsystem(machine: FakeHost) -> None:
    """With multipath, a namespace is not below its controller."""
    subsystem = "/sys/devices/virtual/nvme-subsystem/nvme-subsys0"
    machine.link(f"{subsystem}/nvme0", f"{machine.devices[NVME].folder}/nvme/nvme0")
    machine.add_class("nvme-generic", "ng0n1", f"{subsystem}/ng0n1", dev="99:0")
    machine.add_process(31, "user", {3: "/dev/ng0n1"})
    assert ("/dev/ng0n1", "opened", "is open in pid 31 (user)") in claims(machine, NVME)


def test_the_nodes_of_vfio_and_of_other_devices_do_not_count(host: FakeHost) -> None:
    host.add_device(NIC)
    host.add_device(NVME)
    host.add_class("vfio-dev", "vfio0", f"{host.devices[NIC].folder}/vfio-dev/vfio0", dev="99:0")
    host.add_class("ptp", "ptp1", f"{host.devices[NVME].folder}/ptp/ptp1", dev="99:1")
    host.add_process(31, "user", {3: "/dev/vfio0", 4: "/dev/ptp1"})
    assert claims(host, NIC) == []


@pytest.mark.parametrize(
    ("driver", "information", "nodes", "found"),
    [
        ("nvidia", "Device Minor: \t 1\n", ["nvidia0", "nvidia1"], ["/dev/nvidia1"]),
        ("nvidia", "Model: \t x\n", ["nvidia0", "nvidia1", "nvidiactl"], ["/dev/nvidia0", "/dev/nvidia1"]),
        ("amdgpu", "", ["kfd", "nvidia0"], ["/dev/kfd"]),
        ("mlx5_core", "", ["infiniband/rdma_cm"], ["/dev/infiniband/rdma_cm"]),
        ("e1000e", "", ["kfd", "nvidia0"], []),
    ],
)
def test_nodes_that_a_driver_keeps_elsewhere(
    host: FakeHost, driver: str, information: str, nodes: list[str], found: list[str]
) -> None:
    host.add_device(VGA, class_code=0x030000, driver=driver)
    host.put(f"/proc/driver/nvidia/gpus/{VGA}/information", information)
    for number, node in enumerate(nodes):
        host.put(f"/dev/{node}", "")
        host.add_process(31 + number, "user", {3: f"/dev/{node}"})
    assert [name for name, rule, _ in claims(host, VGA) if rule == "opened"] == found


def test_a_node_is_found_by_its_number() -> None:
    """A container can have a node in another folder."""
    with open("/dev/zero", "rb") as node, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=node) as it:
        seen = find_openers(Tree(), {"/elsewhere/zero"}, {"c 1:5": "/elsewhere/zero"})
        assert f"pid {it.pid} (cat)" in seen.processes["/elsewhere/zero"]
        assert find_openers(Tree(), {"/elsewhere/zero"}, {"b 1:5": "/elsewhere/zero"}).processes == {}
        it.communicate()


# Text


def test_only_the_first_names_are_shown() -> None:
    assert [some(list("abcd"[:count])) for count in range(5)] == [
        *("", "a", "a, b", "a, b, c", "a, b, c and 1 more"),
    ]


def test_names_cannot_break_a_line(machine: FakeHost) -> None:
    assert printable("a\n\x1b[2Jb é") == "a??[2Jb é"
    machine.put("/proc/self/mountinfo", "30 1 259:2 / /a\\012b\x1b rw - ext4 x rw")
    (*_, usage, _) = read_usage(machine.tree, [NVME], ())[NVME]
    assert usage.detail == "is mounted on /a?b?"
    assert usage.claims == (Claim("mounted", "is mounted on /a\nb\x1b"),)


# rtnetlink


def attribute(kind: int, content: bytes) -> bytes:
    return (struct.pack("=HH", 4 + len(content), kind) + content).ljust((len(content) + 7) & ~3, b"\0")


def route(*attributes: bytes, kind: int = 1, prefix: int = 24, table: int = 254, flags: int = 0) -> bytes:
    return struct.pack("=BBBBBBBBI", socket.AF_INET, prefix, 0, 0, table, 3, 0, kind, flags) + b"".join(
        attributes
    )


def test_a_multipath_route_of_a_high_table() -> None:
    hops = b"".join(
        struct.pack("=HBBi", 8 + len(more), 0, 0, index) + more for index, more in ((2, b""), (5, b"\0" * 8))
    )
    content = route(
        attribute(1, bytes([10, 0, 0, 0])),
        attribute(9, hops),
        attribute(15, struct.pack("=I", 70000)),
        table=252,
    )
    assert rtnetlink.parse_route(content) == rtnetlink.Route((2, 5), "10.0.0.0/24", 70000, 3)


def test_only_unicast_routes_are_read() -> None:
    assert rtnetlink.parse_route(route(kind=2)) is None
    assert rtnetlink.parse_route(route(flags=0x200)) is None
    default = rtnetlink.parse_route(route(attribute(4, struct.pack("=I", 3)), prefix=0))
    assert default == rtnetlink.Route((3,), "default", 254, 3)


@given(st.binary(min_size=12, max_size=200))
def test_a_route_of_random_bytes_raises_nothing(content: bytes) -> None:
    found = rtnetlink.parse_route(content)
    assert found is None or all(isinstance(index, int) for index in found.indexes)


@given(st.binary(max_size=300))
def test_parsing_messages_of_random_bytes_ends(chunk: bytes) -> None:
    assert sum(16 + len(body) for *_, body in rtnetlink.messages(chunk)) <= len(chunk)


def test_routes_of_the_kernel_name_existing_interfaces() -> None:
    numbers = dict(socket.if_nameindex())
    with rtnetlink.open_rtnetlink() as link:
        assert {one.index: one.name for one in rtnetlink.read_links(link)} == numbers
        assert all(index in numbers for found in rtnetlink.read_routes(link) for index in found.indexes)
