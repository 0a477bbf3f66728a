"""Child processes, and tasks as the kernel shows them: the texts are of real kernels."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest

from vfiotool.stress.reproduce import script_runtime
from vfiotool.util import tasks
from vfiotool.util.child import fork_child, start_child
from vfiotool.util.signals import TERMINAL_SIGNALS
from vfiotool.util.tasks import children, read_task, sleeps_in, task_state, uninterruptible_tasks

SAMPLES = os.path.join(os.path.dirname(__file__), "proc")
KERNELS = sorted(os.listdir(SAMPLES))
UNBIND = ("vfio_unregister_group_dev", "vfio_del_group_dev")
WAITING = ("interruptible", "uninterruptible")
READS_STACK = ("proc_pid_stack",)
PID = 12


def ended(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def await_(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)


def descriptors() -> bytes:
    """The open file descriptors of this process, without the one that lists them."""
    names = os.listdir("/proc/self/fd")
    return " ".join(sorted(name for name in names if os.path.exists(f"/proc/self/fd/{name}"))).encode()


# Children


def test_a_child_exits_when_its_function_returns_or_raises() -> None:
    assert ended(fork_child(lambda: None)) == 0
    assert ended(fork_child(lambda: 1 // 0)) == 1
    assert ended(fork_child(sys.exit)) == 1


def test_a_child_stays_in_the_session_of_its_parent(pipe: tuple[int, int]) -> None:
    pid = fork_child(lambda: os.write(pipe[1], str(os.getsid(0)).encode()))
    assert ended(pid) == 0
    assert int(os.read(pipe[0], 100)) == os.getsid(0)


def test_a_child_has_a_session_of_its_own_if_asked(pipe: tuple[int, int]) -> None:
    pid = fork_child(lambda: os.write(pipe[1], str(os.getsid(0)).encode()), new_session=True)
    assert ended(pid) == 0
    assert int(os.read(pipe[0], 100)) == pid


def test_a_child_ignores_signals_if_asked(pipe: tuple[int, int]) -> None:
    def run() -> None:
        os.write(pipe[1], b"ready")
        signal.pause()

    pid = fork_child(run, ignored_signals=TERMINAL_SIGNALS)
    assert os.read(pipe[0], 100) == b"ready"
    for number in TERMINAL_SIGNALS:
        os.kill(pid, number)
    os.kill(pid, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL


def test_a_child_keeps_the_descriptors_that_are_named(pipe: tuple[int, int]) -> None:
    pid = fork_child(lambda: os.write(pipe[1], descriptors()), kept_fds={0, 1, 2, pipe[1]})
    assert ended(pid) == 0
    assert set(os.read(pipe[0], 1000).split()) <= {b"0", b"1", b"2", str(pipe[1]).encode()}


def test_a_child_for_a_system_call_has_a_socket_and_nothing_else() -> None:
    pid, fd = start_child(lambda line: os.write(line, descriptors()))
    try:
        assert ended(pid) == 0
        assert len(os.read(fd, 1000).split()) == 1
    finally:
        os.close(fd)


def test_the_end_of_a_child_is_seen_at_its_socket() -> None:
    pid, fd = start_child(lambda line: None)
    try:
        assert os.read(fd, 1) == b""
    finally:
        os.close(fd)
    assert ended(pid) == 0


# Lists of children


def test_the_children_of_a_process() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60 & wait"]) as shell:
        try:
            await_(lambda: len(children([shell.pid])) == 2)
            found = children([shell.pid])
            assert shell.pid in children([os.getpid()])
            assert children(found) == []
            assert set(children([os.getpid(), shell.pid])) >= {shell.pid, *found}
            for pid in found:
                os.kill(pid, signal.SIGKILL)
        finally:
            shell.kill()


def test_children_are_found_without_config_proc_children(tmp_path: Path) -> None:
    """Their parent is in ``stat``, behind a name that can hold anything."""
    for pid, text in (
        (7, "7 (sh) S 1 7"),
        (9, "9 (a) R 8 (\n) S 7 9"),
        (8, "8 (x) Z 7 7"),
        (10, "10 (y) S 9 7"),
    ):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(text)
    (tmp_path / "11").mkdir()  # exits while the list is read
    (tmp_path / "stat").write_text("cpu 1 2 3")
    assert children([7], str(tmp_path)) == [8, 9]
    assert children([7, 9], str(tmp_path)) == [8, 9, 10]
    assert children([8], str(tmp_path)) == []


# Tasks: the files are those of a write to ``unbind`` that waits for a user of the device, of the same write
# after SIGTERM, and of a program that reads its own stack.


def place(proc: Path, kernel: str, kind: str) -> str:
    """Have process 12 with a task in one of these states; return the folder that stands for ``/proc``."""
    for folder in (proc / str(PID), proc / str(PID) / "task" / str(PID)):
        shutil.copytree(f"{SAMPLES}/{kernel}/{kind}", folder)
    return str(proc)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("kind", "state"), [("interruptible", "S"), ("uninterruptible", "D"), ("running", "R")]
)
def test_a_task_is_read(tmp_path: Path, kernel: str, kind: str, state: str) -> None:
    proc = place(tmp_path, kernel, kind)
    task = read_task(PID, proc=proc)
    assert task is not None
    assert (task.pid, task.tid, task.state, task.is_steady) == (PID, PID, state, True)
    assert task.comm == ("pytest" if state == "R" else "sh")
    assert task.switches > 0
    assert task_state(PID, proc) == state
    assert task.place.startswith(READS_STACK if state == "R" else UNBIND)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_write_that_waits_sleeps_in_either_state(tmp_path: Path, kernel: str) -> None:
    """A signal makes it uninterruptible, and it waits on."""
    for kind, sleeps in (("interruptible", True), ("uninterruptible", True), ("running", False)):
        proc = place(tmp_path / kind, kernel, kind)
        assert sleeps_in(PID, UNBIND, proc) == sleeps
        assert not sleeps_in(PID, ("rescan_store", "vfio_unregister_group"), proc)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_task_is_stuck_in_state_d_alone(tmp_path: Path, kernel: str) -> None:
    for kind, found in (("interruptible", 0), ("uninterruptible", 1), ("running", 0)):
        proc = place(tmp_path / kind, kernel, kind)
        assert len(list(uninterruptible_tasks(PID, proc))) == found


@pytest.mark.parametrize("state", ["R (running)", "T (stopped)", "Z (zombie)"])
def test_a_task_that_does_not_sleep_can_have_the_same_stack(tmp_path: Path, state: str) -> None:
    proc = place(tmp_path, "6.12", "interruptible")
    for status in tmp_path.rglob("status"):
        status.write_text(status.read_text().replace("S (sleeping)", state))
    assert not sleeps_in(PID, UNBIND, proc)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["interruptible", "uninterruptible", "running", "stopped"])
def test_a_script_that_reproduces_a_finding_agrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str, kind: str
) -> None:
    """The script runs without vfiotool, so it has a reader of its own."""
    proc = place(tmp_path, kernel, "interruptible" if kind == "stopped" else kind)
    for status in tmp_path.rglob("status") if kind == "stopped" else ():
        status.write_text(status.read_text().replace("S (sleeping)", "T (stopped)"))

    def open_sample(path: str, encoding: str) -> TextIO:
        return open(path.replace("/proc", proc, 1), encoding=encoding)

    monkeypatch.setattr(script_runtime, "open", open_sample, raising=False)
    assert script_runtime.is_waiting(PID) == sleeps_in(PID, UNBIND, proc) == (kind in WAITING)


def test_a_task_that_runs_while_it_is_read_is_not_steady(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc = place(tmp_path, "6.12", "interruptible")
    read, seen = tasks._read, list[str]()

    def changing(path: str) -> str:
        seen.append(path)
        text = read(path)
        is_second = path.endswith("/status") and seen.count(path) % 2 == 0
        return text.replace("ctxt_switches:\t7", "ctxt_switches:\t8") if is_second else text

    monkeypatch.setattr(tasks, "_read", changing)
    task = read_task(PID, proc=proc)
    assert task is not None
    assert not task.is_steady
    assert not sleeps_in(PID, UNBIND, proc)


def test_without_root_a_task_sleeps_in_no_known_function(tmp_path: Path) -> None:
    proc = place(tmp_path, "6.12", "interruptible")
    (tmp_path / f"{PID}/task/{PID}/stack").unlink()
    task = read_task(PID, proc=proc)
    assert task is not None
    assert (task.stack, task.place) == ((), "vfio_unregister_group_dev")
    assert not sleeps_in(PID, UNBIND, proc)


def test_a_process_that_has_exited_has_no_tasks(tmp_path: Path) -> None:
    assert read_task(PID, proc=str(tmp_path)) is None
    assert task_state(PID, str(tmp_path)) is None
    assert not sleeps_in(PID, UNBIND, str(tmp_path))
    assert list(uninterruptible_tasks(PID, str(tmp_path))) == []


@pytest.mark.parametrize("state", ["S", "R"])
def test_a_child_that_sleeps_or_runs(state: str) -> None:
    """As this machine's kernel shows it."""
    pid = fork_child(signal.pause if state == "S" else spin)
    try:
        await_(lambda: task_state(pid) == state)
        assert list(uninterruptible_tasks(pid)) == []
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def spin() -> None:
    while True:
        pass
