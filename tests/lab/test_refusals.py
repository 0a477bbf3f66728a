"""The devices that vfiotool refuses to take, on a kernel with file systems, volumes, bonds and routes.

Each is first made with the system's own programs. Then vfiotool must refuse, exit 3, name the option,
and change nothing; and with the option it must go on.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.device_holder import held
from tests.support.group_device import GroupDevice
from tests.support.guest import (
    BRIDGE,
    BUS,
    E1000_PAIR,
    E1000E,
    NVME,
    OTHER_NVME,
    PROGRAM,
    RELEASE,
    SUBSYSTEM_NVME,
    await_,
    command,
    done,
    driver,
    group,
    link,
    needs_iommu,
    output,
    path,
    read,
    settle,
    vfiotool,
    write,
)

pytestmark = [pytest.mark.needs_guest, needs_iommu]

HOST_DRIVER_IN_A_LIVE_GROUP_IS_A_BUG = RELEASE < (5, 19)
# Programs take long in a guest, and how they use disks and interfaces is the same on every kernel.
ONE_KERNEL = pytest.mark.skipif(RELEASE != (6, 12), reason="runs on 6.12 alone")
HERE, THERE = "192.0.2.9", "192.0.2.1"

Fields = dict[str, Any]


def refused(*args: str) -> list[Fields]:
    """Run a verb that must be refused, and change nothing; return what it says of each rule."""
    before = bindings()
    result = vfiotool(*args, "--json")
    assert result.status == 3, result
    assert bindings() == before
    found: list[Fields] = result.document["refused"]
    assert (result.document["changed"], result.document["steps"]) == ([], [])
    hint = result.stderr.splitlines()[-1]
    flags = [one["flag"] for one in found]
    if None in flags:
        assert hint.startswith("hint: no option lifts this")
    else:
        assert hint == f"hint: to do it anyway, add {' '.join(dict.fromkeys(flags))}"
    assert [one["flag"] for one in found if one["flag"]] == [
        f"--allow-{one['rule']}" for one in found if one["flag"]
    ]
    return found


def bindings() -> dict[str, tuple[str | None, str | None]]:
    """Return the driver and the override of every device, from sysfs."""
    devices = os.listdir(f"{BUS}/devices")
    return {address: (driver(address), read(path(address, "driver_override"))) for address in devices}


def rules(found: Iterable[Fields]) -> set[str]:
    return {one["rule"] for one in found}


def the_reason(found: list[Fields], rule: str) -> str:
    """Return the reason of the only refusal there is."""
    assert [one["rule"] for one in found] == [rule], found
    return str(found[0]["reason"])


def would_go(address: str, *flags: str) -> None:
    """Assert that bind would go on with these options."""
    plan = done("bind", address, "--dry-run", *flags)
    assert [change["to"] for change in plan["changed"]] == ["vfio-pci"]


def goes(address: str, *flags: str) -> None:
    """Assert that a device is taken with these options, and comes back."""
    former = driver(address)
    done("bind", address, *flags)
    assert driver(address) == "vfio-pci"
    done("restore", address)
    assert driver(address) == former
    settle()


def disk_of(address: str) -> str:
    """Return the name of an NVMe's only namespace, as sysfs has it."""
    (controller,) = os.listdir(path(address, "nvme"))
    subsystems = glob.glob(f"/sys/class/nvme-subsystem/*/{controller}")
    folders = [path(address, f"nvme/{controller}"), *map(os.path.dirname, subsystems)]
    names = {name for folder in folders for name in os.listdir(folder)}
    (disk,) = (
        name for name in names if os.path.exists(f"/sys/block/{name}") and os.path.exists(f"/dev/{name}")
    )
    return disk


def interface_of(address: str) -> str:
    (name,) = os.listdir(path(address, "net"))
    return name


@pytest.fixture
def disk() -> Iterator[str]:
    """The name of a disk that is blank, and is so again after the test."""
    name = disk_of(NVME)
    yield name
    blank(name)


def blank(name: str) -> None:
    output("wipefs", "--all", "--force", f"/dev/{name}")
    settle()


@pytest.fixture
def interface() -> Iterator[str]:
    """The name of a network interface that is down before and after."""
    name = interface_of(E1000E)
    yield name
    for argv in (("link", "set", name, "nomaster", "down"), ("addr", "flush", "dev", name)):
        output("ip", *argv)


