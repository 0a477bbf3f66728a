from __future__ import annotations

import bz2
import errno
import gzip
import io
import json
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.blocking_files import blocking
from tests.support.cli_result import Result
from tests.unit.conftest import Run
from vfiotool import cli
from vfiotool.errors import VfioToolError
from vfiotool.host.attributes import device_path
from vfiotool.host.capture import archives
from vfiotool.host.capture.archives import unpacked
from vfiotool.host.capture.captured_tree import NOTES, CapturedTree, CopiedTree, open_tree
from vfiotool.host.capture.redaction import is_kept, redact
from vfiotool.testing import FakeHost, config_space

EDU, NIC, SISTER = "0000:00:10.0", "0000:00:12.0", "0000:00:12.1"
PLANTED = b"hunter2"
EMPTY = json.dumps({"schema": "vfiotool.capture/1", "unreadable": {}, "nodes": {}}).encode()

Elsewhere = Callable[..., Result]
Entry = tuple[str, bytes | tarfile.TarInfo]


@pytest.fixture(autouse=True)
def machine(host: FakeHost) -> FakeHost:
    serial = config_space(vendor=0x8086, extended=[(0x03, 0x100)])
    host.add_driver("vfio-pci")
    host.add_device(EDU, group=5, driver="vfio-pci", config=config_space(capabilities=[(5, 0x40, bytes(12))]))
    host.add_device(
        NIC, vendor=0x8086, driver="e1000e", group=7, config=serial[:0x104] + PLANTED + serial[0x10B:]
    )
    host.add_device(SISTER, vendor=0x8086, driver="e1000e", group=7)
    host.add_class(
        "net", "eth0", f"{host.devices[NIC].folder}/net/eth0", operstate="up", address="52:54:00:0"
    )
    host.add_process(77, "qemu", {3: "/dev/vfio/5", 5: "/home/hunter2"})
    host.put("/proc/77/environ", b"TOKEN=hunter2\0")
    host.put("/proc/cmdline", "root=UUID=hunter2 luks.key=hunter2 intel_iommu=on vfio_pci.ids=8086:10d3")
    host.put("/proc/cpuinfo", "vendor_id : GenuineIntel\nserial : hunter2\nflags : fpu vmx hypervisor\n\n")
    host.put("/proc/interrupts", " 0:  9  IR-IO-APIC  2-edge  hunter2\nNMI:  0  Non-maskable")
    host.put("/proc/self/mountinfo", "1 0 8:1 /hunter2 / rw,key=hunter2 - ext4 /dev/sda1 rw,key=hunter2")
    return host


@pytest.fixture
def archive(vfiotool: Run, tmp_path: Path) -> str:
    """The archive of a captured machine."""
    path = str(tmp_path / "machine.tar.gz")
    result = vfiotool("capture", path)
    assert result.status == 0, result.stderr
    return path


@pytest.fixture
def elsewhere(state_dir: str, capsys: pytest.CaptureFixture[str]) -> Elsewhere:
    """Run the command line on a captured machine."""

    def run(sysroot: str, *args: str) -> Result:
        capsys.readouterr()
        status = cli.run(["--state-dir", state_dir, "--sysroot", sysroot, *args])
        return Result(status, *capsys.readouterr())

    return run


def members(archive: str) -> dict[str, bytes]:
    """Return the plain files of an archive."""
    with tarfile.open(archive) as tar:
        files = {one.name: tar.extractfile(one) for one in tar if one.isreg()}
        return {name: file.read() for name, file in files.items() if file is not None}


VERBS = [
    ("list",),
    ("groups",),
    ("show", EDU),
    ("show", NIC),
    ("show", "eth0"),
    ("list", "group:7"),
    ("doctor",),
]


@pytest.mark.parametrize("verb", VERBS)
def test_the_verbs_print_the_same_on_a_capture(
    vfiotool: Run, monkeypatch: pytest.MonkeyPatch, archive: str, elsewhere: Elsewhere, verb: tuple[str, ...]
) -> None:
    there = comparable(vfiotool(*verb, "--json").document)
    monkeypatch.undo()  # of what makes the fake host this machine
    here = elsewhere(archive, *verb, "--json")
    assert comparable(here.document) == there


