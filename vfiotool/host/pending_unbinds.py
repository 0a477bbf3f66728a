"""Pending unbinds: for each, the process that started the unbind writes a file.

The kernel does not show a pending unbind. While an unbind from vfio-pci waits for the holder, the ``driver``
link and the group's node are already gone, so the device looks free.
"""

from __future__ import annotations

from vfiotool.host.tree import Tree

STATE_DIR = "/run/vfiotool"

_MOST_DIGITS = 10


def pending_dir(state_dir: str) -> str:
    """Return the directory with a file for each pending unbind, named by the device's address."""
    return f"{state_dir}/pending"


def blocked_addresses(tree: Tree, state_dir: str) -> frozenset[str]:
    """Return the addresses with a pending unbind: the process that writes to the kernel is still alive."""
    folder = pending_dir(state_dir)
    try:
        names = tree.names(folder)
    except OSError:
        return frozenset()
    return frozenset(name for name in names if pending_writer(tree, state_dir, name) is not None)


def pending_writer(tree: Tree, state_dir: str, address: str) -> int | None:
    """Return the pid of the process whose unbind of a device has not returned, or ``None``."""
    try:
        pid, _, started = (tree.find(f"{pending_dir(state_dir)}/{address}") or "").partition(" ")
    except OSError:
        return None
    is_alive = pid.isdecimal() and len(pid) <= _MOST_DIGITS and process_start(tree, int(pid)) == started
    return int(pid) if is_alive else None


def waiting_place(tree: Tree, state_dir: str, address: str) -> str:
    """Return the function of the kernel in which the pending write to a device waits.

    The text is empty if no write is pending, or this user may not read the stack of the process.
    """
    from vfiotool.util.tasks import read_task  # here, because a listing imports this module

    pid = pending_writer(tree, state_dir, address)
    task = None if pid is None else read_task(pid, proc=tree.path("/proc"))
    return "" if task is None else task.place.partition("+")[0]


def process_start(tree: Tree, pid: int) -> str | None:
    """Return the start time of a process, in clock ticks since boot, or ``None`` if it has exited.

    Pids are reused; the pid and the start time together identify a process (proc(5), field 22 of ``stat``).
    """
    try:
        fields = tree.read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else None
