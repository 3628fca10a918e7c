"""Finding the layer at which an ONNX variant goes wrong: its intermediate outputs are compared with the reference's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from vggdeploy.bundle import Bundle
from vggdeploy.errors import BuildError, UsageError
from vggdeploy.model.outputs import PROBABILITIES, output_layers, output_specs
from vggdeploy.parity.metrics import OutputStats
from vggdeploy.parity.products import KEY, PRODUCTS, sorted_nodes
from vggdeploy.parity.reference import sample_bytes
from vggdeploy.preprocess import normalise
from vggdeploy.records import LayerParity, LayerReport
from vggdeploy.runtime import open_session
from vggdeploy.runtime.onnxruntime.providers import EXACT_INT8
from vggdeploy.runtime.sessions import run_batch
from vggdeploy.system.machine import release_memory
from vggdeploy.system.optional import require
from vggdeploy.types import Precision
from vggdeploy.verify.readback import layer_names

PREPROCESS, LOGITS = "preprocess", "logits"
# What hands values on, rounded or not.
_PASSING = ("Cast", "Identity", "QuantizeLinear", "DequantizeLinear")
# What one layer may add to the error of the one before: rounding of that precision, with room for cancellation.
_NOISE = {Precision.FP32: 1e-5, Precision.FP16: 5e-3, Precision.BF16: 4e-2, Precision.INT8: 3e-2}
_JUMP = 5.0
_ERRORS_ONLY = 3  # ONNX Runtime's log severity
_BYTES = 256 * 2**20  # of the reference's intermediate outputs
_IMAGES = 8


def tapped(model: onnx.ModelProto, layers: dict[str, str]) -> dict[str, str]:
    """Layer name → the graph's tensor that holds its output, in the graph's order.

    A convolution or matrix product is known by the weights that it reads; of one that is a product of two factors the
    last one counts. ``reluB_I``, ``fc6`` and ``fc7`` are what its ReLU makes; ``preprocess`` is what enters the first
    convolution, before any cast or quantisation.

    Args:
        layers: state-dict prefix → the layer's name, such as ``features.8`` → ``conv3_2``.
    """
    users: dict[str, list[onnx.NodeProto]] = {}
    makers: dict[str, onnx.NodeProto] = {}
    nodes = sorted_nodes(model.graph.node)
    for node in nodes:
        makers |= dict.fromkeys(node.output, node)
        for name in node.input:
            users.setdefault(name, []).append(node)
    tensors: dict[str, str] = {}
    pools = 0
    for node in nodes:
        if node.op_type == "MaxPool":
            pools += 1
            tensors[f"pool{pools}"] = node.output[0]
        elif node.op_type in PRODUCTS and (layer := _layer_of(node, makers, layers)):
            if not tensors and (entering := _before(node.input[0], makers)) != model.graph.input[0].name:
                tensors[PREPROCESS] = entering
            made = _biased(node, users)
            active = _activation(made, users)
            if layer.startswith("conv"):
                relu = layer.replace("conv", "relu", 1)
                tensors.pop(relu, None)
                tensors = _last(tensors, layer, made) | ({relu: active} if active else {})
            else:
                tensors = _last(tensors, layer, active if active and layer != LOGITS else made)
    return tensors


def _last(tensors: dict[str, str], name: str, tensor: str) -> dict[str, str]:
    return {key: value for key, value in tensors.items() if key != name} | {name: tensor}


def _layer_of(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto], layers: dict[str, str]) -> str:
    """The layer whose weights a product reads: what they are called before they are dequantised, cast or transposed."""
    weight = node.input[1]
    while (maker := makers.get(weight)) is not None and maker.input:
        weight = maker.input[0]
    key = KEY.search(weight)
    return layers.get(key[1], "") if key else ""


def _before(tensor: str, makers: dict[str, onnx.NodeProto]) -> str:
    """The tensor before casts and quantisation."""
    while (node := makers.get(tensor)) is not None and node.op_type in _PASSING:
        tensor = node.input[0]
    return tensor


def _biased(node: onnx.NodeProto, users: dict[str, list[onnx.NodeProto]]) -> str:
    """What a product makes, with the bias that is added behind it."""
    after = users.get(node.output[0], [])
    added = node.op_type == "MatMul" and len(after) == 1 and after[0].op_type == "Add"
    return str(after[0].output[0] if added else node.output[0])


def _activation(tensor: str, users: dict[str, list[onnx.NodeProto]]) -> str | None:
    """What the ReLU behind a product makes; None without one.

    A quantiser that rounds to a range from 0 needs no ReLU, and takes it away: then it is what comes out of the pair.
    """
    rounded = None
    while after := {node.op_type: node for node in users.get(tensor, [])}:
        if "Relu" in after:
            return str(after["Relu"].output[0])
        passing = next((after[kind] for kind in _PASSING if kind in after), None)
        if passing is None:
            break
        tensor = passing.output[0]
        if passing.op_type == "DequantizeLinear":
            rounded = tensor
    return rounded


def run_taps(
    path: Path, layers: dict[str, str], images: NDArray[Any], threads: int | None
) -> Iterator[tuple[str, Any]]:
    """Layer name → its output for ``images``, in the graph's order.

    Raises:
        BuildError: the graph is not a VGG's: its layers cannot be told.
    """
    model = onnx.load(path)
    taps = tapped(model, layers)
    if not any(name.startswith("conv") for name in taps):
        raise BuildError(
            f"{path.name} has no convolution that is recognised",
            "give an ONNX file that 'vggdeploy export' wrote",
        )
    present = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=t) for t in dict.fromkeys(taps.values()) if t not in present)
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry(*EXACT_INT8)
    options.intra_op_num_threads = threads or 0
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = session.run(list(taps.values()), {model.graph.input[0].name: images})
    return iter(zip(taps, outputs, strict=True))


def compare_layers(
    path: Path,
    variant: str,
    precision: Precision,
    images: NDArray[Any],
    reference: dict[str, NDArray[Any]],
    *,
    layers: dict[str, str],
    threads: int | None = None,
) -> LayerReport:
    """Every layer that both have, in order, and the first one whose error jumps.

    Args:
        path: the ONNX file.
        images: the graph's input.
        reference: layer name → the FP32 reference's output for ``images``.
        layers: state-dict prefix → the layer's name.
    """
    rows: list[LayerParity] = []
    for name, output in run_taps(path, layers, images, threads):
        if name not in reference:
            continue
        finite = bool(np.isfinite(output).all())
        stats = OutputStats(name)
        # float16's infinities stay out of the sums; the row says that they were there.
        stats.update(reference[name], np.nan_to_num(output.astype(np.float32), posinf=65504, neginf=-65504))
        result = stats.result()
        rows.append(
            LayerParity(
                layer=name,
                relative_l2=result.relative_l2,
                max_abs=result.max_abs,
                cosine_min=result.cosine_min,
                largest=float(np.abs(reference[name]).max(initial=0)),
                finite=finite,
            )
        )
    culprit, reason = find_culprit(rows, precision)
    return LayerReport(variant=variant, precision=precision, layers=tuple(rows), culprit=culprit, reason=reason)


def find_culprit(rows: Sequence[LayerParity], precision: Precision) -> tuple[str | None, str]:
    """The first layer with a NaN or infinity, else the first whose error is well above that of the layer before it."""
    before = 0.0
    for row in rows:
        if not row.finite:
            return (
                row.layer,
                f"{row.layer} overflows: it holds a NaN or infinity (the reference's largest is {row.largest:.3g})",
            )
        allowed = _JUMP * max(before, _NOISE[precision])
        if row.relative_l2 > allowed:
            return row.layer, (
                f"the error jumps at {row.layer}: relative L2 {row.relative_l2:.2g} after {before:.2g} in the layer before"
            )
        before = max(before, row.relative_l2)
    return None, "no layer's error jumps: what there is grows from layer to layer"


def localise(bundle: Bundle, variant: str, *, threads: int | None = None) -> LayerReport:
    """Compare every named layer of an ONNX variant with the reference on the first golden images.

    Raises:
        UsageError: the variant is not ONNX.
        BundleError: a slim bundle, which has no reference.
        MissingDependencyError: torch or onnx is not installed.
    """
    for module in ("torch", "onnx"):
        require(module, to="compare layers", extra="train")

    manifest = bundle.manifest
    chosen = manifest.variant(variant)
    if chosen.format != "onnx":
        raise UsageError(
            f"{variant} is not ONNX, and --layers reads only ONNX", "verify the ONNX variant that it was built from"
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
