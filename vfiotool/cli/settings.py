"""What the global options say, and the options that verbs share."""

from __future__ import annotations

from dataclasses import dataclass

import click

from vfiotool.host.pending_unbinds import STATE_DIR
from vfiotool.host.tree import Tree

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@dataclass(slots=True)
class Settings:
    """The global options; verbs get them as the click context's object."""

    sysroot: str = "/"
    state_dir: str = STATE_DIR

    @property
    def tree(self) -> Tree:
        """The machine to look at.

        Raises:
            VfioToolError: it is a capture whose notes are damaged.
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
