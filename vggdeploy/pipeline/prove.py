"""Prove variants against references, and write the verdicts down."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from vggdeploy.bundle import REFERENCE, Bundle, Manifest, Variant
from vggdeploy.bundle.precision import by_type
from vggdeploy.errors import ParityError
from vggdeploy.memory import release_memory
from vggdeploy.optional import version
from vggdeploy.parity import Reference, compare
from vggdeploy.parity.compare import unproven
from vggdeploy.pipeline.limits import Limits
from vggdeploy.pipeline.readback import check_precision, read_products
from vggdeploy.records import ParityRecord
from vggdeploy.runtime import backend_for, open_session, runnable
from vggdeploy.runtime.registry import default_device
from vggdeploy.types import Device, ImageSource, OnProgress, Verdict

_TOOLS = (
    *("vggdeploy", "torch", "torchvision", "onnx", "onnxscript", "numpy", "pillow", "safetensors"),
    *("onnxruntime", "onnxruntime-gpu", "openvino", "nncf", "tensorrt", "tensorrt-rtx", "mlcommons-loadgen"),
)


def tool_versions() -> dict[str, str]:
    """The versions of all that takes part, for the records."""
    found = {name: version(name) for name in _TOOLS}
    return {name: text for name, text in found.items() if text}


def prove(
    bundle: Bundle,
    variant: Variant,
    references: Iterable[Reference],
    threads: int | None,
    on_progress: OnProgress,
    limits: Limits | None = None,
    device: Device | None = None,
) -> list[ParityRecord]:
    """The variant against each reference, or one ``unproven`` record where it cannot run.

    Its precision is read back from the file first. One that is not what was asked for fails every record.
    """
    where = device or default_device(backend_for(variant))
    on_progress(None, f"proving {variant.name}")
    products = read_products(bundle, variant)
    try:
        check_precision(variant, products)
        wrong = ""
    except ParityError as error:
        wrong = error.cause
    found = runnable(variant, where)
    if found.runs:
        thresholds = (limits or Limits()).over(bundle.manifest.thresholds[variant.precision])
        with open_session(bundle, variant, device=where, threads=threads) as session:
            records = [
                compare(session, reference, bundle, variant, where, thresholds=thresholds)
                for reference in references
                if reference.source is not ImageSource.SYNTHETIC
            ]
        release_memory()
    else:
        records = [unproven(variant, f"{found.reason}; {found.fix}", where)]
    counts = by_type(products or ())
    return [_with_products(record, counts, wrong) for record in records]


def _with_products(record: ParityRecord, products: dict[str, int], wrong: str) -> ParityRecord:
    if not wrong:
        return msgspec.structs.replace(record, products=products)
    reasons = (wrong, *record.reasons)
    return msgspec.structs.replace(record, products=products, verdict=Verdict.FAIL, reasons=reasons)


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
