"""What every exported graph is: a chain of steps from the image to its last output, as a spec implies it. Torch-free.

The checks of each format follow a file's values along this chain. A value is known by its place in it: how many steps made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vggdeploy.errors import ForeignModelError
from vggdeploy.model.layers import Layer, layers_of
from vggdeploy.model.outputs import PROBABILITIES, output_layers
from vggdeploy.spec import ModelSpec
from vggdeploy.types import TensorSpec

Kind = Literal["permute", "scale", "shift", "conv", "relu", "pool", "flatten", "mean", "max", "linear", "softmax"]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One operator: the layer that it belongs to, the shape of its constant, the shape of one sample of what it makes.

    ``pads`` are those of a convolution, above and to the left. ``bias``: whether it may have one.
    """

    kind: Kind
    layer: str
    shape: Shape
    weight: Shape = ()
    pads: Shape = ()
    bias: bool = True


@dataclass(frozen=True)
class Chain:
    """``image`` is the shape of one sample of what goes in; ``ends`` says at which place each output is taken."""

    image: TensorSpec
    outputs: tuple[TensorSpec, ...]
    steps: tuple[Step, ...]
    ends: dict[str, int]

    def shape(self, place: int) -> Shape:
        """The shape of one sample of the value at a place."""
        return self.steps[place - 1].shape if place else self.image.item_shape

    def follow(self, place: int, kind: Kind, file: str, **found: object) -> int:
        """The place of what an operator makes of the value at ``place``.

        Args:
            found: of the step's fields what the file says; each has to be the step's.

        Raises:
            ForeignModelError: another step stands there in the network, or none.
        """
        step = self.steps[place] if place < len(self.steps) else None
        if step is None or step.kind != kind:
            wanted = f"{step.kind} ({step.layer})" if step else "nothing"
            raise refused(file, f"it has a {kind} where the network has {wanted}")
        for name, value in found.items():
            if value != getattr(step, name):
                raise refused(
                    file, f"its {step.layer} has the {name} {value} where the network has {getattr(step, name)}"
                )
        return place + 1


def refused(file: str, why: str) -> ForeignModelError:
    """The error for a file that is not ours."""
    return ForeignModelError(
        f"{file} is not what vggdeploy writes of this network: {why}",
        "export the bundle again; until then no library opens this file",
    )


def chain_of(spec: ModelSpec, image: TensorSpec, outputs: Sequence[TensorSpec], file: str) -> Chain:
    """The chain that a file of ``spec`` has to be, batch norm folded into the convolutions.

    Raises:
        ForeignModelError: an output that the network does not have, or not in this shape.
    """
    known, layers = output_layers(spec), layers_of(spec)
    for output in outputs:
        if output.name not in known or known[output.name].shape != output.item_shape:
            raise refused(file, f"the manifest has the output {output}, which the network does not have")
    last = max((layers.index(known[output.name]) for output in outputs), default=0)
    steps = _preprocessing(spec) if image.dtype == "uint8" else []
    ends: dict[str, int] = {}
    taken = {layer.key: name for name, layer in known.items() if name != PROBABILITIES}
    for layer in layers[: last + 1]:
        if layer.part == "classifier" and layer.index == 0 and spec.head_pool == "none":
            steps.append(Step("flatten", layer.name, (layer.inputs,)))
        steps += _steps(layer)
        if layer.key in taken:
            ends[taken[layer.key]] = len(steps)
    if any(output.name == PROBABILITIES for output in outputs):
        steps.append(Step("softmax", PROBABILITIES, (spec.classes,)))
        ends[PROBABILITIES] = len(steps)
    return Chain(image, tuple(outputs), tuple(steps), ends)


def _preprocessing(spec: ModelSpec) -> list[Step]:
    shape, each = (spec.in_channels, spec.image_size, spec.image_size), (1, spec.in_channels, 1, 1)
    return [
        Step("permute", "preprocess", shape),
        Step("scale", "preprocess", shape, each),
        Step("shift", "preprocess", shape, each),
    ]


def _steps(layer: Layer) -> list[Step]:
    name, shape = layer.name, layer.shape
    if layer.kind in ("conv", "linear"):
        return _products(layer)
    if layer.kind == "relu":
        return [Step("relu", name, shape)]
    if layer.kind == "pool":
        return [Step("pool" if layer.part == "features" else "mean" if name == "avgpool" else "max", name, shape)]
    return []  # batch norm is folded, dropout does nothing


def _products(layer: Layer) -> list[Step]:
    """The layer's product, or the two of a layer of low rank."""
    kind: Kind = "conv" if layer.kind == "conv" else "linear"
    name, shape, rank, conv = layer.name, layer.shape, layer.rank, kind == "conv"
    if not rank:
        weight = (layer.outputs, layer.inputs, *((3, 3) if conv else ()))
        return [Step(kind, name, shape, weight, (1, 1) if conv else ())]
    first = (rank, layer.inputs, *((3, 1) if conv else ()))
    second = (layer.outputs, rank, *((1, 3) if conv else ()))
    return [
        Step(kind, name, (rank, *shape[1:]), first, (1, 0) if conv else (), bias=False),
        Step(kind, name, shape, second, (0, 1) if conv else ()),
    ]
