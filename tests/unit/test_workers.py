"""The processes of a stress run: which of them a run kills."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from multiprocessing import Pipe, reduction
from multiprocessing.connection import Connection

import pytest

from vfiotool.host.era import Era
from vfiotool.stress.config import RunConfig
from vfiotool.stress.model.lifecycle import Model
from vfiotool.stress.workers import Worker, WorkerPool
from vfiotool.util.child import fork_child, start_child
from vfiotool.util.tasks import children

CONFIG = RunConfig(groups=(), workloads=(), seed=1, report="", state_dir="", reproduce="", cycles=1)
GO = b"\n"


def has_ended(pidfd: int, seconds: float = 60) -> bool:
    return bool(select.select([pidfd], [], [], seconds)[0])


@pytest.fixture
def pids(monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """Receives the pids of a worker, of its client and of its writer, and the writer's line."""
    ours, theirs = Pipe()

    def write(line: int) -> None:
        os.write(line, GO)
        os.read(line, len(GO))
        os.write(line, b"done")

    def run(self: Worker) -> None:
        client = fork_child(signal.pause)
        writer, line = start_child(write)
        os.read(line, len(GO))  # before that, the writer may not have its own session yet
        theirs.send((os.getpid(), client, writer))
        reduction.send_handle(theirs, line, os.getppid())
        signal.pause()

    monkeypatch.setattr(Worker, "run", run)
    yield ours
    ours.close()
    theirs.close()


def test_a_writer_to_sysfs_is_not_signalled(pids: Connection) -> None:
    """SIGKILL would not end a write that waits in the kernel, but make it uninterruptible."""
    pool = WorkerPool(CONFIG, Model(Era.DMA_OWNER), None, lambda: None)
    worker, client, writer = pids.recv()
    line = reduction.recv_handle(pids)
    ends = [os.pidfd_open(pid) for pid in (worker, client, writer)]
    try:
        assert pool.processes() == [worker, *sorted((client, writer))]
        assert children([worker]) == sorted((client, writer))
        pool.abandon()
        assert has_ended(ends[0])
        assert has_ended(ends[1])
        assert not has_ended(ends[2], 0.2)
        os.write(line, GO)
        assert os.read(line, 100) == b"done"
        assert has_ended(ends[2])
        list(pool.receive(0))
        assert pool.all[0].status == -signal.SIGKILL
    finally:
        for end in (*ends, line):
            os.close(end)