@contextlib.contextmanager
def undone(*argv: str) -> Iterator[None]:
    """Run a program after the block."""
    try:
        yield
    finally:
        output(*argv)


# Disks


@ONE_KERNEL
@pytest.mark.parametrize("address", [NVME, SUBSYSTEM_NVME], ids=["plain", "multipath head"])
def test_an_idle_mount(address: str, tmp_path: Path) -> None:
    """Nobody uses the file system; it is mounted, and that is enough."""
    name = disk_of(address)
    output("mkfs.ext4", "-q", f"/dev/{name}")
    output("mount", f"/dev/{name}", str(tmp_path))
    with contextlib.ExitStack() as stack:
        stack.enter_context(undone("wipefs", "--all", "--force", f"/dev/{name}"))
        unmount = stack.enter_context(contextlib.ExitStack())
        unmount.enter_context(undone("umount", str(tmp_path)))
        assert the_reason(refused("bind", address), "mounted") == f"its disk {name} is mounted on {tmp_path}"
        assert the_reason(refused("unbind", address), "mounted")
        done("bind", address, "--allow-mounted")
        assert driver(address) == "vfio-pci"
        unmount.close()
        done("restore", address)
        await_("the disk is back", lambda: os.path.exists(f"/dev/{name}"))
        settle()


@pytest.mark.full
@ONE_KERNEL
def test_a_boot_disk_that_shares_its_group(tmp_path: Path) -> None:
    name = disk_of(OTHER_NVME)
    output("mkfs.ext4", "-q", f"/dev/{name}")
    with undone("wipefs", "--all", "--force", f"/dev/{name}"):
        output("mount", f"/dev/{name}", "/boot")
        with undone("umount", "/boot"):
            found = refused("bind", "--group", f"group:{group(OTHER_NVME)}")
            assert [one["address"] for one in found] == [OTHER_NVME]
            assert the_reason(found, "root") == f"its disk {name} holds /boot of this machine"
            would_go(OTHER_NVME, "--allow-root")


@pytest.mark.full
@ONE_KERNEL
def test_a_mount_that_only_others_see(disk: str, tmp_path: Path) -> None:
    output("mkfs.ext4", "-q", f"/dev/{disk}")
    script = f"mount /dev/{disk} {tmp_path} && echo mounted && cat"
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mounted\n"
        assert "in use by the kernel" in the_reason(refused("bind", NVME), "claimed")
        would_go(NVME, "--allow-claimed")
        other.communicate()


@pytest.mark.full
@ONE_KERNEL
def test_swap(disk: str) -> None:
    output("mkswap", f"/dev/{disk}")
    settle()
    assert "not active" in the_reason(refused("bind", NVME), "swap")
    output("swapon", f"/dev/{disk}")
    with undone("swapoff", f"/dev/{disk}"):
        assert f"/dev/{disk} " in (read("/proc/swaps") or "")
        assert the_reason(refused("bind", NVME), "swap") == f"its disk {disk} is swapped to"
        would_go(NVME, "--allow-swap")


@pytest.mark.full
@ONE_KERNEL
def test_partitions(disk: str, tmp_path: Path) -> None:
    subprocess.run(["sfdisk", "--quiet", f"/dev/{disk}"], input="size=8M\n;\n", text=True, check=True)
    settle()
    parts = [f"{disk}p1", f"{disk}p2"]
    assert {name for name in os.listdir(f"/sys/block/{disk}") if name.startswith(disk)} == set(parts)
    assert the_reason(refused("bind", NVME), "partitions").endswith(f"has the partitions {', '.join(parts)}")
    output("mkfs.ext4", "-q", f"/dev/{parts[1]}")
    output("mount", f"/dev/{parts[1]}", str(tmp_path))
    with undone("umount", str(tmp_path)):
        assert the_reason(refused("bind", NVME), "mounted") == f"its disk {parts[1]} is mounted on {tmp_path}"


@pytest.mark.full
@ONE_KERNEL
def test_lvm(disk: str, tmp_path: Path) -> None:
    output("pvcreate", "-ff", "-y", f"/dev/{disk}")
    settle()
    assert "not active" in the_reason(refused("bind", NVME), "lvm")
    output("vgcreate", "lab", f"/dev/{disk}")
    with undone("vgremove", "-ff", "-y", "lab"):
        output("lvcreate", "-y", "-n", "data", "-l", "100%FREE", "lab")
        assert os.listdir(f"/sys/block/{disk}/holders")
        assert the_reason(refused("bind", NVME), "lvm").endswith("is a part of the LVM volume lab-data")
        output("mkfs.ext4", "-q", "/dev/mapper/lab-data")
        output("mount", "/dev/mapper/lab-data", str(tmp_path))
        with undone("umount", str(tmp_path)):
            found = refused("bind", NVME)
            assert [one["reason"] for one in found] == [
                f"its disk {disk} is a part of the LVM volume lab-data",
                f"its disk {disk} is mounted on {tmp_path}, through lab-data",
            ]
            would_go(NVME, "--allow-lvm", "--allow-mounted")


