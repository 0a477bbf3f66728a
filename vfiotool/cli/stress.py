"""The verb that proves a kernel: workloads on devices, watched, and judged against the model."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from vfiotool.binding.operations import Binding
from vfiotool.cli.driver_changes import select_endpoints
from vfiotool.cli.options import Selection, allow_flags, allow_options, grouped, selection_options
from vfiotool.cli.settings import Settings, json_option
from vfiotool.cli.signals import signals_ignored
from vfiotool.errors import VfioToolError
from vfiotool.render.documents import write_document
from vfiotool.util.files import write_whole

if TYPE_CHECKING:
    from vfiotool.render.stress_progress import ProgressDisplay
    from vfiotool.stress.config import RunConfig
    from vfiotool.stress.results.report import Report
    from vfiotool.stress.results.trace import Trace
    from vfiotool.stress.runner import ProgressSink, StopRequest

_CYCLES = 10
_MOST_MARKS = 2000
"""Of a trace, on the page."""
_ABOUT = {
    "bind": "Each device from vfio-pci to its host driver and back.",
    "group": "Random walks through the life cycle of the group, by two processes.",
    "viability": "The group is set up while siblings are on host drivers.",
    "dma": "Memory is mapped and unmapped; bytes and pins are counted.",
    "irq": "Interrupts are enabled, triggered and counted.",
    "reset": "Functions are reset while they are in use.",
    "hotplug": "Devices are removed from the bus and found again.",
    "sriov": "VFs come and go, on vfio-pci meanwhile.",
    "race": "Two operations at once, that must come out as one after the other.",
    "all": "All that the devices have what it takes for.",
}


class _Workloads(click.Group):
    """A command for each workload, and for each list of them with commas."""

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        known = super().get_command(context, name)
        names = name.split(",")
        if known is not None or not set(names) <= set(_ABOUT):
            return known
        return _command(name, " ".join(_ABOUT[one] for one in names))


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options of a run: ``duration`` is in seconds, ``allowed`` names the lifted safety rules."""

    cycles: int | None
    duration: float | None
    seed: int | None
    jobs: int | None
    report: str | None
    allow_kernel_crash: bool
    allowed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """The options of a replay; ``allowed`` names the lifted safety rules."""

    report: str | None
    shrink: bool
    script: str | None
    allow_kernel_crash: bool
    allowed: tuple[str, ...]


_report_option = click.option(
    "--report", type=click.Path(file_okay=False), help="The folder of the report; a new one, if none."
)
_crash_option = click.option(
    "--allow-kernel-crash",
    is_flag=True,
    help="Do what ends an old kernel, too: only in a guest of the lab.",
)
_run_options = grouped(
    "options",
    RunOptions,
    [
        click.option(
            "--cycles",
            type=click.IntRange(min=1),
            help=f"Do each workload so often on each group; {_CYCLES} unless there is a duration.",
        ),
        click.option("--duration", type=click.FloatRange(min=0.1), metavar="S", help="End after S seconds."),
        click.option("--seed", type=click.IntRange(min=0), help="What decides the operations; any, if none."),
        click.option(
            "--jobs", type=click.IntRange(min=1), help="So many groups at once; all, unless it is given."
        ),
        _report_option,
        _crash_option,
        allow_options,
    ],
)
_replay_options = grouped(
    "options",
    ReplayOptions,
    [
        _report_option,
        click.option(
            "--shrink", is_flag=True, help="Find the fewest operations that still show what went wrong."
        ),
        click.option(
            "--script",
            type=click.Path(dir_okay=False, writable=True),
            help="Write those as a Python script that needs no vfiotool.",
        ),
        _crash_option,
        allow_options,
    ],
)


def _command(name: str, about: str) -> click.Command:
    @click.command(name, help=about)
    @selection_options
    @_run_options
    @json_option
    @click.pass_obj
    def run(settings: Settings, /, selection: Selection, options: RunOptions, as_json: bool) -> None:
        _execute(_order(settings, name, selection, options), as_json)

    return run


@click.group("stress", cls=_Workloads, subcommand_metavar="WORKLOAD[,WORKLOAD]... ADDRESS...")
def stress() -> None:
    """Work on devices as hard as can be, watch the kernel, and judge it against a model.

    Devices are taken from their drivers, and given back at the end. A report is left in a folder.
    """


for _name, _text in _ABOUT.items():
    stress.add_command(_command(_name, _text))


def _execute(order: RunConfig, as_json: bool) -> None:
    from vfiotool.stress.runner import StopRequest, run

    stop = StopRequest()
    _end_when_told(stop)
    with _progress(order) as progress:
        report = run(order, progress, stop)
    _conclude(order, report, as_json)


@stress.command("replay")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@_replay_options
@json_option
@click.pass_obj
def replay(settings: Settings, /, file: str, options: ReplayOptions, as_json: bool) -> None:
    """Do the operations of a run again: FILE is its trace.jsonl."""
    from vfiotool.stress.results.trace import read_trace

    settings.require_live()
    trace = read_trace(file)
    if options.shrink or options.script:
        _shrink(settings, trace, options, as_json)
        return
    _execute(_repeated(settings, trace, file, options), as_json)


