"""QEMU's device for tests of port and memory accesses, pci-testdev (QEMU docs/specs/pci-testdev)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from vfiotool.drivers.base import Driver
from vfiotool.drivers.registers import Register, RegisterBlock
from vfiotool.errors import ClosedError, UnsupportedError, UsageError
from vfiotool.vfio.device import Device
from vfiotool.vfio.regions.region import Region
from vfiotool.vfio.regions.register_space import RegisterSpace

_IDS = 0x1B36, 0x0005
_BARS = (0, 1)
_WIDTHS = (1, 2, 4)  # bytes; any other width means that there is no such test
_NO_TEST = 0xFF
_MOST_TESTS = _NO_TEST
_LONGEST_NAME = 64


class PciTestdevRegisters(RegisterBlock, width=32):
    """The header at the start of both BARs: all registers but ``test`` describe the last started test."""

    test = Register(0x00, width=8, access="wo")
    width_type = Register(0x01, width=8, access="ro")
    offset = Register(0x04, access="ro")
    data = Register(0x08, access="ro")
    count = Register(0x0C, access="ro")
    name = Register(0x10, width=8, access="ro", count=_LONGEST_NAME)


@dataclass(frozen=True, slots=True)
class AccessTest:
    """A test that the device offers: to write ``data``, of ``width`` bits, at an ``offset`` of a BAR.

    All of it comes from the device; bytes of its name that are not printable ASCII read as ``?``.
    """

    bar: int
    number: int
    name: str
    width: int
    offset: int
    data: int


class PciTestdev(Driver):
    """A driver of pci-testdev; see ``Driver`` for the guarantees of its calls.

        with PciTestdev(device) as testdev:
            for test in testdev.tests(0):
                print(test.name, testdev.run(test, 10))

    The device does no DMA and raises no interrupts: its bus mastering stays off. It has no reset; ``start()``
    ends the last started test instead. BAR0 is memory, which is mapped. BAR1 has I/O ports, which are
    accessed through the kernel.
    """

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self._spaces: Mapping[int, RegisterSpace] = {}

    def tests(self, bar: int) -> list[AccessTest]:
        """Return the tests of a BAR, 0 or 1; the device ends its list with an invalid width.

        Raises:
            ClosedError: the driver is not started.
            UsageError: the device has no tests in that BAR.
        """
        found = []
        for number in range(_MOST_TESTS):
            test = self._described(bar, number)
            if test is None:
                break
            found.append(test)
        self._registers(bar).test.write(_NO_TEST)
        return found

    def run(self, test: AccessTest, times: int = 1) -> int:
        """Start a test, make its write ``times`` times, and return how many writes the device has counted.

        Writes that QEMU turns into a signal of an eventfd (``wildcard-eventfd``, ``datamatch-eventfd``) do
        not reach the device, and are not counted.

        Raises:
            ClosedError: the driver is not started.
            AccessError: offset or width of the test, which come from the device, do not fit in the BAR.
        """
        registers = self._registers(test.bar)
        registers.test.write(test.number)
        for _ in range(times):
            self._writer(test.bar, test.width)(test.offset, test.data)
        count = registers.count.read()
        registers.test.write(_NO_TEST)
        return count

    def _start(self, resources: ExitStack) -> None:
        config = self.device.config
        if (config.vendor_id, config.device_id) != _IDS:
            raise UnsupportedError(
                f"{self.device.name} is not pci-testdev", hint="'vfiotool show' names the device"
            )
        regions = (self.device.regions[bar] for bar in _BARS if bar in self.device.regions)
        self._spaces = {region.index: _space(region, resources) for region in regions}
        for bar in self._spaces:
            self._registers(bar).test.write(_NO_TEST)

    def _quiesce(self) -> None:
        spaces, self._spaces = self._spaces, {}
        for space in spaces.values():
            PciTestdevRegisters(space).test.write(_NO_TEST)

    def _described(self, bar: int, number: int) -> AccessTest | None:
        registers = self._registers(bar)
        registers.test.write(number)
        width = registers.width_type.read()
        if width not in _WIDTHS:
            return None
        offset, data = registers.offset.read(), registers.data.read()
        return AccessTest(bar, number, _name(registers), width * 8, offset, data)

    def _registers(self, bar: int) -> PciTestdevRegisters:
        return PciTestdevRegisters(self._space(bar), name=f"{self.device.name}: bar{bar}")

    def _writer(self, bar: int, width: int) -> Callable[[int, int], None]:
        space = self._space(bar)
        return {8: space.write8, 16: space.write16, 32: space.write32}[width]

    def _space(self, bar: int) -> RegisterSpace:
        if not self._spaces:
            raise ClosedError(f"the driver of {self.device.name} is not started", hint="call start() first")
        if bar not in self._spaces:
            known = " and ".join(map(str, self._spaces))
            raise UsageError(f"{self.device.name} has no tests in bar{bar}", hint=f"it has tests in {known}")
        return self._spaces[bar]


def _space(region: Region, resources: ExitStack) -> RegisterSpace:
    return resources.enter_context(region.map()) if region.areas else region


def _name(registers: PciTestdevRegisters) -> str:
    """Return the test's name; its length is bounded, whatever the device says."""
    name = ""
    for register in registers.name:
        byte = register.read()
        if not byte:
            break
        name += chr(byte) if 0x20 <= byte < 0x7F else "?"
    return name
