"""The schema of ``manifest.json``: what a bundle holds, where it came from, and what was proven about it."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from vggdeploy.errors import BundleError, unknown_name
from vggdeploy.records import DEFAULT_THRESHOLDS, ParityRecord, Record, Thresholds, from_json
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.types import BatchRange, Precision, TensorSpec, Verdict

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1
REFERENCE = "torch-fp32"  # the checkpoint itself, run by PyTorch: what every variant is compared with


class FileRecord(Record, kw_only=True):
    """One file of the bundle: path relative to the bundle, with forward slashes; size in bytes."""

    path: str
    sha256: str
    size: int


class PrecisionProof(Record, kw_only=True):
    """Read back from what was built: convolution and matrix-product layers by type, and bytes of weights by type."""

    layers: dict[str, int]
    weight_bytes: dict[str, int]


class BuildRecord(Record, kw_only=True):
    """How an engine was built, and from which ONNX bytes."""

    library: str
    version: str
    source: str
    source_sha256: str
    targets: tuple[str, ...]
    options: dict[str, str]
    seconds: float


class Measurement(Record, kw_only=True):
    """Latency of a variant on one machine: median milliseconds a batch."""

    machine: str
    backend: str
    batch: int
    threads: int
    p50_ms: float


class Variant(Record, kw_only=True):
    """One exported, optimised or built model. ``path`` is its main file (for the reference: its directory)."""

    name: str
    format: str
    precision: Precision
    path: str
    batch: BatchRange
    proof: PrecisionProof | None = None
    build: BuildRecord | None = None
    parity: ParityRecord | None = None
    measured: tuple[Measurement, ...] = ()

    @property
    def verdict(self) -> Verdict:
        if self.name == REFERENCE:
            return Verdict.PASS
        return self.parity.verdict if self.parity else Verdict.UNPROVEN


class GoldenFiles(Record, kw_only=True):
    """The inputs and the reference's outputs that travel with the bundle: graph name → ``.npy`` file."""

    inputs: dict[str, str]
    outputs: dict[str, str]
    data: str


class Manifest(Record, kw_only=True):
    """The whole of ``manifest.json``."""

    schema_version: int = SCHEMA_VERSION
    name: str
    created: str
    spec: ModelSpec
    preprocess: PreprocessSpec
    labels: tuple[str, ...]
    input: TensorSpec
    outputs: tuple[TensorSpec, ...]
    golden: GoldenFiles
    variants: tuple[Variant, ...]
    dataset: str = ""
    thresholds: dict[str, Thresholds] = msgspec.field(default_factory=lambda: dict(DEFAULT_THRESHOLDS))
    tools: dict[str, str] = {}
    files: tuple[FileRecord, ...] = ()

    def variant(self, name: str) -> Variant:
        """The variant of that name.

        Raises:
            UsageError: there is none; the closest name is offered.
        """
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise unknown_name("variant", name, [v.name for v in self.variants])

    def candidates(self) -> Iterator[Variant]:
        """Every variant but the reference."""
        return (v for v in self.variants if v.name != REFERENCE)

    def with_variants(self, *changed: Variant) -> Manifest:
        """A copy in which ``changed`` variants replace those of the same name, or are appended."""
        by_name = {v.name: v for v in (*self.variants, *changed)}
        return msgspec.structs.replace(self, variants=tuple(by_name.values()))


class _Versioned(msgspec.Struct):
    schema_version: int


def parse_manifest(data: bytes, *, where: str) -> Manifest:
    """Decode and validate a manifest.

    Raises:
        BundleError: not JSON, cut short, of another schema version, or not of the schema.
    """
    what = f"{where}/{MANIFEST_NAME}"
    found = from_json(data, _Versioned, what=what).schema_version
    if found != SCHEMA_VERSION:
        newer = "update vggdeploy: pip install -U vggdeploy" if found > SCHEMA_VERSION else "export the bundle again"
        raise BundleError(f"{what} has schema version {found}; this vggdeploy reads version {SCHEMA_VERSION}", newer)
    manifest = from_json(data, Manifest, what=what)
    names = [v.name for v in manifest.variants]
    if len(set(names)) != len(names):
        raise BundleError(f"{what} lists a variant twice", "export the bundle again")
    if manifest.labels and len(manifest.labels) != manifest.spec.classes:
        raise BundleError(
            f"{what} has {len(manifest.labels)} labels for {manifest.spec.classes} classes", "export the bundle again"
        )
    return manifest
