"""An lspci of 3.14 or later: the machine's, or Debian's, fetched into the user's cache and run from there.

Earlier ones name fewer fields. Debian's comes with its own dynamic loader and libraries, so that the libc of
this machine does not matter.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from tests.conftest import GUEST_KERNEL, missing
from vfiotool.errors import VfioToolError
from vfiotool.lab import cache
from vfiotool.lab.apt import Apt, AptSource, architecture, machine_mirrors, tool

OLDEST = (3, 14)
_LABEL, _SUITE = "Debian", "sid"
_PACKAGE = "pciutils"
_LOADER = "usr/lib64/ld-linux-x86-64.so.2"
_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
_LINE = 16


def lspci(*arguments: str | Path) -> str:
    """Return what lspci prints; without an lspci that is new enough, skip the test or fail it."""
    # Ids as numbers: a name in pci.ids may look like a field.
    argv = [*command(), "-n", *arguments]
    return subprocess.run(
        argv, capture_output=True, text=True, errors="replace", check=True, env=os.environ | {"LC_ALL": "C"}
    ).stdout


def dump(configs: Iterable[bytes]) -> str:
    """Return configuration spaces in the form that ``lspci -F`` reads; device ``n`` is at ``address(n)``."""
    devices = []
    for number, config in enumerate(configs):
        rows = (f"{at:02x}: {config[at : at + _LINE].hex(' ')}" for at in range(0, len(config), _LINE))
        devices.append("\n".join((f"{address(number)} device", *rows, "")))
    return "\n".join(devices)


def address(number: int) -> str:
    """Return the address of a device of a dump."""
    return f"{number >> 8:04x}:{number & 0xFF:02x}:00.0"


def parse_dump(text: str) -> dict[str, bytes]:
    """Return the bytes of each device of a dump, by its address as it is written."""
    devices: dict[str, bytearray] = {}
    device = bytearray()
    for line in text.splitlines():
        if row := re.match(r"([0-9a-f]{2,3}): ((?:[0-9a-f]{2} ?)+)$", line.rstrip()):
            assert len(device) == int(row[1], 16), line
            device += bytes.fromhex(row[2])
        elif name := re.match(r"((?:[0-9a-f]{4,}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]) ", line):
            device = devices[name[1]] = bytearray()
    return {name: bytes(content) for name, content in devices.items()}


def make_ready() -> None:
    """Fetch an lspci that is new enough for the guests, which have no network; a test tells if that fails."""
    with contextlib.suppress(pytest.skip.Exception, pytest.fail.Exception):
        command()


@functools.cache
def command() -> tuple[str, ...]:
    """Return the command line of an lspci that is new enough; skip the test, or fail it, if there is none."""
    own = shutil.which("lspci")
    if own is not None and _is_new_enough([own]):
        return (own,)
    root = cache.directory("lspci")
    if not os.path.exists(os.path.join(root, _LOADER)):
        if GUEST_KERNEL is not None:
            missing("this machine has no lspci of 3.14: run tests/unit/test_lspci.py on the host first")
        try:
            _fetch(root)
        except (VfioToolError, OSError, subprocess.CalledProcessError) as error:
            missing(f"this machine has no lspci of 3.14, and none can be fetched: {error}")
    fetched = _in(root)
    if not _is_new_enough(fetched):
        missing(f"the lspci in {root} does not run, or is older than 3.14")
    return tuple(fetched)


def _in(root: str) -> list[str]:
    libraries = ":".join(os.path.join(root, path) for path in _LIBRARIES)
    return [os.path.join(root, _LOADER), "--library-path", libraries, os.path.join(root, "usr/bin/lspci")]


def _is_new_enough(argv: Sequence[str]) -> bool:
    try:
        said = subprocess.run([*argv, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return False
    version = re.search(r"version (\d+)\.(\d+)", said)
    return version is not None and (int(version[1]), int(version[2])) >= OLDEST


def _fetch(root: str) -> None:
    """Unpack lspci and all that it needs into ``root``, as a whole."""
    if architecture() != "amd64":
        missing("lspci can be fetched for amd64 alone")
    with cache.locked("lspci", lambda: None) as lock:
        if os.path.exists(root):
            return
        apt = Apt(cache.directory("apt", "lspci"), lock, [AptSource(_mirror(lock), _SUITE)])
        apt.update(None, f"reading the package lists of {_SUITE}")
        downloads, work = os.path.join(apt.directory, "debs"), f"{root}.unpacking"
        cache.remove(work)
        for deb in apt.download(_closure(apt), downloads, None, f"downloading {_PACKAGE}"):
            subprocess.run([tool("dpkg-deb"), "-x", deb, work], check=True)
        os.rename(work, root)
        cache.remove(apt.directory)


def _mirror(lock: int) -> str:
    mirrors = machine_mirrors()
    if _LABEL not in mirrors:
        own = Apt(cache.directory("apt", "lspci-mirrors"), lock)
        own.update(None, "reading this machine's package lists")
        mirrors = own.mirrors()
        cache.remove(own.directory)
    if _LABEL not in mirrors:
        missing(f"no apt source of this machine is labelled '{_LABEL}', and lspci is fetched from its mirror")
    return mirrors[_LABEL]


def _closure(apt: Apt) -> dict[str, str]:
    """Return the versions of lspci's package and of all packages that it depends on."""
    known = set(apt.names(""))
    packages: dict[str, str] = {}
    todo = {_PACKAGE}
    while todo:
        shown = apt.show(sorted(todo))
        packages.update((fields["Package"], fields["Version"]) for fields in shown)
        depends = ",".join(fields.get(kind, "") for fields in shown for kind in ("Depends", "Pre-Depends"))
        names = {re.split(r"[ (:]", one.split("|")[0].strip(), maxsplit=1)[0] for one in depends.split(",")}
        todo = (names & known) - packages.keys()
    return packages
