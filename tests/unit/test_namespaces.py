"""Interfaces of other network namespaces. Real namespaces are in ``tests/lab/test_namespaces.py``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfiotool.host.tree import Tree
from vfiotool.host.usage import interfaces, namespaces, network_files
from vfiotool.host.usage.claim import Claim
from vfiotool.host.usage.interfaces import Interface, find_interfaces
from vfiotool.host.usage.namespaces import HiddenFolder, NetworkNamespace
from vfiotool.host.usage.network import Network, NetworkView, read_view, view_through
from vfiotool.host.usage.network_files import NetworkFiles, visit_networks
from vfiotool.host.usage.rtnetlink import Link, open_rtnetlink
from vfiotool.testing import FakeHost
from vfiotool.util.tasks import children

NIC = "0000:00:12.0"
FOLDER = f"/sys/devices/pci0000:00/{NIC}/net"
MACHINE, POD = 1, 2
UNSEEN = "in a network namespace that cannot be inspected"
ADDRESS = Claim("network", "is up with 192.0.2.9/24")


class Namespaces:
    """Network namespaces with interfaces; ``closed`` are those that this process may not enter."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.own = self.machines = MACHINE
        self.hidden_processes = ""
        self.closed: set[int] = set()
        self.visited: list[int] = []

    def put(self, namespace: int, interface: str) -> None:
        """Have a namespace's sysfs show an interface of the device, which is up."""
        place = self._sysfs(namespace) / FOLDER.removeprefix("/sys/") / interface
        place.mkdir(parents=True)
        classes = self._sysfs(namespace) / "class/net"
        classes.mkdir(parents=True, exist_ok=True)
        (classes / interface).symlink_to(place)
        (place / "flags").write_text("0x1003\n")
        (place / "operstate").write_text("up\n")

    def visit(self, paths: list[tuple[str, int]]) -> Iterator[NetworkFiles | OSError]:
        for _, number in paths:
            self.visited.append(number)
            if number in self.closed:
                yield PermissionError(1, "Operation not permitted")
                continue
            self._sysfs(number).mkdir(parents=True, exist_ok=True)
            fd = os.open(self._sysfs(number), os.O_RDONLY)
            with contextlib.ExitStack() as stack:
                stack.callback(os.close, fd)
                yield NetworkFiles(fd, stack.enter_context(open_rtnetlink()))

    def _sysfs(self, namespace: int) -> Path:
        return self._folder / str(namespace)


