"""The global options, and the option ``--json``."""

from __future__ import annotations

from dataclasses import dataclass

import click

from vfiotool.host.pending_unbinds import STATE_DIR
from vfiotool.host.tree import Tree

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


@dataclass(slots=True)
class Settings:
    """The global options. click passes them to each verb as the object of its context."""

    sysroot: str = "/"
    state_dir: str = STATE_DIR

    @property
    def tree(self) -> Tree:
        """The machine that the verb reads.

        Raises:
            VfioToolError: ``--sysroot`` names a capture with damaged metadata.
        """
        if self.sysroot == "/":
            return Tree()
        from vfiotool.host.capture.captured_tree import open_tree

        return open_tree(self.sysroot)

    def require_live(self) -> Tree:
        """Return the machine that vfiotool runs on, for a verb that does more than read.

        Raises:
            click.UsageError: ``--sysroot`` names another machine.
        """
        tree = self.tree
        if not tree.is_live:
            context = click.get_current_context()
            raise click.UsageError(
                f"--sysroot is read-only: '{context.command_path}' works only on the running machine", context
            )
        return tree
