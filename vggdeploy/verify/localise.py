"""Finding the layer at which an ONNX variant goes wrong.

Each layer of the file is run alone, on what the reference feeds that layer: its error is its own, and does not add up. Three
things are looked at. Its operations and their settings; its weights and biases, each of which may be half a step of the
file's precision from the checkpoint's; and what it makes beside what the network's operation makes with the file's own
numbers, so that rounding hides nothing.
"""

from __future__ import annotations

import numpy as np
import onnx

from vggdeploy.bundle import Bundle
from vggdeploy.errors import BuildError, ForeignModelError, UsageError, VggdeployError
from vggdeploy.model.formats.admission import admit
from vggdeploy.model.layers import layers_of
from vggdeploy.model.weights import new_with_weights
from vggdeploy.preprocess import normalise
from vggdeploy.records import LayerReport
from vggdeploy.runtime import open_session
from vggdeploy.runtime.sessions import run_batch
from vggdeploy.system.machine import release_memory
from vggdeploy.system.optional import require
from vggdeploy.types import Precision
from vggdeploy.verify.examination import Examination
from vggdeploy.verify.segments import Graph

_IMAGES = 32
_BYTES = 32 * 2**20  # of the largest layer's outputs


def localise(
    bundle: Bundle, variant: str, *, threads: int | None = None, images: int = _IMAGES, certain: bool = False
) -> LayerReport:
    """Run every layer of an ONNX variant alone, on so many golden images, and compare it with the checkpoint's.

    With ``certain`` a layer is named only for its operations and its weights: no choice of calibration images explains those.

    Raises:
        UsageError: the variant is not ONNX.
        BuildError: the graph is not a VGG's: its layers cannot be told; or its layers do not run alone (BF16, a global pool).
        BundleError: a slim bundle, which has no reference.
        MissingDependencyError: torch or onnx is not installed.
    """
    for module in ("torch", "onnx"):
        require(module, to="compare layers", extra="train")
    manifest = bundle.manifest
    chosen = manifest.variant(variant)
    # OpenVINO's variants run the file of an ONNX one, and may compute in another precision than it.
    source = next((v for v in manifest.variants if v.path == chosen.path and v.format == "onnx"), None)
    if source is None:
        raise UsageError(
            f"{variant} is not ONNX, and --layers reads only ONNX", "verify the ONNX variant that it was built from"
        )
    if source.precision is Precision.BF16:
        raise BuildError(
            f"no CPU runs the layers of {source.name} one by one: ONNX Runtime has no bf16 arithmetic there",
            "build an engine of it, and verify that on its GPU",
        )
    if manifest.spec.head_pool != "none":
        raise BuildError(
            f"the head of this network takes the {manifest.spec.head_pool} of a map: its layers cannot be run one by one",
            "the answers are compared all the same: vggdeploy verify BUNDLE",
        )
    with bundle.main_file(manifest.reference()).open() as weights, bundle.main_file(source).open() as file:
        try:
            admit(manifest, source, file)
            foreign = ""
        except ForeignModelError as error:  # it is read, and no library runs any of it
            foreign = error.cause
        model = new_with_weights(manifest.spec, weights)
        graph = Graph(onnx.load(file.path, load_external_data=False))
    largest = max(int(np.prod(layer.shape)) * 4 for layer in layers_of(manifest.spec))
    given = bundle.golden()[0][manifest.input.name][: min(images, max(1, _BYTES // largest))]
    pixels = given
    if manifest.input.dtype == "uint8":
        pixels = normalise(given.astype(np.uint8, copy=False), manifest.preprocess)
    method = source.quantisation.method if source.quantisation else ""
    examined = Examination(graph, model, source.precision, given, method=method, threads=threads)
    if foreign:
        examined.look(foreign)
    else:
        examined.run(pixels)
    if not examined.findings and not foreign:
        try:
            with open_session(bundle, chosen, threads=threads) as session:
                examined.add_shipped(run_batch(session, given[: session.batch.max]))
        except VggdeployError as error:
            examined.note = f"; {error.cause}"
    release_memory()
    culprit, evidence, reason = examined.verdict(certain=certain)
    return LayerReport(
        variant=variant,
        precision=chosen.precision,
        layers=tuple(examined.rows.values()),
        culprit=culprit,
        evidence=evidence,
        reason=reason,
    )
