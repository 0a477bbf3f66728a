"""The cleanup process outlives a run that is killed: gives the devices back, and writes the report."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from vfiotool.errors import VfioToolError
from vfiotool.events.tracefs import remove_stale
from vfiotool.stress.config import RunConfig
from vfiotool.stress.lease import GIVE_BACK_SECONDS, give_back
from vfiotool.stress.results.report import (
    KILLED,
    TRACE,
    Measured,
    Report,
    Unexpected,
    build_report,
    write_report,
)
from vfiotool.stress.results.stats import Latencies
from vfiotool.stress.results.trace import read_trace
from vfiotool.util.child import fork_child
from vfiotool.util.signals import TERMINAL_SIGNALS


class CleanupProcess:
    """A child process in a session of its own. The process acts after the run and all workers have exited.

    A context manager of one thread: leaving the block tells the process that nothing is to be cleaned up.
    """

    def __init__(self, config: RunConfig, header: Mapping[str, Any]) -> None:
        theirs, self._line = Pipe(duplex=False)
        line = self._line

        def run() -> None:
            line.close()
            _clean_up_if_killed(theirs, config, header)

        self._pid = fork_child(run, new_session=True, ignored_signals=TERMINAL_SIGNALS)
        theirs.close()

    def __enter__(self) -> CleanupProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.send(None)
        self._line.close()
        os.waitpid(self._pid, 0)

    def will_take(self, recorded: Collection[str]) -> None:
        """Announce that the run takes the devices now. ``recorded`` have a record in the journal already."""
        self._line.send(recorded)


def _clean_up_if_killed(line: Connection, config: RunConfig, header: Mapping[str, Any]) -> None:
    """Wait for the end of the run and of its workers, and clean up if the run did not announce its end."""
    recorded: Collection[str] | None = None
    with contextlib.suppress(EOFError):
        while (message := line.recv()) is not None:
            recorded = message
        return
    if recorded is not None:
        _clean_up(config, header, recorded)


def _clean_up(config: RunConfig, header: Mapping[str, Any], recorded: Collection[str]) -> None:
    with contextlib.suppress(OSError):
        remove_stale()
    lost = give_back(config.addresses, recorded, config.state_dir, GIVE_BACK_SECONDS)
    with contextlib.suppress(VfioToolError):
        write_report(config.report, killed_report(config.report, header, lost).document())


def killed_report(folder: str, header: Mapping[str, Any], lost: list[str]) -> Report:
    """Return the report of a killed run, from its trace. ``lost`` are devices that were not given back.

    Raises:
        VfioToolError: the trace cannot be read.
    """
    lines = read_trace(f"{folder}/{TRACE}").lines
    latencies = Latencies()
    for line in lines:
        latencies.record(line.call.name, line.us, "0" if line.got.startswith("0") else line.got)
    unexpected = [
        Unexpected(str(line.call), line.expected, line.got, line.at) for line in lines if line.unexpected
    ]
    return build_report(
        header,
        seconds=lines[-1].at - lines[0].at if lines else 0.0,
        cycles=len({(line.unit, line.workload, line.cycle) for line in lines}),
        operations=latencies.document(),
        unexpected=unexpected,
        unexpected_count=len(unexpected),
        measured=Measured(),
        findings=lost,
        restored=not lost,
        interrupted=KILLED,
    )
