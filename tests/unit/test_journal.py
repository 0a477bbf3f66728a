from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiotool.binding.device_record import DeviceRecord, is_driver_name
from vfiotool.binding.journal import Journal
from vfiotool.errors import VfioToolError
from vfiotool.host.device_state import DeviceState, NodeAccess

A, VMD = "0000:00:12.0", "10000:e1:00.0"
FULL = DeviceState(
    "e1000e", " ", numvfs=4, autoprobe=1, power_control="auto", node=NodeAccess(7, 8, 0o660), d3cold_allowed=0
)


@pytest.fixture
def record() -> DeviceRecord:
    return DeviceRecord(A, 0x8086, 0x10D3, DeviceState("e1000e", None))


@pytest.fixture
def journal(state_dir: str) -> Journal:
    made = Journal(state_dir, boot="this boot")
    made.prepare()
    return made


def record_path(journal: Journal) -> Path:
    return Path(journal.state_dir, "journal", f"{A}.json")


@pytest.mark.parametrize("state", [DeviceState(None, None), FULL], ids=["nothing", "all"])
def test_record_is_found_until_it_is_forgotten(
    journal: Journal, record: DeviceRecord, state: DeviceState
) -> None:
    journal.record(replace(record, state=state))
    assert journal.find(A) == replace(record, state=state)
    assert journal.addresses() == [A]
    journal.forget(A)
    journal.forget(A)
    assert (journal.find(A), journal.addresses()) == (None, [])


def test_record_of_an_earlier_boot_is_ignored(journal: Journal, record: DeviceRecord) -> None:
    journal.record(record)
    assert Journal(journal.state_dir, boot="the next one").find(A) is None


def test_records_are_ordered_by_address(journal: Journal, record: DeviceRecord) -> None:
    for address in (VMD, "ffff:00:00.0", A):
        journal.record(replace(record, address=address))
    Path(journal.state_dir, "journal", "README").write_text("not a record")
    assert journal.addresses() == [A, "ffff:00:00.0", VMD]


def test_state_folder_is_readable_by_its_user_only(
    state_dir: str, journal: Journal, record: DeviceRecord
) -> None:
    journal.record(record)
    names = ("", "journal", "pending", "locks", "transactions", f"journal/{A}.json")
    modes = [stat.S_IMODE(os.stat(f"{state_dir}/{name}").st_mode) for name in names]
    assert modes == [0o700] * 5 + [0o600]


def test_former_record_survives_an_interrupted_write(
    journal: Journal, record: DeviceRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed while it writes leaves the former record."""
    journal.record(record)
    before = record_path(journal).read_bytes()

    def die(fd: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        journal.record(replace(record, device_id=1))
    assert record_path(journal).read_bytes() == before
    assert journal.addresses() == [A]


def test_full_disk_raises_vfiotool_error(
    journal: Journal, record: DeviceRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VfioToolError, match="No space left"):
        journal.record(record)
    assert journal.find(A) is None


@pytest.mark.parametrize("name", ["", "journal", "pending", "locks", "transactions"])
def test_symbolic_link_is_not_followed(state_dir: str, tmp_path: Path, name: str) -> None:
    target = tmp_path / "target"
    target.mkdir()
    if name:
        os.mkdir(state_dir, 0o700)
    os.symlink(target, os.path.join(state_dir, name).rstrip("/"))
    with pytest.raises(VfioToolError) as error:
        Journal(state_dir).prepare()
    assert error.value.hint
    assert os.listdir(target) == []


def test_folder_that_others_can_write_is_refused(state_dir: str) -> None:
    os.mkdir(state_dir)
    os.chmod(state_dir, 0o770)  # noqa: S103 - the test is about it
    with pytest.raises(VfioToolError, match="only its user can write"):
        Journal(state_dir).prepare()


def test_folder_of_another_user_is_refused(state_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkdir(state_dir, 0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(state_dir).st_uid + 1)
    with pytest.raises(VfioToolError, match="only its user can write"):
        Journal(state_dir).prepare()


def test_state_folder_that_cannot_be_created_raises_vfiotool_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VfioToolError, match="cannot be written"):
        Journal(str(tmp_path / "file")).prepare()


def _link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


@pytest.mark.parametrize("make", [_link, os.mkfifo, os.mkdir], ids=["link", "fifo", "folder"])
def test_record_that_is_no_plain_file_is_refused(journal: Journal, make: Callable[[Path], None]) -> None:
    make(record_path(journal))
    with pytest.raises(VfioToolError) as error:
        journal.find(A)
    assert error.value.hint


def test_record_that_others_can_write_is_refused(journal: Journal, record: DeviceRecord) -> None:
    journal.record(record)
    os.chmod(record_path(journal), 0o620)
    with pytest.raises(VfioToolError, match="only its user can write"):
        journal.find(A)


def test_record_of_another_user_is_refused(
    journal: Journal, record: DeviceRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.record(record)
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(record_path(journal)).st_uid + 1)
    with pytest.raises(VfioToolError, match="only its user can write"):
        journal.find(A)


@pytest.mark.parametrize(
    "fields",
    [
        {"schema": "vfiotool.journal/2"},
        {"address": VMD},
        {"vendor_id": -1},
        {"vendor_id": 0x10000},
        {"device_id": "10d3"},
        {"driver": "../../../../etc"},
        {"driver": ".."},
        {"driver": ""},
        {"driver": 7},
        {"driver_override": "vfio-pci\n"},
        {"numvfs": -1},
        {"numvfs": True},
        {"autoprobe": 2},
        {"power_control": "off"},
        {"d3cold_allowed": 2},
        {"node": [0, 0, 0]},
        {"node": {"uid": -1, "gid": 0, "mode": 0}},
        {"node": {"uid": 0, "gid": 0, "mode": 0o4755}},
        {"driver_override": []},
    ],
    ids=str,
)
def test_record_with_an_invalid_field_is_refused(
    journal: Journal, record: DeviceRecord, fields: dict[str, object]
) -> None:
    journal.record(record)
    document = json.loads(record_path(journal).read_text())
    record_path(journal).write_text(json.dumps(document | fields))
    with pytest.raises(VfioToolError, match="cannot be parsed"):
        journal.find(A)


GARBAGE = st.binary() | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
).map(lambda document: json.dumps(document).encode())


@given(GARBAGE)
def test_garbage_raises_vfiotool_error(journal: Journal, content: bytes) -> None:
    record_path(journal).write_bytes(content)
    with pytest.raises(VfioToolError, match="cannot be parsed"):
        journal.find(A)


@pytest.mark.parametrize("content", [b"[" * 200_000, b"9" * 10_000], ids=["deep", "long"])
def test_json_that_python_cannot_parse_raises_vfiotool_error(journal: Journal, content: bytes) -> None:
    record_path(journal).write_bytes(content)
    with pytest.raises(VfioToolError, match="cannot be parsed"):
        journal.find(A)


@pytest.mark.parametrize("name", ["vfio-pci", "mlx5_vfio_pci", "8250.mid"])
def test_valid_driver_names(name: str) -> None:
    assert is_driver_name(name)


@pytest.mark.parametrize("name", ["", " ", "a/b", ".", "..", "a\n", "a\0", " a"])
def test_invalid_driver_names(name: str) -> None:
    assert not is_driver_name(name)
