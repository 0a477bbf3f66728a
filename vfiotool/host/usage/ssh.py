"""The SSH connection that this process was started from."""

from __future__ import annotations

import contextlib

from vfiotool.host.tree import Tree

_VARIABLE = "SSH_CONNECTION="  # "client port server port" (ssh(1))
_MOST_ANCESTORS = 64


def connected_address(tree: Tree) -> str | None:
    """Return this machine's address of the SSH connection, or ``None`` if no connection is found.

    sudo drops the variable, so the environments of this process's ancestors are read, too. The kernel shows
    the environment that a process was started with (proc_pid_environ(5)) to root and to its own user.
    """
    pid = "self"
    for _ in range(_MOST_ANCESTORS):
        if (address := _of_process(tree, pid)) is not None:
            return address
        pid = _parent(tree, pid)
        if pid in ("", "0"):
            break
    return None


def _of_process(tree: Tree, pid: str) -> str | None:
    environment = ""
    with contextlib.suppress(PermissionError, ProcessLookupError):
        environment = tree.find(f"/proc/{pid}/environ") or ""
    for variable in environment.split("\0"):
        fields = variable.removeprefix(_VARIABLE).split()
        if variable.startswith(_VARIABLE) and len(fields) == 4:
            return fields[2].partition("%")[0].removeprefix("::ffff:")
    return None


def _parent(tree: Tree, pid: str) -> str:
    """Return the parent's pid (proc_pid_stat(5), field 4), or an empty text if the process has exited."""
    with contextlib.suppress(PermissionError, ProcessLookupError):
        fields = (tree.find(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()
        return fields[1] if len(fields) > 1 else ""
    return ""
