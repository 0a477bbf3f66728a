"""Any sysfs tree: every reading verb answers, names what it could not read, and claims only what it saw.

The oracle reads the damaged files by itself, as the kernel's documentation describes them
(Documentation/ABI/testing/sysfs-bus-pci), and shares no code with vfiotool.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.strategies import examples
from vfiotool import cli
from vfiotool.cli.settings import Settings
from vfiotool.host.tree import Tree
from vfiotool.pci.names import PciNames
from vfiotool.testing import FakeHost, config_space

PORT, PF, VF, DISK, TAKEN, CARD = (
    "0000:00:01.0", "0000:01:00.0", "0000:01:10.0", "0000:00:13.0", "0000:00:14.0", "10000:e1:00.0"
)  # fmt: skip
ALL = [PORT, DISK, TAKEN, PF, VF, CARD]
MARK = "c4nary"
JSON_VERBS = [
    ("list",),
    ("groups",),
    ("doctor",),
    *(("show", one) for one in ALL),
    *(("config", one) for one in ALL),
]

NUMBERS = {
    "vendor_id": ("vendor", 4),
    "device_id": ("device", 4),
    "subsystem_vendor_id": ("subsystem_vendor", 4),
    "subsystem_device_id": ("subsystem_device", 4),
    "revision": ("revision", 2),
    "class_code": ("class", 6),
}
# A null of these means that the device has no such thing; of all others, that it is unknown.
MAY_BE_ABSENT = {
    "driver", "driver_override", "iommu_group", "physfn", "sriov_totalvfs", "sriov_numvfs", "cdev",
    "interface_name", "subsystem_vendor", "subsystem_device",  # pci.ids may have no name
}  # fmt: skip


@pytest.fixture(autouse=True)
def few_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PciNames, "of_this_machine", lambda: PciNames(b"1234  QEMU\n\t11e8  edu\n"))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A machine with a port, a PF and its VF, a disk, a device on vfio-pci, and a domain of its own."""
    root = tmp_path_factory.mktemp("template")
    host = FakeHost(str(root / "host"), state_dir=str(root / "state"))
    express = config_space(
        vendor=0x1234,
        device=0x11E8,
        revision=3,
        capabilities=[(0x10, 0x40, b"\x02\x00")],
        extended=[(0x0D, 0x100)],
    )
    vf = b"\xff" * 4 + express[4:]
    host.add_device(PORT, class_code=0x060400, group=1, driver="pcieport", config=config_space(header_type=1))
    host.add_device(PF, class_code=0x020000, group=2, driver="igb", bridge=PORT, totalvfs=2, config=express)
    host.add_device(VF, class_code=0x020000, group=3, physfn=PF, config=vf)
    host.add_device(DISK, class_code=0x010802, group=4, driver="nvme", numa_node="1")
    host.add_device(TAKEN, class_code=0x00FF00, group=5, driver="vfio-pci", config=express)
    host.add_device(CARD, class_code=0x030000, group=6, driver="i915", boot_vga="1", config=b"\xff" * 256)
    host.add_class("net", "eth0", f"{host.devices[PF].folder}/net/eth0", operstate="up", flags="0x1003")
    host.add_class("block", "nvme0n1", f"{host.devices[DISK].folder}/nvme/nvme0/nvme0n1", dev="259:0")
    host.add_class("nvme", "nvme0", f"{host.devices[DISK].folder}/nvme/nvme0", state="live")
    host.add_class("drm", "card0", f"{host.devices[CARD].folder}/drm/card0")
    host.add_process(20, "qemu", {3: "/dev/vfio/5"})
    host.put("/proc/swaps", "Filename Type Size Used Priority")
    host.put("/proc/consoles", "ttyS0 -W- (EC p a) 4:64")
    host.put("/proc/version", "Linux version 6.12.0 (x) #1")
    host.put("/proc/cpuinfo", "vendor_id : GenuineIntel")
    host.put("/proc/interrupts", " 0:  9  IR-IO-APIC  2-edge  timer")
    host.put("/proc/self/mountinfo", "1 0 259:0 / /srv rw - ext4 /dev/nvme0n1 rw")
    host.put("/proc/iomem", f"fe000000-fe0fffff : {TAKEN}")
    (root / "outside").mkdir()
    for name, _ in NUMBERS.values():
        (root / "outside" / name).write_text("0xad")
    for name in ("type", "power_state", "operstate"):
        (root / "outside" / name).write_text(MARK)
    return str(root)


