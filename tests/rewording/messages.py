"""Imports the package with every message replaceable, so that one of them at a time can read differently.

A message is a string literal or f-string of several words that is not looked for (compared, matched, a key), and every
value of a field or parameter that holds one by its name (`TEXTS`), of one word, too.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

TEXTS = {
    *("reason", "reasons", "cause", "hint", "fix", "note", "notes", "why", "wrong", "words"),
    *("skipped", "misses", "warnings", "not_checked", "slowed", "missing", "refused", "summary"),
}
_NAMED = {"Reference": ["data"]}  # what images are called in a record; elsewhere such a field holds what was asked for
# What is given to these is looked for in a text, or is no text.
_LOOKS = {
    *("startswith", "endswith", "find", "index", "count", "split", "rsplit", "partition", "rpartition", "get", "pop"),
    *("removeprefix", "removesuffix", "replace", "search", "match", "fullmatch", "compile", "sub", "strip", "strftime"),
}
_MARK = "Réwördëd: "
_VOWELS = str.maketrans("aeiouAEIOU", "äëïöüÄËÏÖÜ")


def reword(text: Any) -> Any:
    """The same in other words; markup in brackets stays. What is reworded already stays."""
    if isinstance(text, (tuple, list)):
        return type(text)(reword(part) for part in text)
    if not isinstance(text, str) or not text or text.startswith(_MARK):
        return text
    return _MARK + "".join(p if p[:1] == "[" else p.translate(_VOWELS) for p in re.split(r"(\[[^\]]*\])", text))


class Speaker:
    """What every message goes through: it notes the place, and rewords it when it is chosen."""

    def __init__(self, *, at_import: bool = False) -> None:
        self.at_import = at_import
        self.chosen: frozenset[str] = frozenset()
        self.said: dict[str, str] = {}

    def say(self, place: str, text: Any, once: bool = False) -> Any:
        if text and not once:
            self.said.setdefault(place, str(text))
        return reword(text) if place in self.chosen or (once and self.at_import) else text

    def fields(self, owner: Any, kind: str, names: Sequence[str]) -> None:
        """Reword the fields of a record or data class that was just made."""
        for name in names:
            found = getattr(owner, name)
            told = self.say(f"{kind}.{name}", found)
            if told is not found and hasattr(type(owner), "__struct_fields__"):
                from msgspec.structs import force_setattr

                force_setattr(owner, name, told)
            elif told is not found:
                object.__setattr__(owner, name, told)


class Rewriter(ast.NodeTransformer):
    """Puts a call of the speaker around every message of a module."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.depth = 0  # of functions: what stands in none is said once, at import

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return self._said(node) if isinstance(node.value, str) and _is_text(node.value) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.expr:
        words = "".join(v.value for v in node.values if isinstance(v, ast.Constant) and isinstance(v.value, str))
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                part.value = self.visit(part.value)
        return self._said(node) if _is_text(words) else node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        node.left, node.comparators = self._looked(node.left), [self._looked(n) for n in node.comparators]
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if isinstance(node.func, ast.Attribute):
            node.func = self.visit(node.func)
            if node.func.attr in _LOOKS:
                node.args = [self._looked(n) for n in node.args]
                return node
        node.args = [self.visit(n) for n in node.args]
        for keyword in node.keywords:
            keyword.value = self.visit(keyword.value)
        return node

    def visit_Dict(self, node: ast.Dict) -> ast.expr:
        node.values = [self.visit(n) for n in node.values]
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        node.value = self.visit(node.value)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        node.value = self.visit(node.value) if node.value else None
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        return node if isinstance(node.value, ast.Constant) else self.generic_visit(node)  # a docstring

    def visit_Match(self, node: ast.Match) -> ast.stmt:
        node.subject = self.visit(node.subject)
        for case in node.cases:
            case.body = [self.visit(n) for n in case.body]
        return node

    def visit_FunctionDef(self, node: Any) -> Any:
        self.depth += 1
        node.body = [self.visit(n) for n in node.body]
        self.depth -= 1
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> ast.expr:
        self.depth += 1
        node.body = self.visit(node.body)
        self.depth -= 1
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.stmt:
        bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        if any(base.endswith("Enum") for base in bases):
            return node
        node.body = [self.visit(n) for n in node.body]
        own = [n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
        record = bool(bases & {"Struct", "Record"}) or any("dataclass" in ast.unparse(d) for d in node.decorator_list)
        texts = [name for name in own if name in TEXTS] + _NAMED.get(node.name, [])
        if record and texts:
            self._after_init(node, f"__speaker__.fields(self, {f'{self.module}.{node.name}'!r}, {texts!r})")
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                for name in [a.arg for a in method.args.args if a.arg in TEXTS]:
                    place = f"{self.module}.{node.name}.{name}"
                    method.body.insert(0, ast.parse(f"{name} = __speaker__.say({place!r}, {name})").body[0])
        return node

    def _after_init(self, node: ast.ClassDef, line: str) -> None:
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and method.name == "__post_init__":
                method.body.insert(0, ast.parse(line).body[0])
                return
        node.body.append(ast.parse(f"def __post_init__(self):\n    {line}").body[0])

    def _looked(self, node: ast.expr) -> ast.expr:
        """An operand that is looked for: its own words stay."""
        if isinstance(node, (ast.Constant, ast.JoinedStr)):
            return node
        if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
            node.elts = [self._looked(n) for n in node.elts]
            return node
        found: ast.expr = self.visit(node)
        return found

    def _said(self, node: ast.expr) -> ast.expr:
        place = ast.Constant(f"{self.module}:{node.lineno}:{node.col_offset}")
        say = ast.Attribute(ast.Name("__speaker__", ast.Load()), "say", ast.Load())
        return ast.copy_location(ast.Call(say, [place, node, ast.Constant(not self.depth)], []), node)


def _is_text(words: str) -> bool:
    return re.search(r"\w", words) is not None and " " in words.strip() + words[-1:]


def rewritten(source: str | bytes, module: str, path: str) -> CodeType:
    """A module's code, with every message going through the speaker."""
    return compile(ast.fix_missing_locations(Rewriter(module).visit(ast.parse(source))), path, "exec")


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return rewritten(self.get_data(path), fullname, path)


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] != "vggdeploy":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(fullname, spec.loader.path)
        return spec


def install(speaker: Speaker) -> None:
    """From here on the package is imported rewritten."""
    assert "vggdeploy" not in sys.modules
    vars(builtins)["__speaker__"] = speaker
    sys.meta_path.insert(0, _Finder())
