"""Bias correction: rounding weights and activations shifts the mean of a layer's outputs, and its bias takes that back.

What the shift of each channel is, is measured on calibration images, layer by layer with the inputs that the FP32 network
gives it (Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019, section 4.2; they
estimate the means from batch norm, here they are measured).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from vggdeploy.errors import BuildError, first_line
from vggdeploy.optimize.steps.quantiser import WEIGHTED
from vggdeploy.runtime.onnxruntime.providers import EXACT_FP8, EXACT_INT8

Array = NDArray[Any]
_SHIFT = "_shift"
_ERRORS_ONLY = 3


def shifts(fp32: onnx.ModelProto, quantised: onnx.ModelProto, batches: Iterable[dict[str, Array]]) -> dict[str, Array]:
    """Name of a weighted node → mean of (quantised − FP32) of each of its output channels.

    Both graphs are used up: they become one, in which every quantised layer stands beside the FP32 one and gets its inputs.

    Raises:
        BuildError: ONNX Runtime refuses that graph.
    """
    graph = fp32.graph
    fp32_nodes = {node.name: node for node in graph.node if node.op_type in WEIGHTED}
    made_by = {name: node for node in quantised.graph.node for name in node.output}
    values = {tensor.name: tensor for tensor in quantised.graph.initializer}
    copied: set[str] = set()
    names: list[str] = []
    for node in [n for n in quantised.graph.node if n.op_type in WEIGHTED and n.name in fp32_nodes]:
        plain = fp32_nodes[node.name]
        pairs = [made_by.get(name) for name in node.input[:2]]
        if any(pair is None or pair.op_type != "DequantizeLinear" for pair in pairs):
            continue  # it stayed in FP32
        activation, weights = (pair for pair in pairs if pair is not None)
        round_trip = made_by[activation.input[0]]
        _copy(graph, values, copied, [*round_trip.input[1:], *weights.input])
        own = f"{node.name}_beside"
        graph.node.extend(
            [
                onnx.helper.make_node("QuantizeLinear", [plain.input[0], *round_trip.input[1:]], [f"{own}_q"]),
                onnx.helper.make_node("DequantizeLinear", [f"{own}_q", *round_trip.input[1:]], [f"{own}_x"]),
                _with(weights, list(weights.input), f"{own}_w"),
                # With the FP32 bias on both sides the difference is that of the products.
                _with(node, [f"{own}_x", f"{own}_w", *plain.input[2:]], f"{own}_y"),
                _with(plain, list(plain.input), f"{own}_p"),
                onnx.helper.make_node("Sub", [f"{own}_y", f"{own}_p"], [f"{own}_d"]),
                onnx.helper.make_node("ReduceMean", [f"{own}_d", f"{own}_axes"], [f"{node.name}{_SHIFT}"], keepdims=0),
            ]
        )
        # Over images, and over positions where there are any: what is left is the channel.
        axes = np.asarray([0, 2, 3] if node.op_type == "Conv" else [0], np.int64)
        graph.initializer.append(onnx.numpy_helper.from_array(axes, f"{own}_axes"))
        names.append(node.name)
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=f"{name}{_SHIFT}") for name in names)
    return _run(fp32, names, batches)


def _copy(graph: onnx.GraphProto, values: dict[str, Any], copied: set[str], names: Iterable[str]) -> None:
    for name in names:
        if name not in copied:
            graph.initializer.append(values[name])
            copied.add(name)


def _with(node: onnx.NodeProto, inputs: list[str], output: str) -> onnx.NodeProto:
    found = onnx.NodeProto()
    found.CopyFrom(node)
    del found.input[:], found.output[:]
    found.input.extend(inputs)
    found.output.append(output)
    found.name = output
    return found


def _run(model: onnx.ModelProto, names: list[str], batches: Iterable[dict[str, Array]]) -> dict[str, Array]:
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry(*EXACT_INT8)
    if any(tensor.data_type == onnx.TensorProto.FLOAT8E4M3FN for tensor in model.graph.initializer):
        options.graph_optimization_level = EXACT_FP8
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise BuildError(
            f"ONNX Runtime cannot measure biases: {first_line(error)}", "run with --debug and report it"
        ) from error
    sums: dict[str, Array] = {}
    images = 0
    for batch in batches:
        size = len(next(iter(batch.values())))
        for name, mean in zip(names, session.run([f"{name}{_SHIFT}" for name in names], batch), strict=True):
            sums[name] = sums.get(name, 0) + mean.astype(np.float64) * size
        images += size
    return {name: total / images for name, total in sums.items()}


def corrected(fp32: onnx.ModelProto, found: Mapping[str, Array]) -> onnx.ModelProto:
    """``fp32`` with the shifts of `shifts` taken off its biases: quantised, its layers have the FP32 network's means."""
    values = {tensor.name: tensor for tensor in fp32.graph.initializer}
    for node in fp32.graph.node:
        if node.name in found and len(node.input) > 2:
            bias = values[node.input[2]]
            new = onnx.numpy_helper.to_array(bias) - found[node.name]
            bias.CopyFrom(onnx.numpy_helper.from_array(new.astype(np.float32), bias.name))
    return fp32
