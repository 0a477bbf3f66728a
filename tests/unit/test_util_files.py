"""Files that are written as a whole, and files of the kernel."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfiotool.errors import VfioToolError
from vfiotool.util import kernel_files
from vfiotool.util.files import create_file, replace_file, temporary_name, write_whole


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def failing() -> Iterator[bytes]:
    yield b"a part"
    raise OSError(errno.ENOSPC, "no space")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("former")
    return path


def test_a_file_is_replaced(path: Path) -> None:
    replace_file(str(path), [b"new ", b"content"])
    assert path.read_text() == "new content"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("mode", [0o600, 0o755])
def test_the_mode_does_not_depend_on_the_umask(path: Path, mode: int) -> None:
    former = os.umask(0o077)
    try:
        replace_file(str(path), [b""], mode=mode, fsync_folder=True)
    finally:
        os.umask(former)
    assert permissions(path) == mode


def test_a_symbolic_link_is_replaced_and_not_followed(path: Path) -> None:
    link = path.parent / "link"
    link.symlink_to(path)
    replace_file(str(link), [b"new"])
    assert (link.is_symlink(), path.read_text()) == (False, "former")


def test_a_failure_leaves_the_former_content_alone(path: Path) -> None:
    with pytest.raises(OSError, match="no space"):
        replace_file(str(path), failing())
    assert path.read_text() == "former"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("temporary", [None, "file.new"])
def test_a_stale_temporary_file_is_removed_and_not_followed(path: Path, temporary: str | None) -> None:
    new = str(path.parent / temporary) if temporary else temporary_name(str(path))
    victim = path.parent / "victim"
    victim.write_text("theirs")
    os.symlink(victim, new)
    replace_file(str(path), [b"new"], temporary=new)
    assert (path.read_text(), victim.read_text()) == ("new", "theirs")
    assert sorted(os.listdir(path.parent)) == ["file", "victim"]


def test_a_file_that_another_program_may_own_is_not_removed(path: Path) -> None:
    other = path.parent / "file.new"
    other.write_text("theirs")
    with pytest.raises(FileExistsError):
        replace_file(str(path), [b"new"], temporary=str(other), remove_stale=False)
    assert (path.read_text(), other.read_text()) == ("former", "theirs")


def test_a_new_file_overwrites_nothing(path: Path) -> None:
    with pytest.raises(FileExistsError):
        create_file(str(path), [b"new"], mode=0o600)
    assert path.read_text() == "former"


def test_a_new_file_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no space"):
        create_file(str(tmp_path / "file"), failing(), mode=0o600)
    assert os.listdir(tmp_path) == []
    create_file(str(tmp_path / "file"), [b"new"], mode=0o600)
    assert permissions(tmp_path / "file") == 0o600
    assert os.listdir(tmp_path) == ["file"]


def test_a_text_is_encoded_with_replacements(path: Path) -> None:
    write_whole(str(path), ["a\udc80", "é"])
    assert path.read_text() == "a?é"


@pytest.mark.parametrize("name", ["none/file", "folder"])
def test_a_text_that_cannot_be_written_is_an_error_for_the_user(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(VfioToolError, match="cannot be written") as failure:
        write_whole(str(tmp_path / name), ["text"])
    assert failure.value.hint is not None
    assert "folder" in failure.value.hint
    assert os.listdir(tmp_path) == ["folder"]


def test_a_kernel_file_is_written_in_one_system_call(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert kernel_files.write(str(fifo), "0000:00:10.0") == 0
        assert os.read(reader, 100) == b"0000:00:10.0"
    finally:
        os.close(reader)


def test_a_kernel_file_is_appended_to(path: Path) -> None:
    assert kernel_files.write(str(path), " and new", append=True) == 0
    assert path.read_text() == "former and new"


def test_an_errno_is_returned(tmp_path: Path) -> None:
    assert kernel_files.write(str(tmp_path / "none"), "") == errno.ENOENT
    assert kernel_files.write(str(tmp_path), "") == errno.EISDIR
    assert kernel_files.write("/dev/full", "text") == errno.ENOSPC
