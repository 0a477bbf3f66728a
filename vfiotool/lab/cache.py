"""The user's cache: where it is, one writer at a time, and files that are whole or absent."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from vfiotool.util.files import replace_file


def directory(*parts: str) -> str:
    """Return a path in ``${XDG_CACHE_HOME:-~/.cache}/vfiotool``; it is not created."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG base directory specification: ignore a relative one
        base = os.path.expanduser("~/.cache")
    return os.path.join(base, "vfiotool", *parts)


@contextlib.contextmanager
def locked(name: str, waiting: Callable[[], None]) -> Iterator[int]:
    """Hold the cache's lock ``name``, and yield its file descriptor.

    ``waiting`` is called once if another holder has to be awaited. The lock is a flock(2), so a child
    that inherits the descriptor keeps the lock for as long as it runs. Threads exclude each other too.
    """
    path = directory("locks", name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def read_json(path: str) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None if there is none that can be read."""
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: str, value: dict[str, Any]) -> None:
    """Replace a JSON file in one step. Its writer must hold a lock: the temporary name is fixed."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    replace_file(path, [json.dumps(value, indent=2, sort_keys=True).encode(), b"\n"])


def remove(path: str) -> None:
    """Remove a directory with all that is in it, if it is there."""
    import shutil

    if os.path.lexists(path):
        shutil.rmtree(path)
