"""What all packages share: which variant goes in, checked copies of its files, and the record of what was written."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import cast

from vggdeploy._version import __version__
from vggdeploy.bundle import Bundle, FileRecord, Variant
from vggdeploy.bundle.store import now
from vggdeploy.engine.selection import choices
from vggdeploy.errors import UsageError, unknown_name
from vggdeploy.model.formats.admission import check_variant
from vggdeploy.records import SCHEMA_VERSION, Record, to_json
from vggdeploy.runtime.preflight import check_engine
from vggdeploy.system.files import atomic_directory, sha256_of
from vggdeploy.system.sealed import SealedFile
from vggdeploy.types import Verdict

MARKER = "vggdeploy-package.json"


class Package(Record, frozen=True, kw_only=True):
    """``vggdeploy-package.json``: what a package was made of, and what is in it.

    ``digest`` is that of the bundle's manifest; ``files`` has every other file of the package with its SHA-256.
    """

    schema_version: int = SCHEMA_VERSION
    target: str
    bundle: str
    digest: str
    variants: tuple[str, ...]
    created: str
    vggdeploy: str = __version__
    files: tuple[FileRecord, ...] = ()


class PackageReport(Record, frozen=True, kw_only=True):
    """What ``vggdeploy package --json`` prints: the directory, and the record of what is in it."""

    schema_version: int = SCHEMA_VERSION
    path: str
    package: Package


@dataclass(frozen=True)
class Made:
    """A package that was written, the commands to try next, and what has to be known to use it."""

    package: Package
    next: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Order:
    """What was asked for. ``None`` stands for a target's own default."""

    bundle: Bundle
    output: Path
    variants: tuple[str, ...] = ()
    name: str | None = None
    max_batch: int | None = None
    instances: int | None = None
    serve: bool | None = None
    runtime: Path | None = None
    prepare: bool | None = None
    image: str | None = None
    overwrite: bool = False

    def with_variant(self, name: str) -> Order:
        """The same order, for this variant."""
        return replace(self, variants=(name,))

    def record(self, target: str, variants: Sequence[Variant], files: tuple[FileRecord, ...]) -> Package:
        manifest = self.bundle.manifest
        return Package(
            target=target,
            bundle=manifest.name,
            digest=manifest.digest,
            variants=tuple(v.name for v in variants),
            created=now(),
            files=files,
        )


@contextmanager
def package_directory(order: Order) -> Iterator[Path]:
    """A directory to fill, which takes the output's place in one step; of what stands there only packages are replaced."""
    with atomic_directory(order.output, marker=MARKER, overwrite=order.overwrite) as root:
        yield root


def finish(root: Path, order: Order, target: str, variants: Sequence[Variant]) -> Package:
    """Hash what was written to ``root``, and write the record beside it."""
    package = order.record(target, variants, file_records(root))
    (root / MARKER).write_bytes(to_json(package))
    return package


def file_records(root: Path) -> tuple[FileRecord, ...]:
    """Every file below ``root`` but the marker, hashed."""
    paths = sorted(path for path in root.rglob("*") if path.is_file() and path.name != MARKER)
    return tuple(
        FileRecord(path=path.relative_to(root).as_posix(), sha256=sha256_of(path), size=path.stat().st_size)
        for path in paths
    )


def copy_checked(bundle: Bundle, relative: str, target: Path) -> None:
    """A copy of one file of the bundle: what is in the package is what the manifest names.

    Raises:
        IntegrityError: the file has other bytes.
    """
    with bundle.file(relative).open() as file:
        _copy(file, target)


def copy_variant(bundle: Bundle, variant: Variant, target: Path) -> None:
    """As `copy_checked`, of the file that runs; an engine has to be one of the library that its record names."""
    with bundle.main_file(variant).open() as file:
        check_engine(variant, file)
        _copy(file, target)