Damage = Callable[[str, random.Random], None]


def _content(change: Callable[[bytes, random.Random], bytes]) -> Damage:
    def damage(path: str, rng: random.Random) -> None:
        if os.path.isfile(path) and not os.path.islink(path):
            Path(path).write_bytes(change(Path(path).read_bytes(), rng))

    return damage


def _remove(path: str, rng: random.Random) -> None:
    if os.path.islink(path) or not os.path.isdir(path):
        os.unlink(path)
    else:
        shutil.rmtree(path)


def _become_folder(path: str, rng: random.Random) -> None:
    _remove(path, rng)
    os.mkdir(path)


def _become_file(path: str, rng: random.Random) -> None:
    _remove(path, rng)
    Path(path).write_bytes(rng.choice([b"", b"1\n", b"0x1234\n"]))


def _link(*targets: str) -> Damage:
    def damage(path: str, rng: random.Random) -> None:
        _remove(path, rng)
        os.symlink(rng.choice(targets) or os.path.basename(path), path)

    return damage


def _become_copy(path: str, rng: random.Random) -> None:
    """A tool that follows links leaves folders in their place."""
    if os.path.islink(path) and os.path.isdir(path):
        target = os.path.realpath(path)
        os.unlink(path)
        os.mkdir(path)
        for name in os.listdir(target)[:3]:
            if os.path.isfile(f"{target}/{name}"):
                shutil.copy(f"{target}/{name}", path)


def _forbid(path: str, rng: random.Random) -> None:
    if not os.path.islink(path):
        os.chmod(path, 0)


def _other_base(content: bytes, rng: random.Random) -> bytes:
    return rng.choice(
        [b"4660\n", b"0o17\n", b"0b101\n", b"1234\n", b"0X1234\n", b"0x12_34\n", b"-0x1\n", b" 0x1\n"]
    )


DAMAGES: dict[str, Damage] = {
    "removed": _remove,
    "empty": _content(lambda content, rng: b""),
    "cut off": _content(lambda content, rng: content[: rng.randrange(len(content) + 1)]),
    "another base": _content(_other_base),
    "zeros": _content(lambda content, rng: content[: rng.randrange(len(content) + 1)] + b"\0" + content),
    "filled up by tar": _content(lambda content, rng: content.ljust(4096, b"\0")),
    "no UTF-8": _content(lambda content, rng: content[: rng.randrange(len(content) + 1)] + b"\xff\xfe\n"),
    "escapes": _content(lambda content, rng: b"\x1b[2J" + content),
    "many lines": _content(lambda content, rng: content * rng.randrange(2, 9)),
    "too long": _content(lambda content, rng: content.rstrip() + b"9" * 70_000),
    "other digits": _content(lambda content, rng: "0x\N{ARABIC-INDIC DIGIT ONE}\n".encode()),
    "ones": _content(lambda content, rng: b"\xff" * len(content)),
    "a folder": _become_folder,
    "a file": _become_file,
    "a copy of what was linked": _become_copy,
    "a link to itself": _link(""),
    "a link to nothing": _link("../nowhere", "/no/where"),
    "a link that leads out": _link("OUTSIDE"),
    "forbidden": _forbid,
}


def _is_of_content(kind: str) -> bool:
    return DAMAGES[kind].__qualname__.startswith("_content")


