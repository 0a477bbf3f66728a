"""Files of a fake host whose readers block, as those of a device whose unbind waits."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from vfiotool.host import bounded_reads
from vfiotool.testing import FakeHost


@contextlib.contextmanager
def blocking(host: FakeHost, *paths: str) -> Iterator[None]:
    """Let reads of these paths block: they are FIFOs without a writer. Release the readers afterwards."""
    for path in paths:
        os.makedirs(os.path.dirname(host.tree.path(path)), exist_ok=True)
        os.mkfifo(host.tree.path(path))
    yield
    for path in paths:
        release_readers(host.tree.path(path))
    for pid in bounded_reads._stuck_children:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    bounded_reads.read_all(host.tree, [])


def release_readers(fifo: str) -> None:
    """Let the processes that wait to read a FIFO see its end; without such processes nothing happens."""
    with contextlib.suppress(OSError):
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
