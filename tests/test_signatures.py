"""No function takes more than eight parameters. A command takes as many as it has options, and so does ``vggdeploy.load``:
it is to an application what a command is to a shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import vggdeploy
from vggdeploy.cli.app import app

MOST = 8
ROOT = Path(vggdeploy.__file__).parent


def functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Name and number of parameters of each function; ``self`` and ``cls`` do not count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            a = node.args
            named = [p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if p is not None]
            yield node.name, sum(name not in ("self", "cls") for name in named)


def told(tree: ast.AST) -> Iterator[str]:
    """The annotation of each parameter and field that is called ``on_progress``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.arg == "on_progress":
            yield ast.unparse(node.annotation) if node.annotation else ""
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "on_progress":
            yield ast.unparse(node.annotation)


def commands() -> set[tuple[str, str]]:
    """File and name of each function that the command line calls."""
    called = [command.callback for command in app.registered_commands if command.callback]
    return {(f"{c.__module__.removeprefix('vggdeploy.').replace('.', '/')}.py", c.__name__) for c in called}


def test_no_function_but_a_command_takes_more_than_eight_parameters() -> None:
    over = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in ROOT.rglob("*.py")
        for name, count in functions(ast.parse(path.read_text()))
        if count > MOST
    }
    assert not over - commands() - {("engine/engine.py", "load")}
    assert over & commands()  # else the commands were not found, and the line above says nothing


def test_every_long_function_tells_its_progress_in_the_one_form() -> None:
    files = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in ROOT.rglob("*.py")}
    forms = {name: found for name, tree in files.items() if (found := set(told(tree)))}
    assert {name: found for name, found in forms.items() if found != {"OnProgress"}} == {}
    assert len(forms) > 10  # else they were not found, and the line above says nothing
    defined = [
        name
        for name, tree in files.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "OnProgress"
    ]
    assert defined == ["types.py"]
