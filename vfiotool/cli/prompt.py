"""A Python prompt with completion, or a Python script, for the user of a verb.

Tracebacks show only the user's code.
"""

from __future__ import annotations

import code
import contextlib
import linecache
import re
import rlcompleter
import sys
import traceback
from types import CodeType
from typing import Any

from vfiotool.errors import VfioToolError

_SCRIPT = "<stdin>"
_ATTRIBUTE = re.compile(r"(\w+(?:\.\w+)*)\.(\w*)")


def compile_script(source: bytes) -> CodeType:
    """Compile a script. On a syntax error print it and raise ``SystemExit``, as Python does."""
    lines = source.decode("utf-8", "replace").splitlines(keepends=True)
    linecache.cache[_SCRIPT] = (
        len(source),
        None,
        lines,
        _SCRIPT,
    )  # tracebacks read source lines from this cache
    try:
        return compile(source, _SCRIPT, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:  # ValueError: the source has a NUL
        traceback.print_exception(type(error), error, None)
        raise SystemExit(1) from None


def run_script(script: CodeType, names: dict[str, Any]) -> int:
    """Run a script with these global names and return its exit status: 1 if it raises an exception.

    ``SystemExit`` and ``KeyboardInterrupt`` are passed to the caller.
    """
    try:
        exec(script, names)  # noqa: S102 - the user asked to run this script
    except Exception as error:
        inner = error.__traceback__ and error.__traceback__.tb_next  # without the frame of this function
        traceback.print_exception(type(error), error, inner)
        _print_hint(error)
        return 1
    return 0


def run_prompt(names: dict[str, Any], banner: str) -> None:
    """Run a Python prompt with these global names until Ctrl-D. ``exit()`` raises ``SystemExit``."""
    with contextlib.suppress(ImportError):  # Python can be built without readline
        import readline

        readline.set_completer(_Completer(names).complete)
        readline.parse_and_bind("tab: complete")
    _Prompt(names).interact(banner, exitmsg="")


class _Prompt(code.InteractiveConsole):
    def showtraceback(self) -> None:
        error = sys.exc_info()[1]
        super().showtraceback()
        _print_hint(error)


class _Completer(rlcompleter.Completer):
    """Completes names from ``dir()`` only: reading an attribute's value could access the device."""

    def __init__(self, names: dict[str, Any]) -> None:
        super().__init__(names)
        self._names = names

    def attr_matches(self, text: str) -> list[str]:
        match = _ATTRIBUTE.fullmatch(text)
        if match is None:
            return []
        expression, begun = match.groups()
        try:
            found = dir(eval(expression, self._names))  # noqa: S307 - names and dots alone
        except Exception:
            return []
        shown = [name for name in found if begun.startswith("_") or not name.startswith("_")]
        return [f"{expression}.{name}" for name in shown if name.startswith(begun)]


def _print_hint(error: BaseException | None) -> None:
    if isinstance(error, VfioToolError) and error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
