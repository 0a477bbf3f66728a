"""Uevents expected against received: what is missing, came twice, or came before what must precede it."""

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
"""Subsystem, the address of a device or the number of a group, and of a group's node the action."""
_ACTIONS = ("add", "remove")
Faults = Samples[dict[str, Any]]


@dataclass(slots=True)
class _Operation:
    """The uevents of one operation: their numbers, as far as they have come."""

    uevents: tuple[ExpectedUevent, ...]
    seqnums: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def saw(self, place: int, seqnum: int) -> bool:
        """Take the number of the uevent at a place, and say whether all have come."""
        self.places.append(place)
        self.seqnums.append(seqnum)
        return len(self.places) == len(self.uevents)

    def too_early(self) -> tuple[ExpectedUevent, int] | None:
        """Return a uevent that came before one that must precede it, and its number."""
        came = sorted(zip(self.seqnums, self.places, strict=True))
        for rank, (seqnum, place) in enumerate(came):
            if place != rank:
                return self.uevents[place], seqnum
        return None

    def overlaps(self, other: _Operation) -> bool:
        """Say whether its uevents came between those of another."""
        return min(self.seqnums) <= max(other.seqnums) and min(other.seqnums) <= max(self.seqnums)


@dataclass(slots=True)
class _Group:
    """The order of a group's operations across its streams.

    If two uevents of one stream are lost which undo one another, the stream still seems whole, but all that
    follows is matched an operation too late. So an operation is judged when the next is there: uevents
    that were swapped are still all before those of the next.
    """

    last: _Operation | None = None
    is_judged: bool = True

    def complete(self, operation: _Operation) -> tuple[ExpectedUevent, int] | None:
        """Take the next operation, and return what came too early in the one before it."""
        found = self.settle(operation)
        self.last = operation
        return found

    def settle(self, following: _Operation | None = None) -> tuple[ExpectedUevent, int] | None:
        """Judge the last operation."""
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
    """Judges the streams it was told of: one for each device in each subsystem, and for each group's node.

    Both what is expected and what comes is in order within a stream; which of the two is told of first does
    not matter. An event that is one too many counts as duplicated, expected or not. Of a group's node only
    their number counts: a group whose devices were removed may come back by another number, and that of one
    be another's then. One thread uses it.
    """

    def __init__(self, *, is_ordered: bool = True) -> None:
        """Say whether an operation's uevents have one order across streams: not if a worker puts groups."""
        self._is_ordered = is_ordered
        self._streams: dict[Key, SequenceMatcher[_Awaited, _Came]] = {}
        self._groups: dict[int, _Group] = {}
        self._of: dict[Key, int] = {}
        self._expected = 0
        self._received = 0
        self._swapped = Faults()
        self._missed = Samples[str]()

    def watch(self, group: int, addresses: Iterable[str]) -> None:
        """Judge what is about a group's node and these devices from now on."""
        self._groups.setdefault(group, _Group())
        keys = [("vfio", str(group), action) for action in _ACTIONS]
        keys += [(subsystem, address, "") for address in addresses for subsystem in ("pci", "vfio-dev")]
        for key in keys:
            if key not in self._streams:
                self._of[key] = group
                self._streams[key] = SequenceMatcher(self._match)

    def expect(self, group: int, uevents: Iterable[ExpectedUevent]) -> None:
        """Take what an operation must have sent. Operations of a group are told of in their order."""
        sent = tuple(uevent for uevent in uevents if _key_of(uevent, group) in self._streams)
        operation = _Operation(tuple(uevent for uevent in sent if uevent.subsystem != "vfio"))
        self._expected += len(sent)
        places = itertools.count()
        for uevent in sent:
            place = None if uevent.subsystem == "vfio" else next(places)
            self._of[_key_of(uevent, group)] = group
            self._streams[_key_of(uevent, group)].expect(_Awaited(uevent, group, operation, place))

    def see(self, entry: TimelineEntry) -> None:
        """Take an entry of the source ``kernel``."""
        if entry.event == "missed":
            self._missed.add(entry.detail)
            return
        stream = self._streams.get(_key(entry))
        if stream is not None:
            self._received += 1
            stream.see(_Came(entry.event, entry.seqnum))

    def is_settled(self) -> bool:
        """Say whether nothing that was expected is outstanding."""
        return all(stream.is_settled for stream in self._streams.values())

    def finish(self) -> None:
        """Take it that nothing more comes: what is outstanding is missing, what nobody expected too many."""
        for stream in self._streams.values():
            stream.finish()
        for number, group in self._groups.items():
            self._add_swapped(number, group.settle())

    def findings(self) -> list[str]:
        """Return what is wrong so far."""
        found = []
        for key, stream in self._streams.items():
            lane, where = stream.best, _name(key)
            for what, faults in (
                ("did not come", lane.missing),
                ("came again, or unexpectedly", lane.surplus),
                ("came before what must precede it", lane.disordered),
            ):
                if faults.count:
                    examples = ", ".join(sorted({item.action for item in faults.first}))
                    found.append(f"a uevent of {where} {what}, {times(faults.count)}: {examples}")
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
        """Return ``udev`` of the report; lists have at most a hundred, ``counts`` says how many there are."""
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
        """Return the faults of a stream as the report has them."""
        subsystem, name, _ = key
        address = None if subsystem == "vfio" else name
        named = Faults()
        for item in faults.first:
            named.add(_document(ExpectedUevent(subsystem, item.action, address), self._of[key], item.seqnum))
        named.count = faults.count
        return named

    def _match(self, awaited: _Awaited, came: _Came) -> None:
        """Look at the order across streams, once all uevents of an operation are there."""
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
    """Tell the subsystem, which an entry does not name: a group has no address, a PCI device no detail."""
    if entry.address is None:
        return "vfio", str(entry.group), entry.event
    return "vfio-dev" if entry.detail else "pci", entry.address, ""


def _name(key: Key) -> str:
    subsystem, name, _ = key
    return f"/dev/vfio/{name}" if subsystem == "vfio" else f"{name} ({subsystem})"


def _document(uevent: ExpectedUevent, group: int, seqnum: int | None) -> dict[str, Any]:
    """Return a uevent as the report has it; one that did not come has no number."""
    return {
        "action": uevent.action,
        "subsystem": uevent.subsystem,
        "address": uevent.address,
        "group": group,
        "seqnum": seqnum,
    }
