"""The report of a run: measurements, findings, the verdict, and the report folder."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vfiotool.errors import VfioToolError
from vfiotool.util.files import cannot_write, temporary_name, write_whole

SCHEMA = "vfiotool.stress/1"
REPORT, TRACE, PAGE = "report.json", "trace.jsonl", "report.html"
KILLED = "killed"
MOST_UNEXPECTED = 1000
_MOST_FINDINGS = 50


@dataclass(frozen=True, slots=True)
class Unexpected:
    """A call with an unexpected outcome. ``at`` is CLOCK_MONOTONIC in seconds."""

    operation: str
    expected: str
    got: str
    at: float


def _unmeasured(*names: str) -> Mapping[str, Any]:
    return dict.fromkeys(names)


@dataclass(frozen=True, slots=True)
class Measured:
    """The parts of a report that the monitors measure, in the form of the report. None: not measured."""

    udev: Mapping[str, Any] = field(
        default_factory=lambda: _unmeasured(
            "expected", "received", "missing", "duplicated", "out_of_order", "missed", "counts"
        )
    )
    probes: Mapping[str, int] | None = None
    kernel_log: Sequence[Any] | None = None
    taint: Mapping[str, Any] = field(default_factory=lambda: _unmeasured("before", "after"))
    resources: Mapping[str, Any] = field(
        default_factory=lambda: _unmeasured("before", "after", "leaked", "stuck")
    )


@dataclass(frozen=True, slots=True)
class Report:
    """The report of a run. ``started`` is ISO 8601 in UTC, ``seconds`` is the duration.

    ``unexpected`` holds the first unexpected outcomes, ``unexpected_count`` is the number of all. If the run
    ended early, ``interrupted`` is SIGINT, SIGTERM, SIGHUP or ``killed``. The run passed if ``reasons`` is
    empty.
    """

    kernel: str
    era: str
    devices: Sequence[str]
    workloads: Sequence[str]
    seed: int
    started: str
    seconds: float
    cycles: int
    operations: Mapping[str, Mapping[str, Any]]
    unexpected: Sequence[Unexpected]
    unexpected_count: int
    measured: Measured
    restored: bool
    interrupted: str | None
    reasons: Sequence[str]
    reproduce: str

    @property
    def verdict(self) -> str:
        """``pass`` or ``fail``."""
        return "fail" if self.reasons else "pass"

    def document(self) -> dict[str, Any]:
        """Return the JSON document of the report."""
        measured = self.measured
        return {
            "schema": SCHEMA,
            "kernel": self.kernel,
            "era": self.era,
            "devices": list(self.devices),
            "workloads": list(self.workloads),
            "seed": self.seed,
            "started": self.started,
            "seconds": round(self.seconds, 3),
            "cycles": self.cycles,
            "operations": {name: dict(found) for name, found in self.operations.items()},
            "unexpected": [
                {
                    "operation": found.operation,
                    "expected": found.expected,
                    "got": found.got,
                    "at": round(found.at, 6),
                }
                for found in self.unexpected[:MOST_UNEXPECTED]
            ],
            "unexpected_count": self.unexpected_count,
            "udev": dict(measured.udev),
            "probes": None if measured.probes is None else dict(measured.probes),
            "kernel_log": None if measured.kernel_log is None else list(measured.kernel_log),
            "taint": dict(measured.taint),
            "resources": dict(measured.resources),
            "restored": self.restored,
            "interrupted": self.interrupted,
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "reproduce": self.reproduce,
        }


def build_report(
    header: Mapping[str, Any],
    *,
    seconds: float,
    cycles: int,
    operations: Mapping[str, Mapping[str, Any]],
    unexpected: Sequence[Unexpected],
    unexpected_count: int,
    measured: Measured,
    findings: Iterable[str],
    restored: bool,
    interrupted: str | None,
    trace_failure: OSError | None = None,
    dropped: int = 0,
) -> Report:
    """Return the report of a run with its verdict. ``header`` is the header of the trace.

    ``findings`` are the sentences of the monitors. ``trace_failure`` is the error that stopped the writing
    of the trace, ``dropped`` the number of records that the trace lacks.
    """
    return Report(
        kernel=header["kernel"],
        era=header["era"],
        devices=header["devices"],
        workloads=header["workloads"],
        seed=header["seed"],
        started=header["started"],
        reproduce=header["reproduce"],
        seconds=seconds,
        cycles=cycles,
        operations=operations,
        unexpected=unexpected[:MOST_UNEXPECTED],
        unexpected_count=unexpected_count,
        measured=measured,
        restored=restored,
        interrupted=interrupted,
        reasons=judge(
            cycles=cycles,
            unexpected_count=unexpected_count,
            findings=findings,
            restored=restored,
            interrupted=interrupted,
            trace_failure=trace_failure,
            dropped=dropped,
        ),
    )


def judge(
    *,
    cycles: int,
    unexpected_count: int,
    findings: Iterable[str],
    restored: bool,
    interrupted: str | None = None,
    trace_failure: OSError | None = None,
    dropped: int = 0,
) -> tuple[str, ...]:
    """Return the reasons for which a run failed; an empty tuple if the run passed.

    A run that a signal stopped does not fail for that reason. Parameters as in ``build_report``.
    """
    reasons = []
    if unexpected_count:
        calls = "operation" if unexpected_count == 1 else "operations"
        reasons.append(f"{unexpected_count} {calls} gave something else than the model expects")
    found = list(findings)
    reasons += found[:_MOST_FINDINGS]
    if len(found) > _MOST_FINDINGS:
        reasons.append(f"the monitors have {len(found) - _MOST_FINDINGS} more findings")
    if not restored:
        reasons.append("the devices are not back on their drivers: 'vfiotool restore' gives them back")
    if interrupted == KILLED:
        reasons.append("the run was killed")
    if not cycles:
        reasons.append("the run executed no cycle")
    if trace_failure:
        cause = trace_failure.strerror or str(trace_failure)
        reasons.append(f"the trace could not be written ({cause}): {dropped} operations are missing in it")
    return tuple(reasons)


def utc_text(seconds: float) -> str:
    """Return a value of ``time.time()`` in ISO 8601, in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def prepare_folder(path: str) -> None:
    """Create the report folder, and remove an earlier report in the folder.

    Raises:
        VfioToolError: the folder cannot be created or written, or holds other files; nothing is removed then.
    """
    ours = {*(REPORT, TRACE, PAGE), *(temporary_name(name) for name in (REPORT, PAGE))}
    try:
        os.makedirs(path, exist_ok=True)
        found = os.listdir(path)
        foreign = sorted(name for name in found if name not in ours or not _is_file(f"{path}/{name}"))
        if foreign:
            raise _foreign(path, foreign)
        for name in found:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{path}/{name}")
    except OSError as error:
        raise cannot_write(path, error) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise VfioToolError(f"{path} cannot be written", hint="name a folder that you may write")


def write_report(folder: str, document: Mapping[str, Any]) -> None:
    """Write ``report.json``, completely or not at all.

    Raises:
        VfioToolError: the file cannot be written.
    """
    write_whole(os.path.join(folder, REPORT), [json.dumps(document, indent=2, ensure_ascii=False), "\n"])


def _is_file(path: str) -> bool:
    return os.path.isfile(path) and not os.path.islink(path)


def _foreign(path: str, names: Sequence[str]) -> VfioToolError:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return VfioToolError(
        f"{path} holds files that are no report: {names[0]!r}{more}",
        hint="name a new or empty folder, or the folder of an earlier report, which is replaced",
    )
