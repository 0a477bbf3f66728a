"""Copy the needed parts of a module, for scripts that people read."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from types import ModuleType


def excerpt(module: ModuleType, body: str) -> str:
    """Return the parts of a module that ``body`` uses, directly or by other parts, with their imports.

    The parts are statements of the module's top level, in its order. A part is found by the spelling of its
    name alone, so no local variable may have the name of a part.
    """
    source = inspect.getsource(module)
    lines, tree = source.splitlines(), ast.parse(source)
    defined = {name: node for node in tree.body for name in _defines(node)}
    needed = _reach(_names(ast.parse(body)), defined)
    imports, rest = list[str](), list[str]()
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            imports += _import(node, needed)
        elif any(name in needed for name in _defines(node)):
            is_block = isinstance(node, (ast.FunctionDef, ast.ClassDef))
            rest += (["", ""] if is_block else []) + lines[node.lineno - 1 : node.end_lineno]
    return "\n".join([*imports, "", *rest])


def _reach(names: set[str], defined: Mapping[str, ast.stmt]) -> set[str]:
    """Return the names, and all names that their definitions use."""
    reached, ahead = set[str](), list(names)
    while ahead:
        name = ahead.pop()
        if name not in reached:
            reached.add(name)
            ahead += _names(defined[name]) if name in defined else ()
    return reached


def _names(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


def _defines(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.Assign):
        yield from (one.id for one in node.targets if isinstance(one, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id


def _import(node: ast.Import | ast.ImportFrom, needed: set[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [f"import {one.name}" for one in node.names if one.name in needed]
    names = [one.name for one in node.names if one.name in needed or node.module == "__future__"]
    gap = [""] if node.module == "__future__" else []
    return [f"from {node.module} import {', '.join(names)}", *gap] if names else []
