"""The schema of ``manifest.json``: what a bundle holds, where it came from, and what was proven about it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any

import msgspec

from vggdeploy.bundle.variant import REFERENCE, Sha256, Variant
from vggdeploy.errors import BundleError, IntegrityError, counted, unknown_name
from vggdeploy.records import CEILINGS, ParityRecord, Record, Thresholds, from_json, to_json
from vggdeploy.records.drift import Population
from vggdeploy.records.schema import json_schema
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.types import Precision, TensorSpec, Verdict

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1
UNSEALED = "0" * 64  # what stands in the place of the digest while the digest is computed


class FileRecord(Record, frozen=True, kw_only=True):
    """One file of the bundle: path relative to the bundle, with forward slashes; size in bytes."""

    path: str
    sha256: Sha256
    size: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class GoldenFiles(Record, frozen=True, kw_only=True):
    """The inputs and the reference's outputs that travel with the bundle: graph name → ``.npy`` file.

    ``stress`` are its outputs for the first of `vggdeploy.parity.stress.stress_images`, which are made by formula.
    ``files`` are encoded images, ``prepared`` the PNG with what ``decoder`` made of them at export, one below the other, and
    ``normalised`` the array of what the 256 levels of each channel become. Empty in bundles older than these fields.
    """

    inputs: dict[str, str]
    outputs: dict[str, str]
    data: str
    stress: dict[str, str] = {}
    files: tuple[str, ...] = ()
    prepared: str = ""
    normalised: str = ""
    decoder: str = ""

    @property
    def pair(self) -> tuple[str, ...]:
        """The files of the golden pair, its stress set included."""
        return (*self.inputs.values(), *self.outputs.values(), *self.stress.values())

    @property
    def anchor(self) -> tuple[str, ...]:
        """The encoded files, and what they became."""
        return (*self.files, *filter(None, (self.prepared, self.normalised)))


class ReferenceAccuracy(Record, frozen=True, kw_only=True):
    """What the reference had right when the bundle was exported: ``hits`` of ``samples`` test images of a data set."""

    dataset: str
    samples: Annotated[int, msgspec.Meta(ge=1)]
    hits: Annotated[int, msgspec.Meta(ge=0)]


class Origin(Record, frozen=True, kw_only=True):
    """The bundle that a slim one was cut from, by name and digest, and the hash of the FP32 weights it left behind."""

    bundle: str
    digest: Sha256
    reference_sha256: Sha256


class Manifest(Record, frozen=True, kw_only=True):
    """The whole of ``manifest.json``.

    ``digest``: SHA-256 of the file itself with zeros for the 64 digits of the digest. As the manifest holds the hash of
    every other file, the digest names the whole bundle. It finds rot and hand edits; against malice there are signatures.
    ``population``: what its test images and the reference's answers to them are like; ``reference_accuracy``: both None where
    no such images were there, and in bundles older than the fields. ``origin``: of a
    slim bundle, which has no FP32 reference; every other bundle has one.
    """

    schema_version: int = SCHEMA_VERSION
    digest: Sha256 = UNSEALED
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
    thresholds: dict[str, Thresholds] = msgspec.field(default_factory=lambda: dict(CEILINGS))
    tools: dict[str, str] = {}
    files: tuple[FileRecord, ...] = ()
    origin: Origin | None = None
    reference_accuracy: ReferenceAccuracy | None = None
    population: Population | None = None

    def variant(self, name: str) -> Variant:
        """The variant of that name.

        Raises:
            UsageError: there is none; the closest name is offered.
        """
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise unknown_name("variant", name, [v.name for v in self.variants])

    def sha256(self, relative: str) -> str:
        """The recorded hash of a file; for a directory, of its largest file (the weights). "" where there is none."""
        inside = [r for r in self.files if is_in(r.path, relative)]
        return max(inside, key=lambda record: record.size).sha256 if inside else ""

    def limits(self, precision: Precision) -> Thresholds:
        """What a variant is judged by: the stricter of the manifest's limits and the package's ceiling."""
        return CEILINGS[precision].stricter(self.thresholds[precision])

    def reference(self) -> Variant:
        """The FP32 model that every variant is compared with.

        Raises:
            BundleError: a slim bundle, which has none.
        """
        if self.origin is not None:
            raise BundleError(
                f"{self.name} is a slim bundle: its FP32 reference stayed in {self.origin.bundle} ({self.origin.digest[:12]}…)",
                "use the bundle that it was cut from; here the golden pair is the proof",
            )
        return self.variant(REFERENCE)

    def candidates(self) -> Iterator[Variant]:
        """Every variant but the reference."""
        return (v for v in self.variants if v.name != REFERENCE)

    def with_variants(self, *changed: Variant) -> Manifest:
        """A copy in which ``changed`` variants replace those of the same name, or are appended. A precision that the manifest
        has no thresholds for, since it is newer than the bundle, comes with the package's."""
        by_name = {v.name: v for v in (*self.variants, *changed)}
        thresholds = dict(self.thresholds)
        for variant in changed:
            thresholds.setdefault(variant.precision, CEILINGS[variant.precision])
        return msgspec.structs.replace(self, variants=tuple(by_name.values()), thresholds=thresholds)


