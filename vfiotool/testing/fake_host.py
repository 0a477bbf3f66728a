"""A machine that is only files, and behaves as the kernel does when a driver is bound or unbound.

It has no behaviour but what ``tests/contract`` has seen on real kernels. What it leaves out: devices
that a driver takes of itself when its module is loaded, and what a driver makes of its devices
(interfaces, disks), which stay when it lets go.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from vfiotool.binding.ownership import Owner, rule_path
from vfiotool.errors import KernelError, VfioToolError
from vfiotool.host.attributes import device_path
from vfiotool.host.device_state import AUTOPROBE, NUMVFS, POWER, NodeAccess
from vfiotool.host.groups import is_vfio_driver
from vfiotool.host.holders import DEVICE_DESCRIPTOR
from vfiotool.host.pending_unbinds import STATE_DIR, pending_dir, process_start
from vfiotool.testing.fake_sriov import SriovHost, notice_vfs, remove_vfs, set_numvfs, vfs_of
from vfiotool.testing.fake_tree import DRIVERS, DRIVERS_PROBE

_BRIDGE = 0x0604
_TAKES_ALL = "pci-stub"
_FIRST_WRITER = 100_000


class FakeEvents:
    """The uevents since this was made, as ``(action, address)``; waiting for one takes no time."""

    source = "the fake host"

    def __init__(self) -> None:
        self.queue: deque[tuple[str, str]] = deque()

    def missing(self, expected: Collection[tuple[str, str]], timeout: float) -> frozenset[tuple[str, str]]:
        """Return those events that are not there; the others, up to the last of them, are consumed."""
        waiting = set(expected)
        while waiting and self.queue:
            waiting.discard(self.queue.popleft())
        return frozenset(waiting)

    def close(self) -> None:
        """Do nothing: no descriptor is held."""


@dataclass
class FakeHost(SriovHost):
    """A ``vfiotool.binding.machine.Machine``. ``state_dir`` is where its pending unbinds are noted.

    ``vf_drivers`` are the host drivers that take VFs; those of QEMU's NVMe no driver can have before they
    are brought online.

    Threads must not share it.
    """

    state_dir: str = STATE_DIR
    vf_drivers: set[str] = field(default_factory=set)
    writes: list[tuple[str, str]] = field(init=False, default_factory=list)
    _failures: dict[str, int] = field(init=False, default_factory=dict)
    _holders: dict[str, int] = field(init=False, default_factory=dict)
    _writers: dict[str, int] = field(init=False, default_factory=dict)
    _listeners: list[FakeEvents] = field(init=False, default_factory=list)

    def fail(self, path: str, code: int) -> None:
        """Have all writes to a path fail with an errno."""
        self._failures[path] = code

    def block(self, address: str, *, pid: int = 4242, comm: str = "holder") -> None:
        """Have a process hold a device on a VFIO driver open: its unbind blocks until ``release``."""
        self._holders[address] = pid
        node = f"/dev/vfio/{self.devices[address].group}"
        self.add_process(pid, comm, {3: node, 4: DEVICE_DESCRIPTOR})

    def release(self, address: str) -> None:
        """End the process that holds a device; an unbind that waits for it completes."""
        self.end_process(self._holders.pop(address))
        if address in self._writers:
            self.end_process(self._writers.pop(address))
            self._let_sleep(address, "on")
            self.emit("unbind", address)

    def events(self) -> FakeEvents:
        """Start to listen."""
        listener = FakeEvents()
        self._listeners.append(listener)
        return listener

    def load_module(self, name: str) -> None:
        """Load the module of a driver that was added without it.

        Raises:
            VfioToolError: there is no such module.
        """
        if name not in self.drivers:
            raise VfioToolError(
                f"the module of driver {name} cannot be loaded: not found", hint="add the driver"
            )
        self.add_driver(name, ids=self.drivers[name].ids)

    def await_writer(self, address: str, timeout: float) -> bool:
        """Say whether no unbind of a device is pending; waiting takes no time."""
        return address not in self._writers

    def set_access(self, node: str, access: NodeAccess) -> None:
        """Say who may open a node.

        Raises:
            KernelError: there is no such node, or this user may not.
        """
        try:
            os.chown(self.tree.path(node), access.uid, access.gid)
            os.chmod(self.tree.path(node), access.mode)
        except OSError as error:
            raise KernelError(error.errno or errno.EIO, "chown", node) from error

    def grant(self, address: str, owner: Owner) -> None:
        """Note whom a device's nodes belong to; the fake has no udevd to give them."""
        self.put(rule_path(address), str(owner))

    def revoke(self, address: str) -> None:
        """Note that they belong to nobody in particular."""
        self.remove(rule_path(address))

    def write(self, path: str, value: str, *, address: str, timeout: float) -> None:
        """Write to sysfs.

        Raises:
            KernelError: with the errno that the kernel gives.
            TimeoutError: an unbind waits for the device's holder, and is pending.
        """
        self.writes.append((path, value))
        notice_vfs(self)
        folder, _, name = path.rpartition("/")
        subject = folder.rpartition("/")[2]
        actions: dict[str, Callable[[str], int]] = {
            "driver_override": lambda text: self._override(subject, text),
            NUMVFS: lambda text: set_numvfs(self, subject, text.removesuffix("\n")),
            AUTOPROBE: lambda text: self._set_autoprobe(folder, text.removesuffix("\n")),
            "control": lambda text: self._set_power(folder, text.removesuffix("\n")),
            "bind": lambda text: self._bind(text.removesuffix("\n"), subject),
            "unbind": lambda text: self._unbind(text.removesuffix("\n"), subject),
            os.path.basename(DRIVERS_PROBE): lambda text: self.probe(text.removesuffix("\n")),
        }
        code = self._failures.get(path, 0)
        if not code and not self.tree.exists(path):
            code = errno.ENOENT
        if not code and value:  # sysfs does not hand an empty write on
            code = actions[name](value)
        if code:
            raise KernelError(code, "write", path)

    def _override(self, address: str, text: str) -> int:
        """Take what is before a NUL or newline; nothing clears (``driver_set_override()``)."""
        driver = text.partition("\0")[0].partition("\n")[0]
        self.put(f"{device_path(address)}/driver_override", driver or "(null)")
        return 0

    def _set_power(self, folder: str, policy: str) -> int:
        if policy not in ("on", "auto"):
            return errno.EINVAL
        self.put(f"{folder}/control", policy)
        return 0

    def _set_autoprobe(self, folder: str, text: str) -> int:
        if text not in ("0", "1"):
            return errno.EINVAL
        self.put(f"{folder}/{AUTOPROBE}", text)
        return 0

    def _bind(self, address: str, driver: str) -> int:
        """Return the errno of ``bind_store()``; up to 5.13 each cause has the same one."""
        code = self._attach(address, driver)
        return code if self.at_least(5, 14) or not code else errno.ENODEV

    def probe(self, address: str) -> int:
        """Succeed whether or not a driver took the device."""
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
            self._let_sleep(address, "auto")
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
        if driver == _TAKES_ALL:
            return 0
        if self._is_live(device.group):
            if not self.at_least(5, 19):
                raise AssertionError(f"kernel BUG: {driver} in group {device.group}, which is in use")
            return errno.EBUSY
        is_vf = self.tree.exists(f"{device_path(address)}/physfn")
        serves = driver in self.vf_drivers or not is_vf
        return 0 if serves and device.ids in self.drivers[driver].ids else errno.ENODEV

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
            self._let_sleep(address, "on")
        self.emit("unbind", address)
        return 0

    def _let_sleep(self, address: str, policy: str) -> None:
        """Set the power policy as vfio-pci does since 5.19: ``pm_runtime_allow()``, and back."""
        if self.at_least(5, 19):
            self.put(f"{device_path(address)}/{POWER}", policy)

    def _wait_for_holder(self, address: str) -> None:
        """Leave the write pending: the links are gone already, and the event is still to come."""
        writer = self._writers[address] = _FIRST_WRITER + len(self._writers)
        self.add_process(writer, "vfiotool")
        note = f"{writer} {process_start(self.tree, writer)}"
        self.put(f"{pending_dir(self.state_dir)}/{address}", note)
        raise TimeoutError(f"{DRIVERS}/vfio-pci/unbind")

    def emit(self, action: str, address: str) -> None:
        """Have all listeners get an event."""
        for listener in self._listeners:
            listener.queue.append((action, address))
