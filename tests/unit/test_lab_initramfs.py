"""cpio(1) reads the archive, modules come in the order of loading, busybox is statically linked."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import missing
from vfiotool.errors import LabError
from vfiotool.lab import initramfs
from vfiotool.lab.initramfs import ArchiveEntry
from vfiotool.lab.kernels import Kernel


def test_archive_is_what_cpio_unpacks(tmp_path: Path) -> None:
    """busybox's cpio checks the format."""
    if shutil.which("busybox") is None:
        missing("busybox is not installed")
    packed = initramfs.archive(
        [
            ArchiveEntry("sub", stat.S_IFDIR | 0o755),
            *(ArchiveEntry(f"sub/{size}", stat.S_IFREG | 0o640, b"x" * size) for size in range(6)),
            ArchiveEntry("run", stat.S_IFREG | 0o755, b"\0\1\2"),
        ]
    )
    subprocess.run(["busybox", "cpio", "-i"], input=packed, cwd=tmp_path, check=True)
    assert [(tmp_path / f"sub/{size}").read_bytes() for size in range(6)] == [
        b"x" * size for size in range(6)
    ]
    assert stat.S_IMODE((tmp_path / "sub/3").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o755
    assert (tmp_path / "run").read_bytes() == b"\0\1\2"
    assert sorted(os.listdir(tmp_path)) == ["run", "sub"]


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".xz", lzma.compress), (".gz", gzip.compress)])
def test_contents_are_decompressed(tmp_path: Path, suffix: str, pack: type[bytes]) -> None:
    file = tmp_path / f"module.ko{suffix}"
    file.write_bytes(pack(b"the module"))
    assert initramfs.contents(str(file)) == b"the module"


MODPROBE = """#!/bin/sh
for module; do :; done
case $module in
    top) echo "insmod /modules/base.ko.xz "; echo "insmod /modules/top.ko " ;;
    other) echo "insmod /modules/base.ko.xz "; echo "insmod /modules/other.ko " ;;
    inside) echo "builtin inside" ;;
    *) echo "modprobe: FATAL: Module $module not found" >&2; exit 1 ;;
esac
"""


def test_closure_has_dependencies_first_and_leaves_out_built_in_modules(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "modprobe").write_text(MODPROBE)
    (tmp_path / "modprobe").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    kernel = Kernel("test", "1.0", "/none", str(tmp_path))
    found = initramfs.closure(kernel, ["top", "absent", "inside", "other"])
    assert found == ["/modules/base.ko.xz", "/modules/top.ko", "/modules/other.ko"]


def test_a_dynamic_program_is_distinguished_from_a_static_program() -> None:
    assert initramfs.has_interpreter(Path(os.path.realpath(sys.executable)).read_bytes())


def test_no_static_busybox_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "busybox").symlink_to(os.path.realpath(sys.executable))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="busybox") as caught:
        initramfs.busybox()
    assert "apt install busybox-static" in caught.value.hint
