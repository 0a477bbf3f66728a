"""SR-IOV: VFs of a member are enabled, bound to vfio-pci, and disabled.

Sources: sriov_numvfs_store(), sriov_enable(), pci_iov_add_virtfn() and sriov_disable() in drivers/pci/iov.c,
pci_device_probe() in drivers/pci/pci-driver.c.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from vfiotool.binding.sriov import vf_addresses
from vfiotool.errors import UnsupportedError
from vfiotool.host.attributes import device_path, find_group
from vfiotool.host.device_state import AUTOPROBE
from vfiotool.stress.group.client import GroupClient
from vfiotool.stress.group.harness import GroupHarness
from vfiotool.stress.group.sysfs import SysfsWriter
from vfiotool.stress.model.lifecycle import Member, State
from vfiotool.stress.model.operation import Bound, Kind, Operation, ScriptForm
from vfiotool.stress.operations.base import NonBlockingFamily
from vfiotool.stress.operations.lifecycle import call_of
from vfiotool.stress.record import Call, Expectation, ExpectedUevent, Outcome
from vfiotool.util import kernel_files

VFS, BIND_VF, UNBIND_VF = "vfs", "bind vf", "unbind vf"

_MOST = 8
"""The most VFs of a cycle: each takes time."""
_LARGEST_NUMBER = 0xFFFF
_USE = ("iommu_device_use_default_domain", "iommu_device_unuse_default_domain")


@dataclass(slots=True)
class Vf:
    """A VF. ``group`` is the number of its group, which has no other device, while it is on vfio-pci."""

    address: str
    group: int | None = None


class SriovOperations(NonBlockingFamily):
    """The operations on the number of VFs, and on the driver of each; the PF is on its host driver.

    While there are VFs, ``sriov_drivers_autoprobe`` of the PF is 0, so that no host driver binds to a VF.
    """

    forms: ClassVar[Mapping[str, ScriptForm]] = {
        VFS: ScriptForm("set_vfs", ("member", "count")),
        BIND_VF: ScriptForm("bind", ("vf", "vfio-pci")),
        UNBIND_VF: ScriptForm("unbind", ("vf",)),
    }

    def __init__(self, harness: GroupHarness) -> None:
        self._harness = harness
        self._vfs: dict[int, list[Vf]] = {}
        self._autoprobe: dict[int, str] = {}
        self._tried: dict[str, int] = {}

    @property
    def pfs(self) -> tuple[int, ...]:
        """The members that can have VFs, and have a host driver that may enable them."""
        members = enumerate(self._harness.spec.members)
        return tuple(at for at, one in members if self._harness.spec.hosts.get(one) and self._total(at))

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses that VFs of all members can have."""
        return tuple(one for at in self.pfs for one in self._places(at, self._total(at)))

    def choose(self, rng: random.Random) -> Iterator[Call]:
        """Yield the calls of a cycle: enable VFs, bind and unbind some, and disable all, some still bound."""
        for at in rng.sample(self.pfs, len(self.pfs)):
            yield call_of(Operation(Kind.UNBIND, member=at))
            yield call_of(Operation(Kind.BIND, member=at, to=Bound.HOST))
            total = self._total(at)
            count = rng.randint(1, min(total, _MOST))
            yield _of_pf(at, total + 1)
            yield _of_pf(at, count)
            yield _of_pf(at, rng.randint(1, total))
            for _ in range(2):
                for vf in rng.sample(range(count), count):
                    yield Call(BIND_VF, {"member": at, "vf": vf})
                for vf in rng.sample(range(count), rng.randint(0, count)):
                    yield Call(UNBIND_VF, {"member": at, "vf": vf})
            yield _of_pf(at, 0)

    def expect(self, call: Call) -> Expectation | None:
        at = int(call.arguments["member"])
        if at not in self.pfs or at in self._harness.removed:
            return None
        if self._harness.state.members[at].bound is not Bound.HOST:
            return None
        if call.name == VFS:
            return self._expect_count(at, int(call.arguments["count"]))
        vf = self._find(call)
        if vf is None or (vf.group is None) is not (call.name == BIND_VF):
            return None
        return self._expect_driver(vf, call.name)

    def do(self, call: Call, expected: Expectation) -> Outcome:
        if call.name == VFS:
            # A VF gets the lowest free group number, which must not be that of a device that is off the bus.
            return self._harness.with_bus_lock(lambda: self._count(call, expected))
        vf = self._find(call)
        if vf is None:
            return Outcome(note="there is no such VF")
        group = self._own_group(vf) if vf.group is None else vf.group
        kind = Kind.BIND if call.name == BIND_VF else Kind.UNBIND
        client = GroupClient(group or 0, (vf.address,), {})
        code, _ = client.do(Operation(kind, to=Bound.VFIO))
        if code:
            return Outcome(code)
        vf.group = group if kind is Kind.BIND else None
        return Outcome(note=self._harness.await_node_of(group, exists=kind is Kind.BIND))

    def wind_down(self) -> Iterator[Call]:
        for at, vfs in list(self._vfs.items()):
            for number, vf in enumerate(vfs):
                if vf.group is not None:
                    yield Call(UNBIND_VF, {"member": at, "vf": number})
            yield _of_pf(at, 0)

    def abandon(self) -> None:
        """Disable all VFs: a PF with VFs cannot go back to vfio-pci."""
        for at in list(self._vfs):
            SysfsWriter(self._path(at, "sriov_numvfs"), "0").result()
            self._forget(at)

    # Expectations

    def _expect_count(self, at: int, count: int) -> Expectation | None:
        """The kernel first checks the number, then its range, then the present number of VFs."""
        now = len(self._vfs.get(at, ()))
        if count < 0:
            return Expectation(frozenset((errno.EINVAL,)))
        if count > _LARGEST_NUMBER:
            return Expectation(frozenset((errno.EINVAL, errno.ERANGE)))  # 5.10 has the latter
        if count > self._total(at):
            return Expectation(frozenset((errno.ERANGE,)))
        if count == now:
            return Expectation()
        if now and count:
            return Expectation(frozenset((errno.EBUSY,)))
        return self._expect_coming(at, count) if count else self._expect_leaving(at)

    def _expect_coming(self, at: int, count: int) -> Expectation | None:
        """Each VF causes two uevents: when it is added, and when it is linked to its PF."""
        places = self._places(at, count)
        if not places:
            return None
        uevents = [ExpectedUevent("pci", action, place) for place in places for action in ("add", "change")]
        return Expectation(
            uevents=(*uevents, ExpectedUevent("pci", "change", self._harness.spec.members[at]))
        )

    def _expect_leaving(self, at: int) -> Expectation:
        """Each VF loses its driver first."""
        uevents, probes = list[ExpectedUevent](), list[str]()
        for vf in self._vfs[at]:
            if vf.group is not None and (unbound := self._expect_driver(vf, UNBIND_VF)):
                uevents.extend(unbound.uevents)
                probes.extend(unbound.probes)
            uevents.append(ExpectedUevent("pci", "remove", vf.address))
        return Expectation(uevents=tuple(uevents), probes=tuple(probes))

    def _expect_driver(self, vf: Vf, name: str) -> Expectation | None:
        """Return the model's expectation for a group with one member; the group's number names its node."""
        group = self._own_group(vf)
        if group is None:
            return None
        is_bind = name == BIND_VF
        operation = Operation(Kind.BIND if is_bind else Kind.UNBIND, to=Bound.VFIO if is_bind else Bound.NONE)
        state = State((Member(Bound.NONE if is_bind else Bound.VFIO),))
        prediction = self._harness.model.predict(state, operation)
        uevents = tuple(uevent.resolved((vf.address,), str(group)) for uevent in prediction.uevents)
        return Expectation(uevents=uevents, probes=prediction.probes)

    def _probed(self, at: int) -> tuple[str, ...]:
        """Since 5.19 each driver that matches a VF owns its DMA until the probe of the driver is refused."""
        if not self._harness.model.era.has_dma_owner:
            return ()
        return _USE * sum(self._drivers_of(vf.address) for vf in self._vfs[at])

    def _drivers_of(self, address: str) -> int:
        """Count the loaded drivers that match a device."""
        modalias = self._harness.tree.read(f"{device_path(address)}/modalias")
        if modalias not in self._tried:
            self._tried[modalias] = sum(map(_pci_drivers, _modules(modalias)))
        return self._tried[modalias]

    # Execution

    def _count(self, call: Call, expected: Expectation) -> Outcome:
        at, count = int(call.arguments["member"]), int(call.arguments["count"])
        before = self._vfs.get(at, [])
        comes = bool(count) and not before and 0 in expected.errnos
        if comes:
            self._keep_drivers_off(at)
        code = kernel_files.write(self._path(at, "sriov_numvfs"), str(count))
        if comes and not code:
            self._vfs[at] = [Vf(place) for place in self._places(at, count)]
            return Outcome(note=self._misplaced(at), proved=expected._replace(probes=self._probed(at)))
        if not code and not count:
            self._forget(at)
            return Outcome(note="".join(self._harness.await_node_of(vf.group, exists=False) for vf in before))
        if comes:
            self._forget(at)
        return Outcome(code)

    def _keep_drivers_off(self, at: int) -> None:
        path = self._path(at, AUTOPROBE)
        self._autoprobe[at] = self._harness.tree.read(path)
        kernel_files.write(path, "0")

    def _forget(self, at: int) -> None:
        """Restore ``sriov_drivers_autoprobe`` after the VFs were disabled."""
        self._vfs.pop(at, None)
        if (former := self._autoprobe.pop(at, None)) is not None:
            kernel_files.write(self._path(at, AUTOPROBE), former)

    def _misplaced(self, at: int) -> str:
        tree = self._harness.tree
        for number, vf in enumerate(self._vfs[at]):
            place = tree.find_link(self._path(at, f"virtfn{number}"))
            if place != vf.address:
                return f"VF {number} is {place}, and should be {vf.address}"
        return ""

    # The VFs

    def _find(self, call: Call) -> Vf | None:
        vfs, number = self._vfs.get(int(call.arguments["member"]), []), int(call.arguments["vf"])
        return vfs[number] if 0 <= number < len(vfs) else None

    def _own_group(self, vf: Vf) -> int | None:
        """Return the number of a VF's group, or None if the group has other devices."""
        number = find_group(self._harness.tree, vf.address)
        devices = f"/sys/kernel/iommu_groups/{number}/devices"
        return number if self._harness.tree.find_names(devices) == [vf.address] else None

    def _total(self, at: int) -> int:
        return int(self._harness.tree.find(self._path(at, "sriov_totalvfs")) or 0)

    def _places(self, at: int, count: int) -> tuple[str, ...]:
        try:
            return vf_addresses(self._harness.tree, self._harness.spec.members[at], count)
        except UnsupportedError:
            return ()

    def _path(self, at: int, name: str) -> str:
        return f"{device_path(self._harness.spec.members[at])}/{name}"


def _of_pf(at: int, count: int) -> Call:
    return Call(VFS, {"member": at, "count": count})


def _modules(modalias: str) -> set[str]:
    """Return the modules that match a device, loaded or not, built in or not; modprobe may repeat a name."""
    modprobe = shutil.which("modprobe", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if modprobe is None:
        return set()
    asked = [modprobe, "--quiet", "--resolve-alias", "--", modalias]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return set(done.stdout.split())


def _pci_drivers(module: str) -> int:
    try:
        names = os.listdir(f"/sys/module/{module.replace('-', '_')}/drivers")
    except FileNotFoundError:
        return 0
    return sum(name.startswith("pci:") for name in names)
