"""The named outputs of a VGG: what each name means, and its shape. Torch-free.

``convB_I`` is the convolution with its batch norm, before the ReLU; ``reluB_I`` after it; ``poolB`` the block's end.
``fc6`` and ``fc7`` are after their ReLU, as in Caffe, whose in-place ReLU made those blobs the well-known features.
A head with more or fewer linear layers has more or fewer of them. ``logits`` are what the last one gives; ``probabilities``
their softmax.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vggdeploy.errors import UsageError, unknown_name
from vggdeploy.model.layers import Layer, layers_of
from vggdeploy.spec import ModelSpec
from vggdeploy.types import TensorSpec

LOGITS = "logits"
PROBABILITIES = "probabilities"
# The layers of a VGG-16 that LPIPS compares: the last ReLU of each block.
LPIPS_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")


def output_layers(spec: ModelSpec) -> dict[str, Layer]:
    """Output name → the layer after which it is taken, in the network's order."""
    layers: dict[str, Layer] = {}
    for layer in layers_of(spec):
        if (layer.kind in ("relu", "pool") and layer.part == "features") or (
            layer.kind == "conv" and not spec.batch_norm
        ):
            layers[layer.name] = layer
        elif layer.kind == "batch_norm":
            layers[layer.name.replace("bn", "conv")] = layer
        elif layer.kind == "relu":
            layers[layer.name.replace("relu", "fc")] = layer
        elif layer.name == spec.last:
            layers[LOGITS] = layers[PROBABILITIES] = layer
    return layers


def default_outputs(spec: ModelSpec) -> tuple[str, ...]:
    """What a graph gives if nobody asks: the class scores, or of a network without them its last features."""
    return (LOGITS,) if spec.classes else (list(output_layers(spec))[-1],)


def macs_of(spec: ModelSpec, names: Iterable[str]) -> int:
    """Multiply-accumulates of one image up to the last of these outputs: what lies behind it is not in the graph."""
    layers, taken = layers_of(spec), output_layers(spec)
    last = max(layers.index(taken[name]) for name in names)
    return sum(layer.macs for layer in layers[: last + 1])


def output_specs(spec: ModelSpec, names: Sequence[str]) -> tuple[TensorSpec, ...]:
    """Names → specs of the graph's outputs, in the order asked.

    Raises:
        UsageError: no name, a name twice, or one that this network does not have (with the closest match).
    """
    known = output_layers(spec)
    if not names or len(set(names)) != len(names):
        raise UsageError(f"the outputs are {list(names)}", "name at least one output, and each only once")
    for name in names:
        if name not in known:
            if name == f"fc{len(spec.hidden) + 6}" and "logits" in known:  # Caffe's name of the last linear layer
                raise UsageError(f"the output '{name}' is called logits here", "give: --outputs logits")
            raise unknown_name("output", name, known)
    return tuple(TensorSpec(name, "float32", ("N", *known[name].shape)) for name in names)


INPUT = "image"


def input_spec(spec: ModelSpec, dtype: str = "uint8") -> TensorSpec:
    """The graph's one input: ``uint8 [N, H, W, C]`` pixels, or normalised ``float32 [N, C, H, W]``."""
    size, channels = spec.image_size, spec.in_channels
    shape = (size, size, channels) if dtype == "uint8" else (channels, size, size)
    return TensorSpec(INPUT, dtype, ("N", *shape))