def _copy(file: SealedFile, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(file.path, target)
    except OSError as error:  # `shutil` names the source, also when it is the target's disk that is full
        raise OSError(error.errno, error.strerror, str(target)) from error


def variant_files(bundle: Bundle, variant: Variant) -> list[str]:
    """The files of a variant: all that lie in the directory of its main file."""
    home = PurePosixPath(variant.path).parent
    return [
        r.path
        for r in bundle.manifest.files
        if r.path == variant.path or (home.parts and home in PurePosixPath(r.path).parents)
    ]


def chosen_variants(order: Order, formats: Sequence[str], what: str) -> list[Variant]:
    """The variants that were named, or the one that is best on this machine; none that failed parity, of ``formats`` only.

    Raises:
        UsageError: a variant of another format, one that failed parity, an engine without weights, or none there.
        ForeignModelError: a model is not what vggdeploy writes; nothing of it is handed on.
    """
    manifest = order.bundle.manifest
    if order.variants:
        named = [manifest.variant(name) for name in dict.fromkeys(order.variants)]
    else:
        named = [c.variant for c in choices(order.bundle) if c.variant.format in formats][:1]
    fitting = [v.name for v in manifest.variants if v.format in formats and v.verdict is not Verdict.FAIL]
    hint = (
        f"name one of: {', '.join(fitting)}" if fitting else f"it takes {', '.join(formats)}: export or build one first"
    )
    if not named:
        raise UsageError(f"{order.bundle.root} has no variant that {what} takes", hint)
    for variant in named:
        if variant.format not in formats:
            raise UsageError(f"{what} does not take {variant.name}, which is {variant.format}", hint)
        if variant.verdict is Verdict.FAIL:
            raise UsageError(
                f"{variant.name} failed parity", f"see why: vggdeploy verify BUNDLE --variant {variant.name}"
            )
        if variant.build is not None and "strip" in variant.build.options:
            raise UsageError(
                f"{variant.name} was built without weights, and {what} does not pack the ONNX that has them",
                "build one with its weights: vggdeploy build BUNDLE",
            )
        check_variant(order.bundle, variant)
    return named


def chosen_variant(order: Order, formats: Sequence[str], what: str) -> Variant:
    """The one variant that goes in.

    Raises:
        UsageError: as `chosen_variants`, and for more than one.
    """
    chosen = chosen_variants(order, formats, what)
    if len(chosen) > 1:
        raise UsageError(f"{what} takes one variant, not {len(chosen)}", "name one with --variant")
    return chosen[0]


@dataclass(frozen=True)
class PackageKind:
    """A kind of package: which function writes it, and which settings of an `Order` it reads."""

    name: str
    module: str
    function: str
    settings: tuple[str, ...] = ()
    marker: str = MARKER

    def make(self, order: Order) -> Made:
        """Write the package.

        Raises:
            UsageError: a setting that this target would ignore.
        """
        for setting in ("name", "max_batch", "instances", "serve", "runtime", "prepare", "image"):
            if getattr(order, setting) is not None and setting not in self.settings:
                raise UsageError(
                    f"--{setting.replace('_', '-')} means nothing to the target {self.name}", "leave it out"
                )
        function = getattr(importlib.import_module(self.module), self.function)
        return cast("Callable[[Order], Made]", function)(order)


TARGETS: tuple[PackageKind, ...] = (
    PackageKind("triton", "vggdeploy.package.triton", "package_triton", ("name", "max_batch", "instances")),
    PackageKind("slim", "vggdeploy.package.slim", "package_slim", marker="manifest.json"),
    PackageKind("cpp", "vggdeploy.package.cpp", "package_cpp"),
    PackageKind("oci", "vggdeploy.package.oci", "package_oci", ("serve",)),
    PackageKind("kserve", "vggdeploy.package.kserve", "package_kserve", ("name", "max_batch", "instances", "image")),
    PackageKind("mlflow", "vggdeploy.package.mlflow", "package_mlflow"),
    PackageKind("bentoml", "vggdeploy.package.bentoml", "package_bentoml"),
    PackageKind("web", "vggdeploy.package.web", "package_web", ("name", "runtime", "prepare")),
)


_HABITS = {"docker": "oci", "container": "oci", "kubernetes": "kserve", "k8s": "kserve", "browser": "web"}


def get_target(name: str) -> PackageKind:
    """The target of that name.

    Raises:
        UsageError: there is none; the closest name is offered.
    """
    for target in TARGETS:
        if target.name == name.strip().lower():
            return target
    raise unknown_name("target", name, [t.name for t in TARGETS], meant=_HABITS.get(name.lower(), ""))
