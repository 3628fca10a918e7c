"""INT8 by ONNX Runtime's static quantiser: ranges are measured once, and serve CPUs and TensorRT.

The graph gets Q/DQ pairs, and every runtime fuses them into INT8 kernels of its own. CPUs multiply unsigned activations
with signed weights (AVX-512 VNNI's one instruction, which AMX and AVX-VNNI kept), TensorRT multiplies signed with signed,
and only symmetric: zero is 0.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData, create_calibrator
from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX

from vggdeploy.bundle import PrecisionProof
from vggdeploy.bundle.precision import computes_in
from vggdeploy.errors import BuildError, ParityError, first_line, unknown_name
from vggdeploy.optimize.steps.fp8 import to_fp8
from vggdeploy.optimize.steps.headroom import fit_pairs
from vggdeploy.system.sealed import shown
from vggdeploy.types import Precision

Array = NDArray[Any]

METHODS = {
    "min-max": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
# Bins of a histogram, and those that a range is judged by: TensorRT's (S. Migacz, 8-bit inference with TensorRT, 2017).
_BINS, _LEVELS = 2048, 128
_COPIES = 2.5  # of the model, that the calibrator writes
WEIGHTED = ("Conv", "Gemm", "MatMul")
# What a product computes in, by the type that both its factors were dequantised from.
_CODES = {TensorProto.INT8: "int8", TensorProto.UINT8: "int8", TensorProto.FLOAT8E4M3FN: "fp8"}
_STORED = {"float32": "fp32", "float8_e4m3fn": "fp8", "int8": "int8", "uint8": "int8", "int32": "int32"}
# What only moves or selects values computes in INT8, too, where what comes in is INT8.
_MOVING = ("Relu", "MaxPool", "Reshape", "Flatten")


@dataclass(frozen=True)
class Flavour:
    """How a runtime wants its 8 bits: the type of activations, whether their zero is 0, and whether biases are INT32.

    FP8 is made of what the symmetric INT8 is: the same pairs at the same places, see `vggdeploy.optimize.steps.fp8`.
    """

    activations: QuantType
    symmetric: bool
    biases: bool
    precision: Precision = Precision.INT8

    def options(self) -> dict[str, Any]:
        # TensorRT fuses convolution and ReLU only where no Q/DQ pair stands between them.
        apart = list(WEIGHTED) if self.symmetric else []
        return {
            "ActivationSymmetric": self.symmetric,
            "WeightSymmetric": True,
            "QuantizeBias": self.biases,
            "OpTypesToExcludeOutputQuantization": apart,
        }


CPU = Flavour(QuantType.QUInt8, symmetric=False, biases=True)
TENSORRT = Flavour(QuantType.QInt8, symmetric=True, biases=False)
FP8 = Flavour(QuantType.QInt8, symmetric=True, biases=False, precision=Precision.FP8)


def check_method(name: str) -> str:
    """
    Raises:
        UsageError: it is none of `METHODS`; the closest is offered.
    """
    if name not in METHODS:
        raise unknown_name("calibration method", name, METHODS)
    return name


def calibrate(
    source: Path, batches: Iterable[dict[str, Array]], *, method: str, percentile: float, scratch: Path
) -> TensorsData:
    """The range of every activation of an FP32 graph: smallest and largest value, as ``method`` cuts them.

    Args:
        source: the FP32 ONNX file.
        batches: graph input name → array; one batch is in memory at a time.
        method: of `METHODS`.
        percentile: how much of the values a range has to hold, for that method; 0–100.
        scratch: a directory for two copies of the model.

    Raises:
        BuildError: the quantiser refuses the graph.
        OSError: the disk has no room for the copies.
    """
    scratch.mkdir(exist_ok=True)
    # ONNX writes a file on a full disk as far as it goes, and says nothing.
    if shutil.disk_usage(scratch).free < _COPIES * source.stat().st_size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(scratch))
    # The calibrator writes beside the model that it is given.
    model = scratch / "source.onnx"
    try:
        os.link(source, model)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, model)
    options = {"num_bins": _BINS, "num_quantized_bins": _LEVELS, "percentile": percentile, "symmetric": False}
    with _quiet(), _told("calibrate", source):
        calibrator = create_calibrator(
            model,
            [*WEIGHTED, *_MOVING],
            augmented_model_path=str(scratch / "calibrator.onnx"),
            calibrate_method=METHODS[method],
            extra_options=options,
        )
        for batch in batches:
            calibrator.collect_data(_One(batch))
        return calibrator.compute_data()


class _One:
    """A batch, as the calibrator asks for it."""

    def __init__(self, batch: dict[str, Array]) -> None:
        self._batches = iter([batch])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


def quantise(
    model: onnx.ModelProto,
    ranges: TensorsData,
    flavour: Flavour,
    *,
    keep: Collection[str] = (),
    only: Collection[str] = (),
) -> onnx.ModelProto:
    """The graph with Q/DQ pairs and weights of 8 bits, a scale for each output channel. ``model`` is used up.

    Args:
        model: the FP32 graph, with the types of its tensors.
        ranges: what `calibrate` found.
        keep: names of nodes that stay in FP32.
        only: names of the only nodes that do not; empty for all.

    Raises:
        BuildError: the quantiser refuses the graph.
    """
    outputs = {value.name for value in model.graph.output}
    rectified = {name for node in model.graph.node if node.op_type == "Relu" for name in node.output}
    exact = {} if flavour == TENSORRT else _weights_of(model)
    with _quiet(), _told("quantise", Path(model.graph.name or "the graph")):
        quantizer = QDQQuantizer(
            model,
            True,  # a scale for each output channel
            False,  # all eight bits: `fit_pairs` narrows what would saturate without VNNI
            QuantType.QInt8,
            flavour.activations,
            ranges,
            list(only),
            list(keep),
            [*WEIGHTED, *_MOVING],
            flavour.options(),
        )
        quantizer.quantize_model()
        found: onnx.ModelProto = quantizer.model.model
    _free_outputs(found, outputs, rectified)
    if flavour.precision is Precision.FP8:
        to_fp8(found, exact)
    elif not flavour.symmetric:
        fit_pairs(found, exact)
    return found


def _weights_of(model: onnx.ModelProto) -> dict[str, Array]:
    """The FP32 weights of convolutions and matrix products, by the name that the quantiser gives their codes."""
    names = {node.input[1] for node in model.graph.node if node.op_type in WEIGHTED}
    found = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name in names}
    return {f"{name}{TENSOR_NAME_QUANT_SUFFIX}": array for name, array in found.items()}


def _free_outputs(model: onnx.ModelProto, outputs: Collection[str], rectified: Collection[str]) -> None:
    """Take the Q/DQ pair before each graph output away: class scores in 256 steps flip more classes than they save time.

    Where the pair did the work of a ReLU, whose outputs are ``rectified``, that stands there again.
    """
    nodes = model.graph.node
    made_by = {name: node for node in nodes for name in node.output}
    for name in outputs:
        dequantise = made_by[name]
        quantise_ = made_by.get(dequantise.input[0]) if dequantise.op_type == "DequantizeLinear" else None
        if quantise_ is None or quantise_.op_type != "QuantizeLinear":
            continue
        inner = quantise_.input[0]
        users = [node for node in nodes if inner in node.input and node is not quantise_]
        if users or sum(quantise_.output[0] in node.input for node in nodes) > 1:
            continue
        nodes.remove(dequantise)
        nodes.remove(quantise_)
        producer = made_by[inner]
        if name in rectified and producer.op_type != "Relu":
            nodes.append(onnx.helper.make_node("Relu", [inner], [name], name=f"{name}_relu"))
        else:
            producer.output[list(producer.output).index(inner)] = name


def weighted_nodes(source: Path) -> dict[str, str]:
    """The convolutions and matrix products of a graph, in its order: name of the node → name of its weights."""
    graph = onnx.load(source, load_external_data=False).graph
    return {node.name: node.input[1].removesuffix(".weight") for node in graph.node if node.op_type in WEIGHTED}


def proof(model: onnx.ModelProto) -> PrecisionProof:
    """What the graph holds, read back: convolutions and matrix products by type, and bytes of weights by type.

    One computes in what both its inputs were dequantised from.
    """
    initialisers = {t.name: t for t in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    layers: Counter[str] = Counter()
    for node in model.graph.node:
        if node.op_type in WEIGHTED:
            sources = [made_by.get(name) for name in node.input[:2]]
            kinds = {
                _CODES[initialisers[s.input[2]].data_type]
                if s is not None and s.op_type == "DequantizeLinear"
                else "fp32"
                for s in sources
            }
            layers[kinds.pop() if len(kinds) == 1 else "fp32"] += 1
    sizes: Counter[str] = Counter()
    for tensor in initialisers.values():
        array_type = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        name = _STORED.get(str(array_type))
        if name:
            sizes[name] += int(np.prod(tensor.dims)) * array_type.itemsize
    return PrecisionProof(layers=dict(layers), weight_bytes=dict(sizes))


def check(found: PrecisionProof, asked: Precision) -> None:
    """
    Raises:
        ParityError: no layer computes in what was asked for.
    """
    if not computes_in(found.layers, asked):
        raise ParityError(f"{asked} was asked for and no layer computes in it", f"allow more, or leave {asked} out")


@contextmanager
def _told(what: str, source: Path) -> Iterator[None]:
    try:
        yield
    except (
        Exception
    ) as error:  # ONNX Runtime's exceptions share no base class, and its quantiser raises whatever it meets
        raise BuildError(
            f"ONNX Runtime cannot {what} {shown(source)}: {first_line(error)}",
            "INT8 needs ONNX that 'vggdeploy export' wrote; run with --debug and report it",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser warns the root logger of what it skips, which is counted afterwards, and prints what it is doing."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(before)
