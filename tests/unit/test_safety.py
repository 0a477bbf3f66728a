"""Rules x namespaces x rights: what is in use is refused wherever vfiotool runs.

``docs/safety.md`` says so; ``tests/lab/test_namespaces.py`` shows it on a kernel.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.documents import read
from vfiotool.host import plan_context
from vfiotool.host.device_state import DeviceState
from vfiotool.host.devices import read_devices
from vfiotool.host.plan_context import PlanContext, read_plan_context
from vfiotool.host.refusals import LIFTABLE_RULES, Refusal, refusals
from vfiotool.host.usage import device_usage, disks, interfaces, nodes
from vfiotool.host.usage.claim import Claim
from vfiotool.host.usage.interfaces import Interface
from vfiotool.host.usage.namespaces import MAY_NOT_INSPECT, NAMESPACE_ALONE, HiddenFolder
from vfiotool.host.usage.network import Network, NetworkView
from vfiotool.host.usage.openers import find_openers
from vfiotool.host.usage.rtnetlink import Link
from vfiotool.pci.names import PciNames
from vfiotool.testing import FakeHost

NIC, NVME, HELD = "0000:00:12.0", "0000:00:13.0", "0000:00:14.0"
DISK = "nvme0n1"
ADDRESS = Claim("network", "is up with 192.0.2.9/24")
TARGET = DeviceState(None, None)


@dataclass(frozen=True)
class Place:
    """Where vfiotool runs: which facts are in sight. ``processes`` is why those of others are not."""

    processes: str = ""
    inspects_all: bool = True
    enters_namespaces: bool = True
    own_network: bool = True
    own_sysfs: bool = True
    has_mounts: bool = True
    has_nodes: bool = True
    has_udev: bool = True


HERE = Place()
places = st.builds(
    Place,
    processes=st.sampled_from(["", MAY_NOT_INSPECT, NAMESPACE_ALONE]),
    inspects_all=st.booleans(),
    enters_namespaces=st.booleans(),
    own_network=st.booleans(),
    own_sysfs=st.booleans(),
    has_mounts=st.booleans(),
    has_nodes=st.booleans(),
    has_udev=st.booleans(),
)
NAMED = [
    HERE,
    Place(own_network=False),
    Place(own_network=False, own_sysfs=False),
    Place(has_mounts=False, has_nodes=False, has_udev=False),
    Place(processes=NAMESPACE_ALONE, enters_namespaces=False),
    Place(processes=NAMESPACE_ALONE, enters_namespaces=False, own_network=False, own_sysfs=False),
    Place(processes=MAY_NOT_INSPECT, inspects_all=False, enters_namespaces=False, has_nodes=False),
    Place(enters_namespaces=False, own_network=False),
]

USES: Mapping[str, tuple[str, frozenset[str]]] = {
    # use -> the device, and the rules of which one must refuse it
    "mount": (NVME, frozenset({"mounted", "claimed"})),
    "mount elsewhere": (NVME, frozenset({"claimed"})),
    "member": (NVME, frozenset({"lvm", "partitions"})),
    "open disk": (NVME, frozenset({"opened"})),
    "open clock": (NIC, frozenset({"opened"})),
    "address": (NIC, frozenset({"network", "namespace"})),
    "pod": (NIC, frozenset({"namespace"})),
    "holder": (HELD, frozenset({"held", "live-group"})),
}
# One interface, one file system; a disk that is seen to be mounted is no idle member of a volume.
NOT_TOGETHER = ({"address", "pod"}, {"mount", "mount elsewhere"}, {"mount", "member"})
uses = st.frozensets(st.sampled_from(sorted(USES))).filter(
    lambda found: not any(pair <= found for pair in NOT_TOGETHER)
)


@contextmanager
def machine(used: frozenset[str], place: Place) -> Iterator[FakeHost]:
    """A machine with these uses, as its files are seen from a place."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        host = FakeHost(f"{folder}/host")
        host.add_device(NIC, class_code=0x020000, driver="e1000e", group=1)
        host.add_device(NVME, class_code=0x010802, driver="nvme", group=2)
        host.add_device(HELD, driver="vfio-pci", group=3)
        host.put("/sys/class/vfio/3/dev", "240:3")
        nic, nvme = host.devices[NIC].folder, host.devices[NVME].folder
        host.add_class("ptp", "ptp0", f"{nic}/ptp/ptp0", dev="248:0")
        host.add_class("block", DISK, f"{nvme}/{DISK}", dev="259:0")
        _add_disk_uses(host, used, place)
        _add_processes(host, used, place)
        if not place.has_nodes:
            host.remove("/dev/vfio/3")
        _patch_reads(patch, host, used, place)
        _patch_networks(patch, host, used, place)
        yield host


def _add_disk_uses(host: FakeHost, used: frozenset[str], place: Place) -> None:
    if "mount" in used and place.has_mounts:
        host.mount(f"/dev/{DISK}", "/srv")
    if place.has_udev:
        host.put("/run/udev/data/b259:0", "E:ID_FS_TYPE=LVM2_member" if "member" in used else "I:1")


def _add_processes(host: FakeHost, used: frozenset[str], place: Place) -> None:
    opened = {"open disk": f"/dev/{DISK}", "open clock": "/dev/ptp0", "holder": "/dev/vfio/3"}
    fds = {fd: node for fd, (use, node) in enumerate(opened.items()) if use in used}
    if place.inspects_all and not place.processes:
        host.add_process(31, "user", fds)


