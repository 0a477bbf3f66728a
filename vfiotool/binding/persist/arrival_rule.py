"""The udev rule for devices with an entry that arrive while the machine runs, by hotplug or by a rescan.

The kernel probes such a device before udevd hears of it, so a driver that is loaded takes it. ``udev_rule``
marks the event of the device, and this rule has vfiotool bind it as the verb ``persist apply`` does, which
refuses a device that is in use. The rule is not for the initramfs: vfiotool is not in there.
"""

from __future__ import annotations

import grp
import os
import re
import shutil
import stat
import sys

from vfiotool.binding import marked_files
from vfiotool.binding.marked_files import MARK
from vfiotool.binding.persist.udev_rule import ARRIVED, RULES_DIR
from vfiotool.host.tree import Tree

PATH = f"{RULES_DIR}/95-vfiotool-arrival.rules"
_PROGRAM = re.compile(r"/[A-Za-z0-9_./+-]+")
_WRITTEN = re.compile(r"p=(\S+);")
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def arrival_rule(program: str) -> str:
    """Return the text of the rule's file, which runs the vfiotool at the path ``program``.

    udevd ends what a rule leaves running, so systemd runs vfiotool; without systemd, its output goes to the
    kernel's log.
    """
    run = "$$p persist apply %k"
    return f"""\
{MARK} persist add; the last 'vfiotool persist remove' takes it away.
# Binds a device with an entry that was plugged in or found by a rescan, unless it is in use.
ENV{{{ARRIVED}}}=="1", RUN+="/bin/sh -c '\
p={program}; [ -x $$p ] || exit 0; \
[ ! -d /run/systemd/system ] || \
exec systemd-run --no-block --collect --quiet --property=SyslogIdentifier=vfiotool {run}; \
{run} </dev/null 2>&1 | while read -r line; do echo vfiotool: $$line >/dev/kmsg; done &'"
"""


def write_arrival_rule(tree: Tree) -> None:
    """Write the rule, or remove it if there is no program that udevd may run; the caller holds the lock.

    Raises:
        VfioToolError: the file cannot be written, or was not written by vfiotool.
    """
    program = this_program()
    if program is None or unsafe_part(tree, program) is not None:
        remove_arrival_rule(tree)
    else:
        marked_files.write(tree.path(PATH), arrival_rule(program))


def remove_arrival_rule(tree: Tree) -> None:
    """Remove the rule; raises as ``write_arrival_rule`` does."""
    marked_files.remove(tree.path(PATH))


def written_program(text: str) -> str | None:
    """Return the program that the text of a rule's file runs, ``None`` if it is not a text of vfiotool's."""
    found = _WRITTEN.search(text)
    return found[1] if found and text == arrival_rule(found[1]) else None


def this_program() -> str | None:
    """Return the path of the vfiotool that runs, in characters that neither udev nor a shell interprets.

    ``None`` if there is none, as in a program that uses vfiotool as a library.
    """
    beside = os.path.join(os.path.dirname(sys.executable), "vfiotool")
    started = os.path.abspath(sys.argv[0]) if os.path.basename(sys.argv[0]) == "vfiotool" else None
    for path in (started, beside, shutil.which("vfiotool")):
        if path is not None and os.access(path, os.X_OK) and _PROGRAM.fullmatch(path):
            return path
    return None


def unsafe_part(tree: Tree, program: str) -> str | None:
    """Return the first file or folder of a program, and of this package, that not only root can change.

    udevd runs the program as root at any time, and not only when root asks for it.
    """
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    roots = [tree.path(program), tree.path(tree.resolve(program))]
    for part in (*roots, *([package] if tree.is_live else [])):
        while True:
            if not _is_roots(part):
                return part
            if part == os.path.dirname(part):
                break
            part = os.path.dirname(part)
    return None


def _is_roots(path: str) -> bool:
    """Return True if only root can change a file, or what is in a folder; Debian's group staff is as root."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    writable = status.st_mode & _OTHERS_MAY_WRITE
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
        writable = 0  # in a sticky folder nobody can replace root's files
    if writable == stat.S_IWGRP and status.st_gid in _trusted_groups():
        writable = 0
    return status.st_uid == 0 and not writable


def _trusted_groups() -> tuple[int, ...]:
    try:
        return (0, grp.getgrnam("staff").gr_gid)
    except KeyError:
        return (0,)
