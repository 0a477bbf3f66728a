"""A machine of files, which binds and unbinds drivers as the kernel does.

Every behaviour here was observed on real kernels by ``tests/contract``. Left out: a driver does not bind to
its devices when its module is loaded, and the interfaces and disks of a device do not disappear when its
driver is unbound.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from vfiotool.binding.machine import no_report
from vfiotool.binding.ownership import Owner, rule_path
from vfiotool.errors import KernelError, VfioToolError
from vfiotool.host.attributes import DRIVERS, device_path
from vfiotool.host.device_state import AUTOPROBE, D3COLD, NUMVFS, POWER, NodeAccess
from vfiotool.host.groups import is_vfio_driver
from vfiotool.host.holders import DEVICE_DESCRIPTOR
from vfiotool.host.pending_unbinds import STATE_DIR, pending_dir, process_start
from vfiotool.testing.fake_sriov import SriovHost, refresh_vfs, remove_vfs, set_numvfs, vfs_of
from vfiotool.testing.fake_tree import DRIVERS_PROBE

_BRIDGE = 0x0604
_ACCEPTS_ALL = "pci-stub"
_FIRST_WRITER = 100_000


class FakeEvents:
    """A queue of the uevents since its creation, as ``(action, address)``; waiting takes no time."""

    def __init__(self, out_of_sight: str = "", *, is_late: bool = False) -> None:
        """``is_late``: udevd does not report its events; ``out_of_sight``: it reports them elsewhere."""
        self.queue: deque[tuple[str, str]] = deque()
        self.out_of_sight = out_of_sight
        self.is_late = is_late

    def missing(self, expected: Collection[tuple[str, str]], timeout: float) -> frozenset[tuple[str, str]]:
        """Return the expected events that are not in the queue; consume the queue until all are found."""
        waiting = set(expected)
        while waiting and self.queue:
            waiting.discard(self.queue.popleft())
        return frozenset(waiting)

    def unprocessed(
        self, expected: Collection[tuple[str, str]], timeout: float
    ) -> frozenset[tuple[str, str]]:
        """Return the expected events if udevd is late, and find it in time afterwards."""
        late = frozenset(expected if self.is_late else ())
        self.is_late = self.is_late and not late
        return late

    def close(self) -> None:
        """Do nothing: there is no file descriptor to close."""


@dataclass
class FakeHost(SriovHost):
    """A ``vfiotool.binding.machine.MachineControl``. Pending unbinds are recorded in ``state_dir``.

    ``vf_drivers`` are the host drivers that bind to VFs. No driver can bind to the VFs of QEMU's NVMe before
    they are brought online. With ``udevd_is_late``, udevd does not report that it has run its rules.
    ``udevd_is_out_of_sight`` is a reason why its reports cannot be received.

    Threads must not share it.
    """

    state_dir: str = STATE_DIR
    vf_drivers: set[str] = field(default_factory=set)
    udevd_is_late: bool = False
    udevd_is_out_of_sight: str = ""
    writes: list[tuple[str, str]] = field(init=False, default_factory=list)
    _failures: dict[str, int] = field(init=False, default_factory=dict)
    _holders: dict[str, int] = field(init=False, default_factory=dict)
    _writers: dict[str, int] = field(init=False, default_factory=dict)
    _listeners: list[FakeEvents] = field(init=False, default_factory=list)

    def fail(self, path: str, code: int) -> None:
        """Let all writes to a path fail with errno ``code``."""
        self._failures[path] = code

    def block(self, address: str, *, pid: int = 4242, comm: str = "holder") -> None:
        """Add a process that has a device open through VFIO: an unbind blocks until ``release``."""
        self._holders[address] = pid
        node = f"/dev/vfio/{self.devices[address].group}"
        self.add_process(pid, comm, {3: node, 4: DEVICE_DESCRIPTOR})

    def release(self, address: str) -> None:
        """End the process that has a device open; a blocked unbind completes."""
        self.end_process(self._holders.pop(address))
        if address in self._writers:
            self.end_process(self._writers.pop(address))
            self._set_vfio_power(address, "on")
            self.emit("unbind", address)

    def events(self) -> FakeEvents:
        """Return a new queue of uevents, which starts empty."""
        listener = FakeEvents(self.udevd_is_out_of_sight, is_late=self.udevd_is_late)
        self._listeners.append(listener)
        return listener

    def load_module(self, name: str) -> None:
        """Load the module of a driver that was added with ``module_loaded=False``.

        Raises:
            VfioToolError: there is no driver of this name.
        """
        if name not in self.drivers:
            raise VfioToolError(
                f"the module of driver {name} cannot be loaded: not found", hint="add the driver"
            )
        self.add_driver(name, ids=self.drivers[name].ids)

    def await_writer(self, address: str, timeout: float) -> bool:
        """Return True if no unbind of a device is pending; waiting takes no time."""
        return address not in self._writers

    def set_access(self, node: str, access: NodeAccess) -> None:
        """Set owner, group and mode of a node.

        Raises:
            KernelError: the node does not exist, or this user lacks permission.
        """
        try:
            os.chown(self.tree.path(node), access.uid, access.gid)
            os.chmod(self.tree.path(node), access.mode)
        except OSError as error:
            raise KernelError(error.errno or errno.EIO, "chown", node) from error

    def grant(self, address: str, owner: Owner) -> None:
        """Write the udev rule that sets the owner of a device's nodes; the fake has no udevd to apply it."""
        self.put(rule_path(address), str(owner))

    def revoke(self, address: str) -> None:
        """Remove the udev rule that sets the owner of a device's nodes."""
        self.remove(rule_path(address))

    def write(
        self, path: str, value: str, *, address: str, timeout: float, waiting: Callable[[], None] = no_report
    ) -> None:
        """Write to sysfs; a write takes no time, so ``waiting`` is not called.

        Raises:
            KernelError: with the errno that the kernel gives.
            TimeoutError: an unbind is blocked by the device's holder, and stays pending.
        """
        self.writes.append((path, value))
        refresh_vfs(self)
        folder, _, name = path.rpartition("/")
        subject = folder.rpartition("/")[2]
        actions: dict[str, Callable[[str], int]] = {
            "driver_override": lambda text: self._override(subject, text),
            NUMVFS: lambda text: set_numvfs(self, subject, text.removesuffix("\n")),
            AUTOPROBE: lambda text: self._set_autoprobe(folder, text.removesuffix("\n")),
            D3COLD: lambda text: self._set_d3cold(folder, text.removesuffix("\n")),
            "control": lambda text: self._set_power(folder, text.removesuffix("\n")),
            "bind": lambda text: self._bind(text.removesuffix("\n"), subject),
            "unbind": lambda text: self._unbind(text.removesuffix("\n"), subject),
            os.path.basename(DRIVERS_PROBE): lambda text: self.probe(text.removesuffix("\n")),
        }
        code = self._failures.get(path, 0)
        if not code and not self.tree.exists(path):
            code = errno.ENOENT
        if not code and value:  # sysfs ignores an empty write
            code = actions[name](value)
        if code:
            raise KernelError(code, "write", path)

    def _override(self, address: str, text: str) -> int:
        """Set the text before a NUL or newline, or clear if empty (``driver_set_override()``)."""
        driver = text.partition("\0")[0].partition("\n")[0]
        self.put(f"{device_path(address)}/driver_override", driver or "(null)")
        return 0

    def _set_power(self, folder: str, policy: str) -> int:
        if policy not in ("on", "auto"):
            return errno.EINVAL
        self.put(f"{folder}/control", policy)
        return 0

    def _set_d3cold(self, folder: str, text: str) -> int:
        if not text.isdecimal():
            return errno.EINVAL
        self.put(f"{folder}/{D3COLD}", str(int(text != "0")))
        return 0

    def _set_autoprobe(self, folder: str, text: str) -> int:
        if text not in ("0", "1"):
            return errno.EINVAL
        self.put(f"{folder}/{AUTOPROBE}", text)
        return 0

    def _bind(self, address: str, driver: str) -> int:
        """Return 0 or the errno of ``bind_store()``; up to 5.13 every failure is ENODEV."""
        code = self._attach(address, driver)
        return code if self.at_least(5, 14) or not code else errno.ENODEV

    def probe(self, address: str) -> int:
        """Offer a device to the loaded drivers; return 0 even if no driver binds."""
        if address not in self.devices:
            return errno.ENODEV
        for driver in sorted(self.drivers):
            if self.drivers[driver].is_loaded and self._attach(address, driver) == 0:
                break
        return 0

    def _attach(self, address: str, driver: str) -> int:
        if address not in self.devices or not self._matches(address, driver):
            return errno.ENODEV
        if self.driver(address) is not None:
            return errno.EBUSY
        if code := self._probe_by(address, driver):
            return code
        self.set_driver(address, driver)
        if is_vfio_driver(driver):
            self._set_vfio_power(address, "auto")
        self.emit("bind", address)
        return 0

    def _matches(self, address: str, driver: str) -> bool:
        override = self.tree.read(f"{device_path(address)}/driver_override")
        if override != "(null)":
            return override == driver
        return self.devices[address].ids in self.drivers[driver].ids

    def _probe_by(self, address: str, driver: str) -> int:
        device = self.devices[address]
        if is_vfio_driver(driver):
            if device.group is None or device.class_code >> 8 == _BRIDGE:
                return errno.EINVAL
            return errno.EBUSY if vfs_of(self, address) else 0
        if driver == _ACCEPTS_ALL:
            return 0
        if self._is_live(device.group):
            if not self.at_least(5, 19):
                raise AssertionError(f"kernel BUG: {driver} in group {device.group}, which is in use")
            return errno.EBUSY
        is_vf = self.tree.exists(f"{device_path(address)}/physfn")
        supports = driver in self.vf_drivers or not is_vf
        return 0 if supports and device.ids in self.drivers[driver].ids else errno.ENODEV

    def _is_live(self, group: int | None) -> bool:
        return any(self.devices[address].group == group for address in self._holders)

    def _unbind(self, address: str, driver: str) -> int:
        if address not in self.devices or self.driver(address) != driver:
            return errno.ENODEV
        self.set_driver(address, None)
        if address in self._holders:
            self._wait_for_holder(address)
        if is_vfio_driver(driver):
            remove_vfs(self, address)
            self._set_vfio_power(address, "on")
        self.emit("unbind", address)
        return 0

    def _set_vfio_power(self, address: str, policy: str) -> None:
        """Set the power policy as vfio-pci does since 5.19: ``pm_runtime_allow()``, or back to "on"."""
        if self.at_least(5, 19):
            self.put(f"{device_path(address)}/{POWER}", policy)

    def _wait_for_holder(self, address: str) -> None:
        """Leave the write pending: the driver links are gone, and the uevent is not sent yet."""
        writer = self._writers[address] = _FIRST_WRITER + len(self._writers)
        self.add_process(writer, "vfiotool")
        note = f"{writer} {process_start(self.tree, writer)}"
        self.put(f"{pending_dir(self.state_dir)}/{address}", note)
        raise TimeoutError(f"{DRIVERS}/vfio-pci/unbind")

    def emit(self, action: str, address: str) -> None:
        """Add a uevent to the queue of each listener."""
        for listener in self._listeners:
            listener.queue.append((action, address))
