"""Any input from outside the program leads to a result or a clear error, within a bounded time."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.blocking_files import release_readers
from tests.support.strategies import (
    Odd,
    addresses_like,
    aliases,
    config_spaces,
    contents,
    examples,
    link_targets,
    odd_files,
    pci_ids,
    selectors,
    tricky_text,
)
from vfiotool import cli
from vfiotool.binding.journal import Journal
from vfiotool.errors import DeviceNotFoundError, SelectorError, VfioToolError
from vfiotool.host import bounded_reads, pending_unbinds
from vfiotool.host.attributes import addresses
from vfiotool.host.devices import PciDevice, read_devices
from vfiotool.host.selectors import select
from vfiotool.host.tree import Tree
from vfiotool.host.variant_drivers import best_vfio_driver
from vfiotool.pci.acs import weakness
from vfiotool.pci.address import is_address, parse_address, sort_key
from vfiotool.pci.config_space import EXTENDED_SIZE, HEADER_SIZE, capabilities
from vfiotool.pci.names import PciNames
from vfiotool.testing import FakeHost, config_space

BRIDGE, NIC, FUNCTION, NVME = "0000:00:01.0", "0000:01:00.0", "0000:01:00.1", "0000:00:13.0"
MARK = "c4nary"


@given(addresses_like | tricky_text)
def test_an_address_is_the_kernels_or_none(text: str) -> None:
    try:
        address = parse_address(text)
    except SelectorError:
        assert not is_address(text)
        return
    assert is_address(text)
    assert parse_address(address) == address
    assert "/" not in address
    assert address.split(":")[1:] == sort_key(address)[1].split(":")


@given(config_spaces() | st.binary(max_size=300), st.booleans())
def test_configuration_space(config: bytes, multifunction: bool) -> None:
    found = capabilities(config)
    assert len({one.offset for one in found}) == len(found)
    assert all(HEADER_SIZE <= one.offset < min(len(config), EXTENDED_SIZE) for one in found)
    flaw = weakness(config, multifunction=multifunction)
    assert flaw is None or flaw.startswith(("without ACS", "whose ACS has "))


@given(pci_ids, st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFF))
def test_names_of_any_list(text: bytes, number: int, class_code: int) -> None:
    names = PciNames(text)
    for name in (names.vendor(number), names.device(0x8086, number), names.pci_class(class_code)):
        assert "\n" not in name


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> FakeHost:
    """A machine with one of everything, and beside it what no one may read."""
    root = tmp_path_factory.mktemp("properties")
    host = FakeHost(str(root / "host"), state_dir=str(root / "state"))
    host.add_device(BRIDGE, class_code=0x060400, group=1, driver="pcieport")
    port = config_space(capabilities=[(0x10, 0x40, b"\x00\x00")], extended=[(0x0D, 0x100)])
    for address in (NIC, FUNCTION):
        host.add_device(address, class_code=0x020000, group=1, driver="vfio-pci", bridge=BRIDGE, config=port)
    host.add_device(NVME, class_code=0x010802, group=2, driver="nvme", totalvfs=4)
    host.add_class("net", "eth0", f"{host.devices[NIC].folder}/net/eth0", operstate="up")
    host.add_class("block", "nvme0n1", f"{host.devices[NVME].folder}/nvme/nvme0/nvme0n1", dev="259:0")
    host.put("/run/udev/data/b259:0", "E:ID_FS_USAGE=filesystem\nE:ID_FS_TYPE=ext4")
    host.add_class("nvme", "nvme0", f"{host.devices[NVME].folder}/nvme/nvme0", state="live")
    host.mount("/dev/nvme0n1", "/srv")
    host.add_process(20, "qemu", {3: "/dev/vfio/1"})
    for folder in ("/CANARY", "/sys/CANARY", "/sys/bus/CANARY", "/sys/class/CANARY", "/proc/CANARY"):
        for name in (
            "vendor",
            "class",
            "driver",
            "type",
            "comm",
            "stat",
            "operstate",
            "state",
            "modules.alias",
        ):
            host.put(f"{folder}/{name}", MARK)
    return host


@pytest.fixture(autouse=True)
def few_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """To search the machine's own list again and again takes longer than all else."""
    monkeypatch.setattr(PciNames, "of_this_machine", lambda: PciNames(b"1234  QEMU\n\t11e8  edu\n"))