def _patch_reads(patch: pytest.MonkeyPatch, host: FakeHost, used: frozenset[str], place: Place) -> None:
    """Answer what only a kernel answers; the fake's files then count as those of the running machine."""
    is_claimed = bool(used & {"mount", "mount elsewhere"})
    patch.setattr(disks, "is_claimed", lambda _: is_claimed if place.has_nodes else None)
    patch.setattr(plan_context, "is_group_open", lambda _: "holder" in used)
    patch.setattr(device_usage, "why_processes_are_hidden", lambda _: place.processes)
    patch.setattr(plan_context, "why_processes_are_hidden", lambda _: place.processes)
    patch.setattr(interfaces, "why_processes_are_hidden", lambda _: place.processes)
    patch.setattr(
        device_usage,
        "find_openers",
        lambda *args: replace(find_openers(*args), is_complete=place.inspects_all),
    )
    patch.setattr(nodes, "Tree", lambda _: host.tree)
    host.tree.root = "/"


def _patch_networks(patch: pytest.MonkeyPatch, host: FakeHost, used: frozenset[str], place: Place) -> None:
    folder = f"{host.devices[NIC].folder}/net"
    network = Network({"eth0": ("192.0.2.9/24",)} if "address" in used else {})
    in_sight = "pod" not in used and place.own_sysfs
    if in_sight:
        host.add_class("net", "eth0", f"{folder}/eth0", flags="0x1003", ifindex="2", address="")
    links = {"eth0": Link(2, "eth0", "")} if in_sight and place.own_network else {}
    hidden = [] if in_sight else [HiddenFolder(folder, 1)]
    patch.setattr(interfaces, "read_view", lambda _: NetworkView("/sys", network, links))
    patch.setattr(interfaces, "own_network", lambda _: 1 if place.own_network else 2)
    patch.setattr(interfaces, "machines_network", lambda _: None if place.processes else 1)
    patch.setattr(interfaces, "connected_address", lambda _: None)
    patch.setattr(interfaces, "hidden_folders", lambda _, address: hidden if address == NIC else [])
    patch.setattr(interfaces, "Tree", lambda *_: host.tree)
    patch.setattr(interfaces, "_place", lambda name: f"{folder}/{name}")

    def visit(self: interfaces._Elsewhere, folders: list[str]) -> Iterator[tuple[str, Interface]]:
        known = {"pod": Claim("namespace", "is in the network namespace pod"), "address": ADDRESS}
        claims = tuple(claim for use, claim in known.items() if use in used)
        for one in folders if place.enters_namespaces else ():
            self._found_at.add(f"{one}/eth0")
            yield one, Interface("net", "eth0", "up", claims, frozenset({NIC}))

    patch.setattr(interfaces._Elsewhere, "_visit", visit)


def look(host: FakeHost) -> PlanContext:
    devices = read_devices(host.tree, sorted(host.devices), PciNames(b""))
    return read_plan_context(host.tree, devices, sorted(host.devices))


def refused(context: PlanContext) -> tuple[Refusal, ...]:
    return refusals(context, dict.fromkeys((NIC, NVME, HELD), TARGET))


@given(uses, places)
def test_what_is_in_use_is_refused_from_everywhere(used: frozenset[str], place: Place) -> None:
    with machine(used, place) as host:
        context = look(host)
    found = {(one.address, one.rule) for one in refused(context)}
    for use in used:
        address, rules = USES[use]
        assert {(address, rule) for rule in rules} & found, (use, found)
    for one in refused(context):
        assert one.flag == f"--allow-{one.rule}"
        assert one.reason.isprintable()
    lifted = replace(context, allowed=frozenset(rule for _, rule in found))
    assert refused(lifted) == ()


@pytest.mark.parametrize("place", NAMED, ids=str)
@pytest.mark.parametrize("use", USES)
def test_each_use_from_each_place(use: str, place: Place) -> None:
    with machine(frozenset({use}), place) as host:
        found = refused(look(host))
    address, rules = USES[use]
    assert [one for one in found if one.address == address and one.rule in rules]


@given(uses)
def test_what_is_idle_goes_if_all_is_in_sight(used: frozenset[str]) -> None:
    """From the machine itself only what is used is refused, and only for its uses."""
    with machine(used, HERE) as host:
        found = {(one.address, one.rule) for one in refused(look(host))}
    assert found <= {(address, rule) for use in used for address, rules in [USES[use]] for rule in rules}


@pytest.mark.parametrize("place", [one for one in NAMED if one.processes or not one.has_nodes], ids=str)
def test_what_is_out_of_sight_says_why(place: Place) -> None:
    with machine(frozenset(), place) as host:
        found = refused(look(host))
    assert found
    assert all(re.search(r"\b(may|cannot)\b", one.reason) for one in found)


def test_the_table_of_the_document_has_every_rule() -> None:
    _, _, section = read("docs/safety.md").partition("## Rules\n")
    rows = [line.split("|") for line in section.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    named = [rule for row in rows for rule in re.findall("`([a-z-]+)`", row[1])]
    assert sorted(named) == sorted([*LIFTABLE_RULES, "live-group", "bridge"])
    assert {len(row) for row in rows} == {6}
