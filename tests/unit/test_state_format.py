"""The format of the state files: files of vfiotool 0.1.0 are recovered, and files are still written so."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from vfiotool.binding.operations import Binding
from vfiotool.binding.ownership import Owner
from vfiotool.errors import BindError
from vfiotool.host.device_state import DeviceState, read_state
from vfiotool.testing import FakeHost

NIC = "0000:00:12.0"
BOOT = "5f4c7c63-9d0c-4b5e-8a43-0b1f6cf8d3a2"

RECORD = (
    '{"schema": "vfiotool.journal/1", "boot": "5f4c7c63-9d0c-4b5e-8a43-0b1f6cf8d3a2", '
    '"address": "0000:00:12.0", "vendor_id": 32902, "device_id": 4307, "driver": "e1000e", '
    '"driver_override": null, "numvfs": null, "autoprobe": null, "power_control": "on", "node": null}'
)
HEADER = (
    '{"schema": "vfiotool.transaction/1", "boot": "5f4c7c63-9d0c-4b5e-8a43-0b1f6cf8d3a2", '
    '"before": [{"address": "0000:00:12.0", "vendor_id": 32902, "device_id": 4307, "driver": "e1000e", '
    '"driver_override": null, "numvfs": null, "autoprobe": null, "power_control": "on", "node": null}], '
    '"after": {"0000:00:12.0": {"driver": "vfio-pci", "driver_override": "vfio-pci", "numvfs": null, '
    '"autoprobe": null, "power_control": null, "node": null}}, '
    '"steps": [["0000:00:12.0", "modprobe", "vfio-pci"], '
    '["0000:00:12.0", "/sys/bus/pci/devices/0000:00:12.0/driver_override", "vfio-pci"], '
    '["0000:00:12.0", "/sys/bus/pci/drivers/e1000e/unbind", "0000:00:12.0"], '
    '["0000:00:12.0", "/sys/bus/pci/drivers/vfio-pci/bind", "0000:00:12.0"], '
    '["0000:00:12.0", "/run/udev/rules.d/90-vfiotool-owner-0000:00:12.0.rules", "0:0"]], '
    '"fresh": ["0000:00:12.0"], "forget": [], "allowed": []}\n'
)
BEGUN = HEADER + '{"step": 0}\n{"step": 1}\n{"step": 2}\n{"step": 3}\n'
RESTORE = (
    '{"schema": "vfiotool.transaction/1", "boot": "5f4c7c63-9d0c-4b5e-8a43-0b1f6cf8d3a2", '
    '"before": [{"address": "0000:00:12.0", "vendor_id": 32902, "device_id": 4307, "driver": "vfio-pci", '
    '"driver_override": "vfio-pci", "numvfs": null, "autoprobe": null, "power_control": "auto", '
    '"node": {"uid": 0, "gid": 0, "mode": 384}}], '
    '"after": {"0000:00:12.0": {"driver": "e1000e", "driver_override": null, "numvfs": null, '
    '"autoprobe": null, "power_control": "on", "node": null}}, '
    '"steps": [["0000:00:12.0", "/sys/bus/pci/devices/0000:00:12.0/driver_override", "\\n"], '
    '["0000:00:12.0", "/sys/bus/pci/drivers/vfio-pci/unbind", "0000:00:12.0"], '
    '["0000:00:12.0", "/sys/bus/pci/drivers/e1000e/bind", "0000:00:12.0"], '
    '["0000:00:12.0", "/sys/bus/pci/devices/0000:00:12.0/power/control", "on"]], '
    '"fresh": [], "forget": ["0000:00:12.0"], "allowed": ["held"]}\n'
)
BLOCKED = RESTORE + '{"step": 0}\n{"step": 1}\n{"blocked": "0000:00:12.0"}\n'
DONE = RESTORE + '{"step": 0}\n{"step": 1}\n{"step": 2}\n{"step": 3}\n{"done": true}\n'

ON_E1000E = DeviceState("e1000e", None, power_control="on")


@pytest.fixture(autouse=True)
def _nic(host: FakeHost) -> None:
    host.put("/proc/sys/kernel/random/boot_id", BOOT)
    host.add_driver("vfio-pci", module_loaded=False)
    host.add_device(NIC, vendor=0x8086, device=0x10D3, driver="e1000e", group=7)


@pytest.fixture
def binding(host: FakeHost, state_dir: str) -> Binding:
    return Binding(machine=host, state_dir=state_dir)


@pytest.fixture
def journal_file(state_dir: str) -> Path:
    return Path(state_dir, "journal", f"{NIC}.json")


@pytest.fixture
def log_file(state_dir: str) -> Path:
    return Path(state_dir, "transactions", f"{NIC}.jsonl")


def put(path: Path, text: str) -> None:
    path.parent.mkdir(0o700, parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)


def leave_without_driver(host: FakeHost, override: str) -> None:
    host.set_driver(NIC, None)
    host.put(f"/sys/bus/pci/devices/{NIC}/driver_override", override)


def test_files_are_written_byte_for_byte(
    host: FakeHost, binding: Binding, journal_file: Path, log_file: Path
) -> None:
    """A bind that fails, and whose rollback fails, leaves both files."""
    for driver in ("vfio-pci", "e1000e"):
        host.fail(f"/sys/bus/pci/drivers/{driver}/bind", errno.EIO)
    with pytest.raises(BindError):
        binding.bind([NIC], owner=Owner(0, 0))
    assert journal_file.read_text() == RECORD
    assert log_file.read_text() == BEGUN


def test_transaction_that_was_cut_off_is_undone(
    host: FakeHost, binding: Binding, journal_file: Path, log_file: Path
) -> None:
    put(journal_file, RECORD)
    put(log_file, BEGUN + '{"ste')
    leave_without_driver(host, "vfio-pci")
    assert [(change.before, change.after) for change in binding.recover().changes] == [(None, "e1000e")]
    assert read_state(host.tree, NIC) == ON_E1000E
    assert not journal_file.exists()
    assert not log_file.exists()


def test_transaction_that_waited_for_a_holder_is_finished(
    host: FakeHost, binding: Binding, journal_file: Path, log_file: Path
) -> None:
    put(journal_file, RECORD)
    put(log_file, BLOCKED)
    leave_without_driver(host, "(null)")
    binding.recover()
    assert read_state(host.tree, NIC) == ON_E1000E
    assert not journal_file.exists()
    assert not log_file.exists()


def test_transaction_whose_steps_are_done_is_ended(
    host: FakeHost, binding: Binding, journal_file: Path, log_file: Path
) -> None:
    put(journal_file, RECORD)
    put(log_file, DONE)
    assert binding.recover().steps == ()
    assert host.writes == []
    assert not journal_file.exists()
    assert not log_file.exists()


def test_record_is_restored(host: FakeHost, binding: Binding, journal_file: Path) -> None:
    put(journal_file, RECORD)
    host.add_driver("vfio-pci")
    host.set_driver(NIC, "vfio-pci")
    assert binding.recorded() == [NIC]
    binding.restore([NIC])
    assert read_state(host.tree, NIC) == ON_E1000E
    assert not journal_file.exists()