class _Versioned(msgspec.Struct):
    schema_version: int


def seal(manifest: Manifest) -> bytes:
    """The bytes of ``manifest.json``, with its digest filled in."""
    data = to_json(msgspec.structs.replace(manifest, digest=UNSEALED))
    return _with_digest(data, _digest_of(data))


def parse_manifest(data: bytes, *, where: str) -> Manifest:
    """Decode and validate a manifest.

    Raises:
        BundleError: not JSON, cut short, of another schema version, not of the schema, or contradicting itself.
        IntegrityError: it was altered: its digest does not fit.
    """
    what = f"{where}/{MANIFEST_NAME}"
    try:
        version = from_json(data, _Versioned, what=what).schema_version
        if version != SCHEMA_VERSION:
            newer = (
                "install a newer vggdeploy, from its repository or a wheel"
                if version > SCHEMA_VERSION
                else "export the bundle again"
            )
            raise BundleError(
                f"{what} has schema version {version}; this vggdeploy reads version {SCHEMA_VERSION}", newer
            )
        manifest = from_json(data, Manifest, what=what)
    except ArithmeticError as error:  # numbers so large that the spec cannot compute with them
        raise BundleError(f"{what} cannot be read: {error}", "restore it from its source") from error
    if _digest_of(_with_digest(data, UNSEALED)) != manifest.digest:
        raise IntegrityError(
            f"{what} was altered: its SHA-256 is not its digest",
            "restore the bundle from its source, or export it again",
        )
    _check_sense(manifest, data, what)
    return _without_foreign_proofs(manifest)


def _without_foreign_proofs(manifest: Manifest) -> Manifest:
    """A proof belongs to the bytes that ran: where a variant's file is another one, nothing is proven about it. A failure
    stays one until somebody proves the opposite."""
    changed = []
    for variant in manifest.variants:
        proof, sha256 = variant.parity, manifest.sha256(variant.path)
        believed = proof is not None and proof.verdict in (Verdict.PASS, Verdict.INCONCLUSIVE)
        if proof is not None and believed and proof.sha256 != sha256:
            reason = (
                f"the proof on record is of other bytes (SHA-256 {proof.sha256[:12]}…, the file has {sha256[:12]}…)"
            )
            replaced = ParityRecord(
                variant=variant.name,
                backend=proof.backend,
                device=proof.device,
                verdict=Verdict.UNPROVEN,
                reasons=(reason,),
            )
            changed.append(msgspec.structs.replace(variant, parity=replaced, measured=()))
    return manifest.with_variants(*changed)


def is_in(path: str, directory: str) -> bool:
    """Whether ``path`` is ``directory``, or lies below it."""
    return path == directory or path.startswith(f"{directory}/")


