"""Pending unbinds: for each, the process that started the unbind writes a file.

The kernel does not show a pending unbind. While an unbind from vfio-pci waits for the holder, the ``driver``
link and the group's node are already gone, so the device looks free.
"""

from __future__ import annotations

import os
import re

from vfiotool.host.tree import Tree

STATE_DIR = "/run/vfiotool"

_MOST_DIGITS = 10
_MOST_FUNCTIONS = 6
_FUNCTION = re.compile(r"[\w.]+")
# Every write to a driver or to VFs comes through these functions: those above them say nothing.
_ENTRIES = ("pci_device_remove", "local_pci_probe", "sriov_numvfs_store")


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


def waiting_functions(tree: Tree, state_dir: str, address: str) -> tuple[str, ...]:
    """Return the functions of the kernel in which the pending write to a device waits, the innermost first.

    Those of the device's driver are among them. Empty if no write is pending; only the innermost is known
    if this user may not read the stack of the process.
    """
    from vfiotool.util.tasks import read_task  # here, because a listing imports this module

    pid = pending_writer(tree, state_dir, address)
    task = None if pid is None else read_task(pid, proc=tree.path("/proc"))
    if task is None:
        return ()
    functions: list[str] = []
    for frame in task.stack or (task.wchan,):
        found = _FUNCTION.match(frame)
        if found is None or found[0] in _ENTRIES or len(functions) == _MOST_FUNCTIONS:
            break
        functions.append(found[0])
    return tuple(functions)


def waiting_seconds(tree: Tree, state_dir: str, address: str) -> float | None:
    """Return for how long the write to a device has been pending, or None if no write is pending."""
    pid = pending_writer(tree, state_dir, address)
    started = None if pid is None else process_start(tree, pid)
    uptime = (tree.find("/proc/uptime") or "").partition(" ")[0]
    if started is None or not started.isdecimal() or not uptime.replace(".", "", 1).isdecimal():
        return None
    return max(0.0, float(uptime) - int(started) / os.sysconf("SC_CLK_TCK"))


def process_start(tree: Tree, pid: int) -> str | None:
    """Return the start time of a process, in clock ticks since boot, or ``None`` if it has exited.

    Pids are reused; the pid and the start time together identify a process (proc(5), field 22 of ``stat``).
    """
    try:
        fields = (tree.find(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()
    except ProcessLookupError:
        return None
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else None
