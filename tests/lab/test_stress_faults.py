"""Runs of ``stress all`` that a random fault hits: the devices come back to the states that they had first.

The run gives them back, or its cleanup process does, or ``recover`` and ``restore``.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.guest import (
    E1000E,
    EDU,
    PROGRAM,
    await_,
    done,
    driver,
    kernel_complaints,
    needs_iommu,
    override,
    path,
    read,
    remove,
    rescan,
    settle,
    tell_udevd,
)

pytestmark = [
    pytest.mark.needs_guest,
    pytest.mark.full,
    needs_iommu,
    pytest.mark.usefixtures("vfio_pci"),
]

DEVICES = (EDU, E1000E)
RECORDS = 200
"""The fault hits within so many records of the trace, and the run is ended after as many again."""

Run = subprocess.Popen[bytes]
Fault = Callable[[Run, Path, random.Random], None]


def states() -> dict[str, tuple[str | None, ...]]:
    return {
        address: (driver(address), read(override(address)), read(path(address, "power/control")))
        for address in DEVICES
    }


@pytest.fixture(autouse=True)
def nothing_lost() -> Iterator[None]:
    """After a run and its recovery the devices are as before, and the kernel has not complained."""
    settle()
    before, complaints = states(), kernel_complaints()
    yield
    done("recover")
    done("restore", "--all")
    settle()
    await_("the devices are as before", lambda: states() == before)
    assert done("recover")["changed"] == []
    assert kernel_complaints() == complaints


def processes(folder: Path) -> list[int]:
    """Return the processes of a run: its words name the folder of its report."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:  # ended meanwhile
            continue
        if os.fsencode(folder) in words:
            found.append(int(pid))
    return found


def kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def kill_any(run: Run, folder: Path, chance: random.Random) -> None:
    kill([chance.choice(processes(folder))])


def kill_run(run: Run, folder: Path, chance: random.Random) -> None:
    run.kill()


def kill_all(run: Run, folder: Path, chance: random.Random) -> None:
    kill(processes(folder))


def terminate(run: Run, folder: Path, chance: random.Random) -> None:
    run.terminate()


def stop_udevd(run: Run, folder: Path, chance: random.Random) -> None:
    tell_udevd("--stop-exec-queue")


def remove_device(run: Run, folder: Path, chance: random.Random) -> None:
    address = chance.choice(DEVICES)
    if os.path.exists(path(address)):  # the run removes devices too
        remove(address)


FAULTS = (kill_any, kill_any, kill_any, kill_run, kill_all, terminate, stop_udevd, remove_device)


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=[fault.__name__ for fault in FAULTS])
def test_devices_come_back(tmp_path: Path, number: int) -> None:
    hit(FAULTS[number], number, tmp_path / "report", [])


def test_devices_come_back_to_another_network_namespace(tmp_path: Path) -> None:
    hit(terminate, len(FAULTS), tmp_path / "report", ["unshare", "--net"])


def hit(fault: Fault, number: int, folder: Path, words: list[str]) -> None:
    """Start a run, cause the fault in it after some records, end the run, and wait for all its processes."""
    chance = random.Random(number)  # noqa: S311 - the test must be repeatable
    words = [*words, PROGRAM, "stress", "all", *DEVICES, "--duration", "300", "--report", str(folder)]
    words += ["--seed", str(number)]
    with (folder.parent / "output").open("wb") as output:
        run = subprocess.Popen(words, stdout=output, stderr=output)
    try:
        await_records(run, folder, chance.randrange(RECORDS))
        if run.poll() is None:
            fault(run, folder, chance)
        await_records(run, folder, records(folder) + RECORDS)
        if run.poll() is None:
            run.terminate()
        run.wait(240)
        await_("its processes end", lambda: not processes(folder), 240)
    finally:
        kill(processes(folder))
        tell_udevd("--start-exec-queue")
        rescan(*DEVICES)
    text = (folder.parent / "output").read_text()
    assert "Traceback" not in text
    report = folder / "report.json"
    if report.exists():
        assert json.loads(report.read_text())["restored"] or fault in (kill_all, kill_any), text


def await_records(run: Run, folder: Path, count: int) -> None:
    """Wait until the trace has so many records, or the run has ended."""
    await_(f"{count} records", lambda: run.poll() is not None or records(folder) >= count, 240)


def records(folder: Path) -> int:
    trace = folder / "trace.jsonl"
    return trace.read_bytes().count(b"\n") if trace.exists() else 0
