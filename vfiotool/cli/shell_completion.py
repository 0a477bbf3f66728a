"""How a shell that asks for completion is answered; ``vfiotool.cli.completion`` has what is offered."""

from __future__ import annotations

import os

from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

from vfiotool.cli.root import invoke


def complete(args: list[str]) -> int:
    """Answer the shell, as the environment asks; silent where that fails, for a person is typing."""
    add_completion_class(BashCompletion)
    try:
        return invoke(args)
    except Exception:
        return 1


class BashCompletion(BashComplete):
    """Click's completion for bash, where a word may have colons.

    Readline ends words at COMP_WORDBREAKS, which has the colon: it hands over an address in pieces, and puts
    what it gets in place of the last piece alone. So the words are taken from the line, and what readline
    will keep is left out of the answer.
    """

    source_template = """\
%(complete_func)s() {
    local type value
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            plain) COMPREPLY+=("$value") ;;
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
        esac
    done < <(COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the one that is typed, and what of that one is there."""
        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)[1:]
        return (words, "") if line[-1:].isspace() else (words[:-1], "".join(words[-1:]))

    def format_completion(self, item: CompletionItem[str]) -> str:
        """Return a line for the script, without what stands before the last break already."""
        kept = self._kept()
        return f"{item.type},{item.value[len(kept) :] if item.value.startswith(kept) else item.value}"

    def _kept(self) -> str:
        _, incomplete = self.get_completion_args()
        typed = os.environ["COMP_LINE"].split(" ")[-1]
        if typed.startswith(("'", '"')):  # readline breaks no quoted word
            return ""
        breaks = os.environ["COMP_WORDBREAKS"]
        return incomplete[: max(incomplete.rfind(one) for one in breaks) + 1]
