"""The lease of a run on its devices: taken from their drivers through the journal, and given back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence

from vfiotool.binding.journal import Journal, boot_id
from vfiotool.binding.locks import lock_keys, locked
from vfiotool.binding.operations import Binding
from vfiotool.errors import VfioToolError
from vfiotool.host.attributes import device_path
from vfiotool.host.device_state import DeviceState, read_state
from vfiotool.host.tree import Tree

GIVE_BACK_SECONDS = 30.0


class DeviceLease:
    """Devices on vfio-pci, recorded in the journal, and locked against other vfiotool processes.

    ``tell`` is called just before the devices are taken, with the devices that the journal already records.

    Raises:
        RefusedError: a rule that is not in ``allowed`` forbids to take a device.
        Others as ``Binding.bind`` does.
    """

    def __init__(
        self,
        wanted: Sequence[str],
        state_dir: str,
        allowed: Collection[str],
        tell: Callable[[Collection[str]], None],
    ) -> None:
        self._tree = Tree()
        self._wanted = list(wanted)
        self._state_dir = state_dir
        self._before = self._states()
        binding = self._binding(allowed)
        self.recorded = frozenset(binding.recorded())
        tell(self.recorded)
        binding.bind(self._wanted)
        self._locks = contextlib.ExitStack()
        journal = Journal(state_dir, boot=boot_id(self._tree))
        self._locks.enter_context(locked(journal.locks, lock_keys(self._tree, self._wanted)))

    def give_back(self, timeout: float) -> list[str]:
        """Give the devices back. Return a sentence for each device that is not back; raise nothing."""
        self._locks.close()
        return give_back(self._wanted, self.recorded, self._state_dir, timeout) or self._differences()

    def _binding(self, allowed: Collection[str] = ()) -> Binding:
        return Binding(state_dir=self._state_dir, allowed=allowed)

    def _states(self) -> dict[str, DeviceState]:
        return {address: read_state(self._tree, address) for address in self._wanted}

    def _differences(self) -> list[str]:
        """Return how the devices differ from their state before they were taken."""
        found = []
        for address in self._wanted:
            before = self._before[address]
            try:
                now = read_state(self._tree, address)
            except (VfioToolError, TimeoutError) as error:
                found.append(f"{address} cannot be read: {error}")
                continue
            for name in ("driver", "driver_override"):
                was, is_now = getattr(before, name), getattr(now, name)
                if was != is_now:
                    found.append(f"the {name} of {address} is {is_now or 'none'}, and was {was or 'none'}")
        return found


def give_back(wanted: Sequence[str], recorded: Collection[str], state_dir: str, timeout: float) -> list[str]:
    """Restore devices; bind those recorded before the run to vfio-pci again. Return the failures."""
    binding = Binding(state_dir=state_dir, timeout=timeout)
    found = []
    kept = [address for address in wanted if address in recorded]
    for give, devices in (
        (binding.restore, [address for address in wanted if address not in recorded]),
        (binding.bind, kept),
    ):
        known = set(binding.recorded())
        devices = [address for address in devices if address in known]
        if devices:
            try:
                give(devices)
            except (VfioToolError, TimeoutError) as error:
                found.append(str(error))
    gone = [address for address in wanted if not Tree().exists(device_path(address))]
    return found + [f"{address} is gone" for address in gone]