def test_a_capture_does_not_claim_that_no_node_is_open(
    monkeypatch: pytest.MonkeyPatch, archive: str, elsewhere: Elsewhere
) -> None:
    """It has none of the processes' descriptors, except those of VFIO."""
    monkeypatch.undo()
    document = elsewhere(archive, "show", SISTER, "--json").document
    assert document["usage"] is None
    assert "usage" in document["unavailable"]
    assert document["unseen_uses"] == ["open nodes (/proc/PID/fd)"]


def comparable(document: dict[str, Any]) -> dict[str, Any]:
    """Leave out the check that only works on the machine itself, and what a capture cannot show."""
    if "usage" in document:
        del document["unseen_uses"]
        document["usage"] = document["usage"] or []
        document["unavailable"] = [name for name in document["unavailable"] if name != "usage"]
    if "checks" in document:
        document["checks"] = [check for check in document["checks"] if check["name"] != "memlock"]
    return document


def test_a_capture_has_no_secrets(archive: str) -> None:
    said = members(archive)
    assert [name for name, content in said.items() if PLANTED in content] == []
    with tarfile.open(archive) as tar:
        assert [one.name for one in tar if "hunter2" in one.linkname] == []
        assert [name for name in tar.getnames() if "environ" in name] == []
    assert said["proc/cmdline"] == b"intel_iommu=on vfio_pci.ids=8086:10d3\n"
    assert said["proc/cpuinfo"] == b"vendor_id : GenuineIntel\nflags : hypervisor\n"
    assert said["proc/interrupts"] == b"0: IR-IO-APIC\n"
    assert said["proc/self/mountinfo"] == b"0 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
    assert said[f"{MACHINE_FOLDER}/{NIC}/net/eth0/address"] == b""


MACHINE_FOLDER = "sys/devices/pci0000:00"


@pytest.mark.parametrize(
    ("path", "content", "kept"),
    [
        (
            "/proc/swaps",
            b"Filename\n/secret/file file 1\n/dev/sda2 partition 1\n",
            b"Filename\n/dev/sda2 partition 1\n",
        ),
        ("/proc/1/mountinfo", b"1 0 0:40 / /mnt rw - nfs server:/x rw,addr=1\nshort\n", b""),
        ("/proc/9/stat", b"9 (a) b) S 1" + b" 5" * 17 + b" 4711 6", b"9 () S" + b" 0" * 18 + b" 4711\n"),
        ("/proc/9/stat", b"9 (x) S 1", b""),
        (
            "/proc/kallsyms",
            b"ffff T other\nffff T iommu_group_claim_dma_owner\n",
            b"0 T iommu_group_claim_dma_owner\n",
        ),
        ("/proc/devices", b"Character devices:\n  1 mem\n250 vfio-dev\n", b"250 vfio-dev\n"),
        ("/proc/meminfo", b"MemTotal: 1 kB\n", b""),
        ("/run/udev/data/b8:0", b"E:ID_SERIAL=x\nE:ID_FS_TYPE=ext4\n", b"E:ID_FS_TYPE=ext4\n"),
        ("/sys/devices/virtual/block/dm-0/dm/uuid", b"CRYPT-LUKS2-0123-name\n", b"CRYPT-\n"),
        ("/sys/devices/virtual/block/loop0/loop/backing_file", b"/home/me/secret\n", b"\n"),
        ("/lib/modules/6/modules.dep", b"a/b.ko: c\nx/vfio.ko:\n", b"x/vfio.ko:\n"),
        ("/etc/default/grub", b"GRUB_PASSWORD=x\n", b""),
        ("/sys/bus/pci/devices/x/vendor", b"0x8086\n", b"0x8086\n"),
    ],
)
def test_redaction_of_files(path: str, content: bytes, kept: bytes) -> None:
    assert redact(path, content) == kept


def test_a_serial_number_is_removed_where_the_function_claims_no_extended_capabilities() -> None:
    config = bytearray(config_space(extended=[(0x03, 0x100)]))
    config[0x06] = 0  # no list of capabilities
    config[0x104:0x10C] = b"hunter2!"
    kept = redact(f"/sys/devices/pci0000:00/{NIC}/config", bytes(config))
    assert kept == bytes(config[:0x104]) + bytes(8) + bytes(config[0x10C:])


def test_only_open_vfio_nodes_of_a_process_are_kept() -> None:
    for path in ("/proc/9/environ", "/proc/9/cmdline", "/proc/self/environ", "/proc/9", "/proc/9/fd"):
        assert not is_kept(path)
    assert not is_kept("/proc/9/fd/3", target="/home/me")
    assert is_kept("/proc/9/fd/3", target="/dev/vfio/7 (deleted)")
    assert is_kept("/proc/9/fd/3", target="anon_inode:[vfio-device]")


