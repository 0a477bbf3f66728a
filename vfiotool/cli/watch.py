"""The verb that shows the kernel's events for devices as they occur."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import click

from vfiotool.cli.completion import complete_device
from vfiotool.cli.settings import Settings, json_option
from vfiotool.cli.signals import exit_on_signals, signals_ignored
from vfiotool.errors import VfioToolError
from vfiotool.host.selectors import select
from vfiotool.render.errors import print_note

if TYPE_CHECKING:
    from vfiotool.events.entry import EventSource, TimelineEntry
    from vfiotool.events.entry_filter import EntryFilter
    from vfiotool.host.tree import Tree


@click.command("watch")
@click.argument("selectors", metavar="[ADDRESS]...", nargs=-1, shell_complete=complete_device)
@click.option(
    "--duration",
    type=click.FloatRange(min=0),
    metavar="S",
    help="Stop after S seconds; by default at Ctrl-C.",
)
@json_option
@click.pass_obj
def watch(settings: Settings, /, selectors: tuple[str, ...], duration: float | None, as_json: bool) -> None:
    """Show uevents, driver changes, kernel function calls and the kernel log in one timeline.

    Shows the devices that ADDRESS selects, or all PCI devices. Without root, sources that need root are left
    out; a note on stderr names each.
    """
    tree = settings.require_live()
    from vfiotool.events.entry import now
    from vfiotool.events.entry_filter import EntryFilter
    from vfiotool.events.timeline import Timeline
    from vfiotool.render.timeline import write_entry, write_line

    entry_filter = EntryFilter(tree, select(tree, selectors))
    write = write_entry if as_json else write_line
    exit_on_signals()
    stack = contextlib.ExitStack()
    try:
        timeline = Timeline(_sources(tree, stack))
        print_note("watching; Ctrl-C ends it")
        until = None if duration is None else now() + duration
        with contextlib.suppress(KeyboardInterrupt):  # the user ends the timeline by Ctrl-C
            _show(timeline.entries(until), entry_filter, write)
        _show(timeline.rest(), entry_filter, write)
    finally:
        with signals_ignored():
            stack.close()


def _show(
    entries: Iterable[TimelineEntry], entry_filter: EntryFilter, write: Callable[[TimelineEntry], None]
) -> None:
    for entry in entries:
        if entry_filter.is_shown(entry):
            write(entry)


def _sources(tree: Tree, stack: contextlib.ExitStack) -> list[EventSource]:
    """Open the event sources that this user may read, and note the others. ``stack`` closes them."""
    from vfiotool.events.driver_links import DriverLinks
    from vfiotool.events.kmsg import KernelLog
    from vfiotool.events.probes import KernelProbes
    from vfiotool.events.tracefs import TraceInstance
    from vfiotool.events.uevents import Uevents

    sources: list[EventSource] = [Uevents("kernel", tree), Uevents("udev", tree), DriverLinks(tree)]
    offset = 0.0
    with _optional("kernel functions are not probed"):
        instance = stack.enter_context(TraceInstance())
        offset = instance.log_offset
        sources.append(KernelProbes(instance))
    with _optional("the kernel log is not read"):
        sources.append(KernelLog(offset))
    for source in sources:
        stack.callback(source.close)
    return sources


@contextlib.contextmanager
def _optional(lacking: str) -> Iterator[None]:
    """Print a note with the reason if a ``with`` block cannot open its source, and continue."""
    try:
        yield
    except PermissionError:
        why = "only root may" if os.geteuid() else "this kernel is locked down, or this is a container"
        print_note(f"{lacking}: {why}")
    except VfioToolError as error:
        print_note(f"{lacking}: {error.message}; {error.hint}")
    except OSError as error:
        print_note(f"{lacking}: {error.strerror}")
