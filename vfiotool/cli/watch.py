"""The verb that shows what the kernel does with devices, as it happens."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import click

from vfiotool.cli.completion import complete_device
from vfiotool.cli.settings import Settings, json_option
from vfiotool.cli.signals import exit_on_signals, signals_ignored
from vfiotool.errors import VfioToolError
from vfiotool.host.selectors import select

if TYPE_CHECKING:
    from vfiotool.events.entry import EventSource, TimelineEntry
    from vfiotool.events.entry_filter import EntryFilter
    from vfiotool.host.tree import Tree


@click.command("watch")
@click.argument("selectors", metavar="[ADDRESS]...", nargs=-1, shell_complete=complete_device)
@click.option("--duration", type=click.FloatRange(min=0), help="End after so many seconds.")
@json_option
@click.pass_obj
def watch(settings: Settings, /, selectors: tuple[str, ...], duration: float | None, as_json: bool) -> None:
    """Show uevents, drivers, the kernel's own functions and its log in one timeline, until Ctrl-C.

    Of all PCI devices, or of those that each ADDRESS names. Without root it shows what it may.
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
        _tell("watching; Ctrl-C ends it")
        until = None if duration is None else now() + duration
        with contextlib.suppress(KeyboardInterrupt):  # it is how a user ends this
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
    """Open what this user may watch, and say what not; the stack closes it."""
    from vfiotool.events.driver_links import DriverLinks
    from vfiotool.events.kmsg import KernelLog
    from vfiotool.events.probes import KernelProbes
    from vfiotool.events.tracefs import TraceInstance
    from vfiotool.events.uevents import Uevents

    sources: list[EventSource] = [Uevents("kernel", tree), Uevents("udev", tree), DriverLinks(tree)]
    offset = 0.0
    with _optional("the kernel's functions are not probed"):
        instance = stack.enter_context(TraceInstance())
        offset = instance.log_offset
        sources.append(KernelProbes(instance))
    with _optional("the kernel's log is not read"):
        sources.append(KernelLog(offset))
    for source in sources:
        stack.callback(source.close)
    return sources


@contextlib.contextmanager
def _optional(lacking: str) -> Iterator[None]:
    """Go on without what cannot be had, and say why."""
    try:
        yield
    except PermissionError:
        why = "that is root's alone" if os.geteuid() else "this kernel is locked down, or this is a container"
        _tell(f"{lacking}: {why}")
    except VfioToolError as error:
        _tell(f"{lacking}: {error.message}; {error.hint}")
    except OSError as error:
        _tell(f"{lacking}: {error.strerror}")


def _tell(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)
