"""Checks of the memory for DMA: how much a process may pin, and the page sizes."""

from __future__ import annotations

import os
import pwd
import resource
from collections.abc import Mapping

from vfiotool.host.checks.verdict import Verdict
from vfiotool.host.tree import Tree

POOLS = "/sys/kernel/mm/hugepages"
THP = "/sys/kernel/mm/transparent_hugepage/enabled"

_CAP_IPC_LOCK = 14  # include/uapi/linux/capability.h
_MIB = 1 << 20


def check_memlock(tree: Tree, state_dir: str) -> Verdict:
    """This user's processes may pin at least half of the machine's memory."""
    if not tree.is_live:
        return Verdict(None, "a limit of running processes: run doctor on the machine itself")
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = None if soft == resource.RLIM_INFINITY else soft
    total = int(_field(tree.read("/proc/meminfo"), "MemTotal").split()[0]) << 10
    capabilities = int(_field(tree.read("/proc/self/status"), "CapEff"), 16)
    return judge_memlock(limit, total, is_exempt=bool(capabilities >> _CAP_IPC_LOCK & 1), user=_user())


def judge_memlock(limit: int | None, total: int, *, is_exempt: bool, user: str) -> Verdict:
    """Judge a limit (``None`` means unlimited) against the machine's memory, both in bytes.

    VFIO counts pinned memory against the limit, unless the process has CAP_IPC_LOCK.
    """
    if is_exempt:
        return Verdict(True, "this user may pin all memory (CAP_IPC_LOCK)")
    if limit is None:
        return Verdict(True, "this user's processes may pin all memory")
    detail = f"this user's processes may pin {limit // _MIB} MiB of {total // _MIB} MiB of memory"
    if limit * 2 >= total:
        return Verdict(True, detail)
    return Verdict(
        False,
        detail,
        f"echo '{user} - memlock unlimited' > /etc/security/limits.d/vfio.conf, then log in again; "
        "for a service, set LimitMEMLOCK=infinity in its unit",
    )


def check_hugepages(tree: Tree, state_dir: str) -> Verdict:
    """Huge pages are available, reserved or transparent."""
    pools = {}
    for name in sorted(tree.find_names(POOLS)):
        counts = [tree.find(f"{POOLS}/{name}/{count}_hugepages") or "0" for count in ("nr", "free")]
        pools[name.removeprefix("hugepages-")] = (int(counts[0]), int(counts[1]))
    return judge_hugepages(pools, tree.find(THP))


def judge_hugepages(pools: Mapping[str, tuple[int, int]], transparent: str | None) -> Verdict:
    """Judge by the pools (reserved and free pages, by size) and the mode of transparent huge pages."""
    mode = (transparent or "").partition("[")[2].partition("]")[0] or "unknown"
    reserved = [f"{nr} of {size} reserved, {free} free" for size, (nr, free) in pools.items() if nr]
    detail = f"{'; '.join(reserved) or 'none reserved'}; transparent huge pages: {mode}"
    if reserved or mode in ("always", "madvise"):
        return Verdict(True, detail)
    if transparent is not None:
        return Verdict(False, f"{detail}: each 4 KiB page is mapped separately", f"echo madvise > {THP}")
    return Verdict(None, detail, "sysctl vm.nr_hugepages=512")


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # limits.conf(5) takes numbers, too
        return f"{os.getuid()}:"


def _field(text: str, name: str) -> str:
    """Return a field of ``/proc/meminfo`` or ``/proc/PID/status``."""
    for line in text.splitlines():
        found, _, value = line.partition(":")
        if found == name:
            return value.strip()
    return "0"