def _repeated(settings: Settings, trace: Trace, file: str, options: ReplayOptions) -> RunConfig:
    """Return the order that does what a trace has, on the same groups at once."""
    from vfiotool.stress.config import RunConfig, require_lab
    from vfiotool.stress.groups import groups_of_trace
    from vfiotool.stress.reproduce.replay import cycles_of

    if options.allow_kernel_crash:
        require_lab(settings.tree)
    cycles = cycles_of(trace)
    units = groups_of_trace(settings.tree, trace.header, settings.state_dir)
    return RunConfig(
        groups=units,
        workloads=("replay",),
        seed=trace.header["seed"],
        report=options.report or _folder(),
        state_dir=settings.state_dir,
        reproduce=shlex.join(["vfiotool", "stress", "replay", file, *_lifting_flags(options)]),
        cycles=max(map(len, cycles.values()), default=0),
        jobs=len(units),
        allowed=frozenset(options.allowed),
        allow_crash=options.allow_kernel_crash,
        repeated=cycles,
    )


def _shrink(settings: Settings, trace: Trace, options: ReplayOptions, as_json: bool) -> None:
    """Reduce what went otherwise to the fewest operations, and show them."""
    from vfiotool.stress.groups import groups_of_trace
    from vfiotool.stress.reproduce.minimize import reduce
    from vfiotool.stress.reproduce.script import script

    units = groups_of_trace(settings.tree, trace.header, settings.state_dir)
    with signals_ignored():
        finding = reduce(trace, units, settings.state_dir, list(options.allowed))
    if options.script:
        write_whole(options.script, [script(trace.header, finding)])
    if as_json:
        operations = [record.line().document() for record in finding.records]
        found = list(finding.seen.found)
        write_document("stress", {"operations": operations, "found": found, "script": options.script})
        return
    for record in finding.records:
        text = f"{record.call}: {record.outcome}"
        click.echo(f"{text}, not {record.expected}" if record.is_unexpected else text)
    for one in finding.seen.found:
        click.echo(f"then {one}")


def _folder() -> str:
    """Return a name for the folder of a report."""
    return time.strftime("vfiotool-stress-%Y%m%d-%H%M%S")


def _order(settings: Settings, names: str, selection: Selection, options: RunOptions) -> RunConfig:
    tree = settings.require_live()
    from vfiotool.stress.config import RunConfig, parse_workloads, require_lab
    from vfiotool.stress.groups import find_groups

    if options.allow_kernel_crash:
        require_lab(tree)
    wanted = select_endpoints(settings, Binding(state_dir=settings.state_dir), selection)
    units = find_groups(tree, wanted, settings.state_dir)
    seed = int.from_bytes(os.urandom(4), "little") if options.seed is None else options.seed
    cycles = _CYCLES if options.cycles is None and options.duration is None else options.cycles
    return RunConfig(
        groups=units,
        workloads=parse_workloads(names),
        seed=seed,
        report=options.report or _folder(),
        state_dir=settings.state_dir,
        reproduce=_reproduce(names, wanted, replace(options, seed=seed, cycles=cycles)),
        cycles=cycles,
        duration=options.duration,
        jobs=options.jobs or len(units),
        allowed=frozenset(options.allowed),
        allow_crash=options.allow_kernel_crash,
    )


def _reproduce(names: str, wanted: list[str], options: RunOptions) -> str:
    """Return the command line that does the same again; a run that time ends comes about as far."""
    words = ["vfiotool", "stress", names, *wanted, "--seed", str(options.seed)]
    for flag in ("cycles", "duration", "jobs"):
        value = getattr(options, flag)
        words += [] if value is None else [f"--{flag}", f"{value:g}"]
    return shlex.join(words + _lifting_flags(options))


def _lifting_flags(options: RunOptions | ReplayOptions) -> list[str]:
    crash = ["--allow-kernel-crash"] if options.allow_kernel_crash else []
    return allow_flags(options.allowed) + crash


def _end_when_told(stop: StopRequest) -> None:
    """Have signals end the run in good order: what is told again meanwhile changes nothing."""

    def take_note(number: int, _frame: object) -> None:
        stop.by = stop.by or signal.Signals(number).name

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, take_note)


@contextlib.contextmanager
def _progress(order: RunConfig) -> Iterator[ProgressSink]:
    """Have a display for the time of the run."""
    from vfiotool.render.stress_progress import ProgressDisplay

    most = None if order.cycles is None else order.cycles * len(order.workloads) * len(order.groups)
    with ProgressDisplay(order.addresses, order.workloads, seconds=order.duration, cycles=most) as display:
        yield _DisplaySink(display)


class _DisplaySink:
    """A display as the run wants it."""

    def __init__(self, display: ProgressDisplay) -> None:
        self._board = display

    @property
    def due(self) -> bool:
        return self._board.due

    def show(self, **fields: Any) -> None:
        from vfiotool.render.stress_progress import RunProgress

        self._board.update(RunProgress(**fields))


def _conclude(order: RunConfig, report: Report, as_json: bool) -> None:
    """Write the report, and say what it says; a run that has failed ends with status 1."""
    from vfiotool.render.report_page import write_page
    from vfiotool.stress.results.report import PAGE, TRACE, write_report
    from vfiotool.stress.results.trace import sample_trace

    document = report.document()
    write_report(order.report, document)
    lines = sample_trace(f"{order.report}/{TRACE}", _MOST_MARKS)
    write_page(f"{order.report}/{PAGE}", document, lines, [" ".join(unit.members) for unit in order.groups])
    if as_json:
        write_document("stress", {key: value for key, value in document.items() if key != "schema"})
    else:
        click.echo(f"{report.verdict}: {report.cycles} cycles in {report.seconds:.0f} s, seed {report.seed}")
        for reason in report.reasons:
            click.echo(f"  {reason}")
        click.echo(f"report: {order.report}")
    if report.reasons:
        click.get_current_context().exit(VfioToolError.exit_status)
