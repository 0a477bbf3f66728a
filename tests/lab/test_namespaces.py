"""What uses a device, seen from other namespaces: a refusal holds wherever vfiotool runs.

A rule whose facts are out of sight refuses; it never passes.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.guest import (
    E1000E,
    PROGRAM,
    await_,
    command,
    needs_iommu,
    output,
    path,
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
ways = pytest.mark.parametrize("way", WAYS)


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


def refused(way: str, *args: str) -> dict[str, str]:
    """Run a dry run of bind in the namespaces of a way; return the reason of each rule that refuses."""
    result = command(*WAYS[way], PROGRAM, "bind", E1000E, "--dry-run", "--json", *args)
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
        assert [(one["kind"], one["name"]) for one in nobody] == [("hidden", "net")]
        assert "only root may" in nobody[0]["detail"]


def test_vfiotool_in_the_namespace_of_the_interface(interface: str) -> None:
    with named_namespace("pod"):
        output("ip", "link", "set", interface, "netns", "pod")
        result = command("ip", "netns", "exec", "pod", PROGRAM, "bind", E1000E, "--dry-run", "--json")
        assert result.status == 3
        (found,) = json.loads(result.stdout)["refused"]
        assert found["rule"] == "namespace"
        assert "of this process, which is not that of pid 1" in found["reason"]
    await_("it is back", lambda: os.path.exists(f"/sys/class/net/{interface}"))


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
