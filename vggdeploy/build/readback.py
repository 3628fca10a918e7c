"""What the layers of a built engine and of a parsed network compute in: the proof of a build's precision.

An engine can be read only on a machine with its GPU; elsewhere the parsed network is the proof.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vggdeploy.bundle import PrecisionProof
from vggdeploy.errors import BuildError
from vggdeploy.runtime.tensorrt.api import Log, logger_for, new_runtime, no_collection, precision_name, title
from vggdeploy.system.sealed import HashedFile

# Kernels of convolutions and matrix products, by what the libraries call them; and what only moves their data.
_PRODUCT = re.compile(r"conv(?!ert)|gemm|matmul|matrixmultiply|fullyconnected", re.IGNORECASE)
_MOVES = re.compile(r"reformat|noop|constant|shape|shuffle|signal|wait", re.IGNORECASE)
# TensorRT 10 writes "Format/Datatype": "Channel major FP16 format where …", TensorRT 11 has "Datatype": "Half" apart.
_TYPES = (
    ("int8", re.compile(r"int8", re.IGNORECASE)),
    ("fp8", re.compile(r"fp8|float8", re.IGNORECASE)),
    ("bf16", re.compile(r"bf16|bfloat16", re.IGNORECASE)),
    ("fp16", re.compile(r"fp16|half|float16", re.IGNORECASE)),
    ("fp32", re.compile(r"fp32|float", re.IGNORECASE)),
)
_ORDER = [name for name, _ in _TYPES]
# In names of kernels, such as sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc: of the factors, then of the sum.
_TACTIC_TYPES = (
    ("int8", re.compile(r"i8i8|int8|imma")),
    ("fp8", re.compile(r"e4m3|e5m2")),
    ("bf16", re.compile(r"bf16bf16|bf16")),
    ("fp16", re.compile(r"f16f16|h16816|h1688|hmma|fp16|half")),
    ("fp32", re.compile(r"f32f32|tf32|sgemm|scudnn|ffma|fp32|float")),
)
_CONVOLUTIONS = {"CONVOLUTION": "IConvolutionLayer", "DECONVOLUTION": "IDeconvolutionLayer"}
_PRODUCTS = frozenset({*_CONVOLUTIONS, "MATRIX_MULTIPLY"})
# Shapes, axes and indices; not weights.
_INDEX_TYPES = frozenset({"int32", "int64", "bool"})


@dataclass(frozen=True)
class EngineFacts:
    """What an engine says about itself: convolutions and matrix products by type (``{"fp16": 16}``), and for each profile
    the bytes of GPU memory that a context computes in."""

    layers: dict[str, int]
    scratch: tuple[int, ...]


def inspect_engine(library: Any, built: HashedFile) -> EngineFacts:
    """Read back an engine that was just built here.

    Raises:
        BuildError: the library cannot load what it built, or its inspector's answer is no JSON.
    """
    log = Log()
    logger = logger_for(library, log)
    with built.open() as file, no_collection():
        runtime = new_runtime(library, logger, log)
        loaded = runtime.deserialize_cuda_engine(file.map()) if runtime is not None else None
        if loaded is None:
            raise BuildError(
                f"{title(library)} cannot load the engine that it built: {log.cause()}", "see: vggdeploy doctor"
            )
        inspector = loaded.create_engine_inspector()
        text = inspector.get_engine_information(library.LayerInformationFormat.JSON)
        scratch = (loaded.get_device_memory_size_for_profile_v2(n) for n in range(loaded.num_optimization_profiles))
        return EngineFacts(layers_by_type(text), tuple(int(size) for size in scratch))


def layers_by_type(text: str) -> dict[str, int]:
    """What the inspector's JSON says, of TensorRT 10 and of 11. Fused layers count once, so there may be fewer.

    Raises:
        BuildError: it is not JSON, has no list of layers, or describes layers of which none is a convolution or product
            whose type is said: nothing is proven then.
    """
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise BuildError(
            "the engine inspector's answer is no list of layers", "run with --debug and report it"
        ) from error
    counts: Counter[str] = Counter()
    for described in layers:
        kind = layer_type(described) if isinstance(described, dict) else None  # a bare name says no type
        if kind is not None:
            counts[kind] += 1
    if not counts and any(isinstance(described, dict) for described in layers):
        raise BuildError(
            "the engine inspector names no type of any convolution or matrix product", "run with --debug and report it"
        )
    return dict(sorted(counts.items()))


def layer_type(described: dict[str, Any]) -> str | None:
    """The narrowest of a product's first input and first output: the other may be cast on the way. None for the rest.

    Of a dynamic batch TensorRT 10 does not say them ("N/A due to dynamic shapes"): there the type of the weights counts,
    or the one that the kernel is named after.
    """
    kind = f"{described.get('LayerType', '')} {described.get('ParameterType', '')}"
    if _MOVES.search(kind) or not _PRODUCT.search(
        f"{kind} {described.get('Name', '')} {described.get('TacticName', '')}"
    ):
        return None
    ends = [*list(described.get("Inputs") or ())[:1], *list(described.get("Outputs") or ())[:1]]
    types = [name for end in ends if isinstance(end, dict) and (name := _type_of(end)) is not None]
    return min(types, key=_ORDER.index, default=None) or _type_of_kernel(described)


def _type_of_kernel(described: dict[str, Any]) -> str | None:
    weights = described.get("Weights")
    found = _type_of({"Datatype": weights.get("Type")}) if isinstance(weights, dict) else None
    tactic = str(described.get("TacticName") or "").lower()
    return found or next((name for name, pattern in _TACTIC_TYPES if pattern.search(tactic)), None)


def _type_of(end: dict[str, Any]) -> str | None:
    text = str(end.get("Datatype") or end.get("Format/Datatype") or "")
    return next((name for name, pattern in _TYPES if pattern.search(text)), None)


def prove(library: Any, network: Any) -> PrecisionProof:
    """Count convolutions and matrix products by the type they compute in, and every constant's bytes by type.

    A network is strongly typed: a layer computes in the type of its inputs. Inputs that all come out of a dequantisation
    of INT8 or FP8 values make it a layer of that type, as the library fuses the two.
    """
    layers: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    dequantised: dict[str, str] = {}
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        kind = layer.type.name
        if kind == "DEQUANTIZE":
            dequantised[layer.get_output(0).name] = precision_name(layer.get_input(0).dtype)
        elif kind in _PRODUCTS:
            layers[_computes_in(layer, dequantised)] += 1
        for name, size in _weights(library, layer, kind):
            if name not in _INDEX_TYPES:
                sizes[name] += size
    return PrecisionProof(layers=dict(sorted(layers.items())), weight_bytes=dict(sorted(sizes.items())))


def _computes_in(layer: Any, dequantised: dict[str, str]) -> str:
    inputs = [tensor for tensor in (layer.get_input(i) for i in range(min(2, layer.num_inputs))) if tensor is not None]
    types = {dequantised.get(tensor.name) for tensor in inputs}
    # Of one input the other factor is held by the layer itself, and was dequantised from nothing.
    if len(inputs) > 1 and len(types) == 1 and None not in types:
        return str(types.pop())
    return precision_name(inputs[0].dtype)


def _weights(library: Any, layer: Any, kind: str) -> Iterator[tuple[str, int]]:
    """Type and bytes of the constants that a layer holds itself."""
    held: tuple[Any, ...] = ()
    # get_layer gives the base class; its members appear once the object is told its own (Polygraphy does the same).
    if kind in _CONVOLUTIONS:
        layer.__class__ = getattr(library, _CONVOLUTIONS[kind])
        held = (layer.kernel, layer.bias)
    elif kind == "CONSTANT":
        layer.__class__ = library.IConstantLayer
        held = (layer.weights,)
    for weights in held:
        # NumPy arrays (views, not copies), or the library's own class for types that NumPy lacks; empty when absent.
        if weights is not None and weights.size:
            name = {"float32": "fp32", "float16": "fp16"}.get(str(weights.dtype))
            yield name or precision_name(layer.get_output(0).dtype), weights.nbytes
