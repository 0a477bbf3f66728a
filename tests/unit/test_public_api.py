from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys

import pytest

import vfiotool
import vfiotool.testing
import vfiotool.vfio

ROOT = os.path.dirname(os.path.dirname(vfiotool.__file__))
HEAVY = ("click", "rich", "pyudev", "cffi", "typing")


def declared() -> list[str]:
    """The names that type checkers see: imports as themselves below TYPE_CHECKING."""
    with open(f"{ROOT}/vfiotool/__init__.py", encoding="utf-8") as file:
        tree = ast.parse(file.read())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return [f"{node.module}:{name.asname}" for node in imports for name in node.names if name.asname]


def test_each_name_is_exported_once_and_as_it_is_declared() -> None:
    assert sorted(declared()) == sorted(f"{module}:{name}" for name, module in vfiotool._HOMES.items())
    assert len(set(dir(vfiotool))) == len(dir(vfiotool)) == len(vfiotool._HOMES)


@pytest.mark.parametrize("name", dir(vfiotool))
def test_each_name_can_be_imported_and_is_documented(name: str) -> None:
    found = getattr(vfiotool, name)
    assert found is getattr(importlib.import_module(vfiotool._HOMES[name]), name)
    assert found.__doc__


@pytest.mark.parametrize("module", [vfiotool.testing, vfiotool.vfio], ids=lambda module: module.__name__)
def test_what_a_package_exports(module: object) -> None:
    exported: list[str] = vars(module)["__all__"]
    assert exported == sorted(set(exported))
    assert all(getattr(module, name).__doc__ for name in exported)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vfiotool.nothing  # noqa: B018 - it raises


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = f"import sys; sys.path.insert(0, {ROOT!r}); import vfiotool; "
    program += f"print([name for name in {HEAVY} if name in sys.modules])"
    command = [sys.executable, "-S", "-c", program]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
