"""Compares received uevents with expected: finds missing, duplicated and misordered uevents."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from vfiotool.events.entry import TimelineEntry
from vfiotool.stress.monitors.samples import Samples, times
from vfiotool.stress.monitors.sequence_match import SequenceMatcher
from vfiotool.stress.record import ExpectedUevent

Key = tuple[str, str, str]
"""The subsystem; the address of a device or the number of a group; for a group's node, the action."""
_ACTIONS = ("add", "remove")
Faults = Samples[dict[str, Any]]


@dataclass(slots=True)
class _Operation:
    """The uevents of one call, and the sequence numbers of those received."""

    uevents: tuple[ExpectedUevent, ...]
    seqnums: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def saw(self, place: int, seqnum: int) -> bool:
        """Add the sequence number of the uevent at a place. Return True if all have been received."""
        self.places.append(place)
        self.seqnums.append(seqnum)
        return len(self.places) == len(self.uevents)

    def too_early(self) -> tuple[ExpectedUevent, int] | None:
        """Return a uevent that came before its predecessor, with its sequence number."""
        came = sorted(zip(self.seqnums, self.places, strict=True))
        for rank, (seqnum, place) in enumerate(came):
            if place != rank:
                return self.uevents[place], seqnum
        return None

    def overlaps(self, other: _Operation) -> bool:
        """Return True if uevents of this call came between those of another."""
        return min(self.seqnums) <= max(other.seqnums) and min(other.seqnums) <= max(self.seqnums)


@dataclass(slots=True)
class _Group:
    """Judges the order of uevents across the streams of a group.

    If a stream loses two uevents that undo one another, the stream still seems complete, but each later
    uevent is matched with the next call instead of its own. A call is therefore judged only when the next
    call is complete: uevents that were really swapped still come before all uevents of the next call.
    """

    last: _Operation | None = None
    is_judged: bool = True

    def complete(self, operation: _Operation) -> tuple[ExpectedUevent, int] | None:
        """Add the next complete call. Return the uevent that came too early in the call before."""
        found = self.settle(operation)
        self.last = operation
        return found

    def settle(self, following: _Operation | None = None) -> tuple[ExpectedUevent, int] | None:
        """Judge the last call."""
        last, self.last = self.last, None
        found = last.too_early() if last is not None and self.is_judged else None
        if found and last is not None and following is not None and last.overlaps(following):
            self.is_judged = False
            return None
        return found


@dataclass(frozen=True, slots=True)
class _Awaited:
    uevent: ExpectedUevent
    group: int
    operation: _Operation
    place: int | None
    seqnum: None = None

    @property
    def action(self) -> str:
        return self.uevent.action


@dataclass(frozen=True, slots=True)
class _Came:
    action: str
    seqnum: int | None


