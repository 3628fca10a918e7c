"""2:4 sparsity: of every four consecutive inputs of an output (of a convolution: at every position) at least two have weight 0.

NVIDIA's sparse tensor cores skip them (Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks", arXiv:2104.08378).
TensorRT wants the fours along the input channels of a convolution's ``[K, C, R, S]``, and along what a product sums over.
What is 2:4 is read from the numbers, without any library: a zero is one of all bits but the sign's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggdeploy.model.formats.graph import sorted_nodes
from vggdeploy.model.formats.onnx import BFLOAT16, E4M3, FLOAT, FLOAT16, INT8, PRODUCTS, Tensor, read_onnx_file
from vggdeploy.model.formats.safetensors import check_safetensors
from vggdeploy.model.layers import layer_name, layers_of
from vggdeploy.model.outputs import LOGITS
from vggdeploy.spec import ModelSpec
from vggdeploy.system.sealed import mapped, shown

FOUR, ZEROS = 4, 2
# Of each type its width in NumPy, and the bits of a number that is not 0.
_BITS: dict[int, tuple[Any, int]] = {
    FLOAT: (np.uint32, 0x7FFFFFFF), FLOAT16: (np.uint16, 0x7FFF), BFLOAT16: (np.uint16, 0x7FFF), E4M3: (np.uint8, 0x7F),
    INT8: (np.uint8, 0xFF),
}  # fmt: skip


def can_be_sparse(shape: tuple[int, ...]) -> bool:
    """Whether weights ``[out, in, …]`` can be cut into fours: a first layer of 3 channels cannot."""
    return len(shape) >= 2 and shape[1] % FOUR == 0


def is_sparse(nonzero: NDArray[np.bool_]) -> bool:
    """Whether weights ``[out, in, …]``, of which only is known which are not 0, are 2:4."""
    shape = nonzero.shape
    if not can_be_sparse(shape):
        return False
    fours = nonzero.reshape(shape[0], shape[1] // FOUR, FOUR, -1)
    return bool((np.count_nonzero(fours, axis=2) <= FOUR - ZEROS).all())


def sparse_products(path: Path, layers: dict[str, str]) -> tuple[str, ...]:
    """The convolutions and matrix products of an ONNX file whose weights are 2:4, in the graph's order.

    Args:
        layers: as `vggdeploy.model.layers.layer_names` gives them.

    Raises:
        ForeignModelError: not an ONNX file.
    """
    model = read_onnx_file(mapped(path), shown(path))
    stored = {tensor.name: tensor for tensor in model.tensors}
    made_by = {name: node for node in model.nodes for name in node.output}
    found = []
    for index, node in enumerate(sorted_nodes(model.nodes)):
        if node.op_type not in PRODUCTS or len(node.input) < 2:
            continue
        name = node.input[1]
        while name not in stored and (maker := made_by.get(name)) is not None and maker.input:
            name = maker.input[0]
        nonzero = _nonzero(stored.get(name))
        if nonzero is not None and is_sparse(nonzero):
            found.append(layer_name(node, name, layers, index))
    return tuple(found)


def weighted_layers(spec: ModelSpec) -> dict[str, str]:
    """Layer → the key of its module; those of low rank with the number of the factor behind: ``fc6.0``."""
    found = {}
    for layer in layers_of(spec):
        if layer.kind in ("conv", "linear"):
            name = LOGITS if layer.name == spec.last else layer.name
            for factor in (".0", ".1") if layer.rank else ("",):
                found[f"{name}{factor}"] = f"{layer.key}{factor}"
    return found


def sparse_weights(path: Path, spec: ModelSpec) -> tuple[str, ...]:
    """The layers (see `weighted_layers`) of a checkpoint's weights that are 2:4.

    Raises:
        ValueError: no safetensors file. CheckpointError: it may not be read.
    """
    data = mapped(path)
    entries = check_safetensors(data)
    start = 8 + int.from_bytes(data[:8], "little")
    found = []
    for name, key in weighted_layers(spec).items():
        entry = entries.get(f"{key}.weight")
        if entry is None or entry.dtype != "F32":
            continue
        low, high = entry.data_offsets
        numbers = np.frombuffer(data[start + low : start + high], np.uint32)
        if is_sparse(((numbers & _BITS[FLOAT][1]) != 0).reshape(entry.shape)):
            found.append(name)
    return tuple(found)


def _nonzero(tensor: Tensor | None) -> NDArray[np.bool_] | None:
    """Which of a tensor's numbers are not 0; None for types that no product has, and numbers that are not all there."""
    if tensor is None or tensor.raw is None or tensor.type not in _BITS or not tensor.whole:
        return None
    kind, bits = _BITS[tensor.type]
    numbers: NDArray[Any] = np.frombuffer(tensor.raw, kind)
    return np.asarray((numbers & kind(bits)) != 0).reshape(tensor.dims)
