"""Find the layer at which a variant leaves the reference."""

from __future__ import annotations

import numpy as np

from vggdeploy.bundle import Bundle
from vggdeploy.errors import UsageError
from vggdeploy.memory import release_memory
from vggdeploy.model.outputs import PROBABILITIES, output_layers, output_specs
from vggdeploy.optional import require
from vggdeploy.parity.reference import sample_bytes
from vggdeploy.pipeline.readback import layer_names
from vggdeploy.preprocess import normalise
from vggdeploy.records import LayerReport
from vggdeploy.runtime import open_session
from vggdeploy.runtime.batches import run_batch

_BYTES = 256 * 2**20  # of the reference's intermediate outputs
_IMAGES = 8


def localise(bundle: Bundle, variant: str, *, threads: int | None = None) -> LayerReport:
    """Compare every named layer of an ONNX variant with the reference on the first golden images.

    Raises:
        UsageError: the variant is not ONNX.
        BundleError: a slim bundle, which has no reference.
        MissingDependencyError: torch or onnx is not installed.
    """
    for module in ("torch", "onnx"):
        require(module, to="compare layers", extra="train")
    from vggdeploy.parity.layers import PREPROCESS, compare_layers

    manifest = bundle.manifest
    chosen = manifest.variant(variant)
    if chosen.format != "onnx":
        raise UsageError(
            f"{variant} is not ONNX", "--layers looks into ONNX variants: verify the one it was built from"
        )
    names = [name for name in output_layers(manifest.spec) if name != PROBABILITIES]
    specs = output_specs(manifest.spec, names)
    images = bundle.golden()[0][manifest.input.name]
    count = min(_IMAGES, len(images), max(1, _BYTES // sum(map(sample_bytes, specs))))
    images = images[:count]
    with open_session(bundle, manifest.reference(), threads=threads, outputs=specs) as session:
        reference = run_batch(session, images)
    if manifest.input.dtype == "uint8":
        reference = {PREPROCESS: normalise(images.astype(np.uint8, copy=False), manifest.preprocess)} | reference
    report = compare_layers(
        bundle.path(chosen.path),
        variant,
        chosen.precision,
        images,
        reference,
        layers=layer_names(manifest.spec),
        threads=threads,
    )
    release_memory()
    return report
