"""Results read back from the JSON that ``verify``, ``bench`` and ``evaluate`` print, of this schema version and older ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from vggdeploy.errors import InputError, UsageError, first_line, nearby
from vggdeploy.records import RESULT_VERSION, BenchReport, ParityReport, SearchReport, check_numbers, from_json
from vggdeploy.records.conclusions import ComparisonReport
from vggdeploy.records.evaluation import EvaluationReport
from vggdeploy.records.fit import FitReport
from vggdeploy.records.gpu import GpuReport
from vggdeploy.records.gpu_day import GpuDay
from vggdeploy.records.profile import ProfileReport
from vggdeploy.records.shadow import ShadowReport
from vggdeploy.system.files import read_regular

_MAX_BYTES = 256 * 2**20
_MAKE = "give what these print: vggdeploy verify BUNDLE --json, vggdeploy bench BUNDLE --json, vggdeploy evaluate BUNDLE --json"


Result = (
    ParityReport
    | BenchReport
    | EvaluationReport
    | GpuReport
    | GpuDay
    | SearchReport
    | ProfileReport
    | FitReport
    | ComparisonReport
    | ShadowReport
)
# A document is of the first kind whose fields it has; none of them is in a document of another kind.
_KINDS: tuple[tuple[frozenset[str], type[Any]], ...] = (
    (frozenset({"roof", "times", "macs"}), GpuReport),
    (frozenset({"steps", "gpu", "packages"}), GpuDay),
    (frozenset({"rows", "baseline"}), BenchReport),
    (frozenset({"rows", "old", "new"}), ComparisonReport),
    (frozenset({"profiles", "threads"}), ProfileReport),
    (frozenset({"confused", "accuracy"}), EvaluationReport),
    (frozenset({"trials", "frontier", "goal"}), FitReport),
    (frozenset({"trials", "front", "goal"}), SearchReport),
    (frozenset({"served", "shadow", "compared"}), ShadowReport),
    (frozenset({"bundle", "variants"}), ParityReport),
)


@dataclass(frozen=True)
class Document:
    """A result and the file it was read from."""

    path: Path
    result: Result


@dataclass(frozen=True)
class Results:
    """Everything that one report is about, by kind, in the order given."""

    documents: tuple[Document, ...]

    @property
    def parity(self) -> list[ParityReport]:
        return [d.result for d in self.documents if isinstance(d.result, ParityReport)]

    @property
    def bench(self) -> list[BenchReport]:
        return [d.result for d in self.documents if isinstance(d.result, BenchReport)]

    @property
    def evaluations(self) -> list[EvaluationReport]:
        return [d.result for d in self.documents if isinstance(d.result, EvaluationReport)]

    @property
    def gpu(self) -> list[GpuReport]:
        return [d.result for d in self.documents if isinstance(d.result, GpuReport)]

    @property
    def profiles(self) -> list[ProfileReport]:
        return [d.result for d in self.documents if isinstance(d.result, ProfileReport)]

    @property
    def shadows(self) -> list[ShadowReport]:
        return [d.result for d in self.documents if isinstance(d.result, ShadowReport)]

    @property
    def gpu_days(self) -> list[GpuDay]:
        return [d.result for d in self.documents if isinstance(d.result, GpuDay)]

    @property
    def comparisons(self) -> list[ComparisonReport]:
        return [d.result for d in self.documents if isinstance(d.result, ComparisonReport)]

    @property
    def searches(self) -> list[SearchReport]:
        return [d.result for d in self.documents if isinstance(d.result, SearchReport)]

    @property
    def fits(self) -> list[FitReport]:
        return [d.result for d in self.documents if isinstance(d.result, FitReport)]


def read_results(paths: Sequence[Path]) -> Results:
    """Read several results; a file that holds the same bytes as one before it counts once.

    Raises:
        InputError, BundleError: as `read_document`.
    """
    seen: set[bytes] = set()
    documents = []
    for path in paths:
        data = _read(path)
        if data not in seen:
            documents.append(Document(path, parse_document(data, path)))
        seen.add(data)
    return Results(tuple(documents))


def read_document(path: Path) -> Result:
    """One result.

    Raises:
        InputError: no such file, not JSON, no result, or a result of a newer schema version.
        BundleError: a result with a field missing, of a wrong type, or unknown.
    """
    return parse_document(_read(path), path)


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, limit=_MAX_BYTES)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}", f"{nearby(path)}{_MAKE}") from error


def _in_tera_ops(value: Any) -> Any:
    """A document in which ``giga_ops``, as earlier versions wrote them, are ``tera_ops``."""
    if isinstance(value, list):
        return [_in_tera_ops(part) for part in value]
    if not isinstance(value, dict):
        return value
    old = value.get("giga_ops")
    rest = {name: _in_tera_ops(part) for name, part in value.items() if name != "giga_ops"}
    return rest | {"tera_ops": old / 1e3} if isinstance(old, (int, float)) else rest


def parse_document(data: bytes, path: Path) -> Result:
    """`read_document`, from bytes."""
    try:
        check_numbers(data)
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, UsageError) as error:
        cause = error.cause if isinstance(error, UsageError) else f"it is not JSON: {first_line(error)}"
        raise InputError(f"{path} cannot be read: {cause}", _MAKE) from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a result", _MAKE)
    version = found.get("schema_version")
    kind = next((kind for fields, kind in _KINDS if fields <= found.keys()), None)
    if kind is None or not isinstance(version, int):
        raise InputError(
            f"{path} is not a result of verify, bench, compare, evaluate, search or a GPU day, nor of a shadow", _MAKE
        )
    if version > RESULT_VERSION:
        raise InputError(
            f"{path} has schema version {version}; this vggdeploy reads up to version {RESULT_VERSION}",
            "install a newer vggdeploy, from its repository or a wheel",
        )
    if b'"giga_ops"' in data:
        data = msgspec.json.encode(_in_tera_ops(found))
    result: Result = from_json(data, kind, what=str(path))
    return result
