"""Proof of precision: what a parsed network computes in, counted layer by layer, never taken from a flag."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from vggdeploy.bundle import PrecisionProof
from vggdeploy.runtime.tensorrt_api import precision_name

_CONVOLUTIONS = {"CONVOLUTION": "IConvolutionLayer", "DECONVOLUTION": "IDeconvolutionLayer"}
_PRODUCTS = frozenset({*_CONVOLUTIONS, "MATRIX_MULTIPLY"})
# Shapes, axes and indices; not weights.
_INDEX_TYPES = frozenset({"int32", "int64", "bool"})


def prove(library: Any, network: Any) -> PrecisionProof:
    """Count convolutions and matrix products by the type they compute in, and every constant's bytes by type.

    A network is strongly typed: a layer computes in the type of its inputs. Inputs that come out of a dequantisation
    of INT8 values make it an INT8 layer, as the library fuses the two.
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
    if len(types) == 1 and None not in types:
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