@pytest.mark.full
@ONE_KERNEL
def test_an_md_array(disk: str) -> None:
    create = ["--create", "/dev/md7", "--run", "--level=1", "--raid-devices=2", "--metadata=1.2"]
    output("mdadm", *create, f"/dev/{disk}", "missing")
    try:
        settle()
        assert "md7" in os.listdir(f"/sys/block/{disk}/holders")
        assert the_reason(refused("bind", NVME), "md").endswith("is a member of the md array md7")
        would_go(NVME, "--allow-md")
    finally:
        output("mdadm", "--stop", "/dev/md7")
        settle()
    assert "not active" in the_reason(refused("bind", NVME), "md")


@pytest.mark.full
@ONE_KERNEL
def test_dm_crypt(disk: str) -> None:
    fast = ["--type", "luks1", "--pbkdf-force-iterations", "1000", "--key-file", "/etc/hostname"]
    output("cryptsetup", "luksFormat", "--batch-mode", *fast, f"/dev/{disk}")
    settle()
    assert "not active" in the_reason(refused("bind", NVME), "crypt")
    output("cryptsetup", "open", "--key-file", "/etc/hostname", f"/dev/{disk}", "secret")
    with undone("cryptsetup", "close", "secret"):
        assert os.listdir(f"/sys/block/{disk}/holders")
        assert the_reason(refused("bind", NVME), "crypt").endswith("is below the encrypted volume secret")
        would_go(NVME, "--allow-crypt")


@pytest.mark.full
@ONE_KERNEL
def test_an_idle_member_of_a_zfs_pool(disk: str) -> None:
    """There is no ZFS here, and libblkid knows none below 64 MiB: udev's database gets its line by hand."""
    database = Path(f"/run/udev/data/b{read(f'/sys/block/{disk}/dev')}")
    former = database.read_text()
    database.write_text(f"{former}E:ID_FS_TYPE=zfs_member\n")
    try:
        assert "a ZFS pool" in the_reason(refused("bind", NVME), "zfs")
        would_go(NVME, "--allow-zfs")
    finally:
        database.write_text(former)


@pytest.mark.full
@ONE_KERNEL
def test_a_loop_device_on_a_disk(disk: str) -> None:
    output("modprobe", "loop")
    loop = output("losetup", "--find", "--show", f"/dev/{disk}").strip()
    with undone("losetup", "--detach", loop):
        reason = the_reason(refused("bind", NVME, "--allow-opened"), "stacked")
        assert reason.endswith(f"is below {os.path.basename(loop)}")
    would_go(NVME)


@ONE_KERNEL
def test_a_disk_that_a_process_has_open(disk: str) -> None:
    with (
        open(f"/dev/{disk}", "rb") as opened,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=opened) as it,
    ):
        reason = the_reason(refused("bind", NVME), "opened")
        assert reason == f"its disk {disk} is open in pid {it.pid} (cat)"
        would_go(NVME, "--allow-opened")
        it.communicate()


# Network interfaces


@ONE_KERNEL
def test_an_interface_that_is_up_and_has_no_address_goes(interface: str) -> None:
    output("ip", "link", "set", interface, "up")
    await_("its link-local address is there", lambda: "fe80:" in output("ip", "addr", "show", interface))
    would_go(E1000E)


@ONE_KERNEL
def test_an_interface_with_an_address(interface: str) -> None:
    output("ip", "addr", "add", f"{HERE}/24", "dev", interface)
    output("ip", "link", "set", interface, "up")
    reason = the_reason(refused("bind", E1000E), "network")
    assert reason == f"its network interface {interface} is up with {HERE}/24"
    output("ip", "addr", "replace", "2001:db8::9/64", "dev", interface)
    output("ip", "addr", "del", f"{HERE}/24", "dev", interface)
    assert the_reason(refused("bind", E1000E), "network").endswith("is up with 2001:db8::9/64")
    goes(E1000E, "--allow-network")


