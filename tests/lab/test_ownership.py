"""Who may open a device's nodes, over unbind and bind."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.guest import (
    BUS,
    E1000E,
    EDU,
    command,
    done,
    driver,
    group,
    let_everyone_reach,
    needs_iommu,
    output,
    path,
    remove,
    settle,
    write,
)
from vfiotool.binding import ownership, udevadm
from vfiotool.host.tree import Tree

TREE = Tree()

pytestmark = [pytest.mark.needs_guest, needs_iommu]


NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--no-new-privs")
GET_STATUS = """
import sys
from vfiotool.vfio.group import Group
from vfiotool.vfio.uapi import GroupFlags
with Group(int(sys.argv[1])) as group:
    print("viable" if GroupFlags.VIABLE in group.status() else "not viable")
"""


def access(node: str) -> tuple[int, int, int]:
    status = os.stat(node)
    return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)


@pytest.fixture
def bound() -> Iterator[str]:
    """edu is on vfio-pci, without vfiotool; its group's node."""
    output("modprobe", "vfio-pci")
    write(path(EDU, "driver_override"), "vfio-pci")
    write(f"{BUS}/drivers/vfio-pci/bind", EDU)
    settle()
    yield f"/dev/vfio/{group(EDU)}"
    ownership.revoke(TREE, EDU)
    write(path(EDU, "driver_override"), "\n")
    if driver(EDU):
        write(path(EDU, "driver/unbind"), EDU)
    settle()


@pytest.mark.full
def test_the_node_is_its_owners_over_unbind_and_bind(bound: str) -> None:
    owner = ownership.parse_owner("nobody:nogroup")
    assert access(bound) == (0, 0, 0o600)
    ownership.grant(TREE, EDU, owner)
    assert access(bound) == (owner.uid, owner.gid, 0o660)
    write(path(EDU, "driver/unbind"), EDU)
    assert not os.path.exists(bound)
    write(f"{BUS}/drivers/vfio-pci/bind", EDU)
    settle()
    assert access(bound) == (owner.uid, owner.gid, 0o660)
    ownership.revoke(TREE, EDU)
    assert access(bound) == (0, 0, 0o600)
    write(path(EDU, "driver/unbind"), EDU)
    write(f"{BUS}/drivers/vfio-pci/bind", EDU)
    settle()
    assert access(bound) == (0, 0, 0o600)


def test_the_owner_can_open_the_group_and_only_when_it_is_theirs(bound: str) -> None:
    for file in (sys.executable, os.__file__, ownership.__file__):
        let_everyone_reach(file)
    look = (*NOBODY, sys.executable, "-c", GET_STATUS, str(group(EDU)))
    assert "Permission denied" in command(*NOBODY, "cat", bound).stderr
    ownership.grant(TREE, EDU, ownership.parse_owner("nobody"))
    assert access(bound)[1:] == (0, 0o600)
    assert command(*look).stdout == "viable\n"


def test_a_new_number_of_the_group_keeps_its_owner(bound: str) -> None:
    """Groups are numbered anew when devices go and come back."""
    ownership.grant(TREE, EDU, ownership.parse_owner("nobody:nogroup"))
    remove(EDU)
    write(f"{BUS}/rescan", "1")
    settle()
    write(path(EDU, "driver_override"), "vfio-pci")
    write(f"{BUS}/drivers/vfio-pci/bind", EDU)
    settle()
    assert access(f"/dev/vfio/{group(EDU)}")[2] == 0o660


@pytest.mark.full
def test_a_rule_of_the_machines_own_does_not_open_it_to_the_world(bound: str) -> None:
    rule = Path("/run/udev/rules.d/95-careless.rules")
    rule.parent.mkdir(exist_ok=True)
    rule.write_text('SUBSYSTEM=="vfio", MODE="0666"\n')
    try:
        ownership.grant(TREE, EDU, ownership.parse_owner("nobody"))
        assert access(bound)[2] == 0o600
    finally:
        rule.unlink()
        udevadm.reload()


def test_bind_gives_the_nodes_and_restore_takes_them_back() -> None:
    owner = ownership.parse_owner("nobody")
    done("bind", E1000E, "--owner", "nobody")
    try:
        assert access(f"/dev/vfio/{group(E1000E)}") == (owner.uid, 0, 0o600)
        assert ownership.owner_of(TREE, E1000E) == owner
    finally:
        done("restore", E1000E)
    assert ownership.owner_of(TREE, E1000E) is None
