"""The package ``host`` reads the machine and writes no file."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator

import pytest

import vfiotool.host

HOST = os.path.dirname(str(vfiotool.host.__file__))
EXCEPT = {"capture/archives.py": "unpacks an archive into a private temporary folder that it creates"}
WRITE_FLAGS = {"O_WRONLY", "O_CREAT", "O_TRUNC", "O_APPEND"}
CHANGES = {
    *("chmod", "chown", "fchmod", "fchown", "ftruncate", "link", "makedirs", "mkdir", "mknod", "remove"),
    *("removedirs", "rename", "renames", "replace", "rmdir", "rmtree", "symlink", "truncate", "unlink"),
}
WRITERS = {"vfiotool.util.files", "vfiotool.util.kernel_files"}


def writes(source: str) -> Iterator[str]:
    """Yield the expressions and imports of a module with which it could write files."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in WRITE_FLAGS:
            yield ast.unparse(node)
        elif isinstance(node, ast.Attribute) and node.attr in CHANGES:
            if isinstance(node.value, ast.Name) and node.value.id in ("os", "shutil"):
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
            modes = [*node.args[1:2], *(word.value for word in node.keywords if word.arg == "mode")]
            if any(
                not isinstance(mode, ast.Constant) or set(str(mode.value)) & set("wax+") for mode in modes
            ):
                yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
            if names & WRITERS:
                yield ast.unparse(node)


def modules() -> list[str]:
    paths = (os.path.join(folder, name) for folder, _, names in os.walk(HOST) for name in names)
    return sorted(os.path.relpath(path, HOST) for path in paths if path.endswith(".py"))


@pytest.mark.parametrize("module", modules())
def test_a_module_of_host_writes_nothing(module: str) -> None:
    with open(f"{HOST}/{module}", encoding="utf-8") as file:
        found = list(writes(file.read()))
    if module in EXCEPT:
        assert found, "the exception is no longer needed"
    else:
        assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "os.open(path, os.O_WRONLY)",
        "os.replace(new, path)",
        "shutil.rmtree(path)",
        "open(path, 'w')",
        "open(path, mode='r+b')",
        "open(path, mode)",
        "from vfiotool.util.files import replace_file",
        "from vfiotool.util import kernel_files",
    ],
)
def test_what_writes_is_found(source: str) -> None:
    assert list(writes(source))


@pytest.mark.parametrize(
    "source",
    ["text.replace(' ', '')", "open(path)", "open(path, 'rb')", "os.open(path, os.O_RDWR)", "a.remove(b)"],
)
def test_what_only_reads_is_not_found(source: str) -> None:
    assert not list(writes(source))
