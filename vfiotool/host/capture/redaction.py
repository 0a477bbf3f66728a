"""Redaction: the part of a file that a capture keeps, for files that hold more than vfiotool reads.

Of ``/proc``, a capture keeps only the files in a list. Of a file outside ``/sys`` that is not in a list, it
keeps only the name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from vfiotool.host.bar_owners import device_ranges
from vfiotool.host.holders import DEVICE_DESCRIPTOR
from vfiotool.pci import config_space

_PARAMETERS = re.compile(
    r"(intel_iommu|amd_iommu|iommu|arm-smmu|virtio_iommu|intremap|nointremap|x2apic|nox2apic|vfio|hugepage"
    r"|default_hugepagesz|transparent_hugepage|lockdown|pci=|pcie)"
)
_SERIAL_NUMBER, _SERIAL_NUMBER_SIZE = 0x03, 12
_VPD, _VPD_SIZE = 0x03, 8
_STAT_FIELDS = 22

# Of these fields, each architecture has some: see ``host.checks.architecture``.
_CPU_FIELDS = ("vendor_id", "CPU implementer", "CPU Family", "hart", "timebase", "platform", "machine")
_GUEST = "flags : hypervisor"

Redaction = Callable[[str], str]


def _cmdline(text: str) -> str:
    return " ".join(word for word in text.split() if _PARAMETERS.match(word)) + "\n"


def _cpuinfo(text: str) -> str:
    """Keep the first processor's vendor, the flag that it belongs to a guest, and what tells the architecture
    and the platform."""
    kept = []
    last = text.rpartition("\n\n")[2]  # the machine's fields, on POWER
    for line in (*text.partition("\n\n")[0].splitlines(), *last.splitlines()):
        name, _, value = line.partition(":")
        if name.strip() in _CPU_FIELDS and line not in kept:
            kept.append(line)
        if name.strip() == "flags" and "hypervisor" in value.split() and _GUEST not in kept:
            kept.append(_GUEST)
    return "".join(f"{line}\n" for line in kept)


def _interrupts(text: str) -> str:
    """Keep the number and the chip of each interrupt, without counters and names of its users."""
    kept = []
    for line in text.splitlines():
        number, colon, rest = line.partition(":")
        words = [word for word in rest.split() if not word.isdecimal()]
        if colon and words and number.strip().isdecimal():
            kept.append(f"{number.strip()}: {words[0]}\n")
    return "".join(kept)


def _mountinfo(text: str) -> str:
    """Keep the block device, or the tag of a shared folder, and the mount point: no options, no servers, no
    directory below a mount."""
    kept = []
    for line in text.splitlines():
        first, _, last = line.partition(" - ")
        fields, sources = first.split(" "), last.split(" ")
        if len(fields) > 4 and len(sources) > 1:
            is_node = sources[1].startswith("/dev/") or _is_shared(sources)
            if is_node or not fields[2].startswith("0:"):
                source = sources[1] if is_node else "none"
                kept.append(f"0 0 {fields[2]} / {fields[4]} rw - {sources[0]} {source} rw\n")
    return "".join(kept)


def _is_shared(sources: list[str]) -> bool:
    """Return True if a file system is a shared folder, whose source is its tag; a 9p can have a server."""
    return sources[0] in ("virtiofs", "vboxsf") or (sources[0] == "9p" and "trans=virtio" in sources[-1])


def _swaps(text: str) -> str:
    header, _, rest = text.partition("\n")
    return "\n".join([header, *(line for line in rest.splitlines() if line.startswith("/dev/"))]) + "\n"


def _kallsyms(text: str) -> str:
    return "0 T iommu_group_claim_dma_owner\n" if " iommu_group_claim_dma_owner" in text else ""


def _stat(text: str) -> str:
    """Keep the state and the start time of a process, which identify the writer of a pending unbind."""
    pid, fields = text.partition(" ")[0], text.rpartition(")")[2].split()
    if len(fields) < _STAT_FIELDS - 2:
        return ""
    return f"{pid} () {fields[0]}{' 0' * (_STAT_FIELDS - 4)} {fields[_STAT_FIELDS - 3]}\n"


def _fdinfo(text: str) -> str:
    return "".join(f"{line}\n" for line in text.splitlines() if line.startswith("flags:"))


def _of_vfio(text: str) -> str:
    return "".join(f"{line}\n" for line in text.splitlines() if "vfio" in line or "iommufd" in line)


def _of_pci(text: str) -> str:
    """Keep the aliases of PCI devices: which modules could drive them."""
    kept = ("alias pci:", "alias vfio_pci:")
    return "".join(f"{line}\n" for line in text.splitlines() if line.startswith(kept))


def _builtin_of_pci(text: str) -> str:
    return "".join(f"{entry}\0" for entry in text.split("\0") if ".alias=pci:" in entry)


def _udev(text: str) -> str:
    kept = ("E:ID_FS_TYPE=", "E:ID_PART_TABLE_TYPE=")
    return "".join(f"{line}\n" for line in text.splitlines() if line.startswith(kept))


def _dm_uuid(text: str) -> str:
    prefix, dash, _ = text.partition("-")
    return f"{prefix}{dash}\n"


def _backing_file(text: str) -> str:
    return text if text.startswith("/dev/") else "\n"


def _whole(text: str) -> str:
    return text


_PROC: Mapping[str, Redaction] = {
    r"/proc/cmdline": _cmdline,
    r"/proc/consoles": _whole,
    r"/proc/cpuinfo": _cpuinfo,
    r"/proc/devices": _of_vfio,
    r"/proc/interrupts": _interrupts,
    r"/proc/(iomem|ioports)": device_ranges,
    r"/proc/kallsyms": _kallsyms,
    r"/proc/(self|1)/mountinfo": _mountinfo,
    r"/proc/swaps": _swaps,
    r"/proc/sys/kernel/(osrelease|modules_disabled|arch)": _whole,
    r"/proc/\d+/comm": _whole,
    r"/proc/\d+/fdinfo/\d+": _fdinfo,
    r"/proc/\d+/stat": _stat,
}
_OTHERS: Mapping[str, Redaction] = {
    r"/run/udev/data/b\d+:\d+": _udev,
    r"/lib/modules/[^/]+/modules\.(dep|builtin)": _of_vfio,
    r"/lib/modules/[^/]+/modules\.alias": _of_pci,
    r"/lib/modules/[^/]+/modules\.builtin\.modinfo": _builtin_of_pci,
    r"/sys/.*/dm/uuid": _dm_uuid,
    r"/sys/.*/loop/backing_file": _backing_file,
}
_RULES = tuple((re.compile(pattern), rule) for pattern, rule in {**_PROC, **_OTHERS}.items())
_CONFIG = re.compile(r"/sys/.*/config")


def is_kept(path: str, *, target: str | None = None) -> bool:
    """Return True if a capture may contain a path; ``target`` is its target if it is a link.

    Of all processes, only the holders of VFIO nodes are kept, and of their files only these nodes.
    """
    if not path.startswith("/proc/"):
        return True
    if re.fullmatch(r"/proc/\d+/fd/\d+", path):
        node = (target or "").removesuffix(" (deleted)")
        return node == DEVICE_DESCRIPTOR or node.startswith("/dev/vfio/")
    return any(rule.fullmatch(path) for rule, _ in _RULES)


def redact(path: str, content: bytes) -> bytes:
    """Return the part of a file that a capture keeps; empty if no rule covers the path."""
    if _CONFIG.fullmatch(path):
        return _without_serial(content)
    for pattern, rule in _RULES:
        if pattern.fullmatch(path):
            return rule(content.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
    return content if path.startswith("/sys/") else b""


def _without_serial(config: bytes) -> bytes:
    """Clear the device serial number, which network cards derive from their MAC address, and the VPD data."""
    kept = bytearray(config)
    if len(config) < config_space.STANDARD_SIZE:
        return config
    found = (*config_space.capabilities(config), *config_space.extended_capabilities(config))
    for capability in found:
        key = (capability.extended, capability.id)
        if key == (True, _SERIAL_NUMBER):
            start, end = capability.offset + 4, capability.offset + _SERIAL_NUMBER_SIZE
        elif key == (False, _VPD):
            start, end = capability.offset + 4, capability.offset + _VPD_SIZE
        else:
            continue
        kept[start:end] = bytes(len(kept[start:end]))
    return bytes(kept)