def files(host: FakeHost) -> list[str]:
    """Return all that can be read of the machine, but what is there to be found by mistake."""
    root = host.tree.root
    found = [os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names]
    return sorted(path.removeprefix(root) for path in found if "CANARY" not in path)


@contextlib.contextmanager
def changed(tree: Tree, changes: Mapping[str, bytes | Odd]) -> Iterator[None]:
    """Have something else in the place of files and links, and in the end all as it was."""
    saved: dict[str, bytes | str] = {}
    for path in changes:
        full = tree.path(path)
        saved[full] = os.readlink(full) if os.path.islink(full) else Path(full).read_bytes()
        os.unlink(full)
    try:
        for path, content in changes.items():
            place(tree.path(path), content)
        yield
    finally:
        for full, former in saved.items():
            if os.path.exists(full) and stat.S_ISFIFO(os.stat(full).st_mode):
                release_readers(full)
            if os.path.isdir(full) and not os.path.islink(full):
                shutil.rmtree(full)
            elif os.path.lexists(full):
                os.unlink(full)
            place(full, former)


def place(full: str, content: bytes | str | Odd) -> None:
    if isinstance(content, str):
        os.symlink(content, full)
    elif isinstance(content, bytes):
        Path(full).write_bytes(content)
    elif content is Odd.FOLDER:
        os.mkdir(full)
    elif content is Odd.LOOP:
        os.symlink(os.path.basename(full), full)
    elif content is Odd.FIFO:
        os.mkfifo(full)