def paths(root: str) -> list[str]:
    """Return all files, links and folders of a machine, sorted."""
    found = [
        os.path.join(folder, one) for folder, folders, names in os.walk(root) for one in (*folders, *names)
    ]
    return sorted(path.removeprefix(root) for path in found)


def damage_inside(root: str, path: str, kind: str, rng: random.Random) -> None:
    """Damage a path below a root, unless an earlier damage leads out of the root on the way to it."""
    full, outside = root + path, f"{os.path.dirname(root)}/outside"
    if os.path.realpath(os.path.dirname(full)) != os.path.dirname(full) or not os.path.lexists(full):
        return
    DAMAGES[kind](full, rng)
    if os.path.islink(full) and os.readlink(full) == "OUTSIDE":
        namesake = f"{outside}/{os.path.basename(path)}"
        os.unlink(full)
        os.symlink(namesake if os.path.exists(namesake) else outside, full)


@contextlib.contextmanager
def copied(template: str, damages: Sequence[tuple[str, str]], seed: int) -> Iterator[str]:
    """Yield the root of a machine with damages, each a path and a kind. The same seed damages alike."""
    root = f"{os.path.realpath(template)}/damaged"
    shutil.copytree(f"{template}/host", root, symlinks=True)
    rng = random.Random(seed)  # noqa: S311 - it breaks files
    try:
        for path, kind in damages:
            damage_inside(root, path, kind, rng)
        yield root
    finally:
        for folder, folders, names in os.walk(root):
            for name in (*folders, *names):
                if not os.path.islink(f"{folder}/{name}"):
                    os.chmod(f"{folder}/{name}", 0o700)
        shutil.rmtree(root)


