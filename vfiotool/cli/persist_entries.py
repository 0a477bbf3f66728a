"""Entries for a bind at each boot, as the verbs bind and persist write them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import click

from vfiotool.binding import udevadm
from vfiotool.binding.operations import Binding
from vfiotool.binding.ownership import Owner
from vfiotool.binding.persist import entries as rules
from vfiotool.binding.persist.initramfs_hooks import rebuild_commands
from vfiotool.binding.persist.udev_rule import PersistEntry, rule_text
from vfiotool.binding.plan import EMPTY_PLAN, Plan
from vfiotool.binding.steps import WriteRule
from vfiotool.errors import VfioToolError
from vfiotool.host.attributes import device_path
from vfiotool.host.boot_image import had_initramfs
from vfiotool.host.tree import Tree

_SETTLE_SECONDS = 30


def bind_and_persist(
    tree: Tree,
    dry_binding: Binding,
    binding: Binding,
    wanted: Sequence[str],
    driver: str,
    owner: Owner | None,
) -> Plan:
    """Bind devices now and at each boot, or neither. ``dry_binding`` is the same Binding for a dry run.

    Returns the plan, with the udev rules that were written.
    """
    planned = dry_binding.bind(wanted, driver, owner)
    chosen = entries_of(tree, planned, driver, owner, binding.allowed)
    written = tuple(WriteRule(entry.address, entry.rule, rule_text(entry)) for entry in chosen)
    if binding.dry_run:
        return replace(planned, rules=written)
    known = rules.entries(tree)
    try:
        rules.add_all(tree, chosen)
        done = binding.bind(wanted, driver, owner)
    except BaseException:
        rules.remove_all(tree, [one for one in rules.entries(tree) if one in chosen and one not in known])
        raise
    print_rebuild_note(tree, rebuild_commands(tree))
    return replace(done, rules=written)


def bind_present(
    tree: Tree, make: Callable[[tuple[str, ...]], Binding], chosen: Sequence[PersistEntry]
) -> Plan:
    """Bind the devices of entries that are present and on another driver, each that can be bound.

    ``make`` returns a Binding with further rules lifted: those of an entry. The plan's ``failures`` are of
    the other devices.
    """
    plan, wanted = EMPTY_PLAN, dict[tuple[str, Owner | None, tuple[str, ...]], list[str]]()
    for entry in chosen:
        address = rules.present_at(tree, entry)
        if address is None:
            plan = plan.with_warnings(f"no device with the ids of the entry is at {entry.path}")
        elif tree.find_link(f"{device_path(address)}/driver") != entry.driver:
            wanted.setdefault((entry.driver, entry.owner, entry.allowed), []).append(address)
    for (driver, owner, allowed), addresses in wanted.items():
        binding = make(allowed)
        if not binding.dry_run:
            _await_udevd()
        plan += _bind_each(binding, addresses, driver, owner)
    return plan


def _await_udevd() -> None:
    """Wait until udevd is done with a device that has just arrived: its rules read a disk, for example."""
    with contextlib.suppress(VfioToolError):
        udevadm.settle(_SETTLE_SECONDS)


def _bind_each(binding: Binding, addresses: Sequence[str], driver: str, owner: Owner | None) -> Plan:
    """Bind devices together, so that groups are whole, or if that fails each by itself."""
    try:
        return binding.bind(addresses, driver, owner)
    except VfioToolError as error:
        if len(addresses) == 1:
            return replace(EMPTY_PLAN, failures=(error,))
    plan = EMPTY_PLAN
    for address in addresses:
        plan += _bind_each(binding, [address], driver, owner)
    return plan


def entries_of(
    tree: Tree, planned: Plan, driver: str, owner: Owner | None, allowed: Collection[str]
) -> list[PersistEntry]:
    """Return the entries for the devices of a plan. The plan names the driver that 'auto' selected."""
    return [
        rules.entry_for(tree, address, state.driver or driver, owner, allowed)
        for address, state in planned.after.items()
    ]


def print_rebuild_note(tree: Tree, commands: Sequence[str]) -> None:
    """Print to stderr which command rebuilds the initramfs, unless this machine boots without one."""
    if had_initramfs(tree) is False:
        return
    if not commands:
        click.echo(
            "warning: it is not known what makes this machine's initramfs: build it again, with the udev "
            "rule of the entry and its driver; see 'vfiotool persist check'",
            err=True,
        )
    else:
        run = " or ".join(f"'{command}'" for command in commands)
        click.echo(f"now run {run}: the initramfs does not have this change yet", err=True)
