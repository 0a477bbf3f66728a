"""What uses a device, seen from other namespaces: a refusal holds wherever vfiotool runs.

A rule whose facts are out of sight refuses; it never passes.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.device_holder import held
from tests.support.guest import (
    E1000E,
    EDU,
    NVME,
    PROGRAM,
    await_,
    command,
    done,
    needs_iommu,
    output,
    path,
    read,
    settle,
    vfiotool,
    vfiotool_as_nobody,
)
from vfiotool.host.tree import Tree
from vfiotool.host.usage.namespaces import hidden_folders

pytestmark = [pytest.mark.needs_guest, needs_iommu]

HERE = "192.0.2.9"
OWN_PROC = ("unshare", "--pid", "--fork", "--mount-proc")
OWN_NETWORK = ("unshare", "--net")
# sysfs shows the interfaces of the namespace in which it was mounted.
OWN_SYSFS = (*OWN_NETWORK, "--mount", "sh", "-c", 'mount -t sysfs none /sys && exec "$@"', "sh")
WAYS = {
    "here": (),
    "own network": OWN_NETWORK,
    "own network and sysfs": OWN_SYSFS,
    "own processes": OWN_PROC,
    "own processes and network": (*OWN_PROC, *OWN_NETWORK),
    "own processes, network and sysfs": (*OWN_PROC, *OWN_SYSFS),
}
SEES_ALL = ("here", "own network", "own network and sysfs")
# From the last of them the least is in sight.
ways = pytest.mark.parametrize(
    "way", [*(pytest.param(way, marks=pytest.mark.full) for way in list(WAYS)[:-1]), list(WAYS)[-1]]
)


@pytest.fixture
def interface() -> Iterator[str]:
    """The name of a network interface that is down, and in the machine's namespace, before and after."""
    (name,) = os.listdir(path(E1000E, "net"))
    yield name
    await_("the interface is back", lambda: os.path.exists(f"/sys/class/net/{name}"))
    output("ip", "link", "set", name, "down")
    output("ip", "addr", "flush", "dev", name)


@contextlib.contextmanager
def named_namespace(name: str) -> Iterator[str]:
    output("ip", "netns", "add", name)
    try:
        yield name
    finally:
        output("ip", "netns", "del", name)


