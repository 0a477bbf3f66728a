"""The lab's initramfs: busybox, init.sh, and the modules that a guest needs to mount its root.

It is built in memory at each start, which takes a fraction of a second.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfiotool.errors import LabError

if TYPE_CHECKING:
    from vfiotool.lab.kernels import Kernel

ROOT_MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")
_DIRECTORIES = ("bin", "changes", "dev", "host", "modules", "proc", "root", "sys")
_MAGIC = "070701"
_PT_INTERP = 3


@dataclass(frozen=True, slots=True)
class ArchiveEntry:
    """A file or directory of an archive; ``mode`` includes the file type."""

    name: str
    mode: int
    data: bytes = b""


def archive(entries: Iterable[ArchiveEntry]) -> bytes:
    """Return the entries as a cpio archive, format newc (kernel Documentation/driver-api/early-userspace)."""
    parts = []
    for number, entry in enumerate([*entries, ArchiveEntry("TRAILER!!!", 0)], start=1):
        name = entry.name.encode() + b"\0"
        # ino, mode, uid, gid, nlink, mtime, size, dev, dev, rdev, rdev, name size, check
        fields = (number, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
        header = (_MAGIC + "".join(f"{field:08X}" for field in fields)).encode()
        parts += [padded(header + name), padded(entry.data)]
    return b"".join(parts)


def padded(data: bytes) -> bytes:
    """Return the bytes, padded with zeros to a multiple of four."""
    return data + bytes(-len(data) % 4)


def build(kernel: Kernel, modules: Iterable[str], settings: Mapping[str, str]) -> bytes:
    """Return an initramfs whose init.sh loads ``modules`` and reads ``settings`` as shell variables."""
    paths = closure(kernel, modules)
    names = [os.path.basename(path).partition(".ko")[0] + ".ko" for path in paths]
    variables = {**settings, "MODULES": " ".join(names)}
    environment = "".join(f"{key}={shlex.quote(value)}\n" for key, value in variables.items())
    script = os.path.join(os.path.dirname(__file__), "init.sh")
    return image(
        contents(script),
        ArchiveEntry("lab.env", stat.S_IFREG | 0o644, environment.encode()),
        *(
            ArchiveEntry(f"modules/{name}", stat.S_IFREG | 0o644, contents(path))
            for name, path in zip(names, paths, strict=True)
        ),
    )


def image(init: bytes, *more: ArchiveEntry) -> bytes:
    """Return an initramfs of busybox, empty directories, ``init`` and the given entries."""
    return archive(
        [
            *(ArchiveEntry(name, stat.S_IFDIR | 0o755) for name in _DIRECTORIES),
            ArchiveEntry("bin/busybox", stat.S_IFREG | 0o755, contents(busybox())),
            ArchiveEntry("init", stat.S_IFREG | 0o755, init),
            *more,
        ]
    )


def busybox() -> str:
    """Return the path of a statically linked busybox; LabError if none is installed."""
    for name in ("busybox", "busybox-static", "busybox.static"):
        path = shutil.which(name)
        if path and not has_interpreter(contents(path)):
            return path
    raise LabError("no statically linked busybox is installed", hint="apt install busybox-static")


def has_interpreter(program: bytes) -> bool:
    """Return True if a 64-bit ELF program needs a dynamic linker (a program header of type PT_INTERP)."""
    (offset,) = struct.unpack_from("<Q", program, 0x20)  # e_phoff
    size, count = struct.unpack_from("<HH", program, 0x36)  # e_phentsize, e_phnum
    kinds = (struct.unpack_from("<I", program, offset + n * size)[0] for n in range(count))
    return _PT_INTERP in kinds


def closure(kernel: Kernel, modules: Iterable[str]) -> list[str]:
    """Return the files of these modules and their dependencies, in the order of loading.

    A module that the kernel does not have as a file is left out: it may be built in.
    """
    paths: dict[str, None] = {}
    for module in modules:
        command = ["modprobe", "--show-depends", "--config=/dev/null", f"--dirname={kernel.modules_root}"]
        command += [f"--set-version={kernel.release}", module]
        try:
            shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        except FileNotFoundError:
            raise LabError("modprobe is not installed", hint="apt install kmod") from None
        for line in shown.splitlines():
            verb, _, path = line.strip().partition(" ")
            if verb == "insmod":
                paths[path] = None
    return list(paths)


def contents(path: str) -> bytes:
    """Return the content of a file, decompressed according to its suffix (``.xz``, ``.gz``, ``.zst``)."""
    with open(path, "rb") as file:
        data = file.read()
    if path.endswith(".xz"):
        import lzma

        return lzma.decompress(data)
    if path.endswith(".gz"):
        import gzip

        return gzip.decompress(data)
    if path.endswith(".zst"):
        return unzstd(data)
    return data


def unzstd(data: bytes) -> bytes:
    """Decompress with the zstd program; LabError if it is not installed."""
    try:
        return subprocess.run(["zstd", "-dcq"], input=data, capture_output=True, check=True).stdout
    except FileNotFoundError:
        raise LabError("the modules of this kernel need zstd", hint="apt install zstd") from None
