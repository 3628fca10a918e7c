"""Prove variants against references, and write the verdicts down."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vggdeploy.bundle import REFERENCE, Bundle, Manifest, Variant, update_bundle
from vggdeploy.bundle.store import now
from vggdeploy.errors import UsageError
from vggdeploy.files import check_writable
from vggdeploy.memory import release_memory
from vggdeploy.optional import version
from vggdeploy.parity import Reference, compare, reference_outputs
from vggdeploy.parity.compare import golden_reference, unproven
from vggdeploy.pipeline.layers import localise
from vggdeploy.pipeline.samples import DEFAULT_SAMPLES, SYNTHETIC, load_samples, to_input
from vggdeploy.records import ParityRecord, ParityReport, Thresholds
from vggdeploy.runtime import backend_for, open_session, runnable
from vggdeploy.runtime.registry import default_device
from vggdeploy.types import Verdict

_TOOLS = (
    *("vggdeploy", "torch", "torchvision", "onnx", "onnxscript", "numpy", "pillow", "safetensors"),
    *("onnxruntime", "onnxruntime-gpu", "openvino", "nncf", "tensorrt", "tensorrt-rtx", "mlcommons-loadgen"),
)
_SLIM = "this slim bundle has no FP32 reference here: only its answers to the golden pair are compared with"

Stage = Callable[[str], None]


@dataclass(frozen=True)
class Limits:
    """Limits of the caller, each in place of the manifest's: as `Thresholds` has them, None for the manifest's."""

    relative_l2: float | None = None
    flip_rate: float | None = None
    accuracy_drop: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"a limit of {value} for the {name.replace('_', ' ')}", "give a number from 0 to 1")

    def over(self, thresholds: Thresholds) -> Thresholds:
        changed = {name: value for name, value in vars(self).items() if value is not None}
        return msgspec.structs.replace(thresholds, **changed)


def tool_versions() -> dict[str, str]:
    """The versions of all that takes part, for the records."""
    found = {name: version(name) for name in _TOOLS}
    return {name: text for name, text in found.items() if text}


def prove(
    bundle: Bundle,
    variant: Variant,
    references: Iterable[Reference],
    threads: int | None,
    on_stage: Stage,
    limits: Limits | None = None,
) -> list[ParityRecord]:
    """The variant against each reference, or one ``unproven`` record where it cannot run."""
    device = default_device(backend_for(variant))
    found = runnable(variant, device)
    if not found.runs:
        return [unproven(variant, f"{found.reason}; {found.fix}", device)]
    on_stage(f"proving {variant.name}")
    distinct = {r.data: r for r in references if not r.data.startswith(SYNTHETIC)}
    with open_session(bundle, variant, device=device, threads=threads) as session:
        thresholds = (limits or Limits()).over(bundle.manifest.thresholds[variant.precision])
        records = [
            compare(session, reference, bundle, variant, device, thresholds=thresholds)
            for reference in distinct.values()
        ]
    release_memory()
    return records


def with_parity(manifest: Manifest, records: Sequence[ParityRecord], note: str = "") -> Manifest:
    """The manifest with the last record of each variant (the one with the most images) written to it."""
    changed = {}
    for record in records:
        if record.variant == REFERENCE:
            continue
        reasons = (*record.reasons, note) if note else record.reasons
        written = msgspec.structs.replace(record, reasons=reasons, tools=tool_versions())
        changed[record.variant] = msgspec.structs.replace(manifest.variant(record.variant), parity=written)
    return manifest.with_variants(*changed.values())


def exit_code(report: ParityReport) -> int:
    """0 when nothing failed and everything that ran was decided, else 3. What cannot run here is not a failure here."""
    return 3 if report.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE) else 0


def verify_bundle(
    bundle: Bundle,
    *,
    variants: Sequence[str] = (),
    data: str = "",
    samples: int | None = DEFAULT_SAMPLES,
    data_dir: Path | None = None,
    threads: int | None = None,
    record: bool = False,
    limits: Limits | None = None,
    layers: bool = False,
    on_stage: Stage = lambda text: None,
) -> ParityReport:
    """Prove the variants again, here: on the golden pair, and on real test images where torch and a data set are.

    The reference itself is checked against the golden outputs too: another torch or CPU must not move it.

    Args:
        variants: names; default all.
        data: a data set's name; default the one that the model was trained on.
        record: write the verdicts to the bundle's manifest.
        limits: in place of the manifest's thresholds, for this run.
        layers: look for the layer at which each ONNX variant that fails leaves the reference.

    A slim bundle has no reference: its golden pair is the whole proof, and every record says so.

    Raises:
        BundleError: ``data`` or ``layers`` for a slim bundle.
    """
    manifest = bundle.manifest
    slim = manifest.origin is not None
    if slim and (data or layers):
        manifest.reference()  # says why there is none
    if record:
        check_writable(bundle.root)
    wanted = [manifest.variant(name) for name in variants] or list(manifest.variants)
    references = [golden_reference(bundle)]
    reference = None if slim else manifest.reference()
    if reference is not None and runnable(reference).runs and (data or manifest.dataset):
        chosen = load_samples(data or manifest.dataset, manifest, limit=samples, data_dir=data_dir)
        on_stage(f"running the FP32 reference on {len(chosen.images)} images")
        images = to_input(chosen.images, manifest)
        with open_session(bundle, reference, threads=threads) as session:
            references.append(reference_outputs(session, images, data=chosen.data, labels=chosen.labels))
    records: list[ParityRecord] = []
    for variant in wanted:
        against = references[:1] if variant.name == REFERENCE else references
        records += prove(bundle, variant, against, threads, on_stage, limits)
    if slim:
        records = [_with_reason(r, _SLIM) for r in records]
    if record:
        with update_bundle(bundle) as draft:
            draft.manifest = with_parity(manifest, records)
    found = tuple(localise(bundle, name, threads=threads) for name in _failed_onnx(manifest, records)) if layers else ()
    return ParityReport(bundle=str(bundle.root), created=now(), variants=tuple(records), layers=found)


def _with_reason(record: ParityRecord, reason: str) -> ParityRecord:
    return msgspec.structs.replace(record, reasons=(*record.reasons, reason))


def _failed_onnx(manifest: Manifest, records: Sequence[ParityRecord]) -> list[str]:
    """ONNX variants that failed, each once."""
    names = dict.fromkeys(r.variant for r in records if r.verdict is Verdict.FAIL)
    return [name for name in names if manifest.variant(name).format == "onnx"]
