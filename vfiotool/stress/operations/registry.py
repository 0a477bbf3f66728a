"""All families of operations, together on one group."""

from __future__ import annotations

from vfiotool.stress.group.harness import GroupHarness, OperationFamily
from vfiotool.stress.groups import GroupSpec
from vfiotool.stress.model.lifecycle import Model
from vfiotool.stress.operations.dma import DmaOperations
from vfiotool.stress.operations.hotplug import HotplugOperations
from vfiotool.stress.operations.irq import IrqOperations
from vfiotool.stress.operations.lifecycle import LifecycleOperations
from vfiotool.stress.operations.race import RaceOperations
from vfiotool.stress.operations.reset import ResetOperations
from vfiotool.stress.operations.sriov import SriovOperations

FAMILIES: tuple[type[OperationFamily], ...] = (
    LifecycleOperations,
    HotplugOperations,
    SriovOperations,
    DmaOperations,
    IrqOperations,
    ResetOperations,
    RaceOperations,
)
SCRIPT_FORMS = {name: form for family in FAMILIES for name, form in family.forms.items()}
"""The form in a script of each operation, by the operation's name."""


class GroupOperations:
    """A group under test with one family of each kind. Not thread-safe; see ``GroupHarness``."""

    def __init__(self, model: Model, spec: GroupSpec) -> None:
        self.harness = GroupHarness(model, spec)
        self.lifecycle = LifecycleOperations(self.harness)
        self.hotplug = HotplugOperations(self.harness, self.lifecycle)
        self.vfs = SriovOperations(self.harness)
        self.dma = DmaOperations(self.harness)
        self.interrupts = IrqOperations(self.harness)
        self.resets = ResetOperations(self.harness)
        self.races = RaceOperations(self.harness, self.lifecycle, self.hotplug, self.dma)
        families = (
            self.lifecycle,
            self.hotplug,
            self.vfs,
            self.dma,
            self.interrupts,
            self.resets,
            self.races,
        )
        for family in families:
            self.harness.add(family)

    @property
    def members(self) -> tuple[str, ...]:
        """The addresses of the group's endpoints."""
        return self.harness.spec.members

    @property
    def have_hosts(self) -> bool:
        """Return True if each member has a host driver."""
        return all(self.harness.spec.hosts.get(address) for address in self.members)