@contextlib.contextmanager
def namespace_of_a_process() -> Iterator[int]:
    argv = ["unshare", "--net", "sh", "-c", "echo ready; exec cat"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid
        process.communicate()


@contextlib.contextmanager
def removed(node: str) -> Iterator[None]:
    try:
        yield
    finally:
        os.unlink(node)


def refused(way: str, *args: str, address: str = E1000E, verb: str = "bind") -> dict[str, str]:
    """Run a dry run of a verb in the namespaces of a way; return the reason of each rule that refuses."""
    lifted = ["--allow-opened"] if address == E1000E else []  # its clock has a node
    result = command(*WAYS[way], PROGRAM, verb, address, "--dry-run", "--json", *args, *lifted)
    document = json.loads(result.stdout)
    found: list[dict[str, Any]] = document["refused"]
    assert result.status == (3 if found else 0), result
    assert all(one["flag"] == f"--allow-{one['rule']}" for one in found)
    return {one["rule"]: one["reason"] for one in found}


def shown() -> dict[str, Any]:
    result = vfiotool("show", E1000E, "--json")
    (usage,) = result.document["usage"]
    found: dict[str, Any] = usage
    return found


@pytest.mark.full
@ways
def test_an_idle_interface_of_the_machine_goes_if_it_can_be_seen(interface: str, way: str) -> None:
    if way in SEES_ALL or way == "own processes":
        assert refused(way) == {}
    else:
        assert set(refused(way)) == {"namespace"}
        assert refused(way, "--allow-namespace") == {}


@ways
def test_an_address_refuses_from_each_namespace(interface: str, way: str) -> None:
    output("ip", "addr", "add", f"{HERE}/24", "dev", interface)
    output("ip", "link", "set", interface, "up")
    found = refused(way)
    if way in SEES_ALL or way == "own processes":
        assert found == {"network": f"its network interface {interface} is up with {HERE}/24"}
    else:
        assert "namespace" in found


@pytest.mark.full
@ways
def test_an_interface_in_a_namespace_with_a_name(interface: str, way: str) -> None:
    with named_namespace("pod"):
        output("ip", "link", "set", interface, "netns", "pod")
        assert not os.listdir(path(E1000E, "net"))
        (folder,) = hidden_folders(Tree(), E1000E)
        assert folder.count == 1
        found = refused(way)
        assert found == {"namespace": f"its network interface {interface} is in the network namespace pod"}
        assert refused(way, "--allow-namespace") == {}
    await_("it is back", lambda: os.path.exists(f"/sys/class/net/{interface}"))
    assert refused("here") == {}


def test_an_interface_in_the_namespace_of_a_process(interface: str) -> None:
    with namespace_of_a_process() as pid:
        output("ip", "link", "set", interface, "netns", str(pid))
        inside = ("nsenter", f"--net=/proc/{pid}/ns/net", "ip")
        output(*inside, "addr", "add", f"{HERE}/24", "dev", interface)
        output(*inside, "link", "set", interface, "up")
        assert refused("here") == {
            "namespace": f"its network interface {interface} is in the network namespace of pid {pid} (cat)",
            "network": f"its network interface {interface} is up with {HERE}/24",
        }
        usage = shown()
        assert (usage["kind"], usage["name"]) == ("net", interface)
        table = vfiotool("show", E1000E).stdout
        assert f"'vfiotool bind {E1000E}' refuses it" in " ".join(table.split())
        assert refused("here", "--allow-namespace", "--allow-network") == {}
        nobody = vfiotool_as_nobody("show", E1000E, "--json").document["usage"]
        (hidden,) = (one for one in nobody if one["kind"] == "hidden")
        assert (hidden["name"], "only root may" in hidden["detail"]) == ("net", True)


@pytest.mark.full
def test_vfiotool_in_the_namespace_of_the_interface(interface: str) -> None:
    with named_namespace("pod"):
        output("ip", "link", "set", interface, "netns", "pod")
        result = command("ip", "netns", "exec", "pod", PROGRAM, "bind", E1000E, "--dry-run", "--json")
        assert result.status == 3
        (found,) = json.loads(result.stdout)["refused"]
        assert found["rule"] == "namespace"
        assert "of this process, which is not that of pid 1" in found["reason"]
    await_("it is back", lambda: os.path.exists(f"/sys/class/net/{interface}"))


@pytest.mark.full
def test_a_namespace_without_a_process_and_a_name(interface: str) -> None:
    """A descriptor alone keeps the namespace."""
    with namespace_of_a_process() as pid:
        kept = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        output("ip", "link", "set", interface, "netns", str(pid))
    try:
        found = refused("here")
        assert set(found) == {"namespace"}
        assert found["namespace"].endswith("cannot be inspected: no process in sight is in it")
    finally:
        os.close(kept)


SNIFFER = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sniffer:
    sniffer.bind((sys.argv[1], 0))
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def sniffer(interface: str, *inside: str) -> Iterator[int]:
    argv = [*inside, sys.executable, "-c", SNIFFER, interface]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid
        process.communicate()


@pytest.mark.full
@pytest.mark.parametrize("way", SEES_ALL)
def test_a_sniffer_refuses_from_each_namespace(interface: str, way: str) -> None:
    output("ip", "link", "set", interface, "up")
    assert refused(way) == {}
    with sniffer(interface) as pid:
        (reason,) = refused(way).values()
        assert f"{interface} is up with a packet socket of pid {pid} (" in reason
        assert refused(way, "--allow-network") == {}
        with named_namespace("pod"), sniffer("lo", "ip", "netns", "exec", "pod"):
            pass
    assert refused(way) == {}


def test_a_sniffer_in_another_namespace(interface: str) -> None:
    with namespace_of_a_process() as pid:
        output("ip", "link", "set", interface, "netns", str(pid))
        inside = ("nsenter", f"--net=/proc/{pid}/ns/net")
        output(*inside, "ip", "link", "set", interface, "up")
        with sniffer(interface, *inside):
            assert "packet socket of pid" in refused("here")["network"]


# Processes, mounts and nodes


@ways
def test_an_open_node_refuses_from_each_namespace(way: str) -> None:
    """A process outside of vfiotool's PID namespace has the disk open."""
    disk = disk_of_the_nvme()
    hidden = way.startswith("own processes")
    idle = refused(way, address=NVME)
    assert set(idle) == ({"opened"} if hidden else set())
    assert refused(way, "--allow-opened", address=NVME) == {}
    with (
        open(f"/dev/{disk}", "rb") as opened,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=opened) as process,
    ):
        found = refused(way, address=NVME)
        assert set(found) == {"opened"}
        assert f"pid {process.pid} (cat)" in found["opened"] or hidden
        process.communicate()


