from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vfiotool.binding.journal import Journal, is_driver_name
from vfiotool.errors import VfioToolError
from vfiotool.host.devices import Device, DeviceState, read_devices
from vfiotool.pci.names import PciNames
from vfiotool.testing import FakeHost

A, VMD = "0000:00:12.0", "10000:e1:00.0"


@pytest.fixture
def device(host: FakeHost) -> Device:
    host.add_device(A, vendor=0x8086, device=0x10D3, driver="e1000e")
    return read_devices(host.tree, [A], PciNames(b""))[0]


@pytest.fixture
def journal(state_dir: str) -> Journal:
    made = Journal(state_dir)
    with made.lock():
        return made


def record_path(journal: Journal) -> Path:
    return Path(journal.state_dir, "journal", f"{A}.json")


def test_a_record_is_found_and_forgotten(journal: Journal, device: Device) -> None:
    assert journal.record(device)
    record = journal.find(A)
    assert record is not None
    assert (record.address, record.state) == (A, DeviceState("e1000e", None))
    assert record.is_of(device)
    assert journal.addresses() == [A]
    journal.forget(A)
    journal.forget(A)
    assert (journal.find(A), journal.addresses()) == (None, [])


def with_fields(device: Device, **fields: object) -> Device:
    return replace(device, **fields)  # type: ignore[arg-type]


def test_the_first_record_of_a_device_is_kept(journal: Journal, device: Device) -> None:
    journal.record(device)
    assert not journal.record(with_fields(device, driver="vfio-pci"))
    record = journal.find(A)
    assert record is not None
    assert record.state.driver == "e1000e"


def test_another_device_at_the_address_has_a_record_of_its_own(journal: Journal, device: Device) -> None:
    journal.record(device)
    other = with_fields(device, device_id=0x1521, driver="igb")
    assert journal.record(other)
    record = journal.find(A)
    assert record is not None
    assert record.is_of(other)
    assert not record.is_of(device)


def test_records_in_the_order_of_addresses(journal: Journal, device: Device) -> None:
    for address in (VMD, "ffff:00:00.0", A):
        journal.record(with_fields(device, address=address))
    Path(journal.state_dir, "journal", "README").write_text("not a record")
    assert journal.addresses() == [A, "ffff:00:00.0", VMD]


def test_only_its_user_can_read_it(state_dir: str, journal: Journal, device: Device) -> None:
    journal.record(device)
    names = ("", "journal", "pending", "lock", f"journal/{A}.json")
    modes = [stat.S_IMODE(os.stat(f"{state_dir}/{name}").st_mode) for name in names]
    assert modes == [0o700, 0o700, 0o700, 0o600, 0o600]


def test_a_record_is_replaced_as_a_whole(
    journal: Journal, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is killed while it writes leaves the former record."""
    journal.record(device)
    before = record_path(journal).read_bytes()

    def die(fd: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        journal.record(with_fields(device, device_id=1))
    assert record_path(journal).read_bytes() == before
    assert journal.addresses() == [A]


def test_a_full_disk_is_an_error_of_ours(
    journal: Journal, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VfioToolError, match="No space left"):
        journal.record(device)
    assert journal.find(A) is None


@pytest.mark.parametrize("name", ["", "journal", "pending", "lock"])
def test_a_symbolic_link_is_not_followed(state_dir: str, tmp_path: Path, name: str) -> None:
    target = tmp_path / "target"
    target.mkdir()
    if name:
        os.mkdir(state_dir, 0o700)
    os.symlink(target, os.path.join(state_dir, name).rstrip("/"))
    with pytest.raises(VfioToolError) as error, Journal(state_dir).lock():
        pass
    assert error.value.hint
    assert os.listdir(target) == []


def test_a_folder_that_others_can_write_is_refused(state_dir: str) -> None:
    os.mkdir(state_dir)
    os.chmod(state_dir, 0o770)  # noqa: S103 - the test is about it
    with pytest.raises(VfioToolError, match="only its user can write"), Journal(state_dir).lock():
        pass


def test_a_folder_of_another_user_is_refused(state_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkdir(state_dir, 0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(state_dir).st_uid + 1)
    with pytest.raises(VfioToolError, match="only its user can write"), Journal(state_dir).lock():
        pass


def test_a_state_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VfioToolError, match="cannot be written"), Journal(str(tmp_path / "file")).lock():
        pass


def _link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


@pytest.mark.parametrize("make", [_link, os.mkfifo, os.mkdir], ids=["link", "fifo", "folder"])
def test_a_record_that_is_no_plain_file(journal: Journal, make: Callable[[Path], None]) -> None:
    make(record_path(journal))
    with pytest.raises(VfioToolError, match="cannot be understood") as error:
        journal.find(A)
    assert error.value.hint


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
        {"driver_override": []},
    ],
    ids=str,
)
def test_a_record_with_a_field_that_is_wrong(
    journal: Journal, device: Device, fields: dict[str, object]
) -> None:
    journal.record(device)
    document = json.loads(record_path(journal).read_text())
    record_path(journal).write_text(json.dumps(document | fields))
    with pytest.raises(VfioToolError, match="cannot be understood"):
        journal.find(A)


GARBAGE = st.binary() | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
).map(lambda document: json.dumps(document).encode())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(GARBAGE)
def test_garbage_is_an_error_of_ours(journal: Journal, content: bytes) -> None:
    record_path(journal).write_bytes(content)
    with pytest.raises(VfioToolError, match="cannot be understood"):
        journal.find(A)


@pytest.mark.parametrize("content", [b"[" * 200_000, b"9" * 10_000], ids=["deep", "long"])
def test_json_that_python_gives_up_on(journal: Journal, content: bytes) -> None:
    record_path(journal).write_bytes(content)
    with pytest.raises(VfioToolError, match="cannot be understood"):
        journal.find(A)


@pytest.mark.parametrize("name", ["vfio-pci", "mlx5_vfio_pci", "8250.mid"])
def test_names_of_drivers(name: str) -> None:
    assert is_driver_name(name)


@pytest.mark.parametrize("name", ["", " ", "a/b", ".", "..", "a\n", "a\0", " a"])
def test_what_is_no_name_of_a_driver(name: str) -> None:
    assert not is_driver_name(name)
