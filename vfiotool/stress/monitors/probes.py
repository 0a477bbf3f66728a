"""Compares the kernel functions that ran with the model, and claims of DMA ownership with releases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from vfiotool.events.entry import TimelineEntry
from vfiotool.events.probes import ACTIONS, PROBES
from vfiotool.stress.monitors.samples import times

_NOTIFIER = "vfio_iommu_group_notifier"
_ACTIONS = frozenset(ACTIONS.values())
_LAST_PUTS = frozenset(
    ("vfio_group_release", "vfio_group_fops_release")
)  # the last holder puts the group: not predicted
_JUDGED = frozenset(probe.function for probe in PROBES) - _LAST_PUTS - {_NOTIFIER} | _ACTIONS
_OF_DEVICES = frozenset(probe.function for probe in PROBES if "device=" in probe.fetch)
_BALANCED = (
    ("iommu_group_claim_dma_owner", "iommu_group_release_dma_owner"),
    ("iommu_device_claim_dma_owner", "iommu_device_release_dma_owner"),
)
_RETURNS = "returns "
_PUT = "vfio_group_put_bg"


class ProbeMonitor:
    """Counts kernel functions, and the notifier's calls by action. Only one thread may use a monitor.

    ``probed`` names the functions that this kernel can probe; the set may grow while modules are loaded.
    Calls for a device that is not in ``addresses`` do not count: other processes use other devices. Calls of
    functions without a device argument all count.
    """

    def __init__(self, probed: Collection[str], addresses: Collection[str] | None = None) -> None:
        self._probed = probed
        self._addresses = addresses
        self._expected = Counter[str]()
        self._seen = Counter[str]()
        self._returned = Counter[str]()
        self._succeeded = Counter[str]()
        self._lost = Counter[str]()
        self._is_finished = False

    def expect(self, probes: Iterable[str]) -> None:
        """Expect the functions of a call, by name."""
        self._expected.update(probes)

    def see(self, entry: TimelineEntry) -> None:
        """Count an entry of the source ``probe``."""
        if entry.event == "missed":
            self._lost["trace"] += 1
        elif self._is_other(entry):
            return
        elif entry.detail.startswith(_RETURNS):
            self._returned[entry.event] += 1
            self._succeeded[entry.event] += entry.detail == f"{_RETURNS}0"
        else:
            self._seen[entry.detail if entry.event == _NOTIFIER else entry.event] += 1

    def is_settled(self) -> bool:
        """Return True if all expected functions have been seen, or events were lost."""
        return bool(self._lost) or all(
            self._seen[name] >= count for name, count in self._expected.items() if self._is_judged(name)
        )

    def finish(self) -> None:
        """End the observation: the counts are complete now."""
        self._is_finished = True

    def findings(self) -> list[str]:
        """Return the findings. Before ``finish``, only lost events are a finding."""
        if self._lost:
            lost = times(self._lost["trace"])
            return [f"events of the trace buffer were lost, {lost}: the counts of functions are incomplete"]
        return [*self._miscounted(), *self._unbalanced()] if self._is_finished else []

    def document(self) -> dict[str, int]:
        """Return ``probes`` of the report."""
        return {
            f"{_NOTIFIER}:{name}" if name in _ACTIONS else name: count
            for name, count in sorted(self._seen.items())
        }

    def _is_other(self, entry: TimelineEntry) -> bool:
        """Return True if an entry is about a device outside the run. Return values name no device."""
        if self._addresses is None or entry.address in self._addresses:
            return False
        is_result = entry.detail.startswith(_RETURNS)
        return entry.address is not None or (entry.event in _OF_DEVICES and not is_result)

    def _is_judged(self, name: str) -> bool:
        return name in _JUDGED and (_NOTIFIER if name in _ACTIONS else name) in self._probed

    def _miscounted(self) -> Iterator[str]:
        for name in sorted(filter(self._is_judged, self._expected.keys() | self._seen.keys())):
            expected, seen = self._expected[name], self._seen[name]
            if not expected <= seen <= expected + self._spare(name):
                function = f"{_NOTIFIER} with {name}" if name in _ACTIONS else name
                yield f"{function} ran {times(seen)}, and must have run {times(expected)}"

    def _spare(self, name: str) -> int:
        """Return how many more runs of a function than predicted are permitted.

        Up to 5.15 a kernel worker puts the group. The group may therefore still receive the event of the
        unbind of its last member, and that event may cause another put.
        """
        if _PUT not in self._probed or name not in ("UNBOUND_DRIVER", _PUT):
            return 0
        gone = self._expected["UNBIND_DRIVER"] - self._expected["UNBOUND_DRIVER"]
        heard = self._seen["UNBOUND_DRIVER"] - self._expected["UNBOUND_DRIVER"]
        return max(0, gone if name != _PUT else min(gone, heard))

    def _unbalanced(self) -> Iterator[str]:
        """Yield claims without releases. A failed claim counts not; without probed results nothing counts."""
        for claim, release in _BALANCED:
            can_tell = self._is_judged(claim) and self._is_judged(release)
            claims, releases = self._succeeded[claim], self._seen[release]
            if can_tell and self._returned[claim] == self._seen[claim] and claims != releases:
                yield f"{claim} succeeded {times(claims)}, but {release} ran {times(releases)}"
