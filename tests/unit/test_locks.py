from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfiotool.binding.locks import lock_keys, locked
from vfiotool.errors import BlockedError, VfioToolError
from vfiotool.testing import FakeHost

A, B, PF, VF, LONER = "0000:00:12.0", "0000:00:13.0", "0000:01:00.0", "0000:01:00.1", "0000:00:1f.0"


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "locks").mkdir(0o700)
    return str(tmp_path / "locks")


@pytest.fixture
def holder(folder: str) -> Iterator[int]:
    """A process that holds the lock of group 7 until it is killed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with locked(folder, ["group-7"]):
            os.write(writer, b"held")
            signal.pause()
    os.close(writer)
    assert os.read(reader, 4) == b"held"
    yield pid
    os.close(reader)
    end(pid)


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # a test may have ended it
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_lock_keys_are_groups_of_devices_and_of_their_pfs(host: FakeHost) -> None:
    host.add_device(A, group=7)
    host.add_device(B, group=7)
    host.add_device(LONER)
    host.add_device(PF, group=8, totalvfs=2)
    host.add_device(VF, group=9, physfn=PF)
    assert lock_keys(host.tree, [A, B]) == {"group-7"}
    assert lock_keys(host.tree, [A, LONER]) == {"group-7", LONER}
    assert lock_keys(host.tree, [VF]) == {"group-8", "group-9"}


def test_lock_that_is_held_names_its_holder(folder: str, holder: int) -> None:
    said = rf"another vfiotool \(pid {holder}\) is changing group 7"
    with (
        pytest.raises(BlockedError, match=said),
        locked(folder, ["group-6", "group-7"], timeout=0.05),
    ):
        pytest.fail("both had it")
    with locked(folder, ["group-6"], timeout=0):
        pass


def test_lock_is_released_when_its_process_ends(folder: str, holder: int) -> None:
    end(holder)
    with (
        locked(folder, ["group-7"], timeout=0),
        pytest.raises(BlockedError),
        locked(folder, ["group-7"], timeout=0),
    ):
        pytest.fail("both had it")


def test_lock_that_is_a_symbolic_link_is_refused(folder: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    os.symlink(target, f"{folder}/group-7")
    with pytest.raises(VfioToolError), locked(folder, ["group-7"]):
        pytest.fail("it was followed")
    assert not target.exists()
