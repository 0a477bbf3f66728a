"""The trace of a run: a header, then a line of JSON per record, in the order of arrival.

The file is whole at any time. A killed run leaves at most a cut last line; a full disk leaves none.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

from vfiotool.errors import ClosedError, VfioToolError
from vfiotool.stress.record import Call, TraceLine
from vfiotool.stress.results.trace_schema import (
    SCHEMA,
    BadLineError,
    Fields,
    check_argument,
    check_header,
    clean,
    parse,
)
from vfiotool.util.files import cannot_write

_MOST_HEADER_BYTES = 1 << 20
_MOST_LINE_BYTES = 1 << 17
_MOST_TEXT = 4000
_FREE_TEXTS = ("expected", "got")
_BUFFER_BYTES = 1 << 16
_MOST_SHARED = 1 << 14
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False).encode


class TraceWriter:
    """Writes a trace. A handle: only one thread may use a writer.

    After the first disk error the writer writes nothing more: ``failure`` is that error, and ``dropped``
    counts the records that are missing in the file.

    Raises:
        VfioToolError: the file cannot be created.
    """

    def __init__(self, path: str, header: Mapping[str, Any]) -> None:
        self.path = path
        self.failure: OSError | None = None
        self.dropped = 0
        self._waiting = bytearray()
        self._lines_waiting = 0
        self._whole = 0
        try:
            self._fd = os.open(path, _FLAGS, 0o644)
        except OSError as error:
            raise cannot_write(path, error) from error
        self._waiting += _encoded({"schema": SCHEMA, **header})
        self.flush()

    def write(self, document: Mapping[str, Any]) -> None:
        """Append a record, in the form of ``TraceLine.document``.

        Raises:
            ClosedError: the trace is closed.
        """
        if self._fd < 0:
            raise ClosedError(f"the trace {self.path} is closed")
        if self.failure:
            self.dropped += 1
            return
        self._waiting += _encoded(_clipped(document))
        self._lines_waiting += 1
        if len(self._waiting) >= _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Pass all buffered lines to the kernel. A killed run then leaves these lines in the file."""
        written = 0
        try:
            while self._fd >= 0 and not self.failure and written < len(self._waiting):
                written += os.write(self._fd, memoryview(self._waiting)[written:])
        except OSError as error:
            self._give_up(error, written)
        self._whole += written
        self._waiting.clear()
        self._lines_waiting = 0

    def close(self) -> None:
        """Flush and close. Further calls do nothing."""
        if self._fd < 0:
            return
        self.flush()
        fd, self._fd = self._fd, -1
        try:
            os.close(fd)
        except OSError as error:
            self.failure = self.failure or error

    def _give_up(self, error: OSError, written: int) -> None:
        self.failure = error
        kept = self._waiting.rfind(b"\n", 0, written) + 1
        whole_lines = self._waiting.count(b"\n", 0, kept)
        header = 1 if self._whole == 0 else 0
        self.dropped += self._lines_waiting - max(0, whole_lines - header)
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self._whole + kept)

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _clipped(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Shorten texts from the kernel, so that ``read_trace`` accepts the line."""
    long = {key: document[key][:_MOST_TEXT] for key in _FREE_TEXTS if len(document[key]) > _MOST_TEXT}
    return {**document, **long} if long else document


def _encoded(document: Mapping[str, Any]) -> bytes:
    return _encode(document).encode("utf-8", "replace") + b"\n"


@dataclass(frozen=True, slots=True)
class Trace:
    """A whole trace. ``cut`` is True if the last line is incomplete: the writer was killed."""

    header: Mapping[str, Any]
    lines: list[TraceLine]
    cut: bool


def read_trace(path: str) -> Trace:
    """Return a trace. The whole trace is in memory: about 300 bytes per record.

    Raises:
        VfioToolError: the file cannot be read, or a line is invalid; the message names file and line.
    """
    with _opened(path) as file:
        reader = _Reader(path, file)
        header = reader.read_header()
        return Trace(header, list(reader.lines()), reader.cut)


def sample_trace(path: str, most: int) -> Iterator[dict[str, Any]]:
    """Yield the documents of about ``most`` lines, the same lines each time, and of all unexpected lines.

    Raises:
        VfioToolError: as for ``read_trace``, in the lines that are read.
    """
    with _opened(path) as file:
        total = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
        if file.tell() == 0:
            return  # the disk was full before the first call
        file.seek(0)
        reader = _Reader(path, file)
        reader.read_header()
        yield from (line.document() for line in reader.lines(share=most / max(total, 1)))


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """Open a trace. A FIFO in place of the file does not block."""
    try:
        with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
            yield file
    except OSError as error:
        raise VfioToolError(
            f"the trace {path} cannot be read: {error.strerror or error}",
            hint="name the trace.jsonl of a report",
        ) from error


class _Reader:
    """Reads a trace line by line. Most lines are alike, so lines share texts and calls."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self.cut = False
        self._path = path
        self._file = file
        self._number = 0
        self._units = 0
        self._calls: dict[tuple[Any, ...], Call] = {}

    def read_header(self) -> dict[str, Any]:
        raw = self._next(_MOST_HEADER_BYTES)
        try:
            header = check_header(parse(raw))
        except ValueError as error:
            self._refuse(error)
        self._units = len(header["units"])
        return header

    def lines(self, share: float = 1.0) -> Iterator[TraceLine]:
        """Yield all lines, or a share of the lines and every unexpected line."""
        chance = random.Random(0).random  # noqa: S311 - the same sample every time
        while raw := self._next(_MOST_LINE_BYTES):
            if share < 1.0 and b'"unexpected"' not in raw and chance() >= share:
                continue
            try:
                document = parse(raw)
            except ValueError as error:
                if raw.endswith(b"\n"):
                    self._refuse(error)
                self.cut = True
                return
            try:
                line = self._line(document)
            except ValueError as error:
                self._refuse(error)
            yield line

    def _next(self, most: int) -> bytes:
        self._number += 1
        raw = self._file.readline(most + 1)
        if len(raw) > most:
            self._refuse(BadLineError(f"the line has more than {most} bytes"))
        return raw

    def _line(self, document: Any) -> TraceLine:
        fields = Fields(document)
        unit = fields.natural("unit")
        if unit >= self._units:
            raise BadLineError(f"the header has no unit {unit}")
        released = fields.text("released") if "released" in document else ""
        return TraceLine(
            unit=unit,
            workload=fields.text("workload"),
            cycle=fields.natural("cycle"),
            call=self._call(fields.text("operation"), document["arguments"]),
            expected=fields.text("expected"),
            got=fields.text("got"),
            unexpected=fields.flag("unexpected"),
            released=released,
            at=fields.number("at"),
            us=fields.number("us"),
        )

    def _call(self, name: str, arguments: Any) -> Call:
        if not isinstance(arguments, dict):
            raise BadLineError("arguments is not an object")
        values = {clean(key): check_argument(key, value) for key, value in arguments.items()}
        key = (name, *values.items())
        call = self._calls.get(key)
        if call is None:
            call = Call(name, values)
            if len(self._calls) < _MOST_SHARED:
                self._calls[key] = call
        return call

    def _refuse(self, error: ValueError) -> NoReturn:
        cause = str(error) if isinstance(error, BadLineError) else f"the line is not JSON: {error}"
        raise VfioToolError(
            f"line {self._number} of the trace {self._path} is invalid: {cause}",
            hint="correct or remove the line, or name a trace.jsonl that 'vfiotool stress' wrote",
        ) from error
