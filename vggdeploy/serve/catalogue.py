"""Which bundles a server has, under which names, and the settings of each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vggdeploy.bundle import MANIFEST_NAME
from vggdeploy.bundle.manifest import parse_manifest
from vggdeploy.bundle.store import MAX_MANIFEST_BYTES, Bundle
from vggdeploy.bundle.trust import Trust, signer_rules
from vggdeploy.errors import UsageError, VggdeployError, unknown_name
from vggdeploy.serve.settings import Settings
from vggdeploy.system.files import read_regular

# What one model of several may have otherwise than the others.
OWN = ("backend", "variant", "device", "threads", "max_batch", "max_delay_ms", "queue", "max_pixels")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Place:
    """A bundle's directory, and what its model is called and served with. ``name`` is "" for the manifest's own name."""

    name: str
    settings: Settings

    @property
    def path(self) -> Path:
        return Path(self.settings.bundle)

    def stamp(self) -> Stamp | None:
        """What changes when another version of the bundle stands there; None where none does."""
        return _stamp(self.path)


def places(settings: Settings) -> list[Place]:
    """The bundles that a server is asked for, in their order; a directory of bundles counts as those that are in it now.

    One bundle by itself has its manifest's name. Of several, one that is given by its path has it too, one that was found
    in a directory has its folder's name, and ``NAME=PATH`` names any.

    Raises:
        UsageError: two of one name, a name that cannot stand in a URL, a setting of a model or a field that there is not;
            a shadow or drift, which go with one bundle, and there are more.
    """
    given = (settings.bundle, *settings.also)
    found: list[tuple[str, Path]] = []
    for text in given:
        name, path = _named(text)
        inside = [] if name or (path / MANIFEST_NAME).exists() else _inside(path)
        found += [(each.name, each) for each in inside] or [(name, path)]
    if not settings.several and len(found) == 1 and not found[0][0]:
        return [Place("", msgspec.structs.replace(settings, bundle=str(found[0][1])))]
    if len(found) > 1:
        settings.check_not_alone()
    named = [(name or _name_of(path), path) for name, path in found]
    _check_names(named)
    own = _overrides(settings.own, {name for name, _ in named})
    return [Place(name, _settings_of(settings, path, own.get(name, {}))) for name, path in named]


def shadow_place(settings: Settings) -> Place | None:
    """The shadow's bundle with its own settings, ``shadow.FIELD=VALUE``; without one of its own its variant is the best that
    there is. None where there is no shadow.

    Raises:
        UsageError: as `places`.
    """
    if settings.shadow is None:
        return None
    found = _overrides(settings.own, {"shadow"}).get("shadow", {})
    alone = msgspec.structs.replace(settings, shadow=None, variant=None, threads=None, own=())
    return Place("shadow", _settings_of(alone, Path(settings.shadow), found))


def check_others(settings: Settings) -> None:
    """Find a slip before anything is served; the first bundle is opened anyway.

    Raises:
        Errors of `Bundle.open`, of the manifests and signatures; errors of `places`.
    """
    trust = signer_rules(Trust(settings.trusted_keys) if settings.trusted_keys else None)
    for place in places(settings)[1:]:
        Bundle.open(place.path, only=(), trust=trust)


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    return (name, Path(path)) if equals and not Path(text).exists() else ("", Path(text))


def _inside(path: Path) -> list[Path]:
    """The bundles in a directory; none where it is no directory."""
    try:
        inside = sorted(path.iterdir())
    except OSError:
        return []
    return [each for each in inside if not each.name.startswith(".") and (each / MANIFEST_NAME).is_file()]


def _name_of(path: Path) -> str:
    """The manifest's name; of a bundle that cannot be read, which is told when it is opened, its folder's."""
    try:
        data = read_regular(str(path / MANIFEST_NAME), limit=MAX_MANIFEST_BYTES)
        return parse_manifest(data, where=str(path)).name
    except (OSError, VggdeployError):
        return path.resolve().name


def _stamp(path: Path) -> Stamp | None:
    try:
        found = (path / MANIFEST_NAME).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _check_names(named: list[tuple[str, Path]]) -> None:
    seen: dict[str, Path] = {}
    for name, path in named:
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"'{name}' cannot name a model ({path})", "letters, digits, '.', '_' and '-': NAME=PATH gives another"
            )
        if name in seen:
            raise UsageError(f"{seen[name]} and {path} are both called '{name}'", f"name one: OTHER={path}")
        seen[name] = path


def _overrides(given: tuple[str, ...], names: set[str]) -> dict[str, dict[str, str]]:
    """``NAME.FIELD=VALUE`` → the fields of each model, as text."""
    found: dict[str, dict[str, str]] = {}
    for text in given:
        target, equals, value = text.partition("=")
        name, dot, field = target.rpartition(".")
        if not (equals and dot and name and value):
            raise UsageError(f"'{text}' sets nothing", "give NAME.SETTING=VALUE, for example digits.queue=64")
        if name not in names:
            raise unknown_name("model", name, names)
        field = field.replace("-", "_")
        if field not in OWN:
            raise unknown_name("setting", field, OWN)
        found.setdefault(name, {})[field] = value
    return found


def _settings_of(settings: Settings, path: Path, own: dict[str, str]) -> Settings:
    fields = {**msgspec.to_builtins(settings), **own, "bundle": str(path), "also": (), "own": (), "memory": None}
    try:
        return msgspec.convert(fields, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: {error}", "see the settings: vggdeploy serve --help") from None
