"""Two vfiotool processes never interleave their writes on a group."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from tests.support.binding_bench import SIBLINGS, Bench
from vfiotool.errors import VfioToolError

ROUNDS = 2


def work(bench: Bench, log: Path) -> None:
    """Bind and restore the same devices as another process does, and log each write.

    The other process may have done the work of a round. This one goes on until it has written in ROUNDS.
    """
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    written: list[str] = []

    def note(path: str) -> None:
        os.write(fd, f"{os.getpid()} {path}\n".encode())
        written.append(path)

    bench.machine.on_write = note
    rounds = 0
    while rounds < ROUNDS:
        written.clear()
        bench.binding().bind(SIBLINGS)
        try:
            bench.binding().restore(SIBLINGS)
        except VfioToolError as error:
            if "nothing is recorded" not in str(error):  # the other process was faster
                raise
        rounds += bool(written)


@pytest.mark.quick_on_fake
def test_plans_of_two_processes_do_not_interleave(bench: Bench, tmp_path: Path) -> None:
    before = bench.states()
    bench.machine.load_module("vfio-pci")
    log = tmp_path / "writes"
    pids = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                work(bench, log)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0]
    writes = log.read_text().splitlines()
    runs = [len(list(run)) for _, run in itertools.groupby(writes, key=lambda line: line.partition(" ")[0])]
    assert len(writes) >= 6
    assert len(runs) >= 2, "both had work"
    assert all(length >= 6 for length in runs), "a plan has six writes at least"
    assert bench.states() == before
    assert bench.binding().recorded() == []


@pytest.mark.parametrize("folder", ["journal", "transactions", "locks", "pending"])
def test_nothing_is_changed_if_others_can_write_the_state_folder(bench: Bench, folder: str) -> None:
    os.makedirs(f"{bench.state_dir}/{folder}", mode=0o700)
    os.chmod(f"{bench.state_dir}/{folder}", 0o777)  # noqa: S103 - the test is about it
    with pytest.raises(VfioToolError, match="only its user can write"):
        bench.binding().bind(SIBLINGS)
    assert bench.machine.writes == []
