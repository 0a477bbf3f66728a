"""The kernel's own functions: those that ran against those the model says, and claims against releases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from vfiotool.events.entry import TimelineEntry
from vfiotool.events.probes import ACTIONS, PROBES
from vfiotool.stress.monitors.samples import times

_NOTIFIER = "vfio_iommu_group_notifier"
_ACTIONS = frozenset(ACTIONS.values())
_LAST_PUTS = frozenset(("vfio_group_release", "vfio_group_fops_release"))  # whoever has it: not predicted
_JUDGED = frozenset(probe.function for probe in PROBES) - _LAST_PUTS - {_NOTIFIER} | _ACTIONS
_OF_DEVICES = frozenset(probe.function for probe in PROBES if "device=" in probe.fetch)
_BALANCED = (
    ("iommu_group_claim_dma_owner", "iommu_group_release_dma_owner"),
    ("iommu_device_claim_dma_owner", "iommu_device_release_dma_owner"),
)
_RETURNS = "returns "
_PUT = "vfio_group_put_bg"


class ProbeMonitor:
    """Counts functions, and actions of the notifier, which stand for its calls. One thread uses it.

    ``probed`` names what this kernel lets be probed; it may grow while modules are loaded. What names a
    device that is none of ``addresses`` is not counted: the machine has others. Functions that are about no
    device all count.
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
        """Take the names that an operation has run."""
        self._expected.update(probes)

    def see(self, entry: TimelineEntry) -> None:
        """Take an entry of the source ``probe``."""
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
        """Say whether all that was expected has been seen, or cannot be."""
        return bool(self._lost) or all(
            self._seen[name] >= count for name, count in self._expected.items() if self._is_judged(name)
        )

    def finish(self) -> None:
        """Take it that nothing more comes: only now do counts say something."""
        self._is_finished = True

    def findings(self) -> list[str]:
        """Return what is wrong: before the end only that events were lost."""
        if self._lost:
            lost = times(self._lost["trace"])
            return [f"events of the trace buffer were lost, {lost}, so that counts of functions say nothing"]
        return [*self._miscounted(), *self._unbalanced()] if self._is_finished else []

    def document(self) -> dict[str, int]:
        """Return ``probes`` of the report."""
        return {
            f"{_NOTIFIER}:{name}" if name in _ACTIONS else name: count
            for name, count in sorted(self._seen.items())
        }

    def _is_other(self, entry: TimelineEntry) -> bool:
        """Say whether it is about a device that is not of the run; results name none."""
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
                what = f"{_NOTIFIER} with {name}" if name in _ACTIONS else name
                yield f"{what} ran {times(seen)}, and must have run {times(expected)}"

    def _spare(self, name: str) -> int:
        """Return how often more than the model says a name may have run.

        Up to 5.15 a worker puts the group, so that it may hear that its last member was unbound before it is
        gone: then that may be put, too.
        """
        if _PUT not in self._probed or name not in ("UNBOUND_DRIVER", _PUT):
            return 0
        gone = self._expected["UNBIND_DRIVER"] - self._expected["UNBOUND_DRIVER"]
        heard = self._seen["UNBOUND_DRIVER"] - self._expected["UNBOUND_DRIVER"]
        return max(0, gone if name != _PUT else min(gone, heard))

    def _unbalanced(self) -> Iterator[str]:
        """A claim that fails takes nothing. Where results are not probed, nothing is said of it."""
        for claim, release in _BALANCED:
            can_tell = self._is_judged(claim) and self._is_judged(release)
            claims, releases = self._succeeded[claim], self._seen[release]
            if can_tell and self._returned[claim] == self._seen[claim] and claims != releases:
                yield f"{claim} succeeded {times(claims)}, but {release} ran {times(releases)}"
