"""The state of a device that binding changes and restores."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass

from vfiotool.errors import KernelError
from vfiotool.host import bounded_reads
from vfiotool.host.attributes import device_path, parse_override
from vfiotool.host.tree import GONE, Tree, decode

OVERRIDE, NUMVFS, AUTOPROBE, POWER, D3COLD = (
    "driver_override",
    "sriov_numvfs",
    "sriov_drivers_autoprobe",
    "power/control",
    "d3cold_allowed",
)


@dataclass(frozen=True, slots=True)
class NodeAccess:
    """Who may open a device node: ``mode`` has only the permission bits."""

    uid: int
    gid: int
    mode: int


ROOTS_ALONE = NodeAccess(0, 0, 0o600)
"""The access of a group's node when the kernel creates it."""


@dataclass(frozen=True, slots=True)
class DeviceState:
    """The driver of a device, its ``driver_override``, and the settings that binding changes with them.

    ``numvfs`` is the number of VFs of a PF, and ``autoprobe`` is 1 if host drivers may bind to new VFs.
    ``power_control`` is the runtime power policy (``on``, ``auto``), which vfio-pci changes, and
    ``d3cold_allowed`` is 1 if the device may lose its power while it sleeps. ``node`` is the access of the
    group's node, which the kernel creates anew at each bind. In a target state, ``None`` in any of these five
    leaves the setting unchanged.
    """

    driver: str | None
    driver_override: str | None
    numvfs: int | None = None
    autoprobe: int | None = None
    power_control: str | None = None
    node: NodeAccess | None = None
    d3cold_allowed: int | None = None


def read_state(tree: Tree, address: str) -> DeviceState:
    """Read the state of a device.

    Raises:
        KernelError: the device is gone, or its override cannot be read.
        TimeoutError: a pending unbind holds the device's lock.
    """
    return read_states(tree, [address])[address]


def read_states(tree: Tree, addresses: Iterable[str]) -> dict[str, DeviceState]:
    """Read the states of devices; raises the same errors as ``read_state``."""
    wanted = list(addresses)
    names = (OVERRIDE, NUMVFS, AUTOPROBE, POWER, D3COLD)
    answers = bounded_reads.read_all(
        tree, [f"{device_path(address)}/{name}" for address in wanted for name in names]
    )
    return {
        address: _state(tree, address, {name: answers[f"{device_path(address)}/{name}"] for name in names})
        for address in wanted
    }


def node_path(tree: Tree, address: str) -> str | None:
    """Return the path of the node of the device's group, which may not exist; ``None`` without a group."""
    group = tree.find_link(f"{device_path(address)}/iommu_group")
    return f"/dev/vfio/{group}" if group is not None and group.isdecimal() else None


def _state(tree: Tree, address: str, answers: dict[str, bounded_reads.ReadResult]) -> DeviceState:
    override = answers[OVERRIDE]
    if override is None:
        raise TimeoutError(errno.ETIMEDOUT, OVERRIDE, address)
    if isinstance(override, OSError):
        raise KernelError(override.errno or errno.EIO, "read", f"{device_path(address)}/{OVERRIDE}")
    return DeviceState(
        driver=tree.find_link(f"{device_path(address)}/driver"),
        driver_override=parse_override(decode(override)),
        numvfs=_number(answers[NUMVFS]),
        autoprobe=_number(answers[AUTOPROBE]),
        power_control=_text(answers[POWER]),
        node=_node_access(tree, address),
        d3cold_allowed=_number(answers[D3COLD]),
    )


def _number(answer: bounded_reads.ReadResult) -> int | None:
    text = _text(answer)
    return int(text) if text is not None and text.isdecimal() else None


def _text(answer: bounded_reads.ReadResult) -> str | None:
    return decode(answer) if isinstance(answer, bytes) else None


def _node_access(tree: Tree, address: str) -> NodeAccess | None:
    path = node_path(tree, address)
    if path is None:
        return None
    try:
        status = os.stat(tree.path(path), follow_symlinks=False)
    except OSError as error:
        if error.errno not in GONE:
            raise
        return None
    return NodeAccess(status.st_uid, status.st_gid, status.st_mode & 0o777)
