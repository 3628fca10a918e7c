"""Recipes as TOML files: those that come with the package, and those that users write. Torch-free."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from vggdeploy.errors import UsageError, first_line, unknown_name
from vggdeploy.system.files import read_regular
from vggdeploy.train.recipe import CUSTOM_NAMES, LIKE_INIT, NETWORK, Recipe

BUILT_IN = ("classic", "modern", "fast", "textbook")
_MAX_BYTES = 2**20
_STEP_ONLY = {"step_every", "step_factor"}
_DISTILL_ONLY = {"temperature", "distill_weight"}


def resolve_recipe(source: str | Recipe | None, changes: Mapping[str, Any]) -> Recipe:
    """A complete recipe: the values of ``source`` (a built-in name, a TOML file, or another recipe; none for the defaults),
    and over them ``changes``.

    Raises:
        UsageError: no such recipe, not TOML, an unknown key (with the closest match), a value of another type, or
            values that cannot work together.
    """
    if isinstance(source, Recipe):  # complete: only what changes is still to be looked at
        return _converted({**msgspec.to_builtins(source), **changes}, "the options")
    where = "the options" if source is None else f"recipe {source}"
    values = {} if source is None else _read(source)
    _check_keys(values, where)
    # What is given on the line wins over the file's, also where the two ways of naming a network meet.
    if "blocks" in changes and changes["blocks"] and "arch" not in changes:
        base = str(values.get("arch", Recipe().arch))
        values["arch"] = CUSTOM_NAMES[base.endswith("bn")]
    elif changes.get("arch") == LIKE_INIT:
        values = {name: value for name, value in values.items() if name not in NETWORK}
    elif "arch" in changes and changes["arch"] not in CUSTOM_NAMES and "blocks" not in changes:
        values.pop("blocks", None)
    elif values.get("blocks") and "arch" not in values:
        values["arch"] = CUSTOM_NAMES[1]
    merged = {**values, **changes}
    recipe = _converted(merged, where)
    given = _STEP_ONLY & merged.keys()
    if given and recipe.schedule != "step":
        raise UsageError(
            f"{' and '.join(sorted(given))} mean nothing to the schedule {recipe.schedule}", "add --schedule step"
        )
    given = _DISTILL_ONLY & merged.keys()
    if given and not recipe.distill:
        raise UsageError(f"{' and '.join(sorted(given))} mean nothing without a teacher", "add --distill CHECKPOINT")
    given = set(NETWORK) & merged.keys()
    if given and recipe.arch == LIKE_INIT:
        raise UsageError(
            f"{' and '.join(sorted(given))} would change the network of {recipe.init}", "leave it out, or --arch init"
        )
    return recipe


def _converted(values: Mapping[str, Any], where: str) -> Recipe:
    try:
        return msgspec.convert(values, Recipe)
    except msgspec.ValidationError as error:
        raise _type_error(error, values, where) from error


def to_toml(recipe: Recipe) -> str:
    """The recipe as a file that `resolve_recipe` reads back: every field that says something, in the order of the
    reference."""
    idle = set() if recipe.schedule == "step" else _STEP_ONLY
    idle = idle if recipe.distill else idle | _DISTILL_ONLY
    idle = idle | set(NETWORK) if recipe.arch == LIKE_INIT else idle
    lines = []
    for name, value in msgspec.to_builtins(recipe).items():
        if value is not None and name not in idle:  # TOML has no null: what is absent is not given
            # A JSON string, number, boolean or array of strings is the same text in TOML.
            lines.append(f"{name} = {msgspec.json.encode(value).decode()}")
    return "\n".join(lines) + "\n"


def _read(source: str) -> dict[str, Any]:
    if source in BUILT_IN:
        text = files("vggdeploy.train").joinpath("recipes", f"{source}.toml").read_text(encoding="utf-8")
        return tomllib.loads(text)
    if not source.endswith(".toml") and not Path(source).exists():
        raise unknown_name("recipe", source, (*BUILT_IN, "FILE.toml"))
    try:
        return tomllib.loads(read_regular(source, limit=_MAX_BYTES).decode())
    except OSError as error:
        raise UsageError(f"recipe {source} cannot be read: {error.strerror}", "give the path of a TOML file") from error
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, a number of 5,000 digits, brackets without end
        hint = 'write one value a line, as in: dataset = "digits"'
        raise UsageError(f"recipe {source} is not TOML: {first_line(error)}", hint) from error


def _check_keys(values: Iterable[str], where: str) -> None:
    for key in values:
        if key not in Recipe.__struct_fields__:
            error = unknown_name("key", key, Recipe.__struct_fields__)
            raise UsageError(f"{where}: {error.cause}", error.hint)


def _type_error(error: msgspec.ValidationError, values: Mapping[str, Any], where: str) -> UsageError:
    """One line from msgspec's ``Expected `int`, got `str` - at `$.epochs```; unknown names get the closest match."""
    text = first_line(error)
    found = re.search(r"`\$\.(\w+)", text)
    name = found[1] if found else ""
    value = values.get(name)
    allowed = _names_of(name)
    for given in value if isinstance(value, (list, tuple)) else [value]:
        if allowed and isinstance(given, str) and given not in allowed:
            return unknown_name(name.replace("_", " "), given, allowed)
    expected = re.search(r"Expected `([^`]+)`", text)
    kind = {"int": "a whole number", "float": "a number", "str": "a text in quotes", "bool": "true or false"}
    hint = f"give {kind.get(expected[1], expected[1])}" if expected else "see docs/reference/recipe.md"
    return UsageError(f"{where}: {name or 'a value'} is {value!r}", hint)


def _names_of(field: str) -> tuple[str, ...]:
    """The names that a field may have, where it takes one of a few."""
    kind = next((f.type for f in msgspec.inspect.type_info(Recipe).fields if f.name == field), None)  # type: ignore[attr-defined]
    kind = getattr(kind, "item_type", kind)
    return tuple(map(str, kind.values)) if isinstance(kind, msgspec.inspect.LiteralType) else ()
