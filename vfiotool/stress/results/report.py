"""The report of a run: what was found, the verdict, and the folder that has it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    """An operation that gave something else than it had to. ``at`` is CLOCK_MONOTONIC in seconds."""

    operation: str
    expected: str
    got: str
    at: float


@dataclass(frozen=True, slots=True)
class Report:
    """All that a run found. ``started`` is ISO 8601 in UTC, ``seconds`` how long it ran.

    ``unexpected`` has the first of them, ``unexpected_count`` says how many there were. ``interrupted`` is
    None or what ended the run early: SIGINT, SIGTERM, ``killed``. Without ``reasons`` it has passed.
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
    udev: Mapping[str, Any]
    probes: Mapping[str, int]
    kernel_log: Sequence[Any]
    taint: Mapping[str, Any]
    resources: Mapping[str, Any]
    restored: bool
    interrupted: str | None
    reasons: Sequence[str]
    reproduce: str

    @property
    def verdict(self) -> str:
        """Return ``pass`` or ``fail``."""
        return "fail" if self.reasons else "pass"

    def document(self) -> dict[str, Any]:
        """Return the contract's JSON document."""
        first = self.unexpected[:MOST_UNEXPECTED]
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
                {"operation": one.operation, "expected": one.expected, "got": one.got, "at": round(one.at, 6)}
                for one in first
            ],
            "unexpected_count": self.unexpected_count,
            "udev": dict(self.udev),
            "probes": dict(self.probes),
            "kernel_log": list(self.kernel_log),
            "taint": dict(self.taint),
            "resources": dict(self.resources),
            "restored": self.restored,
            "interrupted": self.interrupted,
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "reproduce": self.reproduce,
        }


def of_header(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a report that the header of its trace has."""
    names = ("kernel", "era", "devices", "workloads", "seed", "started", "reproduce")
    return {name: header[name] for name in names}


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
    """Return why a run has failed: nothing, where it has passed.

    ``findings`` are the monitors' sentences. That a run was told to end is no reason to fail.
    """
    reasons = []
    if unexpected_count:
        what = "operation" if unexpected_count == 1 else "operations"
        reasons.append(f"{unexpected_count} {what} gave something else than the model expects")
    found = list(findings)
    reasons += found[:_MOST_FINDINGS]
    if len(found) > _MOST_FINDINGS:
        reasons.append(f"the monitors found {len(found) - _MOST_FINDINGS} things more")
    if not restored:
        reasons.append("the devices are not back on their drivers: 'vfiotool restore' gives them back")
    if interrupted == KILLED:
        reasons.append("the run was killed")
    if not cycles:
        reasons.append("no cycle was done")
    if trace_failure:
        cause = trace_failure.strerror or str(trace_failure)
        reasons.append(f"the trace could not be written ({cause}): it lacks {dropped} operations")
    return tuple(reasons)


def utc_text(seconds: float) -> str:
    """Return a time of ``time.time()`` in ISO 8601, in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def prepare_folder(path: str) -> None:
    """Make the folder of a report, and remove an earlier report that it holds.

    Raises:
        VfioToolError: it cannot be made or written, or it holds anything else; then nothing is removed.
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
        raise VfioToolError(f"{path} cannot be written", hint="name a folder of yours")


def write_report(folder: str, document: Mapping[str, Any]) -> None:
    """Write ``report.json``, as a whole or not at all.

    Raises:
        VfioToolError: it cannot be written.
    """
    write_whole(os.path.join(folder, REPORT), [json.dumps(document, indent=2, ensure_ascii=False), "\n"])


def _is_file(path: str) -> bool:
    return os.path.isfile(path) and not os.path.islink(path)


def _foreign(path: str, names: Sequence[str]) -> VfioToolError:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return VfioToolError(
        f"{path} holds what is no report: {names[0]!r}{more}",
        hint="name a new or empty folder, or that of an earlier report, which is replaced",
    )