@pytest.fixture
def networks(host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Namespaces:
    """A NIC with its interfaces in namespaces. Each interface has an address."""
    host.add_device(NIC, class_code=0x020000, driver="e1000e", group=7)
    fake = Namespaces(tmp_path / "namespaces")
    known = [
        NetworkNamespace(MACHINE, "", "the network namespace of pid 1"),
        NetworkNamespace(POD, "", "the network namespace pod"),
    ]
    replaced = {
        "network_namespaces": lambda _: known,
        "own_network": lambda _: fake.own,
        "machines_network": lambda _: fake.machines or None,
        "why_processes_are_hidden": lambda _: fake.hidden_processes,
        "view_through": lambda sysfs, *_: NetworkView(sysfs, Network({"eth0": ("192.0.2.9/24",)})),
    }
    for name, function in replaced.items():
        monkeypatch.setattr(interfaces, name, function)
    monkeypatch.setattr(network_files, "visit_networks", fake.visit)
    return fake


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> list[HiddenFolder]:
    """What sysfs hides of the NIC here."""
    found: list[HiddenFolder] = []
    monkeypatch.setattr(interfaces, "hidden_folders", lambda tree, address: found)
    return found


def test_an_interface_in_another_namespace(
    host: FakeHost, networks: Namespaces, hide: list[HiddenFolder]
) -> None:
    hide.append(HiddenFolder(FOLDER, 1))
    networks.put(POD, "eth0")
    claims = (Claim("namespace", "is in the network namespace pod"), ADDRESS)
    assert find_interfaces(host.tree, frozenset({NIC})) == [
        Interface("net", "eth0", "up", claims, frozenset({NIC}))
    ]


def test_two_interfaces_of_one_name(host: FakeHost, networks: Namespaces, hide: list[HiddenFolder]) -> None:
    """A device with two ports has one in the machine's namespace, and one of the same name in a pod."""
    host.add_class("net", "eth0", f"{host.devices[NIC].folder}/net/eth0", flags="0x1002")
    hide.append(HiddenFolder(FOLDER, 1))
    networks.put(POD, "eth0")
    here, there = find_interfaces(host.tree, frozenset({NIC}))
    assert here.claims == ()
    assert there.claims == (Claim("namespace", "is in the network namespace pod"), ADDRESS)


def test_the_machines_namespace_seen_from_another(
    host: FakeHost, networks: Namespaces, hide: list[HiddenFolder]
) -> None:
    hide.append(HiddenFolder(FOLDER, 1))
    networks.own = POD
    networks.put(MACHINE, "eth0")
    (found,) = find_interfaces(host.tree, frozenset({NIC}))
    assert found.claims == (ADDRESS,)


def test_things_of_other_classes_have_namespaces_too(
    host: FakeHost, networks: Namespaces, hide: list[HiddenFolder], tmp_path: Path
) -> None:
    folder = f"/sys/devices/pci0000:00/{NIC}/ieee80211"
    hide.append(HiddenFolder(folder, 1))
    (tmp_path / "namespaces" / str(POD) / folder.removeprefix("/sys/") / "phy0").mkdir(parents=True)
    (found,) = find_interfaces(host.tree, frozenset({NIC}))
    assert (found.kind, found.name) == ("ieee80211", "phy0")
    assert found.claims == (Claim("namespace", "is in the network namespace pod"),)


@pytest.mark.parametrize(
    ("uid", "processes", "closed", "why"),
    [
        (1000, "", (), "only root may"),
        (0, "/proc shows the processes of a PID namespace alone", (), "/proc shows the processes of a PID"),
        (0, "", (POD,), "Operation not permitted"),
        (0, "", (), "no process in sight is in it"),
    ],
)
def test_what_cannot_be_found_is_a_claim_that_says_why(
    host: FakeHost,
    networks: Namespaces,
    hide: list[HiddenFolder],
    monkeypatch: pytest.MonkeyPatch,
    uid: int,
    processes: str,
    closed: tuple[int, ...],
    why: str,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    networks.hidden_processes = processes
    networks.closed |= set(closed)
    hide.append(HiddenFolder(FOLDER, 2))
    networks.put(MACHINE, "eth0")
    shown, unseen = find_interfaces(host.tree, frozenset({NIC}))
    assert shown.claims == (ADDRESS,)
    (claim,) = unseen.claims
    assert (unseen.kind, unseen.name, unseen.devices) == ("hidden", "net", frozenset({NIC}))
    assert claim.rule == "namespace"
    assert claim.text.startswith(f"has 1 network interface {UNSEEN}: {why}")


def test_an_interface_that_sysfs_shows_of_another_namespace(
    host: FakeHost, networks: Namespaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with ``unshare --net``: sysfs is of the machine's namespace, the process is not."""
    host.add_class("net", "lab7", f"{host.devices[NIC].folder}/net/lab7", flags="0x1002", ifindex="2")
    monkeypatch.setattr(interfaces, "read_view", lambda _: NetworkView("/sys", Network(), {}))
    (found,) = find_interfaces(host.tree, frozenset({NIC}))
    assert [claim.rule for claim in found.claims] == ["namespace"]
    assert UNSEEN in found.claims[0].text
    assert networks.visited == [MACHINE, POD]


def test_no_other_namespace_is_entered_if_all_is_in_sight(host: FakeHost, networks: Namespaces) -> None:
    host.add_class("net", "eth0", f"{host.devices[NIC].folder}/net/eth0", flags="0x1002")
    (found,) = find_interfaces(host.tree, frozenset({NIC}))
    assert (found.claims, networks.visited) == ((), [])


def test_this_process_is_in_another_namespace_than_the_machine(host: FakeHost, networks: Namespaces) -> None:
    host.add_class("net", "eth0", f"{host.devices[NIC].folder}/net/eth0", flags="0x1002")
    networks.own = POD
    (found,) = find_interfaces(host.tree, frozenset({NIC}))
    assert [claim.rule for claim in found.claims] == ["namespace"]
    networks.machines = 0  # not known: it may be the same
    (found,) = find_interfaces(host.tree, frozenset({NIC}))
    assert found.claims == ()


@pytest.mark.parametrize(
    ("link", "is_same"),
    [
        (Link(2, "eth0", "52:54:00:00:00:01"), True),
        (Link(3, "eth0", "52:54:00:00:00:01"), False),
        (Link(2, "eth0", "52:54:00:00:00:02"), False),
        (None, False),
    ],
)
def test_an_interface_is_known_by_number_name_and_address(
    host: FakeHost, link: Link | None, is_same: bool
) -> None:
    host.add_device(NIC)
    folder = f"{host.devices[NIC].folder}/net/eth0"
    host.add_class("net", "eth0", folder, ifindex="2", address="52:54:00:00:00:01")
    links = {} if link is None else {link.name: link}
    assert NetworkView("/sys", Network(), links).has(host.tree, "eth0") is is_same


def test_a_capture_hides_nothing(host: FakeHost) -> None:
    host.add_device(NIC)
    assert namespaces.hidden_folders(host.tree, NIC) == []
    assert namespaces.why_processes_are_hidden(host.tree) == ""


def test_the_interfaces_of_this_machine_are_known() -> None:
    view = read_view(Tree())
    assert view.links
    assert all(view.has(Tree(), name) for name in view.links if os.path.exists(f"/sys/class/net/{name}"))


def test_a_namespace_that_is_gone_or_another_one_is_an_error() -> None:
    own, before = os.stat("/proc/self/ns/net").st_ino, children([os.getpid()])
    found = list(visit_networks([("/proc/0/ns/net", own), ("/proc/self/ns/net", own + 1)]))
    assert [type(one) for one in found] == [FileNotFoundError, ProcessLookupError]
    assert set(children([os.getpid()])) <= set(before)


def test_a_visit_that_is_given_up_leaves_no_process() -> None:
    own, before = os.stat("/proc/self/ns/net").st_ino, children([os.getpid()])
    visits = visit_networks([("/proc/self/ns/net", own)] * 3)
    next(visits)
    visits.close()
    assert set(children([os.getpid()])) <= set(before)


def test_a_capture_gets_no_hardware_address(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    host.add_device(NIC)
    folder = f"{host.devices[NIC].folder}/net/lab7"
    host.add_class("net", "lab7", folder, ifindex="2", address="52:54:00:00:00:01")
    links = {"lab7": Link(2, "lab7", "52:54:00:00:00:01")}
    monkeypatch.setattr(interfaces, "read_view", lambda _: NetworkView("/sys", Network(), links))
    recorder = Recorder(host.root)
    (found,) = find_interfaces(recorder, frozenset({NIC}))
    assert found.claims == ()
    assert recorder.paths
    assert not [path for path in recorder.paths if path.endswith("/address")]


class Recorder(Tree):
    """A tree that records which files are read."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.paths: list[str] = []

    @property
    def unrecorded(self) -> Tree:
        return Tree(self.root)

    def read_bytes(self, path: str) -> bytes:
        self.paths.append(path)
        return super().read_bytes(path)


def test_this_namespace_can_be_visited() -> None:
    own = os.stat("/proc/self/ns/net").st_ino
    seen = []
    for files in visit_networks([(f"/proc/{os.getpid()}/ns/net", own)] * 2):
        if isinstance(files, PermissionError):
            pytest.skip("takes root")
        assert isinstance(files, NetworkFiles)
        seen.append(set(os.listdir(f"/proc/self/fd/{files.sysfs}/class/net")))
        assert network_files_are_of_this_namespace(files)
    assert seen == [set(os.listdir("/sys/class/net"))] * 2


def network_files_are_of_this_namespace(files: NetworkFiles) -> bool:
    view, own = view_through("/sys", files.rtnetlink), read_view(Tree())
    return view.links == own.links
