"""What `vggdeploy` gives to those who import it, and what its files keep to themselves."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
from test_circles import PACKAGE, imported, modules

import vggdeploy
from vggdeploy import UsageError

SURFACE = Path(vggdeploy.__file__)


def named_for_types() -> dict[str, str]:
    """Name → module of what ``__init__`` imports for type checkers."""
    tree = ast.parse(SURFACE.read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    return {
        alias.name: (node.module or "").removeprefix("vggdeploy.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_the_three_lists_of_public_names_agree() -> None:
    assert vggdeploy.__all__ == sorted(vggdeploy.__all__)
    assert set(vggdeploy.__all__) == {*vggdeploy._HOMES, *vggdeploy._VERBS, "__version__"}
    assert set(named_for_types()) == {*vggdeploy._HOMES, *vggdeploy._VERBS}


@pytest.mark.parametrize("name", sorted(vggdeploy._HOMES))
def test_a_public_name_is_found_late_where_type_checkers_find_it(name: str) -> None:
    module = __import__(f"vggdeploy.{named_for_types()[name]}", fromlist=[name])
    assert getattr(vggdeploy, name) is getattr(module, name)


@pytest.mark.parametrize("name", vggdeploy._VERBS)
def test_a_verb_is_a_function_and_a_room_and_neither_hides_the_other(name: str) -> None:
    from vggdeploy import verbs

    for _ in "before", "after":
        verb, function = getattr(vggdeploy, name), getattr(verbs, name)
        assert callable(verb)
        assert inspect.signature(verb) == inspect.signature(function)
        assert named_for_types()[name] == "verbs"
        with pytest.raises(UsageError, match="the option 'ouverwrite' is unknown"):
            verb("nothing", "nowhere", ouverwrite=True) if name == "export" else verb("nothing", ouverwrite=True)
        rooms = [module.name for module in pkgutil.iter_modules(verb.__path__)]
        assert len(rooms) > 3
        importlib.import_module(f"vggdeploy.{name}.{rooms[0]}")  # binds the folder to its name in the package


def test_dir_lists_the_public_names_and_an_unknown_one_is_refused() -> None:
    assert dir(vggdeploy) == sorted(vggdeploy.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Enigne'"):
        vggdeploy.Enigne  # noqa: B018  # the access is what is tested


def test_no_module_imports_a_private_name_of_another() -> None:
    taken = [
        f"{name} takes {private} of {base}"
        for name, (tree, package) in modules(PACKAGE).items()
        for base, private in imported(name, tree, package)
        if base.startswith("vggdeploy") and private.startswith("_") and not private.startswith("__")
    ]
    assert [line for line in taken if "takes _version of vggdeploy" not in line] == []
