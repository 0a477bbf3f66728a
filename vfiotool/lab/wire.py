"""The frames that a lab guest and its host exchange over a virtio-serial port.

A frame is a type (one byte), a payload length (four bytes, little-endian) and the payload. Both sides use
this module. The guest imports it on an emulated processor, so it imports only ``os`` and ``struct``.
"""

from __future__ import annotations

import os
import struct

PORT = "vfiotool.lab"
"""The port's name, by which the guest finds it below /sys/class/virtio-ports."""

# host to guest
START = 1  # JSON: argv, env, cwd, terminal ([rows, columns] or null)
STDIN = 2  # bytes; an empty payload is the end of the input
WINSIZE = 3  # rows, columns: SIZE
# guest to host
READY = 16  # JSON: seconds since the guest's kernel started, by phase
STDOUT = 17
STDERR = 18
HEARTBEAT = 19
EXIT = 20  # exit status: STATUS

SIZE = struct.Struct("<HH")
STATUS = struct.Struct("<i")
HIGH_WATER = 1 << 20
"""Bytes that may wait in a buffer; above this, its source is not read."""

_HEADER = struct.Struct("<BI")
_CHUNK = 1 << 16


class WireError(Exception):
    """The other side sent an invalid frame, or closed the port."""


class Sink:
    """A buffer of bytes for a file descriptor that must not block this process. Threads must not share it."""

    def __init__(self, fd: int, chunk: int = _CHUNK) -> None:
        self.fd = fd
        self.pending = bytearray()
        self._chunk = chunk

    @property
    def full(self) -> bool:
        """Return True if the source of these bytes should wait."""
        return len(self.pending) >= HIGH_WATER

    def flush(self) -> None:
        """Write as much as the descriptor accepts now. Raises OSError like ``os.write``, except EAGAIN."""
        try:
            while self.pending:
                self.write()
        except BlockingIOError:
            return

    def write(self) -> None:
        """Write a chunk at most. Raises OSError like ``os.write``."""
        del self.pending[: os.write(self.fd, self.pending[: self._chunk])]


class Channel(Sink):
    """An end of the port: sends and receives frames over a non-blocking descriptor."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._received = bytearray()
        os.set_blocking(fd, False)

    def send(self, kind: int, payload: bytes = b"") -> None:
        """Queue a frame; ``flush`` writes it."""
        self.pending += _HEADER.pack(kind, len(payload))
        self.pending += payload

    def receive(self) -> list[tuple[int, bytes]]:
        """Read once and return the complete frames; WireError if the other side closed the port."""
        try:
            data = os.read(self.fd, _CHUNK)
        except BlockingIOError:
            return []
        except ConnectionResetError:
            data = b""
        if not data:
            raise WireError("the other side closed the port")
        self._received += data
        return self._frames()

    def _frames(self) -> list[tuple[int, bytes]]:
        frames = []
        while len(self._received) >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._received)
            if length > 2 * HIGH_WATER:
                raise WireError(f"a frame of {length} bytes is longer than the limit")
            end = _HEADER.size + length
            if len(self._received) < end:
                break
            frames.append((kind, bytes(self._received[_HEADER.size : end])))
            del self._received[:end]
        return frames
