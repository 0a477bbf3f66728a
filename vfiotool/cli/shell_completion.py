"""The answer to a shell's completion request. ``vfiotool.cli.completion`` offers the words."""

from __future__ import annotations

import os

from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

from vfiotool.cli.root import invoke


def complete(args: list[str]) -> int:
    """Answer the completion request in the environment. Print no error: the user is typing a command."""
    add_completion_class(BashCompletion)
    try:
        return invoke(args)
    except Exception:
        return 1


class BashCompletion(BashComplete):
    """click's completion for bash, for words that contain colons.

    Readline splits words at the characters of COMP_WORDBREAKS, among them the colon. It passes an address in
    pieces, and replaces only the last piece by the answer. So this class takes the words from the command
    line, and leaves the part that readline keeps out of the answer.
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
        """Return the complete words of the command line, and the typed part of the last word."""
        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)[1:]
        return (words, "") if line[-1:].isspace() else (words[:-1], "".join(words[-1:]))

    def format_completion(self, item: CompletionItem[str]) -> str:
        """Return a line for the script, without the part of the word that readline keeps."""
        kept = self._kept()
        return f"{item.type},{item.value[len(kept) :] if item.value.startswith(kept) else item.value}"

    def _kept(self) -> str:
        _, incomplete = self.get_completion_args()
        typed = os.environ["COMP_LINE"].split(" ")[-1]
        if typed.startswith(("'", '"')):  # readline does not split a quoted word
            return ""
        breaks = os.environ["COMP_WORDBREAKS"]
        return incomplete[: max(incomplete.rfind(one) for one in breaks) + 1]
