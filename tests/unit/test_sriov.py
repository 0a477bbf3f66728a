"""The verb sriov in cases that the lab's PF lacks: other layouts, VFs in use, errors of other hardware."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.conftest import Run
from vfiotool.binding import machine
from vfiotool.binding.machine import LiveMachine, no_report
from vfiotool.binding.operations import Binding
from vfiotool.binding.plan import Plan
from vfiotool.binding.sriov import vf_addresses
from vfiotool.errors import BindError, BlockedError, UnsupportedError
from vfiotool.host.attributes import DRIVERS, device_path
from vfiotool.host.pending_unbinds import pending_dir, process_start
from vfiotool.host.refusals import PlanRefusedError
from vfiotool.testing import FakeHost

PORT, PF = "0000:00:02.0", "0000:01:00.0"
VFS = tuple(f"0000:01:00.{number}" for number in range(1, 5))
NUMVFS, AUTOPROBE = (f"{device_path(PF)}/sriov_{name}" for name in ("numvfs", "drivers_autoprobe"))
BIND = f"{DRIVERS}/vfio-pci/bind"


def plug(host: FakeHost) -> FakeHost:
    """Add a PF to a machine, with a driver that serves VFs too."""
    host.vf_drivers.add("nvme")
    host.add_driver("vfio-pci")
    host.add_device(PORT, class_code=0x060400, driver="pcieport", group=1)
    host.add_device(PF, vendor=0x1B36, device=0x10, driver="nvme", bridge=PORT, group=2, totalvfs=4)
    return host


@pytest.fixture(autouse=True)
def pf(host: FakeHost) -> FakeHost:
    return plug(host)


@pytest.fixture
def binding(host: FakeHost, state_dir: str) -> Binding:
    return Binding(machine=host, state_dir=state_dir)


def drivers(host: FakeHost) -> list[str | None]:
    """Return the drivers of the VFs that exist."""
    return [host.driver(vf) for vf in VFS if host.tree.exists(device_path(vf))]


# The addresses of VFs


@pytest.mark.parametrize(
    ("pf", "offset", "stride", "vfs"),
    [
        ("0000:03:00.0", 16, 1, ["0000:03:02.0", "0000:03:02.1", "0000:03:02.2"]),
        ("0000:03:00.1", 128, 2, ["0000:03:10.1", "0000:03:10.3", "0000:03:10.5"]),
        ("0000:03:00.0", 255, 1, ["0000:03:1f.7", "0000:04:00.0", "0000:04:00.1"]),
        ("0000:03:00.0", 0x180, 0x100, ["0000:04:10.0", "0000:05:10.0", "0000:06:10.0"]),
        ("10000:e1:00.0", 8, 4, ["10000:e1:01.0", "10000:e1:01.4", "10000:e1:02.0"]),
    ],
)
def test_vf_addresses_follow_offset_and_stride(
    host: FakeHost, pf: str, offset: int, stride: int, vfs: list[str]
) -> None:
    host.add_device(pf, sriov_offset=str(offset), sriov_stride=str(stride))
    assert list(vf_addresses(host.tree, pf, 3)) == vfs
    assert list(vf_addresses(host.tree, pf, 1)) == vfs[:1]


@pytest.mark.parametrize(
    ("pf", "offset", "stride"),
    [
        ("0000:03:00.0", "0", "1"),
        ("0000:03:00.0", "1", "0"),
        ("0000:ff:00.0", "254", "1"),
        ("0000:03:00.0", "99999999999", "1"),
        ("0000:03:00.0", "-1", "1"),
        ("0000:03:00.0", "x", "1"),
        ("0000:03:00.0", "1", ""),
    ],
)
def test_vfs_without_valid_addresses_are_unsupported(
    host: FakeHost, pf: str, offset: str, stride: str
) -> None:
    host.add_device(pf, sriov_offset=offset, sriov_stride=stride)
    with pytest.raises(UnsupportedError, match=pf):
        vf_addresses(host.tree, pf, 3)


def test_pf_without_offset_and_stride_is_unsupported(host: FakeHost, binding: Binding) -> None:
    host.remove(f"{device_path(PF)}/sriov_stride")
    with pytest.raises(UnsupportedError, match="the device has no sriov_stride"):
        binding.sriov(PF, 2)


def test_vf_at_an_unexpected_address_is_an_error(
    host: FakeHost, binding: Binding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vfiotool.binding.sriov.vf_addresses", lambda *_: ("0000:01:10.0",))
    with pytest.raises(BindError, match="no VF is at 0000:01:10") as failed:
        binding.sriov(PF, 1, bind=True)
    assert failed.value.state == "all devices are as they were before"
    assert (drivers(host), host.tree.read(AUTOPROBE), binding.recorded()) == ([], "1", [])


# VFs that a host driver takes


def test_vfs_are_on_a_host_driver_unless_they_are_to_be_bound(host: FakeHost, binding: Binding) -> None:
    plan = binding.sriov(PF, 2)
    assert drivers(host) == ["nvme", "nvme"]
    assert [(one.address, one.after) for one in plan.changes] == [(vf, "nvme") for vf in VFS[:2]]
    binding.sriov(PF, 3, bind=True)
    assert drivers(host) == ["vfio-pci"] * 3
    assert ("bind", VFS[0]) not in [(path.rpartition("nvme/")[2], value) for path, value in host.writes]


def test_autoprobe_that_is_off_stays_off(host: FakeHost, binding: Binding) -> None:
    host.put(AUTOPROBE, "0")
    binding.sriov(PF, 2)
    assert drivers(host) == [None, None]
    binding.sriov(PF, 1, bind=True)
    assert (drivers(host), host.tree.read(AUTOPROBE)) == (["vfio-pci"], "0")
    assert AUTOPROBE not in [path for path, _ in host.writes]


def test_rollback_restores_each_vfs_driver(host: FakeHost, binding: Binding) -> None:
    binding.sriov(PF, 3)
    binding.bind([VFS[1]])
    binding.unbind([VFS[2]])
    recorded = binding.recorded()
    host.fail(f"{device_path(VFS[3])}/driver_override", errno.ENOMEM)
    with pytest.raises(BindError, match="all devices are as they were before"):
        binding.sriov(PF, 4, bind=True)
    assert drivers(host) == ["nvme", "vfio-pci", None]
    assert host.tree.read(f"{device_path(VFS[1])}/driver_override") == "vfio-pci"
    assert (host.tree.read(AUTOPROBE), binding.recorded()) == ("1", recorded)


def test_records_of_removed_vfs_are_removed(host: FakeHost, binding: Binding) -> None:
    binding.sriov(PF, 2)
    binding.bind(VFS[:2])
    assert binding.recorded() == [PF, *VFS[:2]]
    binding.sriov(PF, 1)
    assert (binding.recorded(), drivers(host)) == ([PF], ["nvme"])


def test_vf_that_the_host_uses_is_not_removed(host: FakeHost, binding: Binding) -> None:
    binding.sriov(PF, 2)
    host.add_class("block", "nvme7n1", f"{device_path(VFS[1])}/nvme/nvme7/nvme7n1", dev="259:7")
    host.mount("/dev/nvme7n1", "/srv")
    writes = list(host.writes)
    runs: list[Callable[[], Plan]] = [
        lambda: binding.sriov(PF, 0),
        lambda: binding.sriov(PF, 4),
        lambda: binding.restore([PF]),
    ]
    for run in runs:
        with pytest.raises(PlanRefusedError, match=f"{VFS[1]}: its disk nvme7n1") as refused:
            run()
        assert {one.flag for one in refused.value.refusals} == {"--allow-mounted"}
    assert host.writes == writes


def test_vfs_in_the_pfs_group_give_a_warning(
    host: FakeHost, binding: Binding, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = host.add_device

    def add_in_one_group(address: str, **options: object) -> None:
        add(address, **(options | {"group": 2}))  # type: ignore[arg-type]

    monkeypatch.setattr(host, "add_device", add_in_one_group)
    plan = binding.sriov(PF, 1, bind=True)
    assert [warning.partition(":")[0] for warning in plan.warnings] == ["group 2 is not viable while 0000"]


def test_vfs_that_could_join_a_group_in_use_are_refused_on_old_kernels(
    old_host: FakeHost, state_dir: str
) -> None:
    plug(old_host)
    other = "0000:01:01.0"
    old_host.add_device(other, driver="vfio-pci", bridge=PORT, group=2)
    old_host.block(other)
    binding = Binding(machine=old_host, state_dir=state_dir)
    with pytest.raises(PlanRefusedError, match="kernel BUG") as refused:
        binding.sriov(PF, 1)
    assert [(one.rule, one.flag) for one in refused.value.refusals] == [("live-group", None)]
    binding.sriov(PF, 1, bind=True)
    binding.sriov(PF, 0)
    old_host.put(AUTOPROBE, "0")
    binding.sriov(PF, 1)


# Errors of the kernel


@pytest.mark.parametrize(
    ("code", "cause", "hint"),
    [
        (errno.ENOENT, "the PF's driver cannot create VFs", "bind the PF to a driver that can create VFs"),
        (errno.ENOMEM, "too few addresses or bus numbers", "pci=realloc"),
        (errno.ENOSPC, "the PF's driver does not support that many VFs", "create fewer VFs"),
        (errno.EINVAL, "the PF's driver refused that number of VFs", "SR-IOV disabled"),
        (errno.EBUSY, "the PF already has VFs", "vfiotool list"),
        (errno.EIO, "capability is inconsistent", "firmware"),
    ],
)
def test_errno_of_the_kernel_is_explained(
    host: FakeHost, binding: Binding, code: int, cause: str, hint: str
) -> None:
    host.fail(NUMVFS, code)
    with pytest.raises(BindError, match=cause) as failed:
        binding.sriov(PF, 2, bind=True)
    assert hint in failed.value.hint
    assert (host.tree.read(AUTOPROBE), binding.recorded()) == ("1", [])


def test_timeout_of_vf_creation_names_no_holder(
    host: FakeHost, binding: Binding, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = host.write

    def slow(path: str, value: str, *, address: str, timeout: float, **_: object) -> None:
        if (path, value) == (NUMVFS, "2"):
            assert timeout == 30 + 2
            raise TimeoutError(path)
        write(path, value, address=address, timeout=timeout)

    monkeypatch.setattr(host, "write", slow)
    host.add_device("0000:00:10.0", driver="vfio-pci", group=9)
    host.block("0000:00:10.0")  # which has nothing to do with it
    with pytest.raises(
        BlockedError, match="did not create 2 VFs within 32 s; 0 of 2 VFs are there"
    ) as slowly:
        binding.sriov(PF, 2)
    assert (slowly.value.holders, "process" in slowly.value.hint) == ((), False)
    assert "longer with '--timeout S', then run 'vfiotool recover'" in slowly.value.hint


class SlowPf:
    """Writes to a PF's number of VFs outlast their time, until ``finish``."""

    def __init__(self, host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
        self._host, self._write, self.is_slow = host, host.write, True
        self._pending: list[str] = []
        self.timeouts: list[float] = []
        self.lost_links: list[str] = []
        monkeypatch.setattr(host, "write", self.write)
        monkeypatch.setattr(host, "await_writer", self.await_writer)

    def write(self, path: str, value: str, *, address: str, timeout: float, **_: object) -> None:
        if path != NUMVFS or not self.is_slow:
            return self._write(path, value, address=address, timeout=timeout)
        self.timeouts.append(timeout)
        self._pending.append(value)
        for link in self.lost_links:
            self._host.remove(f"{device_path(PF)}/{link}")
        self._host.add_process(WRITER, "vfiotool")
        note = f"{WRITER} {process_start(self._host.tree, WRITER)}"
        self._host.put(f"{pending_dir(self._host.state_dir)}/{PF}", note)
        raise TimeoutError(path)

    def await_writer(self, address: str, timeout: float) -> bool:
        if address == PF:
            self.timeouts.append(timeout)
        return address != PF or not self._pending

    def finish(self, code: int = 0) -> None:
        """Let the pending write return, with or without an error."""
        self._host.end_process(WRITER)
        self.is_slow = False
        value = self._pending.pop()
        if not code:
            self._write(NUMVFS, value, address=PF, timeout=1)


WRITER = 77_000


@pytest.fixture
def slow_pf(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> SlowPf:
    return SlowPf(host, monkeypatch)


@pytest.mark.parametrize("code", [0, errno.EIO], ids=["the write succeeds", "the write fails"])
@pytest.mark.parametrize(("bind", "after"), [(True, "vfio-pci"), (False, "nvme")])
@pytest.mark.parametrize("verb", ["recover", "sriov"])
def test_vfs_that_came_late_are_kept(
    host: FakeHost, state_dir: str, slow_pf: SlowPf, code: int, bind: bool, after: str, verb: str
) -> None:
    """The time is over, the kernel goes on: what the user asked for is finished, not undone."""
    with pytest.raises(BlockedError):
        Binding(machine=host, state_dir=state_dir).sriov(PF, 3, bind=bind)
    with pytest.raises(BlockedError, match=f"nvme has not finished creating or removing VFs of {PF}"):
        Binding(machine=host, state_dir=state_dir).recover()
    assert slow_pf.timeouts == [33, 33]
    slow_pf.finish(code)
    if verb == "recover":
        Binding(machine=host, state_dir=state_dir).recover()
    else:
        Binding(machine=host, state_dir=state_dir).sriov(PF, 3, bind=bind)
    assert (drivers(host), host.tree.read(AUTOPROBE)) == ([after] * 3, "1")
    assert os.listdir(f"{state_dir}/transactions") == []
    Binding(machine=host, state_dir=state_dir).restore([PF])
    assert (drivers(host), Binding(machine=host, state_dir=state_dir).recorded()) == ([], [])


def test_another_number_that_comes_late_is_finished(host: FakeHost, state_dir: str, slow_pf: SlowPf) -> None:
    """Also if it is the removal of the former VFs that is slow: they do not get their drivers back."""
    slow_pf.is_slow = False
    Binding(machine=host, state_dir=state_dir).sriov(PF, 2)
    slow_pf.is_slow = True
    with pytest.raises(BlockedError, match="did not remove its VFs within 32 s; 2 VFs are still there"):
        Binding(machine=host, state_dir=state_dir).sriov(PF, 4)
    assert drivers(host) == [None, None]
    slow_pf.finish()
    Binding(machine=host, state_dir=state_dir).recover()
    assert drivers(host) == ["nvme"] * 4
    assert os.listdir(f"{state_dir}/transactions") == []


def test_timeout_names_the_time_that_was_given(host: FakeHost, state_dir: str, slow_pf: SlowPf) -> None:
    """A part of the VFs may be gone when the time is over; they had counted for that time."""
    slow_pf.is_slow = False
    Binding(machine=host, state_dir=state_dir).sriov(PF, 4)
    slow_pf.is_slow, slow_pf.lost_links = True, ["virtfn3", "virtfn2"]
    with pytest.raises(BlockedError, match="did not remove its VFs within 34 s; 2 VFs are still there"):
        Binding(machine=host, state_dir=state_dir).sriov(PF, 0)
    assert slow_pf.timeouts == [34]


def test_removal_that_ends_late_is_finished(host: FakeHost, state_dir: str, slow_pf: SlowPf) -> None:
    slow_pf.is_slow = False
    Binding(machine=host, state_dir=state_dir).sriov(PF, 4)
    slow_pf.is_slow = True
    with pytest.raises(BlockedError, match="did not remove its VFs within 34 s"):
        Binding(machine=host, state_dir=state_dir).sriov(PF, 0)
    slow_pf.finish()
    Binding(machine=host, state_dir=state_dir).recover()
    assert drivers(host) == []
    assert os.listdir(f"{state_dir}/transactions") == []


def test_rollback_that_ends_late_is_not_turned_around(
    host: FakeHost, state_dir: str, slow_pf: SlowPf
) -> None:
    """A bind of a VF fails, and the removal of the new VFs is slow: recover removes them, and no more."""
    slow_pf.is_slow = False
    host.fail(f"{device_path(VFS[1])}/driver_override", errno.ENOMEM)

    def slow_removal(action: str, address: str) -> None:
        slow_pf.is_slow = True

    host.emit, emit = slow_removal, host.emit  # type: ignore[method-assign]
    with pytest.raises(BindError, match="could not be rolled back"):
        Binding(machine=host, state_dir=state_dir).sriov(PF, 2, bind=True)
    host.emit = emit  # type: ignore[method-assign]
    slow_pf.finish()
    Binding(machine=host, state_dir=state_dir).recover()
    assert (drivers(host), host.tree.read(AUTOPROBE)) == ([], "1")
    assert os.listdir(f"{state_dir}/transactions") == []


def test_progress_counts_the_vfs(host: FakeHost, state_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write, lines = host.write, list[str]()

    def waiting_write(
        path: str, value: str, *, address: str, timeout: float, waiting: Callable[[], None] = no_report
    ) -> None:
        waiting()
        write(path, value, address=address, timeout=timeout)
        waiting()

    monkeypatch.setattr(host, "write", waiting_write)
    binding = Binding(machine=host, state_dir=state_dir, progress=lines.append)
    binding.sriov(PF, 3)
    assert lines == [f"{PF}: 0 of 3 VFs are there", f"{PF}: 3 of 3 VFs are there", ""]
    lines.clear()
    binding.sriov(PF, 0)
    assert lines == [f"{PF}: 3 VFs are still there", f"{PF}: 0 VFs are still there", ""]


@pytest.mark.parametrize(("is_terminal", "shown"), [(True, "\r\x1b[K"), (False, "")])
def test_progress_is_shown_on_a_terminal_alone(
    vfiotool: Run, monkeypatch: pytest.MonkeyPatch, is_terminal: bool, shown: str
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    assert vfiotool("sriov", PF, "1").stderr == shown  # the end of it: a fake's write takes no time


def test_write_reports_while_it_waits(
    state_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe that nobody reads is written to for as long as it takes; the first report lets it be read."""
    monkeypatch.setattr(machine, "_TICK", 0.01)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    os.makedirs(f"{state_dir}/pending")
    LiveMachine(state_dir).write(
        str(pipe), "7", address=PF, timeout=60, waiting=lambda: read.append(pipe.read_text())
    )
    assert read == ["7"]


# The command line


def test_sriov_json_document(vfiotool: Run) -> None:
    made = vfiotool("sriov", PF, "2", "--bind", "--json")
    assert made.status == 0
    document = made.document
    assert list(document) == ["schema", "vfs", "changed", "steps", "refused"]
    assert document["schema"] == "vfiotool.sriov/1"
    assert document["vfs"] == vfiotool("list", *VFS[:2], "--json").document["devices"]
    assert document["changed"] == [{"address": vf, "from": None, "to": "vfio-pci"} for vf in VFS[:2]]
    assert document["steps"][1] == {"path": NUMVFS, "value": "2"}
    again = vfiotool("sriov", PF, "2", "--json").document
    assert (again["vfs"], again["steps"], again["changed"]) == (document["vfs"], [], [])
    removed = vfiotool("sriov", PF, "0", "--json").document
    assert (removed["vfs"], [one["to"] for one in removed["changed"]]) == ([], [None, None])


def test_refusal_has_a_json_document(vfiotool: Run) -> None:
    result = vfiotool("sriov", PF, "5", "--json")
    assert result.status == 3
    assert (result.document["vfs"], result.document["steps"]) == ([], [])
    assert result.document["refused"] == [
        {"address": PF, "rule": "totalvfs", "reason": "it can have at most 4 VFs, not 5", "flag": None}
    ]
    assert (
        result.stderr
        == f"error: refused: {PF}: it can have at most 4 VFs, not 5\nhint: no option lifts this\n"
    )


def test_sriov_text_output(vfiotool: Run, host: FakeHost) -> None:
    dry = vfiotool("sriov", PF, "1", "--dry-run")
    assert dry.stdout == f"write '1' to {NUMVFS}\n"
    assert drivers(host) == []
    made = vfiotool("sriov", PF, "1")
    assert made.stdout.startswith(f"{VFS[0]}: no driver -> nvme\n")
    assert [line.split()[:4] for line in made.stdout.splitlines()[-1:]] == [
        [VFS[0], "1b36:0010", "0", "nvme"]
    ]
    assert vfiotool("sriov", PF, "0").stdout == f"{VFS[0]}: nvme -> no driver\n"


@pytest.mark.parametrize(
    ("args", "status", "error"),
    [
        ([PF, "0", "--bind"], 2, "--bind needs VFs, and N is 0"),
        ([PF, "-1"], 2, ""),
        ([PF, "65536"], 2, ""),
        ([PF, "x"], 2, ""),
        ([PF], 2, ""),
        ([PORT, "1"], 4, f"{PORT} can have no VFs"),
        (["0000:7f:00.0", "1"], 1, "no PCI device matches"),
    ],
)
def test_invalid_command_line_is_an_error(vfiotool: Run, args: list[str], status: int, error: str) -> None:
    result = vfiotool("sriov", *args)
    assert (result.status, result.stdout) == (status, "")
    assert result.stderr.startswith(f"error: {error}")
    assert "\nhint: " in result.stderr
