"""The user's cache: its path, its locks, and its JSON files."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from vfiotool.util.files import replace_file


def directory(*parts: str) -> str:
    """Return a path in ``${XDG_CACHE_HOME:-~/.cache}/vfiotool``, without creating it."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG base directory specification: ignore a relative one
        base = os.path.expanduser("~/.cache")
    return os.path.join(base, "vfiotool", *parts)


@contextlib.contextmanager
def locked(name: str, waiting: Callable[[], None]) -> Iterator[int]:
    """Hold the cache's lock ``name``, and yield its file descriptor.

    ``waiting`` is called once if another process or thread holds the lock. The lock is a flock(2): a
    child that inherits the descriptor holds the lock while it runs. Threads exclude each other, too.
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
    """Return the object in a JSON file, or ``None`` if the file is absent or malformed."""
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: str, value: dict[str, Any]) -> None:
    """Replace a JSON file atomically. The caller must hold a lock: the temporary name is fixed."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    replace_file(path, [json.dumps(value, indent=2, sort_keys=True).encode(), b"\n"])


def remove(path: str) -> None:
    """Remove a directory and its content, if it exists."""
    import shutil

    if os.path.lexists(path):
        shutil.rmtree(path)
