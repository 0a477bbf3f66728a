"""Kprobes and tracepoints on the kernel's functions of the group life cycle.

The functions depend on the kernel's era; see docs/command-line.md. Functions of a module are probed once the
module is loaded.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from vfiotool.events.entry import TimelineEntry, find_address
from vfiotool.events.tracefs import TraceInstance

ACTIONS = {
    1: "ADD_DEVICE",
    2: "DEL_DEVICE",
    3: "BIND_DRIVER",
    4: "BOUND_DRIVER",
    5: "UNBIND_DRIVER",
    6: "UNBOUND_DRIVER",
}
"""IOMMU_GROUP_NOTIFY_*, include/linux/iommu.h up to 5.18."""

_RETURN = "_returns"
_ACTION = re.compile(r"\baction=(\w+)")
_RESULT = re.compile(r"\bresult=(-?\d+)")
_GROUP = re.compile(r"\bgroupID=(\d+)")
# struct device begins with its kobject, and that with a pointer to its name.
_FIRST_IS_DEVICE = "device=+0(+0($arg1)):string"
_THIRD_IS_DEVICE = "device=+0(+0($arg3)):string"


@dataclass(frozen=True, slots=True)
class Probe:
    """A kernel function to probe: ``module`` is ``None`` for the kernel image, ``fetch`` are the arguments to
    fetch at its entry. If ``result``, its return is probed, too.
    """

    function: str
    module: str | None = None
    fetch: str = ""
    result: bool = False


PROBES = (
    Probe("vfio_iommu_group_notifier", "vfio", f"action=$arg2:u64 {_THIRD_IS_DEVICE}"),
    Probe("vfio_group_put_bg", "vfio"),
    Probe("vfio_group_release", "vfio"),
    Probe("vfio_group_fops_release", "vfio"),
    Probe("iommu_group_claim_dma_owner", result=True),
    Probe("iommu_group_release_dma_owner"),
    Probe("iommu_device_claim_dma_owner", fetch=_FIRST_IS_DEVICE, result=True),
    Probe("iommu_device_release_dma_owner", fetch=_FIRST_IS_DEVICE),
    Probe("iommu_device_use_default_domain", fetch=_FIRST_IS_DEVICE, result=True),
    Probe("iommu_device_unuse_default_domain", fetch=_FIRST_IS_DEVICE),
)

# Without map and unmap: drivers of busy disks and network cards cause thousands of these events a second.
TRACEPOINTS = (
    "iommu:add_device_to_group",
    "iommu:remove_device_from_group",
    "iommu:attach_device_to_domain",
    "iommu:detach_device_from_domain",
    "iommu:io_page_fault",
)


class KernelProbes:
    """The entries of the functions and tracepoints that this kernel has; ``probed`` has their names.

    Owns the trace instance, and raises the same errors.
    """

    def __init__(self, instance: TraceInstance) -> None:
        self._instance = instance
        self._waiting = list(PROBES)
        self.probed = {name for name in TRACEPOINTS if instance.add_tracepoint(name)}
        self._arm()

    def fileno(self) -> int | None:
        return self._instance.fileno()

    def read(self) -> Iterator[TimelineEntry]:
        self._arm()
        for time, event, text in self._instance.read():
            yield decode(time, event, text)

    def close(self) -> None:
        self._instance.close()

    def _arm(self) -> None:
        """Add the probes that are still missing: the functions of a module exist once it is loaded."""
        ready = [probe for probe in self._waiting if _is_loaded(probe.module)]
        for probe in ready:
            self._waiting.remove(probe)
            if self._add(probe):
                self.probed.add(probe.function)

    def _add(self, probe: Probe) -> bool:
        where = f"{probe.module}:{probe.function}" if probe.module else probe.function
        if not self._instance.add_kprobe(probe.function, f"{where} {probe.fetch}".rstrip()):
            return False
        if probe.result:
            result = f"{where} result=$retval:s32"
            self._instance.add_kprobe(f"{probe.function}{_RETURN}", result, at_return=True)
        return True


def decode(time: float, event: str, text: str) -> TimelineEntry:
    """Return a trace event as an entry, with the names of the notifier's action and of the returned error."""
    group = _GROUP.search(text)
    return TimelineEntry(
        time,
        "probe",
        event.removesuffix(_RETURN),
        address=find_address(text),
        group=int(group[1]) if group else None,
        detail=_detail(event, text),
    )


def _detail(event: str, text: str) -> str:
    if action := _ACTION.search(text):
        number = int(action[1], 0)
        return ACTIONS.get(number, f"action {number}")
    if event.endswith(_RETURN) and (result := _RESULT.search(text)):
        code = -int(result[1])
        return f"returns {errno.errorcode.get(code, code) if code else 0}"
    is_kprobe = text.startswith("(")  # the text of a kprobe begins with its location
    return "" if is_kprobe else text.removeprefix("IOMMU:").strip()


def _is_loaded(module: str | None) -> bool:
    return module is None or os.path.isdir(f"/sys/module/{module}")
