"""Unbinds that have not returned: a file for each, written by whoever started it.

The kernel shows no such state. While an unbind of vfio-pci waits for its holder, the ``driver`` link
and the group's node are gone already, so a device would seem free.
"""

from __future__ import annotations

from vfiotool.host.tree import Tree

STATE_DIR = "/run/vfiotool"

_MOST_DIGITS = 10


def pending_dir(state_dir: str) -> str:
    """Return the folder that holds a file named by its address for each pending unbind."""
    return f"{state_dir}/pending"


def blocked_addresses(tree: Tree, state_dir: str) -> frozenset[str]:
    """Return the addresses whose unbind is pending: the process that writes it is still alive."""
    folder = pending_dir(state_dir)
    try:
        names = tree.names(folder)
    except OSError:
        return frozenset()
    return frozenset(name for name in names if pending_writer(tree, state_dir, name) is not None)


def pending_writer(tree: Tree, state_dir: str, address: str) -> int | None:
    """Return the pid of the process whose write to a device has not returned, if there is one."""
    try:
        pid, _, started = (tree.find(f"{pending_dir(state_dir)}/{address}") or "").partition(" ")
    except OSError:
        return None
    is_alive = pid.isdecimal() and len(pid) <= _MOST_DIGITS and process_start(tree, int(pid)) == started
    return int(pid) if is_alive else None


def process_start(tree: Tree, pid: int) -> str | None:
    """Return when a process started, in clock ticks since boot, or ``None`` where it has ended.

    With the pid this names a process for good: pids are used again (proc(5), field 22 of ``stat``).
    """
    try:
        fields = tree.read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else None