def run(*args: str) -> tuple[int, str, str]:
    """Run a verb: it answers, or ends with a clear error."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        status = cli.run(list(args))
    said = stdout.getvalue() + stderr.getvalue()
    assert MARK not in said
    assert "this is a bug" not in said, said
    assert "Traceback" not in said, said
    assert "\x1b" not in said
    return status, stdout.getvalue(), stderr.getvalue()


class Oracle:
    """What the files below a root say of a device; a file outside counts as absent."""

    def __init__(self, root: str, address: str) -> None:
        self.root, self.real = root, os.path.realpath(root)
        self.folder = f"{root}/sys/bus/pci/devices/{address}"

    def content(self, name: str) -> bytes | None:
        path = f"{self.folder}/{name}"
        if not f"{os.path.realpath(path)}/".startswith(f"{self.real}/"):
            return None
        try:
            return Path(path).read_bytes()
        except OSError:
            return None

    def number(self, field: str) -> int | None:
        attribute, digits = NUMBERS[field]
        found = re.fullmatch(rb"0x([0-9a-fA-F]{1,%d})\n?\0*" % digits, self.content(attribute) or b"")
        return int(found[1], 16) if found else self.register(field)

    def register(self, field: str) -> int | None:
        config = self.content("config") or b""
        if len(config) < 64 or config[:64] == b"\xff" * 64:
            return None
        start, size = {
            "vendor_id": (0, 2),
            "device_id": (2, 2),
            "revision": (8, 1),
            "class_code": (9, 3),
            "subsystem_vendor_id": (0x2C, 2),
            "subsystem_device_id": (0x2E, 2),
        }[field]
        if start >= 0x2C and config[0x0E] & 0x7F:
            return None
        if start < 4 and config[:2] == b"\xff\xff":
            return None
        return int.from_bytes(config[start : start + size], "little")

    def answers(self) -> bool | None:
        config = self.content("config") or b""
        if len(config) >= 4 and config[:4] != b"\xff" * 4:
            return True
        return None if len(config) < 64 else config[:64] != b"\xff" * 64

    def link(self, name: str) -> str | None:
        if self.content("") is None and not os.path.realpath(self.folder).startswith(f"{self.real}/"):
            return None
        path = f"{self.folder}/{name}"
        return os.path.basename(os.readlink(path)) or None if os.path.islink(path) else None

    def line(self, name: str) -> str | None:
        try:
            text = (self.content(name) or b"").rstrip(b"\0").decode().removesuffix("\n")
        except UnicodeDecodeError:
            return None
        return text if text.isprintable() and text else None


def check_device(device: dict[str, Any], root: str) -> None:
    """Check that the document has what the files say, and nothing else."""
    oracle, unavailable = Oracle(root, device["address"]), device["unavailable"]
    assert {field: device[field] for field in NUMBERS} == {field: oracle.number(field) for field in NUMBERS}
    assert device["answers"] == oracle.answers()
    assert device["power_state"] == oracle.line("power_state")
    assert device["driver"] == oracle.link("driver")
    assert device["physfn"] == oracle.link("physfn")
    override = oracle.line("driver_override")
    assert device["driver_override"] == (None if override == "(null)" else override)
    node = oracle.line("numa_node") or ""
    assert device["numa_node"] == (int(node) if re.fullmatch(r"-?[0-9]{1,10}", node) else None)
    group = oracle.link("iommu_group") or ""
    assert device["iommu_group"] == (int(group) if re.fullmatch("[0-9]{1,10}", group) else None)
    for field, value in device.items():
        assert value is not None or field in unavailable or field in MAY_BE_ABSENT, field
    for field in unavailable:
        assert device[field] in (None, []), field
    for name, field in (("driver", "driver"), ("iommu_group", "iommu_group"), ("physfn", "physfn")):
        is_there = os.path.lexists(f"{oracle.folder}/{name}") and oracle.real in os.path.realpath(
            oracle.folder
        )
        assert not (is_there and device[field] is None) or field in unavailable


def check_show(document: dict[str, Any], root: str) -> None:
    """Check what ``show`` adds to ``list``."""
    check_device(document["device"], root)
    oracle, unavailable = Oracle(root, document["device"]["address"]), document["unavailable"]
    config = oracle.content("config") or b""
    is_whole = len(config) >= 256 and config[:64] != b"\xff" * 64
    assert (document["capabilities"] is not None) <= is_whole
    for field in ("capabilities", "usage"):
        assert document[field] is not None or field in unavailable
    assert document["group"] is not None or document["device"]["iommu_group"] is None
    assert document["usage"] != []  # no copy has the descriptors of all processes
    assert bool(document["link"]) <= any(oracle.content(f"{most}_link_speed") for most in ("current", "max"))
    assert bool(document["bars"]) <= bool(oracle.content("resource"))


def check_groups(document: dict[str, Any], root: str) -> None:
    listed = (
        {
            int(name)
            for name in os.listdir(f"{root}/sys/kernel/iommu_groups")
            if re.fullmatch("[0-9]{1,9}", name)
        }
        if os.path.isdir(f"{root}/sys/kernel/iommu_groups")
        else set()
    )
    linked: dict[int, set[str]] = {}
    folder = f"{root}/sys/bus/pci/devices"
    for address in os.listdir(folder) if os.path.isdir(folder) else ():
        number = Oracle(root, address).link("iommu_group")
        if number and re.fullmatch("[0-9]{1,9}", number):
            linked.setdefault(int(number), set()).add(address)
    assert {group["id"] for group in document["groups"]} <= listed | set(linked)
    for group in document["groups"]:
        assert set(group["devices"]) == linked.get(group["id"], set()) & set(ALL)
        for field in ("type", "viable", "reserved_regions", "why"):
            assert group[field] is not None or field in group["unavailable"]


def look(root: str, state: str, verb: tuple[str, ...]) -> None:
    """Run a verb on a copy, as text and as JSON."""
    options = ("--sysroot", root, "--state-dir", state)
    status, text, error = run(*options, *verb)
    same, written, _ = run(*options, *verb, "--json")
    assert same == status
    if status != 0 and not (verb == ("doctor",) and written):
        assert error.startswith(("error: no PCI device matches", "error: there is no PCI device")), error
        assert not os.path.lexists(f"{root}/sys/bus/pci/devices/{verb[-1]}") or error.startswith("error: no")
        return
    document = json.loads(written)
    if verb[0] == "list":
        for device in document["devices"]:
            check_device(device, root)
        folder = f"{root}/sys/bus/pci/devices"
        expected = [one for one in ALL if os.path.lexists(f"{folder}/{one}")] if os.path.isdir(folder) else []
        if f"{os.path.realpath(folder)}/".startswith(f"{os.path.realpath(root)}/") and os.access(
            folder, os.R_OK
        ):
            assert [device["address"] for device in document["devices"]] == expected
    elif verb[0] == "show":
        check_show(document, root)
        assert "not in use" not in text
    elif verb[0] == "groups":
        check_groups(document, root)
    elif verb[0] == "config":
        oracle = Oracle(root, verb[1])
        assert document["answers"] == oracle.answers()
        assert (document["value"] is None) == ("value" in document["unavailable"])


def damages_of(template: str) -> st.SearchStrategy[list[tuple[str, str]]]:
    of_device = [path for path in paths(f"{template}/host") if "/pci" in path or "iommu_group" in path]
    where = st.sampled_from(of_device) | st.sampled_from(paths(f"{template}/host"))
    return st.lists(st.tuples(where, st.sampled_from(sorted(DAMAGES))), max_size=6)


def try_damage(template: str, data: st.DataObject) -> None:
    damages = data.draw(damages_of(template))
    verbs = data.draw(st.lists(st.sampled_from(JSON_VERBS), min_size=1, max_size=3, unique=True))
    with copied(template, damages, data.draw(st.integers(0, 1 << 16))) as root:
        for verb in (("list",), *verbs):
            look(root, f"{template}/state", verb)


@examples(60)
@given(data=st.data())
def test_any_damage_of_a_copy(template: str, data: st.DataObject) -> None:
    try_damage(template, data)


@pytest.mark.full
@settings(max_examples=150)
@given(data=st.data())
def test_very_many_damages_of_a_copy(template: str, data: st.DataObject) -> None:
    try_damage(template, data)


@pytest.mark.parametrize("kind", DAMAGES)
def test_each_damage_to_each_attribute_of_a_device(template: str, kind: str) -> None:
    """So no kind is left to chance."""
    port = f"/sys/devices/pci0000:00/{PORT}/"
    every = [path for path in paths(f"{template}/host") if path.startswith(port) and path.count("/") == 6]
    assert len(every) > 30
    with copied(template, [(path, kind) for path in every], 1) as root:
        for verb in (("list",), ("groups",), ("show", PF), ("config", VF), ("doctor",)):
            look(root, f"{template}/state", verb)


@pytest.mark.parametrize("attribute", [name for name, _ in NUMBERS.values()])
def test_a_vf_without_its_ids(template: str, attribute: str) -> None:
    with copied(template, [(f"/sys/devices/pci0000:00/{PORT}/{VF}/{attribute}", "removed")], 1) as root:
        look(root, f"{template}/state", ("list",))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", [kind for kind in DAMAGES if not _is_of_content(kind)])
def test_each_damage_to_the_entries_of_devices_and_groups(template: str, kind: str, seed: int) -> None:
    folders = ("/sys/bus/pci/devices/", "/sys/kernel/iommu_groups/")
    every = [path for path in paths(f"{template}/host") if path.startswith(folders) and path.count("/") < 6]
    with copied(template, [(path, kind) for path in every], seed) as root:
        for verb in (("list",), ("groups",), ("show", PF)):
            look(root, f"{template}/state", verb)


class FailingTree(Tree):
    """A machine that runs, on which something happens at one of the reads."""

    def __init__(self, root: str, at: int, happen: Callable[[str], None]) -> None:
        super().__init__(root)
        self._left, self._happen = at, happen

    @property
    def is_live(self) -> bool:
        return True

    def read_bytes(self, path: str) -> bytes:
        self._count(path)
        return super().read_bytes(path)

    def names(self, path: str) -> list[str]:
        self._count(path)
        return super().names(path)

    def find_link(self, path: str) -> str | None:
        self._count(path)
        return super().find_link(path)

    def nonblocking_reads(self, paths: Sequence[str]) -> dict[str, bytes | OSError | None]:
        return {path: self._answer(path) for path in paths}

    def _answer(self, path: str) -> bytes | OSError:
        try:
            return self.read_bytes(path)
        except OSError as error:
            return error

    def _count(self, path: str) -> None:
        self._left -= 1
        if self._left == 0:
            self._happen(path)


def unplug(root: str, address: str) -> None:
    """Remove a device as the kernel does: first its entries, then its folder."""
    entry = f"{root}/sys/bus/pci/devices/{address}"
    folder = os.path.realpath(entry)
    os.unlink(entry)
    for path in paths(root):
        if path.endswith(f"/{address}") and os.path.islink(root + path):
            os.unlink(root + path)
    shutil.rmtree(folder)


def fail(code: int) -> Callable[[str], None]:
    def happen(path: str) -> None:
        raise OSError(code, os.strerror(code), path)

    return happen


def check_nulls(device: dict[str, Any]) -> None:
    for field, value in device.items():
        assert value is not None or field in device["unavailable"] or field in MAY_BE_ABSENT, field


@examples(60)
@given(st.sampled_from(ALL), st.integers(1, 200), st.sampled_from(JSON_VERBS))
def test_a_device_that_vanishes_between_two_reads(
    template: str, address: str, at: int, verb: tuple[str, ...]
) -> None:
    with copied(template, [], 0) as root:
        tree = FailingTree(root, at, lambda path: unplug(root, address))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Settings, "tree", tree)
            status, text, error = run("--state-dir", f"{template}/state", *verb, "--json")
        if verb == ("list",):
            gone = {one for one in ALL if not os.path.lexists(f"{root}/sys/bus/pci/devices/{one}")}
            devices = json.loads(text)["devices"]
            assert {device["address"] for device in devices} >= set(ALL) - gone
            for device in devices:
                check_nulls(device)
                if device["address"] not in gone:
                    check_device(device, root)
        assert status == 0 or verb == ("doctor",) or error.startswith("error: "), error


@examples(80)
@given(
    st.sampled_from([errno.EIO, errno.EACCES, errno.ENODEV, errno.ENOENT, errno.EINVAL]),
    st.integers(1, 200),
    st.sampled_from(JSON_VERBS),
)
def test_a_read_that_fails(template: str, code: int, at: int, verb: tuple[str, ...]) -> None:
    with copied(template, [], 0) as root:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Settings, "tree", FailingTree(root, at, fail(code)))
            status, text, error = run("--state-dir", f"{template}/state", *verb, "--json")
        assert status == 0 or verb == ("doctor",) or error.startswith("error: "), error
        if verb == ("list",) and status == 0:
            for device in json.loads(text)["devices"]:
                check_nulls(device)


@examples(20)
@given(st.sampled_from(ALL), st.integers(1, 2000))
def test_a_capture_of_a_machine_that_loses_a_device(template: str, address: str, at: int) -> None:
    with copied(template, [], 0) as root:
        read = Tree.read_bytes
        left = [at]

        def read_and_unplug(tree: Tree, path: str) -> bytes:
            left[0] -= 1
            if left[0] == 0:
                unplug(root, address)
            return read(tree, path)

        archive = f"{template}/archive"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Settings, "tree", Tree(root))
            patch.setattr(Tree, "is_live", True)
            patch.setattr(Tree, "read_bytes", read_and_unplug)
            status, _, error = run("--state-dir", f"{template}/state", "capture", archive)
        assert status == 0, error
        status, text, error = run("--sysroot", archive, "--state-dir", f"{template}/state", "list", "--json")
        os.unlink(archive)
        assert status == 0, error
        for device in json.loads(text)["devices"]:
            check_nulls(device)