@pytest.mark.full
@ways
@pytest.mark.parametrize("kind", ["ptp", "nvme-generic"])
def test_an_open_node_of_another_class_refuses(way: str, kind: str) -> None:
    """The node has another name, as a container may give it: its number counts."""
    address = {"ptp": E1000E, "nvme-generic": NVME}[kind]
    found = (one for one in glob.glob(f"/sys/class/{kind}/*") if address in os.path.realpath(one))
    names = [os.path.basename(one) for one in found]
    if not names:
        pytest.skip(f"this kernel makes no node of the class {kind}")
    major, _, minor = (read(f"/sys/class/{kind}/{names[0]}/dev") or "").partition(":")
    node = f"/dev/{names[0]}-of-a-test"
    os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(int(major), int(minor)))
    assert vfiotool("bind", address, "--dry-run").status == 0
    with (
        removed(node),
        open(node, "rb") as opened,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=opened) as process,
    ):
        result = command(*WAYS[way], PROGRAM, "bind", address, "--dry-run", "--json")
        opened_by = [one for one in json.loads(result.stdout)["refused"] if one["rule"] == "opened"]
        reasons = [one["reason"] for one in opened_by if names[0] in one["reason"]]
        assert result.status == 3
        assert len(reasons) == 1
        assert f"pid {process.pid} (cat)" in reasons[0] or way.startswith("own processes")
        process.communicate()


@ways
def test_a_mount_refuses_from_each_namespace(way: str, tmp_path: Path) -> None:
    disk = disk_of_the_nvme()
    output("mkfs.ext4", "-q", f"/dev/{disk}")
    output("mount", f"/dev/{disk}", str(tmp_path))
    try:
        assert {"mounted", "claimed"} & refused(way, address=NVME).keys()
        without_dev = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev; exec "$@"', "sh")
        hidden = command(*without_dev, *WAYS[way], PROGRAM, "bind", NVME, "--dry-run", "--json")
        assert hidden.status == 3, hidden
    finally:
        output("umount", str(tmp_path))
        output("wipefs", "--all", "--force", f"/dev/{disk}")
        settle()


@pytest.mark.full
def test_a_mount_table_and_a_node_out_of_sight(tmp_path: Path) -> None:
    """A container that sees neither the machine's mounts nor its nodes, nor udev's database."""
    (tmp_path / "empty").mkdir()
    hide = f"mount --bind {tmp_path}/empty /dev && mount --bind {tmp_path}/empty /run/udev"
    inside = (*OWN_PROC, "--mount", "sh", "-c", f'{hide} && exec "$@"', "sh")
    result = command(*inside, PROGRAM, "bind", NVME, "--dry-run", "--json")
    assert result.status == 3, result
    assert {one["rule"] for one in json.loads(result.stdout)["refused"]} == {
        "claimed",
        "opened",
        "partitions",
    }


