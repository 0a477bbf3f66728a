"""Entries of the timeline, as lines for people and as JSON."""

from __future__ import annotations

import sys

from vfiotool.events.entry import TimelineEntry
from vfiotool.render.documents import write_document
from vfiotool.util.text import printable


def write_entry(entry: TimelineEntry) -> None:
    """Write it as one JSON object, at once."""
    write_document("watch", entry)
    sys.stdout.flush()


def write_line(entry: TimelineEntry) -> None:
    """Write it as one line, at once: time, source, event, what it is about, and what else there is."""
    group = "" if entry.group is None else f"group {entry.group}"
    about = (entry.address or "", group, entry.driver or "", entry.detail)
    words = "  ".join(printable(word) for word in about if word)
    sys.stdout.write(
        f"{entry.time:14.6f}  {entry.source:6}  {printable(entry.event):34}  {words}".rstrip() + "\n"
    )
    sys.stdout.flush()
