"""Where a variant goes wrong: every intermediate output of an ONNX file beside the reference's, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from vggdeploy.errors import BuildError
from vggdeploy.parity.metrics import OutputStats
from vggdeploy.records import LayerParity, LayerReport
from vggdeploy.types import Precision

PREPROCESS = "preprocess"
# What one layer may add to the error of the one before: rounding of that precision, with room for cancellation.
_NOISE = {Precision.FP32: 1e-5, Precision.FP16: 5e-3, Precision.BF16: 4e-2, Precision.INT8: 1.5e-1}
_JUMP = 5.0
_QUIET = 3


def tapped(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, str]:
    """Layer name → the graph's tensor, for the named outputs that the graph computes, in its order.

    The graph is a VGG's: the k-th convolution is the k-th ``convB_I`` of ``names``, and likewise for ReLU, pool and fully
    connected layer. ``preprocess`` is what enters the first convolution, as FP32.
    """
    known = {layer: [n for n in names if n.startswith(layer)] for layer in ("conv", "relu", "pool")}
    dense = [n for n in names if n.startswith("fc")] + ["logits"]
    nodes = list(model.graph.node)
    found: dict[str, str] = {}
    counts = {"Conv": 0, "Relu": 0, "MaxPool": 0}
    lists = {"Conv": known["conv"], "Relu": known["relu"], "MaxPool": known["pool"]}
    for node in nodes:
        if node.op_type == "Conv" and PREPROCESS not in found and not counts["Conv"]:
            entering = _without_casts(nodes, node.input[0])
            if entering != model.graph.input[0].name:
                found[PREPROCESS] = entering
        if _is_first_factor(node):
            continue
        if node.op_type in lists and counts[node.op_type] < len(lists[node.op_type]):
            found[lists[node.op_type][counts[node.op_type]]] = node.output[0]
        elif node.op_type == "Relu":  # after the convolutions' come those of fc6 and fc7
            found[dense[counts["Relu"] - len(known["relu"])]] = node.output[0]
        elif node.op_type == "Gemm" and counts["Relu"] == len(known["relu"]) + len(dense) - 1:
            found["logits"] = node.output[0]  # behind the last ReLU: before it fc6 and fc7 may be two products each
        if node.op_type in counts:
            counts[node.op_type] += 1
    return found


def _is_first_factor(node: onnx.NodeProto) -> bool:
    """Whether a convolution is the 3×1 one of a product: the layer's answer is what the 1×3 one behind it makes."""
    kernels = [list(a.ints) for a in node.attribute if a.name == "kernel_shape"]
    return node.op_type == "Conv" and kernels == [[3, 1]]


def _without_casts(nodes: Sequence[onnx.NodeProto], tensor: str) -> str:
    """The tensor before a cast to the precision of the convolutions."""
    made_by = {out: node for node in nodes for out in node.output}
    node = made_by.get(tensor)
    return node.input[0] if node is not None and node.op_type == "Cast" else tensor


def run_taps(path: Path, names: Sequence[str], images: NDArray[Any], threads: int | None) -> Iterator[tuple[str, Any]]:
    """Layer name → its output for ``images``, in the graph's order.

    Raises:
        BuildError: the graph is not a VGG's: its layers cannot be told.
    """
    model = onnx.load(path)
    taps = tapped(model, names)
    if not any(name.startswith("conv") for name in taps):
        raise BuildError(
            f"{path.name} has no convolutions that could be named", "--layers reads ONNX that 'export' wrote"
        )
    present = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=t) for t in dict.fromkeys(taps.values()) if t not in present)
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET
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
    threads: int | None = None,
) -> LayerReport:
    """Every layer that both have, in order, and the first one whose error jumps.

    Args:
        path: the ONNX file.
        images: the graph's input.
        reference: layer name → the FP32 reference's output for ``images``.
    """
    rows: list[LayerParity] = []
    for name, found in run_taps(path, list(reference), images, threads):
        if name not in reference:
            continue
        finite = bool(np.isfinite(found).all())
        stats = OutputStats(name)
        # float16's infinities stay out of the sums; the row says that they were there.
        stats.update(reference[name], np.nan_to_num(found.astype(np.float32), posinf=65504, neginf=-65504))
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
