from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

import vfiotool
from tests.support.blocking_files import blocking
from vfiotool.host import bounded_reads
from vfiotool.host.tree import Tree
from vfiotool.testing import FakeHost

FIFO = "/sys/a/blocked"
ROOT = os.path.dirname(os.path.dirname(vfiotool.__file__))


def open_files() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def test_results_of_bounded_reads(host: FakeHost) -> None:
    host.put("/sys/a/text", "1")
    host.put("/sys/a/large", b"x" * 300_000)
    answers = bounded_reads.read_all(host.tree, ["/sys/a/text", "/sys/a/missing", "/sys/a/large", "/sys/a"])
    assert answers["/sys/a/text"] == b"1\n"
    assert answers["/sys/a/large"] == b"x" * 300_000
    codes = [getattr(answers[path], "errno", None) for path in ("/sys/a/missing", "/sys/a")]
    assert codes == [errno.ENOENT, errno.EISDIR]


def test_a_blocked_read_gives_none_and_skips_its_directory(host: FakeHost) -> None:
    for path in ("/sys/a/before", "/sys/a/after", "/sys/ab/other"):
        host.put(path, path)
    with blocking(host, FIFO):
        started = time.monotonic()
        answers = bounded_reads.read_all(host.tree, ["/sys/a/before", FIFO, "/sys/a/after", "/sys/ab/other"])
        took = time.monotonic() - started
    assert answers == {
        "/sys/a/before": b"/sys/a/before\n",
        FIFO: None,
        "/sys/a/after": None,
        "/sys/ab/other": b"/sys/ab/other\n",
    }
    assert took >= bounded_reads.STALL_SECONDS


def test_only_a_few_blocked_reads_are_waited_for(host: FakeHost) -> None:
    paths = [f"/sys/{number}/blocked" for number in range(20)]
    host.put("/sys/last", "last")
    with blocking(host, *paths):
        answers = bounded_reads.read_all(host.tree, [*paths, "/sys/last"])
        assert len(bounded_reads._stuck_children) == bounded_reads.MAX_STALLS
    assert set(answers.values()) == {None}


def test_a_blocked_reader_holds_no_descriptor_and_is_reaped_later(host: FakeHost) -> None:
    before = open_files()
    with blocking(host, FIFO):
        bounded_reads.read_all(host.tree, [FIFO])
        assert open_files() == before
        (reader,) = bounded_reads._stuck_children
    assert bounded_reads._stuck_children == []
    with pytest.raises(ChildProcessError):
        os.waitpid(reader, os.WNOHANG)


def test_a_slow_reader_that_runs_is_waited_for(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(path: str, most: int | None) -> tuple[int, bytes]:
        end = time.monotonic() + 3 * bounded_reads.STALL_SECONDS
        while time.monotonic() < end:
            pass
        return 0, b"late"

    monkeypatch.setattr(bounded_reads, "_read", busy)
    assert bounded_reads.read_all(host.tree, ["/sys/a"]) == {"/sys/a": b"late"}


def test_a_reader_that_dies_gives_none(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_reads, "_read", lambda path, most: os.kill(os.getpid(), signal.SIGKILL))
    assert bounded_reads.read_all(host.tree, ["/sys/a/b"]) == {"/sys/a/b": None}
    bounded_reads._reap()


def test_some_files_are_read_by_their_first_bytes_alone(host: FakeHost) -> None:
    host.put("/sys/a/config", bytes(range(256)))
    host.put("/sys/b/config", bytes(range(256)))
    read = bounded_reads.read_all(host.tree, ["/sys/a/config", "/sys/b/config"], most={"/sys/b/config": 64})
    assert read == {"/sys/a/config": bytes(range(256)), "/sys/b/config": bytes(range(64))}


def test_a_tree_below_a_root(host: FakeHost) -> None:
    host.put("/sys/text", b"caf\xe9\n\n")
    host.link("/sys/link", "/sys/devices/0000:00:01.0")
    tree = host.tree
    assert tree.read("/sys/text") == "caf\N{REPLACEMENT CHARACTER}\n"
    assert tree.find_link("/sys/link") == "0000:00:01.0"
    assert (tree.exists("/sys/link"), tree.exists("/sys/none")) == (True, False)
    assert (tree.find("/sys/none"), tree.find_link("/sys/none"), tree.find_names("/sys/none")) == (
        None,
        None,
        [],
    )
    assert (tree.is_live, Tree().is_live) == (False, True)


def test_the_imports_of_a_listing_are_light() -> None:
    """The time of a listing is mostly the time of its imports; ``-S`` leaves out those of the environment."""
    program = f"import sys; sys.path.insert(0, {ROOT!r}); import vfiotool.host.attributes; "
    program += "print([name for name in ('contextlib', 'dataclasses', 'typing') if name in sys.modules])"
    command = [sys.executable, "-S", "-c", program]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
