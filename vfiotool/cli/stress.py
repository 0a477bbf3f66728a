"""The verb that stresses a kernel: it runs workloads on devices, monitors the kernel, and writes a report."""

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
from vfiotool.cli.option_groups import grouped
from vfiotool.cli.options import Selection, allow_flags, allow_options, selection_options
from vfiotool.cli.parameters import vf_token_option
from vfiotool.cli.settings import Settings, json_option
from vfiotool.cli.signals import signals_ignored
from vfiotool.errors import UsageError, VfioToolError
from vfiotool.render.documents import write_document
from vfiotool.util.files import write_whole

if TYPE_CHECKING:
    import uuid

    from vfiotool.render.stress_progress import ProgressDisplay
    from vfiotool.stress.config import RunConfig
    from vfiotool.stress.results.report import Report
    from vfiotool.stress.results.trace import Trace
    from vfiotool.stress.runner import ProgressSink, StopRequest

_CYCLES = 10
_MOST_MARKS = 2000  # operations of a trace that the report page draws
_WORKLOADS = {
    "bind": "Move each device from vfio-pci to its host driver and back.",
    "group": "Walk the group's life cycle at random, from two processes.",
    "viability": "Set up the group while other members are on host drivers.",
    "dma": "Map and unmap memory; check transferred bytes and pinned pages.",
    "irq": "Enable, trigger and count interrupts.",
    "reset": "Reset functions while they are in use.",
    "hotplug": "Remove devices from the bus and rescan the bus.",
    "sriov": "Create VFs, bind them to vfio-pci, and remove them.",
    "race": "Run two operations at once, and check for a sequential result.",
    "all": "Run every workload that the selected devices support.",
}


class _Workloads(click.Group):
    """A command for each workload, and for each comma-separated list of workloads."""

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        known = super().get_command(context, name)
        names = name.split(",")
        if known is not None or not set(names) <= set(_WORKLOADS):
            return known
        return _command(name, " ".join(_WORKLOADS[one] for one in names))


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options of a run: ``duration`` is in seconds, ``allowed`` names the lifted safety rules."""

    cycles: int | None
    duration: float | None
    seed: int | None
    jobs: int | None
    report: str | None
    vf_token: uuid.UUID | None
    allow_kernel_crash: bool
    allowed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """The options of a replay; ``allowed`` names the lifted safety rules."""

    report: str | None
    shrink: bool
    script: str | None
    vf_token: uuid.UUID | None
    allow_kernel_crash: bool
    allowed: tuple[str, ...]


_report_option = click.option(
    "--report",
    type=click.Path(file_okay=False),
    help="Directory of the report; by default a new vfiotool-stress-DATE-TIME.",
)
_crash_option = click.option(
    "--allow-kernel-crash",
    is_flag=True,
    help="Also run operations that crash an old kernel; only in a lab guest.",
)
_run_options = grouped(
    "options",
    RunOptions,
    [
        click.option(
            "--cycles",
            type=click.IntRange(min=1),
            metavar="N",
            help=f"Cycles of each workload on each group; {_CYCLES} by default, without --duration.",
        ),
        click.option(
            "--duration",
            type=click.FloatRange(min=0.1),
            metavar="S",
            help="Stop after S seconds; by default after the cycles.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(min=0),
            metavar="N",
            help="Seed of the random choices; random by default.",
        ),
        click.option(
            "--jobs",
            type=click.IntRange(min=1),
            metavar="N",
            help="Groups to run at the same time; all by default.",
        ),
        _report_option,
        vf_token_option,
        _crash_option,
        allow_options,
    ],
)
_replay_options = grouped(
    "options",
    ReplayOptions,
    [
        _report_option,
        click.option("--shrink", is_flag=True, help="Find the fewest operations that reproduce the failure."),
        click.option(
            "--script",
            type=click.Path(dir_okay=False, writable=True),
            help="Write those operations to a Python script that does not need vfiotool.",
        ),
        vf_token_option,
        _crash_option,
        allow_options,
    ],
)


def _command(name: str, summary: str) -> click.Command:
    @click.command(name, help=summary)
    @selection_options
    @_run_options
    @json_option
    @click.pass_obj
    def run(settings: Settings, /, selection: Selection, options: RunOptions, as_json: bool) -> None:
        _execute(_configured(settings, name, selection, options), as_json)

    return run


@click.group("stress", cls=_Workloads, subcommand_metavar="WORKLOAD[,WORKLOAD]... ADDRESS...")
def stress() -> None:
    """Stress the kernel through devices, and check each result against a model of the VFIO life cycle.

    The run takes the devices from their drivers and restores them at the end. It writes a report into a
    directory.
    """


for _name, _text in _WORKLOADS.items():
    stress.add_command(_command(_name, _text))


def _execute(config: RunConfig, as_json: bool) -> None:
    from vfiotool.stress.runner import StopRequest, run

    stop = StopRequest()
    _stop_on_signals(stop)
    with _progress(config) as progress:
        report = run(config, progress, stop)
    _conclude(config, report, as_json)


@stress.command("replay")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@_replay_options
@json_option
@click.pass_obj
def replay(settings: Settings, /, file: str, options: ReplayOptions, as_json: bool) -> None:
    """Repeat the operations of a run. FILE is the run's trace.jsonl."""
    from vfiotool.stress.results.trace import read_trace

    settings.require_live()
    trace = read_trace(file)
    if options.shrink or options.script:
        _shrink(settings, trace, options, as_json)
        return
    _execute(_repeated(settings, trace, file, options), as_json)