def test_the_same_machine_gives_the_same_bytes(vfiotool: Run, archive: str) -> None:
    assert vfiotool("capture", f"{archive}.2").status == 0
    with open(archive, "rb") as one, open(f"{archive}.2", "rb") as other:
        assert one.read() == other.read()
    with tarfile.open(archive) as tar:
        entries = tar.getmembers()
    assert {(one.mtime, one.uid, one.gid, one.uname) for one in entries} == {(0, 0, 0, "")}
    assert [one.name for one in entries] == sorted(one.name for one in entries)


def test_a_capture_is_private_and_overwrites_nothing(vfiotool: Run, archive: str, tmp_path: Path) -> None:
    assert os.stat(archive).st_mode & 0o777 == 0o600
    with open(archive, "rb") as file:
        before = file.read()
    result = vfiotool("capture", archive)
    assert (result.status, "cannot be written: File exists" in result.stderr) == (1, True)
    with open(archive, "rb") as file:
        assert file.read() == before
    assert vfiotool("capture", str(tmp_path / "none" / "file")).status == 1
    (tmp_path / "taken.new").write_text("mine")
    assert vfiotool("capture", str(tmp_path / "taken")).status == 1
    assert sorted(os.listdir(tmp_path)) == ["host", "machine.tar.gz", "taken.new"]


def test_another_machine_cannot_be_captured_through_its_capture(
    archive: str, monkeypatch: pytest.MonkeyPatch, elsewhere: Elsewhere
) -> None:
    monkeypatch.undo()
    result = elsewhere(archive, "capture", f"{archive}.2")
    assert result.status == 2
    assert "'vfiotool capture' works only on the running machine" in result.stderr


def test_failed_reads_fail_on_a_capture_too(
    vfiotool: Run, host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: Elsewhere
) -> None:
    """The read of the override blocks, as during a pending unbind; the read of the type fails."""
    override, domain = f"{device_path(SISTER)}/driver_override", "/sys/kernel/iommu_groups/5/type"
    for path in (override, domain):
        host.remove(path)
    os.mkdir(host.tree.path(domain))
    archive = str(tmp_path / "blocked")
    with blocking(host, override):
        assert vfiotool("capture", archive).status == 0
    notes = json.loads(members(archive)[NOTES.lstrip("/")])
    assert notes["unreadable"] == {
        override: errno.ETIMEDOUT,
        f"{device_path(SISTER)}/reset_method": errno.ETIMEDOUT,
        domain: errno.EISDIR,
    }
    monkeypatch.undo()
    (sister,) = elsewhere(archive, "list", SISTER, "--json").document["devices"]
    assert (sister["driver_override"], sister["unavailable"]) == (None, ["driver_override", "reset_methods"])
    (group,) = elsewhere(archive, "groups", "5", "--json").document["groups"]
    assert (group["type"], "type" in group["unavailable"]) == (None, True)


def pack(path: Path, *entries: Entry, notes: bytes = EMPTY) -> str:
    """Create an archive of files by name and content, or of the given members."""
    with tarfile.open(path, "w:gz") as tar:
        for name, what in (*entries, (NOTES.lstrip("/"), notes)):
            if isinstance(what, bytes):
                member = tarfile.TarInfo(name)
                member.size = len(what)
                tar.addfile(member, io.BytesIO(what))
            else:
                what.name = name
                tar.addfile(what)
    return str(path)


