"""Copy the needed parts of modules, for scripts that people read."""

from __future__ import annotations

import ast
import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType


def excerpt(modules: Sequence[ModuleType], body: str) -> str:
    """Return the parts of modules that ``body`` uses, directly or by other parts, with their imports.

    The parts are statements of a module's top level, and the methods of classes; they stay in their order. A
    part is found by the spelling of its name alone, so no local variable may have the name of a part, and no
    two parts have the same name. The modules may import each other.
    """
    sources = [inspect.getsource(module) for module in modules]
    trees = [ast.parse(source) for source in sources]
    needed = _reach(_names(ast.parse(body)), {name: part for tree in trees for name, part in _parts(tree)})
    imports = [one for tree in trees for one in tree.body if isinstance(one, (ast.Import, ast.ImportFrom))]
    text = _imports(imports, needed, {module.__name__ for module in modules})
    is_after_block = False
    for source, tree in zip(sources, trees, strict=True):
        for node in tree.body:
            if any(name in needed for name in _defines(node)):
                is_block = isinstance(node, (ast.FunctionDef, ast.ClassDef))
                text += ["", ""] * (is_block or is_after_block) + _lines(node, source.splitlines(), needed)
                is_after_block = is_block
    return "\n".join(text)


def _parts(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """Yield the parts of a module by their names; the name of a method begins with a dot."""
    for node in tree.body:
        yield from ((name, node) for name in _defines(node))
        yield from ((f".{method.name}", method) for method in _methods(node))


def _reach(names: set[str], parts: Mapping[str, ast.stmt]) -> set[str]:
    """Return the names, and all names that their parts use."""
    reached, ahead = set[str](), list(names)
    while ahead:
        name = ahead.pop()
        if name not in reached:
            reached.add(name)
            ahead += _names(parts[name]) if name in parts else ()
    return reached


def _names(part: ast.AST) -> set[str]:
    """Return the names that a part uses: a class alone uses those of its methods that Python calls."""
    names, ahead, others = set[str](), [part], _methods(part)
    while ahead:
        node = ahead.pop()
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(f".{node.attr}")
        ahead += (one for one in ast.iter_child_nodes(node) if one not in others)
    return names


def _methods(node: ast.AST) -> list[ast.FunctionDef]:
    """Return the methods of a class without those that Python calls, as ``__init__``."""
    members = node.body if isinstance(node, ast.ClassDef) else []
    functions = [one for one in members if isinstance(one, ast.FunctionDef)]
    return [one for one in functions if not one.name.startswith("__")]


def _defines(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.Assign):
        yield from (one.id for one in node.targets if isinstance(one, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id


def _lines(node: ast.stmt, source: Sequence[str], needed: set[str]) -> list[str]:
    """Return the lines of a statement, without methods that are not needed and the empty line before each."""
    numbers = set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for method in _methods(node):
        if f".{method.name}" not in needed:
            numbers -= set(range(method.lineno - 1, (method.end_lineno or method.lineno) + 1))
    return [source[number - 1] for number in sorted(numbers)]


def _imports(
    statements: Sequence[ast.Import | ast.ImportFrom], needed: set[str], modules: set[str]
) -> list[str]:
    """Return the imports of needed names from other modules than these, in the usual order."""
    whole, parts = set[str](), defaultdict[str, set[str]](set)
    for statement in statements:
        names = {one.name for one in statement.names}
        if isinstance(statement, ast.Import):
            whole |= names & needed
        elif statement.module == "__future__":
            parts["__future__"] |= names
        elif statement.module is not None and statement.module not in modules:
            parts[statement.module] |= names & needed
    future = parts.pop("__future__", set())
    lines = [f"from __future__ import {name}" for name in sorted(future)] + [""] * bool(future)
    lines += [f"import {name}" for name in sorted(whole)]
    lines += [f"from {name} import {', '.join(sorted(parts[name]))}" for name in sorted(parts) if parts[name]]
    return [*lines, ""]
