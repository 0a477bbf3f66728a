"""The log of a transaction: on disk before each step, so that ``recovery`` can undo what was begun.

One file per plan: a header line with the states before and after, then a line before each step. A last
line that a crash cut off is ignored: the step that it announced was not begun.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vfiotool.binding.device_record import (
    DeviceRecord,
    from_document,
    parse_state,
    state_document,
    to_document,
)
from vfiotool.binding.journal import Journal
from vfiotool.binding.plan import Plan
from vfiotool.binding.state_dir import damaged, open_own, read_own, remove_own, replace_own, unusable
from vfiotool.errors import VfioToolError
from vfiotool.host.device_state import DeviceState
from vfiotool.pci.address import is_address, sort_key

_SCHEMA = "vfiotool.transaction/1"


@dataclass(frozen=True, slots=True)
class UnfinishedTransaction:
    """A transaction whose log was not removed: its process was killed or could not roll back, or still runs.

    ``touched`` are the devices whose steps were begun, ``fresh`` the devices that had no record before the
    transaction, ``forget`` the devices whose record is removed at its end. ``is_done`` means that all steps
    were done. ``blocked`` is the device whose driver did not release it, or did not create or remove its VFs
    in time; all others were rolled back. ``after`` also has the VFs that were to be created and bound.
    """

    path: str
    before: Mapping[str, DeviceRecord]
    after: Mapping[str, DeviceState]
    fresh: tuple[str, ...]
    forget: tuple[str, ...]
    allowed: frozenset[str]
    touched: tuple[str, ...]
    is_done: bool
    blocked: str | None

    @property
    def sets_vfs(self) -> bool:
        """Return True if the driver of a PF did not create or remove VFs in time."""
        if self.blocked is None:
            return False
        return self.after[self.blocked].numvfs not in (None, self.before[self.blocked].state.numvfs)

    @property
    def addresses(self) -> frozenset[str]:
        """The addresses of the plan's devices."""
        return frozenset(self.before)

    def end(self) -> None:
        """Remove the log: nothing is left to recover."""
        with unusable(os.path.dirname(self.path)):
            remove_own(self.path)


class TransactionLog:
    """Writes the log of a transaction. The caller holds the devices' locks."""

    def __init__(
        self,
        journal: Journal,
        plan: Plan,
        before: Sequence[DeviceRecord],
        *,
        fresh: Iterable[str],
        forget: Iterable[str],
        allowed: Iterable[str],
    ) -> None:
        """Create the log, with its header.

        Raises:
            VfioToolError: the state folder cannot be written.
        """
        self._plan = plan
        self._dir = journal.transactions
        self._path = f"{self._dir}/{before[0].address}.jsonl"
        header = {
            "schema": _SCHEMA,
            "boot": journal.boot,
            "before": [to_document(record) for record in before],
            "after": {address: state_document(state) for address, state in plan.after.items()},
            "steps": [[step.address, step.path, step.value] for step in plan.steps],
            "fresh": list(fresh),
            "forget": list(forget),
            "allowed": sorted(allowed),
        }
        self.touched: set[str] = set()
        with unusable(self._dir):
            replace_own(self._path, f"{json.dumps(header)}\n")
            self._fd = open_own(self._path, os.O_WRONLY | os.O_APPEND)

    def begin_step(self, number: int) -> None:
        """Log that a step of the plan, by its number, begins now.

        Raises:
            VfioToolError: the log cannot be written; the step must not be done then.
        """
        self._mark({"step": number})
        self.touched.add(self._plan.steps[number].address)

    def mark_blocked(self, address: str) -> None:
        """Log that the driver of a device is not done with it, and that all others were rolled back."""
        self._mark({"blocked": address})

    def mark_done(self) -> None:
        """Log that all steps are done: from here on a recovery finishes the transaction."""
        self._mark({"done": True})

    def close(self) -> None:
        """Leave the log as it is, for ``recover``."""
        os.close(self._fd)

    def end(self) -> None:
        """Remove the log: nothing is left to recover."""
        self.close()
        with unusable(self._dir):
            remove_own(self._path)

    def _mark(self, mark: Mapping[str, Any]) -> None:
        line = json.dumps(mark).encode() + b"\n"
        with unusable(self._dir):
            if os.write(self._fd, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._fd)


def read_unfinished(journal: Journal) -> tuple[list[UnfinishedTransaction], dict[str, VfioToolError]]:
    """Return the transactions of this boot that have not ended, and the errors of logs that cannot be parsed.

    Logs of an earlier boot are removed: a boot undoes all changes. The errors are keyed by the first
    address of their transaction.
    """
    found, broken = [], {}
    for address in _names(journal.transactions):
        try:
            transaction = _read(f"{journal.transactions}/{address}.jsonl", journal.boot)
        except VfioToolError as error:
            broken[address] = error
        else:
            found += [transaction] if transaction is not None else []
    return found, broken


def _names(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, PermissionError):
        return []
    addresses = [name.removesuffix(".jsonl") for name in names if name.endswith(".jsonl")]
    return sorted(filter(is_address, addresses), key=sort_key)


def _read(path: str, boot: str) -> UnfinishedTransaction | None:
    try:
        *lines, _cut_off = read_own(path).split("\n")
        if not lines:  # killed before the header was written: no step was begun
            remove_own(path)
            return None
        header, marks = json.loads(lines[0]), [json.loads(line) for line in lines[1:]]
        if header["schema"] != _SCHEMA:
            raise ValueError("not a transaction")
        if header["boot"] != boot:
            remove_own(path)
            return None
        return _parse(path, header, marks)
    except FileNotFoundError:  # the transaction has ended meanwhile
        return None
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from error
    except VfioToolError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error


def _parse(path: str, header: Any, marks: list[Any]) -> UnfinishedTransaction:
    before = {record.address: record for record in map(from_document, header["before"])}
    begun = [mark["step"] for mark in marks if "step" in mark]
    steps = header["steps"]
    reached = [steps[number][0] for number in begun if isinstance(number, int) and number >= 0]
    blocked = next((mark["blocked"] for mark in marks if "blocked" in mark), None)
    return UnfinishedTransaction(
        path=path,
        before=before,
        after=_states(header["after"], before),
        fresh=_known(header["fresh"], before),
        forget=_known(header["forget"], before),
        allowed=frozenset(str(rule) for rule in header["allowed"]),
        touched=tuple(address for address in before if address in reached),
        is_done=any("done" in mark for mark in marks),
        blocked=None if blocked is None else _known([blocked], before)[0],
    )


def _states(states: Any, before: Mapping[str, DeviceRecord]) -> dict[str, DeviceState]:
    """Return the states after the plan: of its devices, and of the VFs that it creates."""
    if not before.keys() <= states.keys() or not all(map(is_address, states)):
        raise ValueError("not the states of its devices")
    return {address: parse_state(state) for address, state in states.items()}


def _known(addresses: Any, before: Mapping[str, DeviceRecord]) -> tuple[str, ...]:
    for address in addresses:
        if address not in before:
            raise ValueError(f"{address!r} is not one of its devices")
    return tuple(addresses)
