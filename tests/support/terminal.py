"""A program of ours in a terminal: text is typed, and what the program prints is awaited."""

from __future__ import annotations

import os
import pty
import select

from tests.support.guest import PROGRAM

_SECONDS = 60


class Terminal:
    """A terminal with vfiotool in it, and what has come from there."""

    def __init__(self, *args: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(PROGRAM, [PROGRAM, *args])  # noqa: S606
        self.text = ""

    def await_text(self, text: str) -> None:
        """Read until something comes, and drop what came up to its end."""
        while text not in self.text:
            came = self._read()
            assert came, f"{text!r} did not come: {self.text!r}"
            self.text += came
        self.text = self.text.partition(text)[2]

    def _read(self) -> str:
        """Return what has come, and nothing once the other end is closed."""
        ready, _, _ = select.select([self.fd], [], [], _SECONDS)
        assert ready, f"nothing comes any more: {self.text!r}"
        try:
            return os.read(self.fd, 4096).decode()
        except OSError:  # EIO: the other end is closed
            return ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def end(self) -> None:
        """Press Ctrl-D, once the prompt is there: a terminal that is not yet read by keys loses it."""
        self.await_text(">>> ")
        self.type("\x04")

    def status(self) -> int:
        """Wait for its end, and return its exit status."""
        while came := self._read():
            self.text += came
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