@pytest.mark.full
@ONE_KERNEL
@pytest.mark.parametrize(
    ("routes", "said"),
    [
        (["-6 route add 2001:db8:1::/48"], "2001:db8:1::/48"),
        (["-4 route add default table 100"], "default in table 100"),
        (
            ["-4 route add 198.51.100.0/24", "-6 route add default table 70000"],
            "198.51.100.0/24, default in table 70000",
        ),
    ],
    ids=["IPv6 only", "another table", "both"],
)
def test_an_interface_with_routes_and_no_address(interface: str, routes: list[str], said: str) -> None:
    output("ip", "link", "set", interface, "up")
    for route in routes:
        output("ip", *route.split(), "dev", interface)
    reason = the_reason(refused("bind", E1000E), "route")
    assert reason == f"its network interface {interface} carries the route {said}"
    would_go(E1000E, "--allow-route")


@pytest.mark.full
@ONE_KERNEL
def test_a_route_with_several_hops(interface: str) -> None:
    other = interface_of(E1000_PAIR[0])
    for name in (interface, other):
        output("ip", "link", "set", name, "up")
    with undone("ip", "link", "set", other, "down"):
        output(
            *("ip", "route", "add", "198.51.100.0/24"),
            *("nexthop", "dev", interface, "nexthop", "dev", other),
        )
        assert "198.51.100.0/24" in the_reason(refused("bind", E1000E), "route")
        both = refused("bind", *E1000_PAIR)
        assert [(one["address"], one["rule"]) for one in both] == [(E1000_PAIR[0], "route")]


@pytest.mark.full
@ONE_KERNEL
@pytest.mark.parametrize("kind", ["bond", "bridge"])
def test_a_member(interface: str, kind: str) -> None:
    output("ip", "link", "add", "lab0", "type", kind)
    with undone("ip", "link", "del", "lab0"):
        output("ip", "link", "set", interface, "master", "lab0")
        assert link(f"/sys/class/net/{interface}/master") == "lab0"
        reason = the_reason(refused("bind", E1000E), "member")
        assert reason == f"its network interface {interface} is a member of the {kind} lab0"
        would_go(E1000E, "--allow-member")


@pytest.mark.full
@ONE_KERNEL
def test_a_vlan(interface: str) -> None:
    output("ip", "link", "add", "link", interface, "name", "lab0", "type", "vlan", "id", "5")
    with undone("ip", "link", "del", "lab0"):
        assert the_reason(refused("bind", E1000E), "member").endswith(f"{interface} is below lab0")


@pytest.mark.full
@ONE_KERNEL
def test_the_interface_of_this_ssh_connection(interface: str) -> None:
    """The address is the bridge's, and sudo dropped the variable: the parent still has it."""
    output("ip", "link", "add", "lab0", "type", "bridge")
    with undone("ip", "link", "del", "lab0"):
        output("ip", "link", "set", interface, "master", "lab0", "up")
        output("ip", "addr", "add", f"{HERE}/24", "dev", "lab0")
        output("ip", "link", "set", "lab0", "up")
        session = ["env", f"SSH_CONNECTION={THERE} 50000 {HERE} 22", "sh", "-c", '"$@"; exit $?', "sh"]
        result = command(*session, "env", "-u", "SSH_CONNECTION", PROGRAM, "bind", E1000E, "--json")
    assert result.status == 3, result
    found = json.loads(result.stdout)["refused"]
    assert [(one["rule"], one["flag"]) for one in found] == [
        ("ssh", "--allow-ssh"),
        ("member", "--allow-member"),
    ]
    assert f"carries this SSH connection ({HERE}), through lab0" in found[0]["reason"]


@ONE_KERNEL
def test_a_sibling_that_is_in_use(tmp_path: Path) -> None:
    """Userspace gets the whole group, so what uses the sibling would be lost to it."""
    one, other = E1000_PAIR
    name = interface_of(other)
    output("ip", "addr", "add", f"{HERE}/24", "dev", name)
    output("ip", "link", "set", name, "up")
    try:
        found = refused("bind", one)
        assert [refusal["address"] for refusal in found] == [other]
        reason = the_reason(found, "network")
        assert reason.startswith(f"its network interface {name} is up with {HERE}/24; it shares group ")
        assert one in reason
        would_go(one, "--allow-network")
        done("unbind", one, "--dry-run")
    finally:
        output("ip", "addr", "flush", "dev", name)
        output("ip", "link", "set", name, "down")


