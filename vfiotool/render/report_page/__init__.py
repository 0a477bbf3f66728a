"""``report.html``: the report of a stress run as a single page that needs no network and no script.

This module imports jinja2, so import it only when a page is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from vfiotool.render.formats import duration, plain
from vfiotool.render.report_page.scales import LogScale
from vfiotool.render.report_page.timeline import lay_out, sample
from vfiotool.util.files import write_whole
from vfiotool.util.text import printable

_MOST_ITEMS = 200
_MOST_TEXT = 20_000
_PERCENTILES = ("p50_us", "p90_us", "p99_us", "max_us")


def write_page(
    path: str, document: Mapping[str, Any], lines: Iterable[Mapping[str, Any]], labels: Sequence[str] = ()
) -> None:
    """Write the page of a report and the lines of its trace; ``labels`` has the label of each group.

    The page shows a sample of at most 2,000 lines; only the sample is kept in memory.

    Raises:
        VfioToolError: the file cannot be written.
    """
    operations = sorted(document["operations"].items(), key=lambda item: (-item[1]["count"], item[0]))
    latencies = (one[key] for _, one in operations for key in _PERCENTILES)
    page = _environment().get_template("page.html")
    text = page.render(
        report=document,
        operations=operations,
        total=sum(one["count"] for _, one in operations),
        latency_scale=LogScale.around(latencies, 20, 300),
        legend_scale=LogScale(0, 2, 8, 92),
        timeline=lay_out(sample(lines), labels),
        uevents=list(_uevents(document["udev"])),
        resources=list(_resources(document)),
        most_items=_MOST_ITEMS,
        unmeasured="Not measured.",
    )
    write_whole(path, [text])


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("vfiotool.render", "report_page"),
        autoescape=True,
        finalize=_without_control_characters,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "plain": plain,
        "duration": duration,
        "log_place": _log_place,
    }
    return environment


def _without_control_characters(value: object) -> object:
    """Return the value of an expression as text, unless it is markup. jinja2 then escapes the text."""
    if hasattr(value, "__html__"):
        return value
    text = str(value)[:_MOST_TEXT]
    return "\n".join(printable(line) for line in text.split("\n"))


def _uevents(udev: Mapping[str, Any]) -> Iterator[tuple[str, int | None, list[str]]]:
    """Yield name, count (``None``: not measured) and texts for each kind of uevents."""
    for key in ("expected", "received"):
        yield key, udev[key], []
    counts = udev.get("counts") or {}
    for key in ("missing", "duplicated", "out_of_order"):
        listed = udev[key]
        count = counts.get(key, None if listed is None else len(listed))
        yield key.replace("_", " "), count, [_uevent_text(uevent) for uevent in listed or ()]


def _resources(report: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name of each resource and its values before and after the run."""
    resources, taint = report["resources"], report["taint"]
    before = {**(resources["before"] or {}), "taint": taint["before"]}
    after = {**(resources["after"] or {}), "taint": taint["after"]}
    for name in dict.fromkeys((*before, *after)):
        yield name, before.get(name), after.get(name)


def _uevent_text(uevent: Any) -> str:
    if not isinstance(uevent, Mapping) or "action" not in uevent:
        return plain(uevent)
    words = [str(uevent[key]) for key in ("action", "subsystem", "address") if uevent.get(key)]
    numbers = [f"{key} {uevent[key]}" for key in ("group", "seqnum") if uevent.get(key) is not None]
    return " ".join(words) + (f" ({', '.join(numbers)})" if numbers else "")


def _log_place(entry: Mapping[str, Any]) -> str:
    """Return the time (CLOCK_MONOTONIC) of a kernel log entry and its place in the kernel."""
    places = [f"at {entry['at']:.6f} s"] if "at" in entry else []
    return ", ".join(places + ([f"in {entry['where']}"] if entry.get("where") else []))