_DIGEST = re.compile(rb'(?<="digest": ")[0-9a-f]{64}(?=")')


def _with_digest(data: bytes, digest: str) -> bytes:
    return _DIGEST.sub(digest.encode(), data, count=1)


def _digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _check_sense(manifest: Manifest, data: bytes, what: str) -> None:
    """Refuse what fits the schema and makes no sense: it would fail later, far from its cause."""

    def check(holds: bool, cause: str) -> None:
        if not holds:
            raise BundleError(f"{what} {cause}", "export the bundle again")

    try:
        json.loads(data, object_pairs_hook=_without_twins)
    except KeyError as twin:
        check(False, f"has the key {twin} twice in one object")
    except ValueError as error:  # what the two readers do not both take, such as a number of 5,000 digits
        check(False, f"cannot be read: {error}")
    names = [v.name for v in manifest.variants]
    check(len(set(names)) == len(names), "lists a variant twice")
    check(
        (REFERENCE in names) == (manifest.origin is None),
        "has to have either its FP32 reference or the origin of a cut",
    )
    check(bool(names), "lists no variant")
    paths = [f.path for f in manifest.files]
    check(len(set(paths)) == len(paths), "lists a file twice")
    tensors = (manifest.input, *manifest.outputs)
    check(len(tensors) > 1 and len({t.name for t in tensors}) == len(tensors), "needs outputs, and a name for each")
    for tensor in tensors:
        sizes = tensor.shape[1:]
        good = tensor.shape[:1] == ("N",) and all(isinstance(n, int) and n >= 1 for n in sizes)
        check(good and tensor.dtype in ("uint8", "float32"), f"has {tensor}, which describes no input or output")
    known = manifest.reference_accuracy
    check(known is None or known.hits <= known.samples, "says that the reference was right more often than asked")
    golden = manifest.golden
    check(
        len({bool(golden.files), bool(golden.prepared), bool(golden.normalised)}) == 1, "has half of its golden files"
    )
    for variant in manifest.variants:
        check(variant.precision in manifest.thresholds, f"has no thresholds for {variant.precision}")
        # Nothing in a graph says TF32, so a file could hide behind its limits. The checkpoint's cannot: it is the reference.
        tf32 = variant.precision is Precision.TF32
        checkpoint = variant.format == "checkpoint"
        check(
            not tf32 or variant.build is not None or checkpoint,
            f"says of {variant.name} what only engines and the checkpoint are: tf32",
        )
        check(
            not checkpoint or (variant.path == "checkpoint" and variant.precision in (Precision.FP32, Precision.TF32)),
            f"says that {variant.name} is the checkpoint, which it is not",
        )
        check(_is_one_range(variant), f"lists profiles of {variant.name} that are not its batch range")
    classes = manifest.spec.classes
    check(len(manifest.labels) in (0, classes), f"has {counted(len(manifest.labels), 'label')} for {classes} classes")
    side, channels = manifest.preprocess.crop, manifest.preprocess.channels
    wanted = {"uint8": (side, side, channels), "float32": (channels, side, side)}.get(manifest.input.dtype)
    check(wanted == manifest.input.item_shape, f"has the input {manifest.input}, which its preprocessing does not make")


def _is_one_range(variant: Variant) -> bool:
    """Whether its profiles follow each other, and are all of its batch sizes."""
    profiles = variant.profiles
    follow = all(after.min == before.max + 1 for before, after in pairwise(profiles))
    return follow and (profiles[0].min, profiles[-1].max) == (variant.batch.min, variant.batch.max)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object that has a key twice: one JSON reader takes the first, another the last."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        keys = [key for key, _ in pairs]
        raise KeyError(next(key for key in keys if keys.count(key) > 1))
    return fields


def manifest_schema() -> dict[str, Any]:
    """What no schema can say (that labels fit classes, …) `parse_manifest` checks."""
    return json_schema(Manifest, f"manifest.json of a vggdeploy bundle, schema version {SCHEMA_VERSION}")
