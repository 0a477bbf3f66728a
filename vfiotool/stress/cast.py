"""A group on stage, with every family of operations."""

from __future__ import annotations

from vfiotool.stress.deeds.dma import Dma
from vfiotool.stress.deeds.hotplug import Hotplug
from vfiotool.stress.deeds.irqs import Interrupts
from vfiotool.stress.deeds.life_cycle import LifeCycle
from vfiotool.stress.deeds.races import Races
from vfiotool.stress.deeds.reset import Resets
from vfiotool.stress.deeds.vfs import Vfs
from vfiotool.stress.model import Model
from vfiotool.stress.stage import Stage, Unit


class Cast:
    """A handle of one thread; see ``Stage``."""

    def __init__(self, model: Model, unit: Unit) -> None:
        self.stage = Stage(model, unit)
        self.life_cycle = LifeCycle(self.stage)
        self.hotplug = Hotplug(self.stage)
        self.vfs = Vfs(self.stage)
        self.dma = Dma(self.stage)
        self.interrupts = Interrupts(self.stage)
        self.resets = Resets(self.stage)
        self.races = Races(self.stage, self.life_cycle, self.hotplug, self.dma)
        families = (
            self.life_cycle,
            self.hotplug,
            self.vfs,
            self.dma,
            self.interrupts,
            self.resets,
            self.races,
        )
        for family in families:
            self.stage.add(family)

    @property
    def members(self) -> tuple[str, ...]:
        """The addresses of the group's endpoints."""
        return self.stage.unit.members

    @property
    def have_hosts(self) -> bool:
        """Say whether each member has a host driver."""
        return all(self.stage.unit.hosts.get(address) for address in self.members)