@pytest.mark.full
@ways
def test_a_held_device_refuses_from_each_namespace(way: str) -> None:
    done("bind", EDU)
    try:
        assert refused(way, address=EDU, verb="restore") == {}
        with held(EDU):
            assert set(refused(way, address=EDU, verb="restore")) & {"held", "live-group"}
        without_dev = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/vfio; exec "$@"', "sh")
        hidden = command(*without_dev, *WAYS[way], PROGRAM, "unbind", EDU, "--dry-run", "--json")
        (found,) = json.loads(hidden.stdout)["refused"]
        assert (found["rule"], "not in sight" in found["reason"]) == ("held", True)
    finally:
        done("restore", EDU)


def test_a_user_without_rights_is_told_what_it_cannot_see() -> None:
    result = vfiotool_as_nobody("bind", NVME, "--dry-run", "--json")
    assert result.status == 3, result
    found = json.loads(result.stdout)["refused"]
    assert {one["rule"] for one in found} == {"opened", "claimed"}
    assert all("may be" in one["reason"] for one in found)


def disk_of_the_nvme() -> str:
    """Return the name of the NVMe's only namespace."""
    (controller,) = os.listdir(path(NVME, "nvme"))
    (disk,) = (name for name in os.listdir("/sys/block") if name.startswith(f"{controller}n"))
    return disk


@ways
def test_the_device_of_the_guests_root_refuses(way: str) -> None:
    """It is a 9p below an overlay that the initramfs made, so that no mount of it is in sight."""
    (virtio,) = glob.glob("/sys/bus/virtio/drivers/9pnet_virtio/virtio*")
    address = os.path.basename(os.path.dirname(os.path.realpath(virtio)))
    assert (read(f"{virtio}/mount_tag") or "").strip("\0") == "root"
    found = refused(way, address=address)
    assert "may be mounted out of sight" in found["mounted"]
    for verb in (("persist", "add"), ("unbind",)):
        result = command(*WAYS[way], PROGRAM, *verb, address)
        assert result.status == 3, result
        assert "--allow-mounted" in result.stderr


# A container


@pytest.fixture
def container(tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """The words that run a command in a container of systemd-nspawn, with the guest's own files."""
    root = tmp_path / "root"
    root.mkdir()
    output("mount", "--bind", "/", str(root))
    words = ("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--pipe", "--as-pid2")
    try:
        yield (*words, "--resolv-conf=off", "--timezone=off", "--link-journal=no", "--directory", str(root))
    finally:
        output("umount", str(root))


@pytest.mark.full
def test_a_container_sees_the_devices_and_changes_none(container: tuple[str, ...]) -> None:
    """Its processes, mounts and nodes are its own, and its sysfs is read-only."""
    names = ("address", "driver", "iommu_group")
    inside, here = (
        [[device[name] for name in names] for device in json.loads(listed.stdout)["devices"]]
        for listed in (command(*container, PROGRAM, "list", "--json"), vfiotool("list", "--json"))
    )
    assert inside == here
    result = command(*container, PROGRAM, "bind", NVME, "--dry-run", "--json")
    assert result.status == 3, result
    assert {"opened", "claimed", "partitions"} <= {
        one["rule"] for one in json.loads(result.stdout)["refused"]
    }
    lifted = [f"--allow-{rule}" for rule in ("opened", "claimed", "partitions")]
    result = command(*container, PROGRAM, "bind", NVME, *lifted)
    assert result.status == 1, result
    assert "Read-only file system" in result.stderr
    assert vfiotool("restore", NVME).status == 1
    assert os.path.basename(os.path.realpath(path(NVME, "driver"))) == "nvme"
