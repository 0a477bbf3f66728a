"""The power of a device: the kernel's policies, and whether a device sleeps or does not wake.

Sources: Documentation/ABI/testing/sysfs-bus-pci and sysfs-devices-power. Since 5.19 vfio-pci leaves idle
devices to runtime power management (commit 7ab5e10eda02), which ``power/control`` governs; before, it put
them into D3hot itself. Its parameter ``disable_idle_d3`` keeps those devices awake that are bound later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vfiotool.host import bounded_reads
from vfiotool.host.attributes import device_path
from vfiotool.host.era import detect_era
from vfiotool.host.tree import Tree, decode

IDLE_D3 = "/sys/module/vfio_pci/parameters/disable_idle_d3"

_STATE, _CONTROL, _STATUS, _D3COLD = _NAMES = (
    "power_state",
    "power/control",
    "power/runtime_status",
    "d3cold_allowed",
)
_ASLEEP = ("D1", "D2", "D3hot", "D3cold")
_FAILED = "error"


@dataclass(frozen=True, slots=True)
class Power:
    """The power of a device at one moment; ``None`` if the kernel does not have, or show, the attribute.

    ``state`` is the PCI power state. ``control`` is the policy of runtime power management (``on``: always
    awake, ``auto``), and ``runtime_status`` what it believes (``active``, ``suspended``, …).
    ``d3cold_allowed`` is True if the device may lose its power while it sleeps, ``disable_idle_d3`` if
    vfio-pci keeps idle devices awake.
    """

    state: str | None
    control: str | None
    runtime_status: str | None
    d3cold_allowed: bool | None
    disable_idle_d3: bool | None

    @property
    def is_asleep(self) -> bool:
        """Return True if the device is in a state below D0."""
        return self.state in _ASLEEP

    @property
    def is_out_of_step(self) -> bool:
        """Return True if the device sleeps though the kernel takes it for awake, or its power failed."""
        if _FAILED in (self.state, self.runtime_status):
            return True
        return self.is_asleep and self.runtime_status == "active"

    def does_not_wake(self, *, by_policy: bool) -> bool:
        """Return True if the device is out of step, unless vfio-pci itself has put it into D3hot.

        vfio-pci does so if ``by_policy`` is False. A program that has the device open may do so, too.
        """
        return self.is_out_of_step and (by_policy or self.state != "D3hot")

    def __str__(self) -> str:
        details = ", ".join(self._details())
        return f"{self.state or '-'} ({details})" if details else self.state or "-"

    def _details(self) -> list[str]:
        details = [f"control {self.control}"] if self.control else []
        details += [self.runtime_status] if self.runtime_status else []
        if self.d3cold_allowed is not None:
            details.append("D3cold allowed" if self.d3cold_allowed else "D3cold not allowed")
        if self.disable_idle_d3:
            details.append("kept awake by vfio-pci's disable_idle_d3")
        return details


def sleeps_by_policy(tree: Tree) -> bool:
    """Return True if ``power/control`` governs the sleep of idle devices on vfio-pci: since 5.19."""
    return detect_era(tree).has_dma_owner


def power_paths(address: str) -> list[str]:
    """Return the paths that ``power_of`` needs; ``bounded_reads`` reads them."""
    return [f"{device_path(address)}/{name}" for name in _NAMES]


def power_of(tree: Tree, address: str, answers: Mapping[str, bounded_reads.ReadResult]) -> Power:
    """Return the power of a device from the contents of ``power_paths``."""

    def text(name: str) -> str | None:
        answer = answers.get(f"{device_path(address)}/{name}")
        return decode(answer) if isinstance(answer, bytes) else None

    d3cold, disabled = text(_D3COLD), tree.find(IDLE_D3)
    return Power(
        state=text(_STATE),
        control=text(_CONTROL),
        runtime_status=text(_STATUS),
        d3cold_allowed=None if d3cold is None else d3cold != "0",
        disable_idle_d3=None if disabled is None else disabled == "Y",
    )


def read_power(tree: Tree, addresses: Iterable[str]) -> dict[str, Power]:
    """Read the power of devices, bounded in time like a listing. It wakes none of them."""
    addresses = list(addresses)
    answers = bounded_reads.read_all(tree, [path for one in addresses for path in power_paths(one)])
    return {one: power_of(tree, one, answers) for one in addresses}
