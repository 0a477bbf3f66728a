"""The command line: one module per verb, imported only if that verb runs.

Every start of vfiotool pays for the imports of this module, so it has as few as possible.
"""

from __future__ import annotations

import os
import sys

from vfiotool.errors import VfioToolError

INTERRUPTED = 130

_READING = ("list", "groups", "show")
_COMPLETE = "_VFIOTOOL_COMPLETE"  # click's environment variable for a completion request


def main() -> None:
    """Run the command line and exit with its status. This is the entry point of the console script."""
    try:
        status = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader closed the pipe: make the flush at exit silent
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def run(args: list[str]) -> int:
    """Run a command line, print an error to stderr, and return the exit status."""
    try:
        return _dispatch(args)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except VfioToolError as error:
        _show_traceback(args)
        _print_error(error)
        return error.exit_status
    except OSError as error:
        _show_traceback(args)
        _print_error(VfioToolError(f"{error.filename or 'a file'} cannot be used: {error.strerror}"))
        return VfioToolError.exit_status
    except Exception as error:
        _show_traceback(args)
        _print_error(
            VfioToolError(
                f"{type(error).__name__}: {error}",
                hint="this is a bug in vfiotool: report it with the output of 'vfiotool --debug …'",
            )
        )
        return VfioToolError.exit_status


def _dispatch(args: list[str]) -> int:
    if _COMPLETE in os.environ:
        from vfiotool.cli.shell_completion import complete

        return complete(args)
    verb, *rest = args or [""]
    names = [word for word in rest if word != "--json"]
    if _is_plain_reading(verb, names):
        _read(verb, names, as_json="--json" in rest)
        return 0
    from vfiotool.cli.root import invoke

    return invoke(args)


def _is_plain_reading(verb: str, names: list[str]) -> bool:
    if verb == "show" and len(names) != 1:
        return False
    return verb in _READING and not any(name.startswith("-") for name in names)


def _read(verb: str, names: list[str], *, as_json: bool) -> None:
    """Run a reading verb without click: its import takes longer than most reads, and programs repeat them."""
    from vfiotool.cli import reading
    from vfiotool.host.pending_unbinds import STATE_DIR
    from vfiotool.host.tree import Tree

    readers = {"list": reading.list_devices, "groups": reading.list_groups, "show": reading.show_device}
    readers[verb](Tree(), STATE_DIR, names, as_json)


def _print_error(error: VfioToolError) -> None:
    from vfiotool.render.errors import print_error

    print_error(error)


def _show_traceback(args: list[str]) -> None:
    if "--debug" in args:
        import traceback

        traceback.print_exc()
