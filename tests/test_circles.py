"""The package's own files: what they import of each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import vggdeploy

PACKAGE = Path(vggdeploy.__file__).parent


def modules(root: Path) -> dict[str, tuple[ast.Module, bool]]:
    """Every module below ``root`` by its dotted name, parsed, and whether it is a package."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        package = parts[-1] == "__init__"
        found[".".join(parts[:-1] if package else parts)] = ast.parse(path.read_bytes()), package
    return found


def imported(name: str, tree: ast.Module, package: bool) -> Iterator[tuple[str, str]]:
    """Each module and each name in it that is imported anywhere in the file: at its top, in functions, for types."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".")[: len(name.split(".")) - node.level + package] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from ((base, alias.name) for alias in node.names)


def graph(root: Path) -> dict[str, set[str]]:
    """Module → the modules of its package that it imports."""
    found = modules(root)
    edges: dict[str, set[str]] = {}
    for name, (tree, package) in found.items():
        targets = {f"{base}.{of}" if f"{base}.{of}" in found else base for base, of in imported(name, tree, package)}
        edges[name] = targets & found.keys() - {name}
    return edges


def circles(edges: dict[str, set[str]]) -> list[set[str]]:
    """The sets of modules that reach one another."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = edges[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    from_each = {name: reached(name) for name in edges}
    found = {frozenset(b for b in far if name in from_each[b]) for name, far in from_each.items() if name in far}
    return [set(circle) for circle in found]


def test_no_file_takes_part_in_an_import_circle() -> None:
    assert circles(graph(PACKAGE)) == []


def test_a_late_import_and_one_for_types_make_a_circle(tmp_path: Path) -> None:
    package = tmp_path / "planted"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("def f():\n    from planted.b import x\n")
    (package / "b.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import a\n")
    assert circles(graph(package)) == [{"planted.a", "planted.b"}]
