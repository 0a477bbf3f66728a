"""The progress of a stress run, on a terminal and elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

import pytest

from tests.support.stress_results import ADDRESS, OPERATION
from vfiotool.render.stress_progress import ProgressDisplay, RunProgress

PROGRESS = RunProgress(
    seconds=61,
    cycles=12_500,
    operations=100_000,
    rate_cycles_s=203.54,
    latencies={"unbind [bold]": OPERATION},
    uevents_expected=12,
    uevents_received=11,
    findings=["first", "lost \x1b[2J uevent [red]"],
    jobs=["map [x] pages"],
)


class Clock:
    """A clock that a test advances."""

    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_without_a_terminal_a_line_is_printed_every_ten_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    with ProgressDisplay([ADDRESS], ["group"], seconds=60, stream=stream, clock=clock) as board:
        for _ in range(250):
            clock.seconds += 0.1
            board.update(PROGRESS)
    line = (
        "1 min 1 s: 12,500 cycles (203.5 a second), 100,000 operations, 11 of 12 uevents, "
        "2 findings, the last: lost ?[2J uevent [red]\n"
    )
    assert stream.getvalue() == line * 2


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TextIO, Callable[[], str]]]:
    """A terminal of 100 columns, and a function that returns the output since its last call."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "40")
    master, slave = os.openpty()
    os.set_blocking(master, False)
    with open(slave, "w", encoding="utf-8") as stream:

        def written() -> str:
            stream.flush()
            chunks = []
            with contextlib.suppress(BlockingIOError):
                while chunk := os.read(master, 1 << 16):
                    chunks.append(chunk)
            return b"".join(chunks).decode()

        yield stream, written
    os.close(master)


def test_on_a_terminal_texts_are_shown_literally(terminal: tuple[TextIO, Callable[[], str]]) -> None:
    stream, written = terminal
    with ProgressDisplay([ADDRESS], ["group", "dma"], cycles=25_000, stream=stream, clock=Clock()) as board:
        board.update(PROGRESS)
        shown = written()
    texts = ("group + dma on 0000:01:00.0", "50%", "12,500", "203.5", "11/12", "unbind [bold]", "99 µs",
             "! lost ?[2J uevent [red]", "map [x] pages", "! first")  # fmt: skip
    assert [text for text in texts if text not in shown] == []
    assert "\x1b[2J" not in shown
    assert "\x1b[?25h" in written()  # the cursor is back


def test_a_terminal_is_refreshed_five_times_a_second(terminal: tuple[TextIO, Callable[[], str]]) -> None:
    stream, written = terminal
    clock = Clock()
    refreshed = 0
    with ProgressDisplay([ADDRESS], ["group"], stream=stream, clock=clock) as board:
        written()
        for _ in range(1000):
            board.update(PROGRESS)
            refreshed += bool(written())
            clock.seconds += 0.001
    assert refreshed == 5


def test_the_terminal_is_restored_after_an_error(
    terminal: tuple[TextIO, Callable[[], str]],
) -> None:
    stream, written = terminal

    def interrupted() -> None:
        with ProgressDisplay([ADDRESS], ["group"], stream=stream) as board:
            board.update(PROGRESS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "\x1b[?25h" in written()


def test_progress_does_not_load_the_template_engine_of_the_page() -> None:
    program = (
        "import sys; import vfiotool.cli.stress, vfiotool.render.stress_progress, vfiotool.stress.runner; "
        "sys.exit('jinja2' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
