"""Machines for tests of binding: the fake host and a lab guest, with the same devices."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from tests.support.device_holder import held
from vfiotool.binding.machine import LiveMachine, MachineControl, UeventListener, no_report
from vfiotool.binding.operations import Binding
from vfiotool.binding.ownership import Owner
from vfiotool.binding.steps import steps_between
from vfiotool.errors import KernelError
from vfiotool.host.attributes import addresses
from vfiotool.host.device_state import DeviceState, NodeAccess, node_path, read_states
from vfiotool.host.devices import PciDevice, read_devices
from vfiotool.host.era import Era, detect_era
from vfiotool.host.groups import IommuGroup, read_group
from vfiotool.pci.names import PciNames
from vfiotool.testing import FakeHost

EDU = "0000:00:10.0"
E1000E = "0000:00:12.0"
NVME = "0000:00:13.0"
BRIDGE = "0000:02:00.0"
SIBLINGS = ("0000:03:01.0", "0000:03:02.0")
TOUCHED = (EDU, E1000E, NVME, BRIDGE, *SIBLINGS)


@dataclass
class RecordingMachine:
    """Passes calls on to a machine, records its writes, and can fail them before they reach the machine."""

    machine: MachineControl
    writes: list[str] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    on_write: Callable[[str], None] | None = None
    _fails_at: tuple[int, int] = (-1, 0)

    def __post_init__(self) -> None:
        self.tree = self.machine.tree

    def write(
        self, path: str, value: str, *, address: str, timeout: float, waiting: Callable[[], None] = no_report
    ) -> None:
        self.writes.append(path)
        if self.on_write is not None:
            self.on_write(path)
        at, code = self._fails_at
        if len(self.writes) == at or (code := self.failures.get(path, 0)):
            raise KernelError(code, "write", path)
        self.machine.write(path, value, address=address, timeout=timeout, waiting=waiting)

    def fail_once(self, number: int, code: int) -> None:
        """Fail the write after the next ``number`` writes with an errno, and no other write."""
        self._fails_at = len(self.writes) + number + 1, code

    def await_writer(self, address: str, timeout: float) -> bool:
        return self.machine.await_writer(address, timeout)

    def set_access(self, node: str, access: NodeAccess) -> None:
        self.machine.set_access(node, access)

    def grant(self, address: str, owner: Owner) -> None:
        self.machine.grant(address, owner)

    def revoke(self, address: str) -> None:
        self.machine.revoke(address)

    def load_module(self, name: str) -> None:
        self.machine.load_module(name)

    def events(self) -> UeventListener:
        return self.machine.events()


@dataclass
class Bench:
    """A machine to bind devices on. ``hold`` starts a process that holds a device, and yields its pid."""

    machine: RecordingMachine
    state_dir: str
    hold: Callable[[str], AbstractContextManager[int]]

    @property
    def era(self) -> Era:
        return detect_era(self.machine.tree)

    def binding(self, **options: Any) -> Binding:
        return Binding(machine=self.machine, state_dir=self.state_dir, **options)

    def write(self, path: str, value: str) -> None:
        self.machine.write(path, value, address=EDU, timeout=10)

    def devices(self, wanted: Sequence[str]) -> list[PciDevice]:
        return read_devices(self.machine.tree, wanted, PciNames(b""), state_dir=self.state_dir)

    def device(self, address: str) -> PciDevice:
        return self.devices([address])[0]

    def group_of(self, address: str) -> IommuGroup:
        number = self.device(address).iommu_group
        assert number is not None
        return read_group(self.machine.tree, number, self.devices(addresses(self.machine.tree)))

    def states(self) -> dict[str, DeviceState]:
        """Return the states of the devices that these tests change."""
        return read_states(self.machine.tree, TOUCHED)

    def put_back(self, former: dict[str, DeviceState]) -> None:
        """Bring the devices back to their former states, for the next test."""
        self.machine.failures.clear()
        for address, now in self.states().items():
            node = node_path(self.machine.tree, address)
            for step in steps_between(now, former[address], address, node=node):
                self.write(step.path, step.value)


def kernel_bench(state_dir: str) -> Bench:
    """Return the running machine; a child process holds devices."""
    machine = LiveMachine(state_dir)

    @contextlib.contextmanager
    def hold(address: str) -> Iterator[int]:
        with held(address) as pid:
            yield pid
        assert machine.await_writer(address, 30)

    return Bench(RecordingMachine(machine), state_dir, hold)


def fake_bench(root: str, state_dir: str, kernel: str) -> Bench:
    """Return a fake of the lab's default machine."""
    host = FakeHost(root, kernel=kernel, state_dir=state_dir)
    for driver in ("vfio-pci", "pci-stub"):
        host.add_driver(driver, module_loaded=False)
    host.add_driver("virtio-pci", ids=[(0x1AF4, 0x1041)])
    host.add_device("0000:00:03.0", class_code=0x060400, driver="pcieport", group=2)
    host.add_device(EDU, group=5)
    host.add_device(E1000E, vendor=0x8086, device=0x10D3, driver="e1000e", group=7)
    host.add_device(NVME, vendor=0x1B36, device=0x0010, driver="nvme", group=8)
    host.add_device(BRIDGE, class_code=0x060400, bridge="0000:00:03.0", group=13)
    for address in SIBLINGS:
        host.add_device(address, vendor=0x8086, device=0x100E, driver="e1000", bridge=BRIDGE, group=13)

    @contextlib.contextmanager
    def hold(address: str) -> Iterator[int]:
        host.block(address, pid=4242)
        try:
            yield 4242
        finally:
            host.release(address)

    return Bench(RecordingMachine(host), state_dir, hold)
