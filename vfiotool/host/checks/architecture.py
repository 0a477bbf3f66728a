"""The architecture of a machine, from files that a capture of another machine has, too."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping

from vfiotool.host.tree import Tree

_MACHINE = "/proc/sys/kernel/arch"  # UTS_MACHINE, since Linux 6.1
# Debian's kernels, among others, name the compiler: (x86_64-linux-gnu-gcc-14 (Debian 14.2.0-19) 14.2.0, ...)
_COMPILER = re.compile(r"\(([a-z0-9_]+)-(?:[a-z0-9_]+-)?linux-gnu")


class Architecture(enum.Enum):
    """A family of processors whose IOMMUs are turned on alike; the value is its usual name."""

    X86 = "x86"
    ARM = "ARM"
    POWER = "POWER"
    S390 = "s390"
    RISCV = "RISC-V"
    LOONGARCH = "LoongArch"


_PREFIXES = {
    "x86": Architecture.X86,
    "i386": Architecture.X86,
    "i486": Architecture.X86,
    "i586": Architecture.X86,
    "i686": Architecture.X86,
    "aarch64": Architecture.ARM,
    "arm": Architecture.ARM,
    "ppc": Architecture.POWER,
    "powerpc": Architecture.POWER,
    "s390": Architecture.S390,
    "riscv": Architecture.RISCV,
    "loongarch": Architecture.LOONGARCH,
}
# A field of /proc/cpuinfo that only this architecture has (show_cpuinfo() in arch/*/kernel).
_FIELDS = {
    "CPU implementer": Architecture.ARM,
    "timebase": Architecture.POWER,
    "hart": Architecture.RISCV,
}


def detect_architecture(tree: Tree, cpu: Mapping[str, str]) -> Architecture | None:
    """Return the architecture, by the kernel's own word or the form of ``/proc/cpuinfo``; else ``None``.

    ``cpu`` has the fields of ``/proc/cpuinfo``.
    """
    found = _by_name(tree.find(_MACHINE) or "") or _by_fields(cpu)
    compiler = _COMPILER.search(tree.find("/proc/version") or "")
    return _by_name(compiler[1]) if found is None and compiler is not None else found


def cpu_fields(text: str) -> dict[str, str]:
    """Return the fields of ``/proc/cpuinfo``, each as it is first there: those of the first processor.

    On POWER the fields of the machine follow those of the processors.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), value.strip())
    return found


def _by_name(machine: str) -> Architecture | None:
    return next((found for prefix, found in _PREFIXES.items() if machine.startswith(prefix)), None)


def _by_fields(cpu: Mapping[str, str]) -> Architecture | None:
    vendor = cpu.get("vendor_id")
    if vendor is not None:
        return Architecture.S390 if vendor == "IBM/S390" else Architecture.X86
    if "Loongson" in cpu.get("CPU Family", ""):
        return Architecture.LOONGARCH
    return next((found for name, found in _FIELDS.items() if name in cpu), None)