def _repeated(settings: Settings, trace: Trace, file: str, options: ReplayOptions) -> RunConfig:
    """Return the configuration of a run that repeats a trace, with all its groups at once."""
    from vfiotool.stress.config import RunConfig, require_lab
    from vfiotool.stress.groups import groups_of_trace
    from vfiotool.stress.reproduce.replay import cycles_of

    if options.allow_kernel_crash:
        require_lab(settings.tree)
    cycles = cycles_of(trace)
    groups = groups_of_trace(settings.tree, trace.header, settings.state_dir, options.vf_token)
    return RunConfig(
        groups=groups,
        workloads=("replay",),
        seed=trace.header["seed"],
        report=options.report or _report_directory(),
        state_dir=settings.state_dir,
        reproduce=shlex.join(["vfiotool", "stress", "replay", file, *_repeated_flags(options)]),
        cycles=max(map(len, cycles.values()), default=0),
        jobs=len(groups),
        allowed=frozenset(options.allowed),
        allow_crash=options.allow_kernel_crash,
        repeated=cycles,
    )


def _shrink(settings: Settings, trace: Trace, options: ReplayOptions, as_json: bool) -> None:
    """Reduce the failure in a trace to the fewest operations, and print them."""
    from vfiotool.stress.groups import groups_of_trace
    from vfiotool.stress.reproduce.minimize import reduce
    from vfiotool.stress.reproduce.script import script

    if options.script and options.vf_token is not None:
        raise UsageError("a script opens no VF by a token", hint="leave out --script, or --vf-token")
    groups = groups_of_trace(settings.tree, trace.header, settings.state_dir, options.vf_token)
    with signals_ignored():
        finding = reduce(trace, groups, settings.state_dir, list(options.allowed))
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


def _report_directory() -> str:
    """Return the default name of a report's directory."""
    return time.strftime("vfiotool-stress-%Y%m%d-%H%M%S")


