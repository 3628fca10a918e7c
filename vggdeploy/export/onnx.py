"""Export to one self-contained ONNX file, and the writer that streams its weights one tensor at a time."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch

from vggdeploy.bundle import PrecisionProof
from vggdeploy.errors import BuildError, first_line
from vggdeploy.model.deployable import Deployable, example_input
from vggdeploy.model.detector_graph import DetectorGraph
from vggdeploy.model.outputs import INPUT
from vggdeploy.runtime.tiny_onnx import varint
from vggdeploy.types import BatchRange, TensorSpec

# Nodes of training, or that should have been folded away.
_FORBIDDEN = frozenset({"Dropout", "BatchNormalization", "SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"})
_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
_BF16_OPSET = (
    22  # the first in which convolutions and pools take bfloat16; all other files are of the exporter's own choice
)
_SMALL = 1024  # bytes; shapes and scalars below it stay in the skeleton, where shape inference reads them
_NAMES = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8"}


def export_onnx(
    module: Deployable | DetectorGraph, path: Path, *, image: TensorSpec, batch: BatchRange
) -> PrecisionProof:
    """Write ``module`` (batch norm already folded, in evaluation mode) as one ONNX file.

    Weights go from torch to the file one tensor at a time: the model is never in memory a second time.

    Returns:
        What the graph holds: convolution and matrix-product nodes by type, weight bytes by type.

    Raises:
        BuildError: the exporter or the checker refused the model, or a training node is left.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's notes on its own internals
            program = torch.onnx.export(
                module,
                (example_input(image, samples=2),),
                dynamo=True,
                input_names=[INPUT],
                output_names=list(module.names),
                dynamic_shapes={INPUT: {0: torch.export.Dim("N", min=1, max=batch.max)}},
                external_data=False,
                verbose=False,
                opset_version=_BF16_OPSET if module.dtype is torch.bfloat16 else None,
            )
        if program is None:
            raise BuildError("the exporter returned no model", "run with --debug and report it")
        proto, weights = _split(program.model)
        _check(proto, weights)
    except (
        RuntimeError,
        ValueError,
        TypeError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as e:
        raise BuildError(
            f"the model cannot be exported to ONNX: {first_line(e)}", "run with --debug and report it"
        ) from e
    write_model(proto, weights, path)
    return _proof(proto, weights)


def _split(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """The graph without its weights, and the weights by name. Stack traces and source lines are left out."""
    values = [*model.graph.inputs, *model.graph.initializers.values(), *(v for n in model.graph for v in n.outputs)]
    for item in (model, model.graph, *model.graph, *values):
        item.metadata_props.clear()
        item.doc_string = None
    weights: dict[str, ir.TensorProtocol] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > _SMALL:
            weights[name] = tensor
            del model.graph.initializers[name]
            value.const_value = None  # the exporter keeps its graph alive; it must not keep the weights
    return ir.to_proto(model), weights


def _check(proto: onnx.ModelProto, weights: dict[str, ir.TensorProtocol]) -> None:
    """ONNX's checker with full shape inference, on the graph with typed inputs in place of its weights."""
    forbidden = sorted({node.op_type for node in proto.graph.node} & _FORBIDDEN)
    if forbidden:
        raise BuildError(f"the ONNX graph still holds {', '.join(forbidden)}", "run with --debug and report it")
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(proto)
    skeleton.graph.input.extend(
        onnx.helper.make_tensor_value_info(name, int(t.dtype), list(t.shape.numpy())) for name, t in weights.items()
    )
    onnx.checker.check_model(skeleton, full_check=True)


def _proof(proto: onnx.ModelProto, weights: dict[str, ir.TensorProtocol]) -> PrecisionProof:
    def name(dtype: int) -> str:
        text = onnx.TensorProto.DataType.Name(dtype).lower()
        return _NAMES.get(text, text)

    small = {t.name: t.data_type for t in proto.graph.initializer}
    types = {key: int(tensor.dtype) for key, tensor in weights.items()} | small
    layers: Counter[str] = Counter(name(types[node.input[1]]) for node in proto.graph.node if node.op_type in _WEIGHTED)
    sizes: Counter[str] = Counter()
    for tensor in weights.values():
        sizes[name(int(tensor.dtype))] += tensor.nbytes
    return PrecisionProof(layers=dict(layers), weight_bytes=dict(sizes))


_LENGTH_DELIMITED = 2
_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW_DATA = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number


def _prefix(field: int, length: int) -> bytes:
    """Tag and length of a length-delimited field."""
    return varint(field << 3 | _LENGTH_DELIMITED) + varint(length)


def write_model(proto: onnx.ModelProto, weights: Mapping[str, ir.TensorProtocol], path: Path) -> None:
    """Write ``proto`` with ``weights`` appended to its graph's initialisers, one tensor at a time."""
    graph = proto.graph.SerializeToString(deterministic=True)
    heads: list[bytes] = []
    for name, tensor in weights.items():
        described = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
        head = described.SerializeToString(deterministic=True) + _prefix(_RAW_DATA, tensor.nbytes)
        heads.append(_prefix(_INITIALIZER, len(head) + tensor.nbytes) + head)
    total = len(graph) + sum(len(head) + t.nbytes for head, t in zip(heads, weights.values(), strict=True))
    outer = onnx.ModelProto()
    outer.CopyFrom(proto)
    outer.ClearField("graph")
    with path.open("wb") as file:
        file.write(outer.SerializeToString(deterministic=True))
        file.write(_prefix(_GRAPH, total))
        file.write(graph)
        for head, tensor in zip(heads, weights.values(), strict=True):
            file.write(head)
            file.write(np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data)
