"""Configuration space of an open device: its command register, and its decoded capabilities."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from vfiotool.errors import UnsupportedError
from vfiotool.pci.capabilities.decoding import DecodedCapability, decode
from vfiotool.pci.config_space import EXTENDED_SIZE, capabilities
from vfiotool.vfio.device_file import DeviceFile
from vfiotool.vfio.info import RegionInfo
from vfiotool.vfio.mmio.access import RegionAccess
from vfiotool.vfio.regions.region import Region

_COMMAND = 0x04
_MEMORY = 1 << 1
_BUS_MASTER = 1 << 2
_POWER_MANAGEMENT = 0x01
_POWER_STATE_AT = 4
_D3HOT = 3
_MEMORY_OFF = "the device's memory is off", "set memory to True in its configuration space"
_POWERED_DOWN = "the device is in D3hot", "write 0 to the power state of its Power Management capability"


@dataclass(frozen=True, slots=True)
class _Switch:
    """A byte that turns the device's memory off: the kernel then answers a mapped access with SIGBUS."""

    at: int
    is_off: Callable[[int], bool]
    reason: tuple[str, str]


class ConfigSpace(Region):
    """Configuration space as the kernel shows it to a device's owner: the kernel emulates parts of it.

    Before a write turns the device's memory off, or puts the device into D3hot, accesses to its mapped
    registers are blocked. The write that reverts this allows them again. Threads may share it.

    Source: PCI Local Bus 3.0 section 6.2; Linux drivers/vfio/pci/vfio_pci_config.c.
    """

    def __init__(self, file: DeviceFile, info: RegionInfo, name: str) -> None:
        super().__init__(file, info, name)
        self._changing = threading.RLock()
        self._switches = self._find_switches()
        self.settle()

    @property
    def vendor_id(self) -> int:
        """The vendor ID."""
        return self.read16(0)

    @property
    def device_id(self) -> int:
        """The device ID."""
        return self.read16(2)

    @property
    def command(self) -> int:
        """The command register."""
        return self.read16(_COMMAND)

    @command.setter
    def command(self, value: int) -> None:
        self.write16(_COMMAND, value)

    @property
    def bus_master(self) -> bool:
        """True if the device may do DMA and send message-signalled interrupts; off when the device is opened.

        Setting it raises UnsupportedError if the device does not accept it.
        """
        return bool(self.command & _BUS_MASTER)

    @bus_master.setter
    def bus_master(self, on: bool) -> None:
        self._set_command(_BUS_MASTER, on, "bus mastering")

    @property
    def memory(self) -> bool:
        """True if the device responds to accesses to its memory; on when the device is opened.

        Setting it raises UnsupportedError if the device does not accept it.
        """
        return bool(self.command & _MEMORY)

    @memory.setter
    def memory(self, on: bool) -> None:
        self._set_command(_MEMORY, on, "memory")

    def raw(self) -> bytes:
        """Return all bytes, 256 or 4096 of them."""
        return self.read(min(self.size, EXTENDED_SIZE))

    def capabilities(self) -> tuple[DecodedCapability, ...]:
        """Return all capabilities with their current contents, standard ones first, in chain order."""
        return decode(self.raw())

    def find(self, number: int, *, extended: bool = False) -> DecodedCapability | None:
        """Return the first capability of an id, or ``None``; extended capabilities have separate ids."""
        found = (one for one in self.capabilities() if (one.id, one.extended) == (number, extended))
        return next(found, None)

    def settle(self) -> None:
        """Block or allow accesses to mapped registers by the current registers, after an external change."""
        self._file.fileno()  # a forked child must not wait for the lock: its holder may not exist there
        with self._changing:
            for switch in self._switches:
                self._follow(switch)

    def _put(self, access: RegionAccess, data: bytes) -> None:
        turned = [switch for switch in self._switches if access.offset <= switch.at < access.end]
        if not turned:
            super()._put(access, data)
            return
        self._require_writable(access)
        self._file.fileno()
        with self._changing:
            for switch in turned:
                if switch.is_off(data[switch.at - access.offset]):
                    self._file.set_asleep(True, switch.reason)
            try:
                super()._put(access, data)
            finally:
                for switch in turned:
                    self._follow(switch)

    def _follow(self, switch: _Switch) -> None:
        self._file.set_asleep(switch.is_off(self.read8(switch.at)), switch.reason)

    def _find_switches(self) -> tuple[_Switch, ...]:
        memory = _Switch(_COMMAND, lambda byte: not byte & _MEMORY, _MEMORY_OFF)
        for one in capabilities(self.raw()):
            at = one.offset + _POWER_STATE_AT
            if one.id == _POWER_MANAGEMENT and not one.extended and at < self.size:
                return memory, _Switch(at, lambda byte: byte & 3 == _D3HOT, _POWERED_DOWN)
        return (memory,)

    def _set_command(self, bit: int, on: bool, what: str) -> None:
        self._file.fileno()
        with self._changing:
            command = self.command
            self.command = command | bit if on else command & ~bit
            if bool(self.command & bit) != on:
                raise UnsupportedError(
                    f"{self.name}: {what} does not turn {'on' if on else 'off'}",
                    hint="the device does not implement it, or was removed",
                )
