"""How a bind is written down for each start of the machine, by the verbs bind and persist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import click

from vfiotool.binding.operations import Binding
from vfiotool.binding.ownership import Owner
from vfiotool.binding.persist import entries as rules
from vfiotool.binding.persist.initramfs_hooks import rebuild_commands
from vfiotool.binding.persist.udev_rule import PersistEntry, rule_text
from vfiotool.binding.plan import Plan
from vfiotool.binding.steps import WriteRule
from vfiotool.host.tree import Tree


def bind_and_persist(
    tree: Tree, looking: Binding, binding: Binding, wanted: Sequence[str], driver: str, owner: Owner | None
) -> Plan:
    """Bind devices now and from the next start on, or neither; ``looking`` is a binding for a dry run.

    Returns the plan, with the udev rules that were written.
    """
    planned = looking.bind(wanted, driver, owner)
    chosen = entries_of(tree, planned, driver)
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
    tell_to_rebuild(rebuild_commands(tree))
    return replace(done, rules=written)


def entries_of(tree: Tree, planned: Plan, driver: str) -> list[PersistEntry]:
    """Return the entries for what a plan binds; it has chosen a driver where that was left to it."""
    return [
        rules.entry_for(tree, address, state.driver or driver) for address, state in planned.after.items()
    ]


def tell_to_rebuild(commands: Sequence[str]) -> None:
    if commands:
        run = " or ".join(f"'{command}'" for command in commands)
        click.echo(f"now run {run}: the initramfs is as it was before", err=True)