# The kernel, without vfiotool


def test_a_bridge() -> None:
    (one,) = refused("bind", BRIDGE)
    assert (one["rule"], one["flag"]) == ("bridge", None)


def test_a_pf_with_vfs() -> None:
    numvfs, autoprobe = path(SUBSYSTEM_NVME, "sriov_numvfs"), path(SUBSYSTEM_NVME, "sriov_drivers_autoprobe")
    write(autoprobe, "0")
    try:
        write(numvfs, "2")
        await_("the VFs are there", lambda: link(path(SUBSYSTEM_NVME, "virtfn1")) is not None)
        (one,) = refused("bind", SUBSYSTEM_NVME)
        assert (one["rule"], one["flag"]) == ("vfs", None)
        assert "2 VFs" in one["reason"]
        assert vfiotool("bind", SUBSYSTEM_NVME, "--allow-vfs").status == 3
        (one,) = refused("unbind", SUBSYSTEM_NVME)
        assert (one["rule"], one["flag"]) == ("vfs", "--allow-vfs")
        done("unbind", SUBSYSTEM_NVME, "--dry-run", "--allow-vfs")
    finally:
        write(numvfs, "0")
        write(autoprobe, "1")
    await_("the VFs are gone", lambda: not os.path.exists(path("0000:01:00.1")))
    would_go(SUBSYSTEM_NVME)


def test_a_device_that_a_process_holds() -> None:
    done("bind", NVME)
    with held(NVME) as pid:
        found = refused("restore", NVME)
        if HOST_DRIVER_IN_A_LIVE_GROUP_IS_A_BUG:
            assert [(one["rule"], one["flag"]) for one in found] == [("live-group", None)]
        else:
            assert f"pid {pid} (python" in the_reason(found, "held")
            assert vfiotool("restore", NVME, "--dry-run", "--allow-held").status == 0
        assert f"pid {pid} (python" in the_reason(refused("unbind", NVME), "held")
    done("restore", NVME)
    settle()


def test_a_device_that_is_open_while_its_group_no_longer_is() -> None:
    """Then /proc shows that someone has a device open, up to 6.17 not which."""
    done("bind", NVME)
    number = group(NVME)
    assert number is not None
    with GroupDevice(NVME, number) as opened:
        opened.group.close()
        assert done("groups", str(number))["groups"][0]["holders"] == []
        (one,) = refused("restore", NVME)
    assert one["rule"] == ("live-group" if HOST_DRIVER_IN_A_LIVE_GROUP_IS_A_BUG else "held")
    assert "an unknown process" in one["reason"]
    done("restore", NVME)
    settle()


@pytest.mark.skipif(not HOST_DRIVER_IN_A_LIVE_GROUP_IS_A_BUG, reason="since 5.19 the kernel gives EBUSY")
def test_a_module_that_could_probe_a_device_in_a_live_group() -> None:
    """A module that is loaded probes all devices that have no driver, and one is in a group in use."""
    one, other = E1000_PAIR
    done("bind", one)
    done("unbind", other)
    assert "uio_pci_generic" not in os.listdir("/sys/bus/pci/drivers")
    try:
        with held(one) as pid:
            (found,) = refused("bind", NVME, "--driver", "uio_pci_generic")
            assert (found["rule"], found["flag"]) == ("live-group", None)
            assert other in found["reason"]
            assert f"pid {pid} " in found["reason"]
    finally:
        done("restore", one, other)


@pytest.fixture
def denylist() -> Iterator[Callable[[str], None]]:
    """Write the owner's list, in the guest's own copy of /etc; it is gone after the test."""
    os.makedirs("/etc/vfiotool", exist_ok=True)
    file = Path("/etc/vfiotool/denylist")

    def put(text: str) -> None:
        file.write_text(text)

    yield put
    file.unlink()


def test_the_owners_denylist(denylist: Callable[[str], None]) -> None:
    denylist(f"# not here\nffff:ffff\n\n{NVME}  # ours\n8086:100e\n")
    assert NVME in the_reason(refused("bind", NVME), "denylist")
    assert rules(refused("bind", *E1000_PAIR)) == {"denylist"}
    would_go(NVME, "--allow-denylist")
    would_go(E1000E)
    denylist("0000:zz\n")
    broken = vfiotool("bind", E1000E)
    assert (broken.status, broken.stderr.splitlines()[1].startswith("hint: correct the file")) == (1, True)
