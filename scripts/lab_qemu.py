"""Provide a QEMU with igb: if the installed QEMU lacks it, fetch QEMU from backports, without installing it.

Prints the directory to put on PATH, or nothing if the installed QEMU has igb.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys

from vfiotool.errors import LabError, VfioToolError
from vfiotool.lab import apt, cache, qemu

MODEL = "igb"
# All modules must be of the same build: QEMU loads a module that is missing here from the machine's QEMU.
PACKAGES = (
    "qemu-system-x86",
    "qemu-system-common",
    "qemu-system-data",
    "qemu-system-modules-opengl",
    "seabios",
)
PROGRAM = """\
#!/bin/sh
root=$(dirname "$(dirname "$(readlink -f "$0")")")
export QEMU_MODULE_DIR="$root/usr/lib/x86_64-linux-gnu/qemu"
exec "$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/seabios" -L "$root/usr/share/qemu" "$@"
"""


def main() -> None:
    """Fetch QEMU if needed, and print its directory."""
    if MODEL in qemu.models():
        return
    root = cache.directory("qemu")
    with cache.locked("qemu", lambda: None) as lock:
        if not os.path.exists(os.path.join(root, "bin")):
            fetch(root, lock)
    os.environ["PATH"] = f"{root}/bin:{os.environ['PATH']}"
    if MODEL not in qemu.models():
        raise LabError(f"the QEMU in {root} has no {MODEL}", hint=f"remove {root}, then run this again")
    print(f"{root}/bin")


def fetch(root: str, lock: int) -> None:
    """Fetch QEMU into a directory, which is created atomically."""
    suite = f"{platform.freedesktop_os_release()['VERSION_CODENAME']}-backports"
    print(f"fetching QEMU from {suite}", file=sys.stderr)
    state, work = cache.directory("apt", "qemu"), f"{root}.unpacking"
    cache.remove(work)
    backports = apt.Apt(state, lock, [apt.AptSource(mirror(state, lock), suite)])
    backports.update(None, f"reading the package lists of {suite}")
    versions = {fields["Package"]: fields["Version"] for fields in backports.show(PACKAGES)}
    for package in backports.download(versions, f"{state}/downloads", None, "downloading QEMU"):
        subprocess.run([apt.tool("dpkg-deb"), "-x", package, work], check=True)
    os.mkdir(f"{work}/bin")
    program = os.open(f"{work}/bin/qemu-system-x86_64", os.O_WRONLY | os.O_CREAT, 0o755)
    with open(program, "w", encoding="ascii") as file:
        file.write(PROGRAM)
    os.rename(work, root)
    cache.remove(state)


def mirror(state: str, lock: int) -> str:
    """Return this machine's mirror of Debian; only a fetched Release file has the label."""
    mirrors = apt.machine_mirrors()
    if "Debian" not in mirrors:
        own = apt.Apt(state, lock)
        own.update(None, "reading this machine's package lists")
        mirrors = own.mirrors()
    if "Debian" not in mirrors:
        raise LabError("this machine has no apt source of Debian", hint="install QEMU 8 or later")
    return mirrors["Debian"]


if __name__ == "__main__":
    try:
        main()
    except VfioToolError as error:
        sys.exit(f"error: {error}\nhint: {error.hint}")
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}\nhint: check that the disk of the cache is not full")
    except KeyboardInterrupt:
        sys.exit(130)