class UeventMonitor:
    """Judges the watched streams: one per device and subsystem, and one per group node and action.

    Expected and received uevents are in order within a stream, but may be added in any order relative to
    each other. A surplus uevent counts as duplicated. For a group's node only the number of uevents counts: a
    group whose devices were removed may return with another number, and its old number may go to another
    group. Only one thread may use a monitor.
    """

    def __init__(self, *, is_ordered: bool = True) -> None:
        """``is_ordered``: uevents of a call have one order across streams. False if a worker puts groups."""
        self._is_ordered = is_ordered
        self._streams: dict[Key, SequenceMatcher[_Awaited, _Came]] = {}
        self._groups: dict[int, _Group] = {}
        self._of: dict[Key, int] = {}
        self._expected = 0
        self._received = 0
        self._swapped = Faults()
        self._missed = Samples[str]()

    def watch(self, group: int, addresses: Iterable[str]) -> None:
        """Judge the uevents of a group's node and of these devices from now on."""
        self._groups.setdefault(group, _Group())
        keys = [("vfio", str(group), action) for action in _ACTIONS]
        keys += [(subsystem, address, "") for address in addresses for subsystem in ("pci", "vfio-dev")]
        for key in keys:
            if key not in self._streams:
                self._of[key] = group
                self._streams[key] = SequenceMatcher(self._match)

    def expect(self, group: int, uevents: Iterable[ExpectedUevent]) -> None:
        """Expect the uevents of a call. The calls of a group must be added in their order."""
        sent = tuple(uevent for uevent in uevents if _key_of(uevent, group) in self._streams)
        operation = _Operation(tuple(uevent for uevent in sent if uevent.subsystem != "vfio"))
        self._expected += len(sent)
        places = itertools.count()
        for uevent in sent:
            place = None if uevent.subsystem == "vfio" else next(places)
            self._of[_key_of(uevent, group)] = group
            self._streams[_key_of(uevent, group)].expect(_Awaited(uevent, group, operation, place))

    def see(self, entry: TimelineEntry) -> None:
        """Match an entry of the source ``kernel``."""
        if entry.event == "missed":
            self._missed.add(entry.detail)
            return
        stream = self._streams.get(_key(entry))
        if stream is not None:
            self._received += 1
            stream.see(_Came(entry.event, entry.seqnum))

    def is_settled(self) -> bool:
        """Return True if no expected uevent is outstanding."""
        return all(stream.is_settled for stream in self._streams.values())

    def finish(self) -> None:
        """End the observation: outstanding uevents are missing, unmatched uevents are surplus."""
        for stream in self._streams.values():
            stream.finish()
        for number, group in self._groups.items():
            self._add_swapped(number, group.settle())

    def findings(self) -> list[str]:
        """Return the findings so far."""
        found = []
        for key, stream in self._streams.items():
            lane, where = stream.best, _name(key)
            for fault, faults in (
                ("did not come", lane.missing),
                ("came again, or unexpectedly", lane.surplus),
                ("came before what must precede it", lane.disordered),
            ):
                if faults.count:
                    examples = ", ".join(sorted({item.action for item in faults.first}))
                    found.append(f"a uevent of {where} {fault}, {times(faults.count)}: {examples}")
        if self._swapped.count:
            first = self._swapped.first[0]
            found.append(
                f"a uevent of group {first['group']} came before what must precede it in another stream, "
                f"{times(self._swapped.count)}: {first['action']} {first['subsystem']}"
            )
        if self._missed.count:
            lost = f"the kernel's uevents were lost before they were read, {times(self._missed.count)}"
            found.append(f"{lost}: {', '.join(self._missed.first[:3])}")
        return found

    def document(self) -> dict[str, Any]:
        """Return ``udev`` of the report. Lists hold at most a hundred items; ``counts`` counts all."""
        missing, duplicated, disordered = Faults(), Faults(), Faults()
        for key, stream in self._streams.items():
            for faults, into in (
                (stream.best.missing, missing),
                (stream.best.surplus, duplicated),
                (stream.best.disordered, disordered),
            ):
                into.extend(self._named(key, faults))
        disordered.extend(self._swapped)
        return {
            "expected": self._expected,
            "received": self._received,
            "missing": missing.first,
            "duplicated": duplicated.first,
            "out_of_order": disordered.first,
            "missed": list(self._missed.first),
            "counts": {
                "missing": missing.count,
                "duplicated": duplicated.count,
                "out_of_order": disordered.count,
                "missed": self._missed.count,
            },
        }

    def _named(self, key: Key, faults: Samples[_Awaited] | Samples[_Came]) -> Faults:
        """Return the faults of a stream in the form of the report."""
        subsystem, name, _ = key
        address = None if subsystem == "vfio" else name
        named = Faults()
        for item in faults.first:
            named.add(_document(ExpectedUevent(subsystem, item.action, address), self._of[key], item.seqnum))
        named.count = faults.count
        return named

    def _match(self, awaited: _Awaited, came: _Came) -> None:
        """Judge the order across streams, when all uevents of a call have been received."""
        if not self._is_ordered or came.seqnum is None or awaited.place is None:
            return
        if awaited.operation.saw(awaited.place, came.seqnum):
            self._add_swapped(awaited.group, self._groups[awaited.group].complete(awaited.operation))

    def _add_swapped(self, group: int, found: tuple[ExpectedUevent, int] | None) -> None:
        if found is not None:
            self._swapped.add(_document(found[0], group, found[1]))


def _key_of(uevent: ExpectedUevent, group: int) -> Key:
    name = str(group) if uevent.address is None else uevent.address
    return uevent.subsystem, name, uevent.action if uevent.subsystem == "vfio" else ""


def _key(entry: TimelineEntry) -> Key:
    """Return the stream of an entry: a group's entry has no address, a PCI device's entry no detail."""
    if entry.address is None:
        return "vfio", str(entry.group), entry.event
    return "vfio-dev" if entry.detail else "pci", entry.address, ""


def _name(key: Key) -> str:
    subsystem, name, _ = key
    return f"/dev/vfio/{name}" if subsystem == "vfio" else f"{name} ({subsystem})"


def _document(uevent: ExpectedUevent, group: int, seqnum: int | None) -> dict[str, Any]:
    """Return a uevent in the form of the report. ``seqnum`` is None for a missing uevent."""
    return {
        "action": uevent.action,
        "subsystem": uevent.subsystem,
        "address": uevent.address,
        "group": group,
        "seqnum": seqnum,
    }