def member(kind: bytes, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo()
    made.type, made.linkname = kind, target
    return made


def link(target: str) -> tarfile.TarInfo:
    return member(tarfile.SYMTYPE, target)


HOSTILE: dict[str, list[Entry]] = {
    "a path upwards": [("a/../../x", b"")],
    "a link upwards": [("a/x", link("../../etc/passwd"))],
    "a link that climbs in the middle": [("a/x", link("b/../../../host/etc"))],
    "a link by way of another": [("d/e/deep", b""), ("s", link("d/e")), ("x", link("s/../../y")), ("y", b"")],
    "a link to an open file": [("proc/1/fd/3", link("/dev/vfio/7")), ("sys/x", link("../proc/1/fd/3"))],
    "a link in a circle": [("a", link("b")), ("b", link("a"))],
    "a file below a link": [("d/x", b""), ("l", link("d")), ("l/y", b"")],
    "a file below a file": [("f", b""), ("f/y", b"")],
    "a file twice": [("f", b"1"), ("f", b"2")],
    "an entry of an unknown type": [("x", member(b"V"))],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_archive_is_refused_and_leaves_nothing(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    archive = pack(tmp_path / "archive", *HOSTILE[what])
    assert cli.run(["--sysroot", archive, "list"]) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: cannot use {archive} as a capture: ")
    assert hint.startswith("hint: ")
    assert os.listdir(tmp_path / "tmp") == []
    assert sorted(os.listdir(tmp_path)) == ["archive", "host", "tmp"]


SYSFS: list[Entry] = [
    ("sys/devices/pci0000:00/0000:00:02.0/vendor", b"0x8086\n".ljust(4096, b"\0")),
    ("sys/devices/pci0000:00/0000:00:02.0/device", b"0x10d3\n".ljust(4096, b"\0")),
    ("sys/bus/pci/devices/0000:00:02.0", link("../../../devices/pci0000:00/0000:00:02.0")),
]


def foreign(path: Path, *entries: Entry, pack: Callable[[bytes], bytes] = bytes) -> str:
    """Create a tar file without a capture's notes."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w:") as tar:
        for name, what in entries:
            made = tarfile.TarInfo() if isinstance(what, bytes) else what
            made.name = name
            made.size = len(what) if isinstance(what, bytes) else 0
            tar.addfile(made, io.BytesIO(what) if isinstance(what, bytes) else None)
    path.write_bytes(pack(plain.getvalue()))
    return str(path)


@pytest.mark.parametrize("packer", [bytes, gzip.compress, lzma.compress, bz2.compress])
@pytest.mark.parametrize("top", ["", "./", "/", "host/", "./a/b/"])
def test_a_tar_of_another_tool_is_read(
    tmp_path: Path, elsewhere: Elsewhere, packer: Callable[[bytes], bytes], top: str
) -> None:
    archive = foreign(tmp_path / "archive", *((top + name, what) for name, what in SYSFS), pack=packer)
    result = elsewhere(archive, "list", "--json")
    assert (result.status, result.stderr) == (0, "")
    (device,) = result.document["devices"]
    assert (device["vendor_id"], device["device_id"], device["revision"]) == (0x8086, 0x10D3, None)
    assert {"revision", "class_code", "driver", "iommu_group", "answers"} <= set(device["unavailable"])


@pytest.mark.parametrize("top", ["", "host/"])
def test_an_absolute_link_leads_to_the_root_of_the_machine(
    tmp_path: Path, elsewhere: Elsewhere, top: str
) -> None:
    secret = tmp_path / "vendor"
    secret.write_text("0x1234")
    entries = [
        *SYSFS[:2],
        ("sys/bus/pci/devices/0000:00:02.0", link("/sys/devices/pci0000:00/0000:00:02.0")),
        ("sys/bus/pci/devices/0000:00:03.0", link(str(tmp_path))),
        ("sys/bus/pci/devices/0000:00:04.0", link("/../../..//sys/devices/pci0000:00/0000:00:02.0")),
        ("proc/1/fd/3", link("/dev/vfio/../../etc/passwd")),
    ]
    archive = foreign(tmp_path / "archive", *((top + name, what) for name, what in entries))
    devices = elsewhere(archive, "list", "--json").document["devices"]
    assert [device["vendor_id"] for device in devices] == [0x8086, None, 0x8086]


def test_no_link_of_a_folder_leads_to_this_machine(tmp_path: Path, elsewhere: Elsewhere) -> None:
    folder = tmp_path / "copy" / "sys" / "bus" / "pci" / "devices"
    folder.mkdir(parents=True)
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / "vendor").write_text("0x1234\n")
    (folder / "0000:00:02.0").symlink_to(tmp_path / "device")
    (folder / "0000:00:03.0").symlink_to("0000:00:03.0")
    devices = elsewhere(str(tmp_path / "copy"), "list", "--json").document["devices"]
    assert [device["vendor_id"] for device in devices] == [None, None]
    for verb in (("groups",), ("doctor",), ("show", "0000:00:02.0"), ("config", "0000:00:03.0")):
        result = elsewhere(str(tmp_path / "copy"), *verb, "--json")
        assert "0x1234" not in result.stdout
        assert result.stderr == ""


def test_special_files_are_left_out_with_a_note(tmp_path: Path, elsewhere: Elsewhere) -> None:
    kinds = (tarfile.BLKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
    special: list[Entry] = [(f"dev/x{number}", member(kind)) for number, kind in enumerate(kinds)]
    hard: Entry = ("sys/hard", member(tarfile.LNKTYPE, SYSFS[0][0]))
    archive = foreign(tmp_path / "archive", *SYSFS, *special, hard)
    result = elsewhere(archive, "list", "--json")
    assert len(result.document["devices"]) == 1
    assert result.stderr.startswith(f"note: {archive}: 4 hard links, device nodes and other special files")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a/sys/bus/x", "b/sys/bus/x"], "several machines: unpack it, and name one of a, b"),
        (["etc/passwd", "usr/include/sys/io.h"], "neither /sys nor /proc"),
        (["1/2/3/4/5/sys/bus/x"], "neither /sys nor /proc"),
    ],
)
def test_a_tar_without_one_machine_is_refused(tmp_path: Path, names: list[str], reason: str) -> None:
    archive = foreign(tmp_path / "archive", *((name, b"") for name in names))
    with pytest.raises(VfioToolError, match=reason), unpacked(archive):
        pass


def test_the_proc_of_a_machine_is_enough(tmp_path: Path, elsewhere: Elsewhere) -> None:
    archive = foreign(tmp_path / "archive", ("x/proc/version", b"Linux version 6.8.0 (x)\n"))
    checks = elsewhere(archive, "doctor", "--json").document["checks"]
    assert [check["detail"][:6] for check in checks if check["name"] == "kernel"] == ["6.8.0 "]


def test_xz_of_several_streams_and_of_hostile_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(foreign(tmp_path / "plain", *SYSFS), "rb") as file:
        content = file.read()
    packed = tmp_path / "packed"
    packed.write_bytes(lzma.compress(content[:700]) + bytes(8) + lzma.compress(content[700:]))
    with unpacked(str(packed)) as folder:
        assert os.path.exists(f"{folder}/{SYSFS[0][0]}")
    packed.write_bytes(lzma.compress(content)[:-30])
    with pytest.raises(VfioToolError, match="truncated"), unpacked(str(packed)):
        pass
    monkeypatch.setattr(archives, "_MOST_MEMORY", 1 << 10)
    packed.write_bytes(lzma.compress(content))
    with pytest.raises(VfioToolError, match="emory usage limit"), unpacked(str(packed)):
        pass
    packed.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    with pytest.raises(VfioToolError, match="zstd"), unpacked(str(packed)):
        pass


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(b"no tar" * 200), gzip.compress(bytes(10240)), gzip.compress(b"x")[:-6]],
    ids=["empty", "no gzip", "no tar", "an empty tar", "a truncated gzip"],
)
def test_other_files_are_refused_as_an_archive(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(VfioToolError, match="as a capture: "), unpacked(str(file)):
        pass


def test_an_archive_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(tmp_path / "archive", ("a", bytes(5000)), ("b", b""))
    with unpacked(archive) as folder:
        assert os.path.getsize(f"{folder}/a") == 5000
    assert not os.path.exists(folder)
    monkeypatch.setattr(archives, "MOST_ENTRIES", 2)
    with pytest.raises(VfioToolError, match="more than 2 entries"), unpacked(archive):
        pass
    monkeypatch.setattr(archives, "MOST_BYTES", 5000)
    with pytest.raises(VfioToolError, match="MiB"), unpacked(archive):
        pass


@pytest.mark.parametrize(
    "notes",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"schema": "vfiotool.capture/1"}',
        b'{"schema": "vfiotool.capture/1", "unreadable": {"/a": "x"}, "nodes": {}}',
        b'{"schema": "vfiotool.capture/1", "unreadable": {"/a": -1}, "nodes": {}}',
        b'{"schema": "vfiotool.capture/1", "unreadable": {}, "nodes": {"/a": [1, 2]}}',
        b'{"schema": "vfiotool.capture/1", "unreadable": [], "nodes": {}}',
    ],
)
def test_malformed_notes_are_refused(notes: bytes, tmp_path: Path) -> None:
    archive = pack(tmp_path / "archive", notes=notes)
    with unpacked(archive) as folder, pytest.raises(VfioToolError, match="as a capture: "):
        open_tree(folder)


def test_only_a_directory_with_notes_is_a_captured_tree(tmp_path: Path, host: FakeHost) -> None:
    with unpacked(pack(tmp_path / "archive")) as folder:
        assert isinstance(open_tree(folder), CapturedTree)
    assert isinstance(open_tree(host.root), CopiedTree)
