"""Root file systems without a block device: the PCI devices of 9p, virtiofs and vboxsf."""

from __future__ import annotations

import pytest

from vfiotool.host.capture.redaction import redact
from vfiotool.host.tree import Tree
from vfiotool.host.usage.device_usage import read_usage
from vfiotool.testing import FakeHost

SHARE, OTHER = "0000:00:1c.0", "0000:00:1b.0"
DRIVERS = {
    "9p": "/sys/bus/virtio/drivers/9pnet_virtio",
    "virtiofs": "/sys/bus/virtio/drivers/virtiofs",
    "vboxsf": "/sys/bus/pci/drivers/vboxguest",
}
MODULES = {"9p": "9pnet_virtio", "virtiofs": "virtiofs", "vboxsf": "vboxsf"}
kinds = pytest.mark.parametrize("kind", DRIVERS)
UNSEEN = [("mounted", "may be mounted out of sight, and hold the root of this machine")]


def add(host: FakeHost, kind: str, address: str = SHARE, number: int = 0) -> str:
    """Add a PCI device with a shared folder; return the path of the device that has the driver."""
    host.add_device(address)
    path = host.devices[address].folder + ("" if kind == "vboxsf" else f"/virtio{number}")
    host.link(f"{DRIVERS[kind]}/{path.rpartition('/')[2]}", path)
    if not host.tree.exists(f"{DRIVERS[kind]}/module"):
        host.link(f"{DRIVERS[kind]}/module", f"/sys/module/{MODULES[kind]}")
        host.put(f"{DRIVERS[kind]}/bind", "")
    return path


def put_tag(host: FakeHost, kind: str, path: str, tag: str) -> None:
    """Have the kernel show a tag: 9p as an attribute with a zero byte, virtiofs below /sys/fs."""
    if kind == "9p":
        host.put(f"{path}/mount_tag", tag.encode() + b"\0")
    elif kind == "virtiofs":
        number = len(host.tree.find_names("/sys/fs/virtiofs"))
        host.put(f"/sys/fs/virtiofs/{number}/tag", tag)
        host.link(f"/sys/fs/virtiofs/{number}/device", path)


def mount(host: FakeHost, kind: str, tag: str, *points: str) -> None:
    lines = [
        f"30 1 0:{40 + number} / {point} rw - {kind} {tag} rw,trans=virtio"
        for number, point in enumerate(points)
    ]
    host.put("/proc/self/mountinfo", "\n".join(lines))


def set_count(host: FakeHost, kind: str, count: int) -> None:
    """Have the module of a type count its mounts."""
    host.put(f"/sys/module/{MODULES[kind]}/refcnt", str(count))


def claims(host: FakeHost, address: str = SHARE) -> list[tuple[str, str]]:
    return [
        (one.rule, one.text) for use in read_usage(host.tree, [address], ())[address] for one in use.claims
    ]


@kinds
def test_a_shared_folder_that_is_the_root(host: FakeHost, kind: str) -> None:
    put_tag(host, kind, add(host, kind), "host")
    mount(host, kind, "host", "/", "/srv")
    set_count(host, kind, 2)
    assert claims(host) == [("root", "holds / of this machine"), ("mounted", "is mounted on /srv")]


@kinds
def test_an_idle_shared_folder(host: FakeHost, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tree, "is_live", True)
    put_tag(host, kind, add(host, kind), "host")
    set_count(host, kind, 0)
    (usage,) = read_usage(host.tree, [SHARE], ())[SHARE]
    assert (usage.kind, usage.detail, usage.claims) == ("folder", "not in use", ())


@kinds
@pytest.mark.parametrize("count", [1, None], ids=["a module", "built in"])
def test_a_folder_that_may_be_mounted_out_of_sight(host: FakeHost, kind: str, count: int | None) -> None:
    """As below an overlay that the initramfs made, or in another mount namespace."""
    put_tag(host, kind, add(host, kind), "host")
    if count is not None:
        set_count(host, kind, count)
    assert claims(host) == UNSEEN


@pytest.mark.parametrize("kind", ["9p", "virtiofs"])
def test_the_tag_tells_devices_apart(host: FakeHost, kind: str) -> None:
    put_tag(host, kind, add(host, kind), "host")
    put_tag(host, kind, add(host, kind, OTHER, 1), "other")
    mount(host, kind, "other", "/data")
    set_count(host, kind, 1)
    assert claims(host) == []
    assert claims(host, OTHER) == [("mounted", "is mounted on /data")]
    set_count(host, kind, 2)
    assert claims(host) == UNSEEN


def test_without_tags_each_device_may_have_the_mount(host: FakeHost) -> None:
    """Before Linux 6.9 the kernel shows no tag of a virtiofs."""
    add(host, "virtiofs")
    add(host, "virtiofs", OTHER, 1)
    mount(host, "virtiofs", "host", "/")
    set_count(host, "virtiofs", 1)
    assert claims(host) == claims(host, OTHER) == [("root", "holds / of this machine")]


def test_a_mount_over_another_transport_is_not_of_the_device(host: FakeHost) -> None:
    put_tag(host, "9p", add(host, "9p"), "host")
    mount(host, "9p", "192.0.2.1", "/srv")
    set_count(host, "9p", 0)
    assert claims(host) == []


@pytest.mark.parametrize("text", ["", "-", "nonsense", "-1"])
def test_a_count_that_is_no_number_is_unknown(host: FakeHost, text: str) -> None:
    add(host, "9p")
    host.put("/sys/module/9pnet_virtio/refcnt", text)
    assert claims(host) == UNSEEN


def test_all_disks_of_a_bcachefs(host: FakeHost) -> None:
    """It has its own device number, and names its disks with colons between them."""
    for address, name in ((SHARE, "sda"), (OTHER, "sdb")):
        host.add_device(address)
        host.add_class("block", name, f"{host.devices[address].folder}/block/{name}")
    mount(host, "bcachefs", "/dev/sda:/dev/sdb", "/")
    assert claims(host) == claims(host, OTHER) == [("root", "holds / of this machine")]


@pytest.mark.parametrize(
    ("kind", "options", "is_kept"),
    [
        ("virtiofs", "rw", True),
        ("9p", "rw,trans=virtio", True),
        ("9p", "rw,trans=tcp", False),
        ("nfs4", "rw", False),
    ],
)
def test_a_capture_keeps_tags_and_no_servers(kind: str, options: str, is_kept: bool) -> None:
    text = f"30 1 0:40 / /srv rw - {kind} source {options}\n".encode()
    kept = redact("/proc/self/mountinfo", text)
    assert kept == (b"0 0 0:40 / /srv rw - " + kind.encode() + b" source rw\n" if is_kept else b"")