def look(host: FakeHost, *words: str, works: bool = False) -> str:
    """Run a reading verb on the machine: it prints a document or a clear error, and no secret."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        status = cli.run(["--sysroot", host.tree.root, "--state-dir", host.state_dir, *words])
    said = stdout.getvalue() + stderr.getvalue()
    assert MARK not in said
    assert "did not expect" not in said, said
    assert "Traceback" not in said
    assert "\x1b" not in said
    if status == 0 and "--json" in words:
        json.loads(stdout.getvalue())
    else:
        assert status == 0 or (not works and stderr.getvalue().startswith("error: ")), said
    return said


def look_at_all(host: FakeHost) -> None:
    look(host, "list")
    look(host, "groups", "--json")
    look(host, "show", NIC, "--json")


@examples(25)
@given(data=st.data())
def test_anything_in_the_place_of_files(
    machine: FakeHost, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.setattr(bounded_reads, "STALL_SECONDS", 0.02)
    plain = [path for path in files(machine) if not os.path.islink(machine.tree.path(path))]
    changes = data.draw(st.dictionaries(st.sampled_from(plain), odd_files, min_size=1, max_size=6))
    with changed(machine.tree, changes):
        look_at_all(machine)


@examples(25)
@given(dev=tricky_text, database=contents)
@example(dev="\0", database=b"")
@example(dev="9" * 5000, database=b"")
def test_what_udev_says_of_a_disk(machine: FakeHost, dev: str, database: bytes) -> None:
    paths = {
        f"{machine.devices[NVME].folder}/nvme/nvme0/nvme0n1/dev": dev.encode(),
        "/run/udev/data/b259:0": b"E:ID_FS_USAGE=" + database,
    }
    with changed(machine.tree, paths):
        look(machine, "show", NVME, works=True)
    with changed(machine.tree, {"/run/udev/data/b259:0": b"E:ID_FS_TYPE=" + database}):
        look(machine, "show", NVME, works=True)


@examples(25)
@given(data=st.data())
def test_links_to_anywhere(machine: FakeHost, data: st.DataObject) -> None:
    links = [path for path in files(machine) if os.path.islink(machine.tree.path(path))]
    for folder, names, _ in os.walk(machine.tree.root):
        links += [
            os.path.join(folder, name).removeprefix(machine.tree.root)
            for name in names
            if os.path.islink(os.path.join(folder, name))
        ]
    path, target = data.draw(st.sampled_from(sorted(links))), data.draw(link_targets)
    full = machine.tree.path(path)
    former = os.readlink(full)
    os.unlink(full)
    try:
        os.symlink(target, full)
        look_at_all(machine)
    finally:
        os.unlink(full)
        os.symlink(former, full)


def test_brackets_of_a_name_are_shown(machine: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """pci.ids has such names: to a renderer of markup they are commands."""
    names = PciNames(b"1234  Vendor [/x]\n\t11e8  Port [ext gfx]\n")
    monkeypatch.setattr(PciNames, "of_this_machine", lambda: names)
    for words in (["list"], ["groups"], ["show", NIC]):
        assert "Vendor [/x] Port [ext gfx]" in look(machine, *words, works=True)


@examples(15)
@example(name="[/x]")
@example(name="\x1b[2J")
@given(name=tricky_text | st.text(max_size=20))
def test_names_in_folders(machine: FakeHost, name: str) -> None:
    """A device, a group, an interface, a pending note, a process of any name."""
    folders = (
        "/sys/bus/pci/devices",
        "/sys/kernel/iommu_groups",
        "/sys/class/net",
        "/sys/class/block",
        "/proc",
    )
    made = []
    for folder in folders:
        full = os.fsencode(machine.tree.path(folder)) + b"/" + name.encode("utf-8", "surrogatepass")
        with contextlib.suppress(OSError, ValueError):
            os.mkdir(full)
            made.append(full)
    try:
        look_at_all(machine)
    finally:
        for full in made:
            os.rmdir(full)


@examples(40)
@given(config_spaces())
def test_configuration_space_of_a_bridge(machine: FakeHost, config: bytes) -> None:
    with changed(machine.tree, {f"{machine.devices[BRIDGE].folder}/config": config}):
        look(machine, "show", BRIDGE)


@examples(150)
@given(selectors)
def test_selectors_name_what_is_there(machine: FakeHost, selector: str) -> None:
    with contextlib.suppress(SelectorError, DeviceNotFoundError):
        found = select(machine.tree, [selector])
        assert found
        assert set(found) <= set(addresses(machine.tree))


@examples(60)
@given(data=st.data())
def test_the_alias_that_serves_best(machine: FakeHost, data: st.DataObject) -> None:
    """Against all lines that match as a shell's pattern, the one with the fewest stars."""
    device: PciDevice = read_devices(machine.tree, [NIC], PciNames(b""))[0]
    fields = ("00001234", "000011E8", "00000000", "00000000", "02", "00", "00")
    name = "alias vfio_pci:v{}d{}sv{}sd{}bc{}sc{}i{}".format(*fields)
    lines = data.draw(
        st.lists(aliases(fields=fields) | tricky_text.filter(lambda t: len(t) < 99), max_size=12)
    )
    machine.put(f"/lib/modules/{machine.kernel}/modules.alias", "\n".join(lines).encode("utf-8", "replace"))
    split = [line.split(" ") for line in "\n".join(lines).splitlines()]
    matching = [
        (words[1].count("*"), at, words[2])
        for at, words in enumerate(split)
        if len(words) == 3 and fnmatchcase(name, " ".join(words[:2])) and words[2].isidentifier()
    ]
    best = min(matching, default=(7, 0, "vfio_pci"))
    expected = "vfio-pci" if best[0] == 7 or best[2] == "vfio_pci" else best[2]
    assert best_vfio_driver(machine.tree, device) == expected


@examples(80)
@given(st.dictionaries(st.sampled_from([NIC, NVME, "x", "0000:00:00.0"]), contents, max_size=3))
def test_pending_notes(machine: FakeHost, notes: Mapping[str, bytes]) -> None:
    folder = pending_unbinds.pending_dir(machine.state_dir)
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in notes.items():
        os.makedirs(machine.tree.path(folder), exist_ok=True)
        Path(machine.tree.path(f"{folder}/{name}")).write_bytes(content)
    assert pending_unbinds.blocked_addresses(machine.tree, machine.state_dir) == frozenset()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | tricky_text.map(lambda t: t.encode().decode()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    made = Journal(str(tmp_path / "state"), boot="boot")
    made.prepare()
    return made


@examples(100)
@given(content=contents | json_values.map(lambda value: json.dumps(value).encode()))
def test_journals_of_a_hostile_writer(journal: Journal, content: bytes) -> None:
    path = Path(journal.state_dir) / "journal" / f"{NIC}.json"
    path.write_bytes(content)
    path.chmod(0o600)
    assert journal.addresses() == [NIC]
    with contextlib.suppress(VfioToolError):
        assert journal.find(NIC) is None
