"""``report.html``: the report of a stress run as a single page that needs no network and no script."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from vfiotool.render.formats import duration, plain
from vfiotool.render.report_page import operations, timeline
from vfiotool.render.report_page.markup import Markup, element, joined
from vfiotool.util.files import write_whole

_MOST_ITEMS = 200
_HEAD = Markup(
    '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark"><meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
)
_ICONS = {"pass": "M7 12.5l3.4 3.4L17 9", "fail": "M8 8l8 8M16 8l-8 8"}
_UNMEASURED = "Not measured."
_SIGNS = (("missing", "missing"), ("duplicated", "duplicated"), ("out_of_order", "out of order"))


def write_page(
    path: str, document: Mapping[str, Any], lines: Iterable[Mapping[str, Any]], labels: Sequence[str] = ()
) -> None:
    """Write the page of a report and the lines of its trace; ``labels`` has the label of each group.

    The page shows a sample of at most 2,000 lines; only the sample is kept in memory.

    Raises:
        VfioToolError: the file cannot be written.
    """
    write_whole(path, _page(document, timeline.choose(lines), labels))


def _page(report: Mapping[str, Any], marks: timeline.Marks, labels: Sequence[str]) -> Iterator[str]:
    style = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    title = element("title", f"vfiotool stress: {report['verdict']}, {report['kernel']}")
    yield "<!doctype html>\n"
    yield f'<html lang="en"><head>{_HEAD}{title}<style>{style}</style></head><body><main>\n'
    yield _verdict(report)
    yield _numbers(report)
    yield _facts(report)
    yield from (_unexpected(report), _operations(report), _timeline(report, marks, labels))
    yield element("div", _uevents(report), _probes(report), _resources(report), class_="columns")
    yield _kernel_log(report)
    yield "</main></body></html>\n"


def _verdict(report: Mapping[str, Any]) -> Markup:
    verdict = report["verdict"]
    path = element("path", d=_ICONS.get(verdict, _ICONS["fail"]))
    icon = element("svg", element("circle", cx=12, cy=12, r=11), path, viewBox="0 0 24 24", class_="icon")
    names = " + ".join(map(str, report["workloads"]))
    summary = f"{names} on {_amount(len(report['devices']), 'device')}, Linux {report['kernel']}"
    heading = element(
        "div", element("h1", "Passed" if verdict == "pass" else "Failed"), element("p", summary)
    )
    parts = [element("div", icon, heading, class_="headline")]
    if report["reasons"]:
        parts.append(_listed(report["reasons"], class_="reasons"))
    if report["interrupted"]:
        by = "" if report["interrupted"] == "killed" else f" by {report['interrupted']}"
        how = f"Ended early{by}, after {duration(report['seconds'] * 1e6)}."
        parts.append(element("p", how, class_="note"))
    return element("header", element("p", "vfiotool stress", class_="overline"), *parts, class_=verdict)


def _numbers(report: Mapping[str, Any]) -> Markup:
    total, seconds = _total(report), max(report["seconds"], 1e-3)
    udev, log = report["udev"], _count(report["kernel_log"])
    tiles = (
        ("cycles", plain(report["cycles"]), f"{report['cycles'] / seconds:,.1f} a second", False),
        ("operations", plain(total), f"{total / seconds:,.0f} a second", False),
        ("unexpected", plain(report["unexpected_count"]), "by the model", report["unexpected_count"] > 0),
        ("uevents", plain(udev["received"]), f"of {plain(udev['expected'])} expected", _has_odd_signs(udev)),
        ("kernel log", plain(log), "warnings and bugs", bool(log)),
    )
    shown = [
        element("div", element("b", value), element("span", name), element("small", more), class_=_tone(odd))
        for name, value, more, odd in tiles
    ]
    return element("section", *shown, class_="tiles")


def _facts(report: Mapping[str, Any]) -> Markup:
    facts = (
        ("kernel", report["kernel"]),
        ("era", report["era"]),
        ("devices", " ".join(map(str, report["devices"]))),
        ("seed", report["seed"]),
        ("started", str(report["started"]).replace("T", " ").replace("Z", " UTC")),
        ("lasted", duration(report["seconds"] * 1e6)),
        ("devices restored", plain(report["restored"])),
    )
    pairs = [element("div", element("dt", name), element("dd", value)) for name, value in facts]
    again = element("div", element("dt", "reproduce"), element("dd", element("pre", report["reproduce"])))
    return element("section", element("dl", *pairs, again))


def _unexpected(report: Mapping[str, Any]) -> Markup:
    found, count = report["unexpected"], report["unexpected_count"]
    if not count:
        return Markup()
    rows = [
        [element("code", one["operation"]), one["expected"], one["got"], f"{one['at']:.6f}"]
        for one in found[:_MOST_ITEMS]
    ]
    more = f"The first {len(rows):,} of {count:,}; trace.jsonl has all." if count > len(rows) else ""
    table = _table(("operation", "expected", "got", "at (monotonic, s)"), rows)
    return _section("Unexpected", element("div", table, class_="scrolled"), element("p", more, class_="note"))


def _operations(report: Mapping[str, Any]) -> Markup:
    if not report["operations"]:
        return _section("Operations", element("p", "No operation was executed.", class_="note"))
    scrolled = element("div", operations.table(report["operations"]), class_="scrolled")
    return _section("Operations", scrolled, operations.legend())


def _timeline(report: Mapping[str, Any], marks: timeline.Marks, labels: Sequence[str]) -> Markup:
    if not marks:
        return _section("Timeline", element("p", "The trace has no operations.", class_="note"))
    summary = f"{len(marks):,} of {_total(report):,} operations, by time and latency."
    drawing = element("div", timeline.draw(marks, labels), class_="scrolled")
    return _section("Timeline", element("p", summary, class_="note"), drawing, timeline.legend())


def _uevents(report: Mapping[str, Any]) -> Markup:
    udev = report["udev"]
    facts = [("expected", plain(udev["expected"])), ("received", plain(udev["received"]))]
    counts = udev.get("counts") or {}
    facts += [(name, plain(counts.get(key, _count(udev[key])))) for key, name in _SIGNS]
    lists = [_titled(name, [_uevent_text(one) for one in udev[key]]) for key, name in _SIGNS if udev[key]]
    return _section("Uevents", _table(("", "count"), facts), *lists)


def _count(items: Sequence[Any] | None) -> int | None:
    """Return the number of items, or None if the run did not measure them."""
    return None if items is None else len(items)


def _uevent_text(uevent: Any) -> str:
    if not isinstance(uevent, Mapping) or "action" not in uevent:
        return plain(uevent)
    words = [str(uevent[key]) for key in ("action", "subsystem", "address") if uevent.get(key)]
    about = [f"{key} {uevent[key]}" for key in ("group", "seqnum") if uevent.get(key) is not None]
    return " ".join(words) + (f" ({', '.join(about)})" if about else "")


def _probes(report: Mapping[str, Any]) -> Markup:
    probes = report["probes"]
    if not probes:
        absent = "No function was called." if probes is not None else _UNMEASURED
        return _section("Kernel functions", element("p", absent, class_="note"))
    rows = [[element("code", name), f"{count:,}"] for name, count in sorted(probes.items())]
    body = _table(("function", "calls"), rows)
    return _section("Kernel functions", body)


def _resources(report: Mapping[str, Any]) -> Markup:
    resources, taint = report["resources"], report["taint"]
    before = {**(resources["before"] or {}), "taint": taint["before"]}
    after = {**(resources["after"] or {}), "taint": taint["after"]}
    rows = []
    for name in dict.fromkeys((*before, *after)):
        now = element("span", plain(after.get(name)), class_=_tone(before.get(name) != after.get(name)))
        rows.append((name, plain(before.get(name)), now))
    lists = [_titled("leaked", resources["leaked"])] if resources["leaked"] else []
    return _section("Resources", _table(("", "before", "after"), rows), *lists)


def _kernel_log(report: Mapping[str, Any]) -> Markup:
    log = report["kernel_log"]
    if not log:
        absent = "No warnings or bugs." if log is not None else _UNMEASURED
        return _section("Kernel log", element("p", absent, class_="note"))
    shown = [element("pre", *_log_entry(entry), class_="log") for entry in log[:_MOST_ITEMS]]
    return _section("Kernel log", *shown, *_rest(log))


def _log_entry(entry: Any) -> Iterator[object]:
    """Yield the kind and the text of a log entry, and its time (CLOCK_MONOTONIC) and place."""
    if not isinstance(entry, Mapping) or "text" not in entry:
        yield plain(entry)
        return
    yield element("b", entry.get("kind", ""))
    yield f"  {entry['text']}"
    where = [f"at {entry['at']:.6f} s"] * ("at" in entry) + [f"in {entry['where']}"] * bool(
        entry.get("where")
    )
    if where:
        yield element("span", "\n" + ", ".join(where), class_="soft")


def _titled(name: str, items: Sequence[Any]) -> Markup:
    return joined((element("h3", name), _listed(items)))


def _listed(items: Sequence[Any], class_: str = "findings") -> Markup:
    shown = [element("li", plain(item)) for item in items[:_MOST_ITEMS]]
    return joined((element("ul", *shown, class_=class_), *_rest(items)))


def _rest(items: Sequence[Any]) -> list[Markup]:
    """Return a note with the number of items that are not shown."""
    more = len(items) - _MOST_ITEMS
    return [element("p", f"{more:,} more in report.json.", class_="note")] if more > 0 else []


def _table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    head = element("tr", *(element("th", text) for text in headings))
    body = (element("tr", *(element("td", cell) for cell in row)) for row in rows)
    return element("table", element("thead", head), element("tbody", *body))


def _section(title: str, *children: Markup) -> Markup:
    return element("section", element("h2", title), *children)


def _total(report: Mapping[str, Any]) -> int:
    return sum(one["count"] for one in report["operations"].values())


def _has_odd_signs(udev: Mapping[str, Any]) -> bool:
    return any(udev[key] for key, _ in _SIGNS)


def _tone(is_odd: bool) -> str:
    return "odd" if is_odd else ""


def _amount(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
