"""A plan that is being carried out: on disk before each step, so that whoever is killed can be mended.

One file a plan: a first line that says what was and what is to be, then a line before each step. What
a crash cut off at the end is passed over; the step that it told of was not begun.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping
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
class Transaction:
    """What a file tells of a plan that did not end in good order.

    ``touched`` are the devices that it began to change, ``fresh`` those that had no record before it,
    ``forget`` those whose record ends with it. ``is_done`` says that all steps were done; ``blocked``
    names the device whose driver did not let go, all others having been put back.
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
    def addresses(self) -> frozenset[str]:
        """The devices of the plan."""
        return frozenset(self.before)

    def end(self) -> None:
        """Remove the file: nothing is left to mend."""
        with unusable(os.path.dirname(self.path)):
            remove_own(self.path)


class TransactionLog:
    """Writes the file of a plan that is being carried out; its writer holds the devices' locks."""

    def __init__(
        self,
        journal: Journal,
        plan: Plan,
        before: Iterable[DeviceRecord],
        *,
        fresh: Iterable[str],
        forget: Iterable[str],
        allowed: Iterable[str],
    ) -> None:
        """Begin.

        Raises:
            VfioToolError: the state folder cannot be written.
        """
        self._plan = plan
        self._dir = journal.transactions
        stored = list(before)
        self._path = f"{self._dir}/{stored[0].address}.jsonl"
        header = {
            "schema": _SCHEMA,
            "boot": journal.boot,
            "before": [to_document(one) for one in stored],
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

    def about_to(self, number: int) -> None:
        """Tell which step of the plan is begun now.

        Raises:
            VfioToolError: it cannot be written: then the step must not be done.
        """
        self._mark({"step": number})
        self.touched.add(self._plan.steps[number].address)

    def blocked(self, address: str) -> None:
        """Tell that a device's driver did not let go, and that all others were put back."""
        self._mark({"blocked": address})

    def done(self) -> None:
        """Tell that all steps were done: from here on it is finished, not undone."""
        self._mark({"done": True})

    def close(self) -> None:
        """Leave the file as it is, for ``recover``."""
        os.close(self._fd)

    def end(self) -> None:
        """Remove the file: nothing is left to mend."""
        self.close()
        with unusable(self._dir):
            remove_own(self._path)

    def _mark(self, mark: Mapping[str, Any]) -> None:
        with unusable(self._dir):
            self._append(mark)

    def _append(self, line: Mapping[str, Any]) -> None:
        content = json.dumps(line).encode() + b"\n"
        if os.write(self._fd, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(self._fd)


def unfinished(journal: Journal) -> tuple[list[Transaction], dict[str, VfioToolError]]:
    """Return the plans of this boot that did not end in good order, or are being carried out now.

    Those of an earlier boot are removed: a boot undoes them all. The second value has what is wrong
    with files that cannot be understood, by the first address of their plan.
    """
    found, broken = [], {}
    for address in _names(journal.transactions):
        try:
            one = _read(f"{journal.transactions}/{address}.jsonl", journal.boot)
        except VfioToolError as error:
            broken[address] = error
        else:
            found += [one] if one is not None else []
    return found, broken


def _names(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, PermissionError):
        return []
    addresses = [name.removesuffix(".jsonl") for name in names if name.endswith(".jsonl")]
    return sorted(filter(is_address, addresses), key=sort_key)


def _read(path: str, boot: str) -> Transaction | None:
    try:
        *lines, _cut_off = read_own(path).split("\n")
        if not lines:  # killed before the first line was written: nothing was begun
            remove_own(path)
            return None
        header, marks = json.loads(lines[0]), [json.loads(line) for line in lines[1:]]
        if header["schema"] != _SCHEMA:
            raise ValueError("not a transaction")
        if header["boot"] != boot:
            remove_own(path)
            return None
        return _parse(path, header, marks)
    except FileNotFoundError:  # it ended meanwhile
        return None
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from error
    except VfioToolError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error


def _parse(path: str, header: Any, marks: list[Any]) -> Transaction:
    before = {stored.address: stored for stored in map(from_document, header["before"])}
    begun = [mark["step"] for mark in marks if "step" in mark]
    steps = header["steps"]
    reached = [steps[number][0] for number in begun if isinstance(number, int) and number >= 0]
    blocked = next((mark["blocked"] for mark in marks if "blocked" in mark), None)
    return Transaction(
        path=path,
        before=before,
        after={address: parse_state(header["after"][address]) for address in before},
        fresh=_known(header["fresh"], before),
        forget=_known(header["forget"], before),
        allowed=frozenset(str(rule) for rule in header["allowed"]),
        touched=tuple(address for address in before if address in reached),
        is_done=any("done" in mark for mark in marks),
        blocked=None if blocked is None else _known([blocked], before)[0],
    )


def _known(addresses: Any, before: Mapping[str, DeviceRecord]) -> tuple[str, ...]:
    for address in addresses:
        if address not in before:
            raise ValueError(f"{address!r} is none of its devices")
    return tuple(addresses)
