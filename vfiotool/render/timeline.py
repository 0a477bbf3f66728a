"""Entries of the timeline, as lines of text and as JSON."""

from __future__ import annotations

import sys

from vfiotool.events.entry import TimelineEntry
from vfiotool.render.documents import write_document
from vfiotool.render.terminal import print_entry


def write_entry(entry: TimelineEntry) -> None:
    """Write an entry to stdout as a JSON object, and flush."""
    write_document("watch", entry)
    sys.stdout.flush()


def write_line(entry: TimelineEntry) -> None:
    """Write an entry to stdout as a line (time, source, event, address, group, driver, detail), and flush."""
    group = "" if entry.group is None else f"group {entry.group}"
    subjects = (entry.address or "", group, entry.driver or "", entry.detail)
    words = "  ".join(word for word in subjects if word)
    print_entry(f"{entry.time:14.6f}  {entry.source:6}  ", f"{entry.event:34}  {words}")
    sys.stdout.flush()