def _configured(settings: Settings, names: str, selection: Selection, options: RunOptions) -> RunConfig:
    """Return the configuration of a run of these workloads (comma-separated) on the selected devices."""
    tree = settings.require_live()
    from vfiotool.stress.config import RunConfig, parse_workloads, require_lab
    from vfiotool.stress.groups import find_groups

    if options.allow_kernel_crash:
        require_lab(tree)
    wanted = select_endpoints(settings, Binding(state_dir=settings.state_dir), selection)
    groups = find_groups(tree, wanted, settings.state_dir, options.vf_token)
    seed = int.from_bytes(os.urandom(4), "little") if options.seed is None else options.seed
    cycles = _CYCLES if options.cycles is None and options.duration is None else options.cycles
    return RunConfig(
        groups=groups,
        workloads=parse_workloads(names),
        seed=seed,
        report=options.report or _report_directory(),
        state_dir=settings.state_dir,
        reproduce=_reproduce(names, wanted, replace(options, seed=seed, cycles=cycles)),
        cycles=cycles,
        duration=options.duration,
        jobs=options.jobs or len(groups),
        allowed=frozenset(options.allowed),
        allow_crash=options.allow_kernel_crash,
    )


def _reproduce(names: str, wanted: list[str], options: RunOptions) -> str:
    """Return the command line that repeats the run. A run with a duration does about as many cycles."""
    words = ["vfiotool", "stress", names, *wanted, "--seed", str(options.seed)]
    for flag in ("cycles", "duration", "jobs"):
        value = getattr(options, flag)
        words += [] if value is None else [f"--{flag}", f"{value:g}"]
    return shlex.join(words + _repeated_flags(options))


def _repeated_flags(options: RunOptions | ReplayOptions) -> list[str]:
    """Return the flags that a repetition needs too. A VF token is a secret: the report has none."""
    token = ["--vf-token", "UUID"] if options.vf_token is not None else []
    crash = ["--allow-kernel-crash"] if options.allow_kernel_crash else []
    return token + allow_flags(options.allowed) + crash


def _stop_on_signals(stop: StopRequest) -> None:
    """Make SIGINT, SIGTERM and SIGHUP request a stop of the run. Only the first signal counts."""

    def request(number: int, _frame: object) -> None:
        stop.by = stop.by or signal.Signals(number).name

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, request)


@contextlib.contextmanager
def _progress(config: RunConfig) -> Iterator[ProgressSink]:
    """Show a progress display during a ``with`` block."""
    from vfiotool.render.stress_progress import ProgressDisplay

    most = None if config.cycles is None else config.cycles * len(config.workloads) * len(config.groups)
    with ProgressDisplay(config.addresses, config.workloads, seconds=config.duration, cycles=most) as display:
        yield _DisplaySink(display)


class _DisplaySink:
    """Passes the progress of a run to a display."""

    def __init__(self, display: ProgressDisplay) -> None:
        self._display = display

    @property
    def due(self) -> bool:
        return self._display.due

    def show(self, **fields: Any) -> None:
        from vfiotool.render.stress_progress import RunProgress

        self._display.update(RunProgress(**fields))


def _conclude(config: RunConfig, report: Report, as_json: bool) -> None:
    """Write the report and its page, and print the verdict. Exit with status 1 if the run failed."""
    from vfiotool.render.report_page import write_page
    from vfiotool.stress.results.report import PAGE, TRACE, write_report
    from vfiotool.stress.results.trace import sample_trace

    document = report.document()
    write_report(config.report, document)
    lines = sample_trace(f"{config.report}/{TRACE}", _MOST_MARKS)
    write_page(
        f"{config.report}/{PAGE}", document, lines, [" ".join(group.members) for group in config.groups]
    )
    if as_json:
        write_document("stress", {key: value for key, value in document.items() if key != "schema"})
    else:
        click.echo(f"{report.verdict}: {report.cycles} cycles in {report.seconds:.0f} s, seed {report.seed}")
        for reason in report.reasons:
            click.echo(f"  {reason}")
        click.echo(f"report: {config.report}")
    if report.reasons:
        click.get_current_context().exit(VfioToolError.exit_status)
