"""Bind, unbind and restore: from addresses to a plan that has been carried out.

Each function here looks, plans, and, unless the plan is refused or is only to be shown, records the
devices in the journal and executes. Processes are kept apart by the journal's lock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from vfiotool.binding.binder import execute
from vfiotool.binding.journal import Journal, is_driver_name
from vfiotool.binding.machine import LiveMachine, Machine
from vfiotool.binding.plan import DRIVERS, Plan, PlanRefusedError, Scene, bound_to, make_plan
from vfiotool.errors import BlockedError, SelectorError, UnsupportedError, VfioToolError
from vfiotool.host.attributes import addresses
from vfiotool.host.devices import Device, DeviceState, find_device, read_devices
from vfiotool.host.era import detect_era
from vfiotool.host.groups import TURN_ON_IOMMU, Group, is_bridge, is_vfio_driver, read_groups
from vfiotool.host.holders import Holder
from vfiotool.host.pending import STATE_DIR
from vfiotool.host.usage import read_usage
from vfiotool.pci.names import PciNames

UNBIND_SECONDS = 30.0

Wish = Callable[[Device], DeviceState]
"""From a device as it is to the state that it is to be in."""


class Binding:
    """How devices are to be changed: where the journal is, and what the user allows.

    ``allowed`` names rules that are lifted (``mounted``, ``network``). ``timeout`` bounds each write
    to sysfs, in seconds. Threads must not share it.
    """

    def __init__(
        self,
        *,
        state_dir: str = STATE_DIR,
        allowed: Collection[str] = (),
        dry_run: bool = False,
        timeout: float = UNBIND_SECONDS,
        machine: Machine | None = None,
    ) -> None:
        self.state_dir, self.dry_run, self.timeout = state_dir, dry_run, timeout
        self._allowed = frozenset(allowed)
        self._machine = machine or LiveMachine(state_dir)
        self._journal = Journal(state_dir)

    def bind(self, wanted: Sequence[str], driver: str = "vfio-pci") -> Plan:
        """Hand devices to a driver; all of them, or none.

        Raises:
            RefusedError: a rule forbids it; nothing was changed.
            UnsupportedError: a device has no IOMMU group, or the kernel has no such driver.
            BindError, BlockedError: see ``binder.execute``.
        """
        if not is_driver_name(driver):
            raise SelectorError(f"{driver!r} is not a driver's name", hint="see /sys/bus/pci/drivers")

        def wish(device: Device) -> DeviceState:
            if is_vfio_driver(driver) and device.iommu_group is None:
                raise _no_group(device.address)
            return bound_to(device, driver)

        return self._run(wanted, wish)

    def unbind(self, wanted: Sequence[str]) -> Plan:
        """Leave devices without a driver; what they were is recorded. Raises as ``bind`` does."""
        return self._run(wanted, lambda device: DeviceState(None, device.driver_override))

    def restore(self, wanted: Sequence[str]) -> Plan:
        """Bring devices back to the driver and override that they had before vfiotool's first change.

        Raises:
            VfioToolError: nothing is recorded of a device, or another one is at its address now.
            Others as ``bind`` does.
        """
        return self._run(wanted, self._recorded_state, forget=True)

    def recorded(self) -> list[str]:
        """Return the addresses of the devices that can be restored."""
        return self._journal.addresses()

    def group_members(self, wanted: Iterable[str]) -> list[str]:
        """Return the endpoints of the groups that the devices are in, bridges left out.

        Raises:
            UnsupportedError: a device has no IOMMU group.
        """
        devices = self._read_devices()
        chosen: dict[str, None] = {}
        for address in wanted:
            device = find_device(devices, address)
            if device.iommu_group is None:
                raise _no_group(address)
            members = [other for other in devices if other.iommu_group == device.iommu_group]
            chosen.update(dict.fromkeys(other.address for other in members if not is_bridge(other)))
        return list(chosen)

    def _run(self, wanted: Sequence[str], wish: Wish, *, forget: bool = False) -> Plan:
        if self.dry_run:
            return self._plan(wanted, wish)[0]
        with self._journal.lock():
            plan, scene = self._plan(wanted, wish)
            if plan.steps:
                self._execute(plan, scene)
            for address in wanted if forget else ():
                self._journal.forget(address)
        return plan

    def _plan(self, wanted: Sequence[str], wish: Wish) -> tuple[Plan, Scene]:
        scene = self._look(wanted)
        for address in wanted:
            if scene.devices[address].blocked or "driver_override" in scene.devices[address].unavailable:
                raise _locked(scene, address)
        plan = make_plan(scene, {address: wish(scene.devices[address]) for address in wanted})
        if plan.refusals:
            raise PlanRefusedError(plan.refusals)
        return plan, scene

    def _execute(self, plan: Plan, scene: Scene) -> None:
        fresh = [address for address in plan.before if self._journal.record(scene.devices[address])]
        holders = {address: _holders(scene, address) for address in plan.before}
        try:
            execute(self._machine, plan, holders=holders, timeout=self.timeout)
        except VfioToolError:
            self._forget_unchanged(fresh)
            raise

    def _forget_unchanged(self, fresh: Iterable[str]) -> None:
        """Drop the records of this plan whose devices are as recorded: they were put back."""
        now = {device.address: device for device in self._read_devices()}
        for address in fresh:
            record, device = self._journal.find(address), now.get(address)
            if record is not None and device is not None and device.state == record.state:
                self._journal.forget(address)

    def _look(self, wanted: Iterable[str]) -> Scene:
        tree = self._machine.tree
        devices = {device.address: device for device in self._read_devices()}
        chosen = [find_device(devices.values(), address) for address in wanted]
        numbers = {device.iommu_group for device in chosen if device.iommu_group is not None}
        groups = {group.id: group for group in read_groups(tree, numbers, devices.values())}
        return Scene(
            devices=devices,
            groups=groups,
            usage={device.address: read_usage(tree, device.address, ()) for device in chosen},
            loaded_drivers=frozenset(tree.find_names(DRIVERS)),
            era=detect_era(tree),
            allowed=self._allowed,
        )

    def _read_devices(self) -> list[Device]:
        tree = self._machine.tree
        return read_devices(tree, addresses(tree), PciNames(b""), state_dir=self.state_dir)

    def _recorded_state(self, device: Device) -> DeviceState:
        record = self._journal.find(device.address)
        if record is None:
            raise VfioToolError(
                f"nothing is recorded of {device.address}: vfiotool has not changed it",
                hint="to give it to a driver of your choice: 'vfiotool bind --driver NAME'",
            )
        if not record.is_of(device):
            raise VfioToolError(
                f"{device.address} was {record.vendor_id:04x}:{record.device_id:04x} when it was recorded, "
                f"and is {device.vendor_id:04x}:{device.device_id:04x} now",
                hint="another device has taken the address; bind it as you wish it",
            )
        return record.state


@contextlib.contextmanager
def bound(*wanted: str, driver: str = "vfio-pci", state_dir: str = STATE_DIR) -> Iterator[None]:
    """Have devices bound to a driver for the time of a ``with`` block, and restored after it.

    Raises as ``Binding.bind`` and ``Binding.restore`` do.
    """
    binding = Binding(state_dir=state_dir)
    binding.bind(wanted, driver)
    try:
        yield
    finally:
        binding.restore([address for address in wanted if address in binding.recorded()])


def _holders(scene: Scene, address: str) -> Sequence[Holder]:
    group = _group_of(scene.groups, scene.devices[address])
    return group.holders if group is not None else ()


def _group_of(groups: Mapping[int, Group], device: Device) -> Group | None:
    return None if device.iommu_group is None else groups.get(device.iommu_group)


def _locked(scene: Scene, address: str) -> BlockedError:
    """What is not known of a device could not be recorded, and a write to it would wait as well."""
    names = [f"pid {holder.pid} ({holder.comm})" for holder in _holders(scene, address)]
    who = ", ".join(names) or "a process"
    return BlockedError(
        f"an unbind of {address} is pending: its driver waits for {who} to let go",
        holders=names,
        hint="end the process that holds it; the unbind completes then",
    )


def _no_group(address: str) -> UnsupportedError:
    return UnsupportedError(f"{address} is in no IOMMU group, so VFIO cannot have it", hint=TURN_ON_IOMMU)
