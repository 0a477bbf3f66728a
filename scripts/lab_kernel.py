"""The parts of scripts/build-kernel that vfiotool does: fetch the source, add the kernel to the cache."""

from __future__ import annotations

import sys

from vfiotool.errors import VfioToolError
from vfiotool.lab import kernels


class Steps:
    """Prints a line on stderr for each step."""

    def __init__(self) -> None:
        self._last = ""

    def update(self, description: str, _fraction: float | None) -> None:
        """Print the description of a new step."""
        if description != self._last:
            print(description, file=sys.stderr)
        self._last = description


def main(verb: str, *arguments: str) -> None:
    """Run a verb: ``release``, ``fetch DIRECTORY`` or ``add TREE RELEASE VERSION``."""
    if verb == "release":
        print(kernels.get(kernels.BUILT).release)
    elif verb == "fetch":
        (directory,) = arguments
        path, version = kernels.fetch_source(directory, Steps())
        print(version, path)
    elif verb == "add":
        tree, release, version = arguments
        kernels.add_built(tree, release, version)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except VfioToolError as error:
        sys.exit(f"error: {error}\nhint: {error.hint}")
    except OSError as error:
        sys.exit(f"error: {error}\nhint: check that the disk of the cache is not full")
    except KeyboardInterrupt:
        sys.exit(130)
