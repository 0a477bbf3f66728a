"""Who outlives a run that is killed: gives the devices back, and says how far it came."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping
from multiprocessing import Pipe
from types import TracebackType
from typing import Any

from vfiotool.errors import VfioToolError
from vfiotool.events.tracefs import remove_stale
from vfiotool.stress.config import RunConfig
from vfiotool.stress.lease import GIVE_BACK_SECONDS, give_back
from vfiotool.stress.results.report import (
    KILLED,
    MOST_UNEXPECTED,
    TRACE,
    Report,
    Unexpected,
    judge,
    of_header,
    write_report,
)
from vfiotool.stress.results.stats import Latencies
from vfiotool.stress.results.trace import read_trace
from vfiotool.stress.workers import ignore_terminal_signals


class CleanupProcess:
    """A process in a session of its own. It acts once the run and all its workers are gone without a word.

    A context manager of one thread: at its end the run has said that all is done.
    """

    def __init__(self, config: RunConfig, header: Mapping[str, Any]) -> None:
        theirs, self._line = Pipe(duplex=False)
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._line.close()
                ignore_terminal_signals()
                recorded: Collection[str] | None = None
                with contextlib.suppress(EOFError):
                    while (word := theirs.recv()) is not None:
                        recorded = word
                    os._exit(0)
                if recorded is not None:
                    _clean_up(config, header, recorded)
            finally:
                os._exit(0)
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
        """Say that the devices are taken now, and which of them had been recorded before."""
        self._line.send(recorded)


def _clean_up(config: RunConfig, header: Mapping[str, Any], recorded: Collection[str]) -> None:
    with contextlib.suppress(OSError):
        remove_stale()
    lost = give_back(config.addresses, recorded, config.state_dir, GIVE_BACK_SECONDS)
    with contextlib.suppress(VfioToolError):
        write_report(config.report, killed_report(config.report, header, lost).document())


def killed_report(folder: str, header: Mapping[str, Any], lost: list[str]) -> Report:
    """Return what the trace of a killed run tells.

    Raises:
        VfioToolError: it cannot be read.
    """
    trace = read_trace(f"{folder}/{TRACE}")
    latencies = Latencies()
    for line in trace.lines:
        latencies.record(line.call.name, line.us, "0" if line.got.startswith("0") else line.got)
    unexpected = [
        Unexpected(str(line.call), line.expected, line.got, line.at)
        for line in trace.lines
        if line.unexpected
    ]
    cycles = len({(line.unit, line.workload, line.cycle) for line in trace.lines})
    reasons = judge(
        cycles=cycles,
        unexpected_count=len(unexpected),
        findings=lost,
        restored=not lost,
        interrupted=KILLED,
    )
    return Report(
        **of_header(header),
        seconds=trace.lines[-1].at - trace.lines[0].at if trace.lines else 0.0,
        cycles=cycles,
        operations=latencies.document(),
        unexpected=unexpected[:MOST_UNEXPECTED],
        unexpected_count=len(unexpected),
        udev={"expected": 0, "received": 0, "missing": [], "duplicated": [], "out_of_order": []},
        probes={},
        kernel_log=[],
        taint={"before": None, "after": None},
        resources={"before": None, "after": None, "leaked": []},
        restored=not lost,
        interrupted=KILLED,
        reasons=reasons,
    )
