"""What scripts/build-kernel leaves to vfiotool: where the source comes from, and where the kernel goes."""

from __future__ import annotations

import sys

from vfiotool.errors import VfioToolError
from vfiotool.lab import kernels


class Steps:
    """A line on stderr for each step."""

    def __init__(self) -> None:
        self._last = ""

    def update(self, description: str, _fraction: float | None) -> None:
        """Say what is being done, once."""
        if description != self._last:
            print(description, file=sys.stderr)
        self._last = description


def main(verb: str, *arguments: str) -> None:
    """Do what a verb says: ``release``, ``fetch DIRECTORY``, ``add TREE RELEASE VERSION``."""
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
        sys.exit(f"error: {error}\nhint: see whether the cache's disk is full")
    except KeyboardInterrupt:
        sys.exit(130)
