from __future__ import annotations

import ast
import builtins
import importlib
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import vfiotool

ROOT = os.path.dirname(os.path.dirname(vfiotool.__file__))
HEAVY = ("click", "rich", "pyudev", "cffi", "typing")
EXPORTING = (
    "vfiotool",
    "vfiotool.drivers",
    "vfiotool.drivers.igb",
    "vfiotool.drivers.nvme",
    "vfiotool.testing",
    "vfiotool.vfio",
    "vfiotool.vfio.iommu",
)


def declared() -> list[str]:
    """Return the names that type checkers see: imports as themselves below TYPE_CHECKING."""
    with open(f"{ROOT}/vfiotool/__init__.py", encoding="utf-8") as file:
        tree = ast.parse(file.read())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return [f"{node.module}:{name.asname}" for node in imports for name in node.names if name.asname]


def classes() -> Iterator[tuple[str, str, list[str]]]:
    """Yield module, name and names of the bases of every class at the top of a module of the package."""
    for path in Path(ROOT, "vfiotool").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                yield module, node.name, [base.id for base in node.bases if isinstance(base, ast.Name)]


def errors() -> set[tuple[str, str]]:
    """Return module and name of every error of the package; those of the command line are its own."""
    found = {("vfiotool.errors", "VfioToolError")}
    known, size = list(classes()), 0
    while size != len(found):
        size, names = len(found), {name for _, name in found}
        found |= {(module, name) for module, name, bases in known if names & set(bases)}
    return {(module, name) for module, name in found if not module.startswith("vfiotool.cli.")}


def test_each_name_is_exported_once_and_as_it_is_declared() -> None:
    assert sorted(declared()) == sorted(f"{module}:{name}" for name, module in vfiotool._HOMES.items())
    assert dir(vfiotool) == sorted(vfiotool._HOMES) == vfiotool.__all__


@pytest.mark.parametrize("name", dir(vfiotool))
def test_each_name_can_be_imported_and_is_documented(name: str) -> None:
    found = getattr(vfiotool, name)
    assert found is getattr(importlib.import_module(vfiotool._HOMES[name]), name)
    assert found.__doc__


def test_every_error_is_exported_by_vfiotool() -> None:
    found = errors()
    assert len(found) > 25
    assert found <= {(module, name) for name, module in vfiotool._HOMES.items()}


@pytest.mark.parametrize("page", sorted(Path(ROOT, "docs").glob("*.md")), ids=lambda page: page.name)
def test_each_error_that_a_guide_names_is_exported_by_vfiotool(page: Path) -> None:
    named = set(re.findall(r"\b[A-Z]\w+Error\b", page.read_text(encoding="utf-8")))
    assert named <= {*vfiotool.__all__, *dir(builtins)}


@pytest.mark.parametrize("name", EXPORTING)
def test_a_package_that_exports_names_lists_them(name: str) -> None:
    module = importlib.import_module(name)
    exported: list[str] = module.__all__
    assert exported == sorted(set(exported))
    assert all(getattr(module, each).__doc__ for each in exported)


def test_no_public_class_name_is_used_twice() -> None:
    names = Counter(name for _, name, _ in classes() if not name.startswith("_"))
    repeated = {name for name, count in names.items() if count > 1}
    assert repeated == set()


def test_no_module_defines_a_name_twice() -> None:
    """A second constant of the same name would change the first: it has happened when modules were merged."""
    for path in Path(ROOT, "vfiotool").rglob("*.py"):
        names = Counter(defined(ast.parse(path.read_text(encoding="utf-8"))))
        assert {name for name, count in names.items() if count > 1} == set(), path


def defined(tree: ast.Module) -> Iterator[str]:
    """Yield the functions, classes and variables at the top of a module."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        targets = node.targets if isinstance(node, ast.Assign) else []
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def test_uapi_exports_all_names_of_its_modules() -> None:
    from vfiotool.vfio import uapi

    assert uapi.__all__ == [*uapi.iommufd.__all__, *uapi.vfio.__all__]
    assert len(set(uapi.__all__)) == len(uapi.__all__)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vfiotool.nothing  # noqa: B018 - it raises


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = f"import sys; sys.path.insert(0, {ROOT!r}); import vfiotool; "
    program += f"print([name for name in {HEAVY} if name in sys.modules])"
    command = [sys.executable, "-S", "-c", program]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
