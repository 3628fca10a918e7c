"""Low rank: fc6 and fc7 as products of two smaller matrices, where their answers hardly need all of the large one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vggdeploy.errors import UsageError
from vggdeploy.model.layers import Layer, layers_of
from vggdeploy.model.vgg import VGG
from vggdeploy.model.weights import new_with_state

LAYERS = ("fc6", "fc7")


@dataclass(frozen=True)
class Answers:
    """What a linear layer answers on real images, before its ReLU and without its bias: mean ``[outputs]`` and
    covariance ``[outputs, outputs]``, in FP64."""

    mean: Tensor
    covariance: Tensor


def linear_layers(model: VGG) -> dict[str, Layer]:
    return {x.name: x for x in layers_of(model.spec) if x.name in LAYERS}


def measure_answers(model: VGG, batches: Iterable[NDArray[Any]]) -> dict[str, Answers]:
    """Mean and covariance of what fc6 and fc7 answer.

    Args:
        batches: of normalised training images ``float32 [N, C, S, S]``; at least as many images as the largest rank.
    """
    sums: dict[str, Tensor] = {}
    products: dict[str, Tensor] = {}
    count = 0
    layers = linear_layers(model)
    biases = {name: _matrix(model, layer)[1] for name, layer in layers.items()}
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for images in batches:
                x = model.features(torch.from_numpy(images)).flatten(1)
                count += len(x)
                for index, module in enumerate(model.classifier):
                    x = module(x)
                    for name, layer in layers.items():
                        if layer.index == index:
                            y = (x - biases[name]).double()
                            sums[name] = sums.get(name, 0) + y.sum(dim=0)
                            products[name] = products.get(name, 0) + y.T @ y
    finally:
        model.train(was_training)
    means = {name: total / count for name, total in sums.items()}
    return {name: Answers(mean, products[name] / count - torch.outer(mean, mean)) for name, mean in means.items()}


def factorise(model: VGG, ranks: tuple[int, int], answers: dict[str, Answers] | None = None) -> VGG:
    """A network whose fc6 and fc7 have these ranks; 0 leaves a layer as it is. ``model`` stays as it is.

    The matrix W becomes U·(Uᵀ·W), U the ``rank`` directions in which its outputs vary the most: the leading eigenvectors
    of the covariance of W·x. That is the best approximation of what the layer answers on those images (Zhang et al. 2016,
    "Accelerating Very Deep Convolutional Networks", section 3.1); what is lost is the mean, which the new bias gives back.
    Without ``answers`` all inputs count alike, and U·(Uᵀ·W) is the truncated singular value decomposition, the best
    approximation of W itself (Eckart & Young 1936). Computed in FP64, rounded once.

    A layer that is a product already is multiplied out first; its new rank may only be lower.

    Raises:
        UsageError: a rank that the matrix, or the product that it is, does not have.
    """
    layers = linear_layers(model)
    for rank, layer in zip(ranks, layers.values(), strict=True):
        most = layer.rank or min(layer.inputs, layer.outputs)
        if not 0 <= rank <= most:
            kind = "rank" if layer.rank else "full rank"
            raise UsageError(
                f"rank {rank} of {layer.name}", f"its {kind} is {most}: give 1 to {most}, or 0 to leave it"
            )
    spec = msgspec.structs.replace(
        model.spec, ranks=tuple(new or old for new, old in zip(ranks, model.spec.ranks, strict=True))
    )
    state = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    for rank, layer in zip(ranks, layers.values(), strict=True):
        if rank:
            state = {key: tensor for key, tensor in state.items() if not key.startswith(f"{layer.key}.")}
            first, second, bias = _product(*_matrix(model, layer), rank, answers[layer.name] if answers else None)
            state |= {f"{layer.key}.0.weight": first, f"{layer.key}.1.weight": second, f"{layer.key}.1.bias": bias}
    return new_with_state(spec, state, where="the factorised network").train(model.training)


def _product(weight: Tensor, bias: Tensor, rank: int, answers: Answers | None) -> tuple[Tensor, Tensor, Tensor]:
    wide = weight.double()
    spread = wide @ wide.T if answers is None else answers.covariance
    directions = torch.linalg.eigh(spread).eigenvectors[:, -rank:]
    shift = torch.zeros(len(wide), dtype=torch.float64) if answers is None else answers.mean
    back = bias.double() + shift - directions @ (directions.T @ shift)
    return _fp32(directions.T @ wide), _fp32(directions), _fp32(back)


def _fp32(tensor: Tensor) -> Tensor:
    return tensor.float().contiguous()


def _matrix(model: VGG, layer: Layer) -> tuple[Tensor, Tensor]:
    """Weight ``[outputs, inputs]`` and bias of a linear layer, multiplied out where it is a product."""
    module: Any = model.classifier[layer.index]
    if not layer.rank:
        return module.weight.detach(), module.bias.detach()
    first, second = module
    assert isinstance(first, nn.Linear)  # noqa: S101  # for mypy: we built it
    return (second.weight.detach().double() @ first.weight.detach().double()).float(), second.bias.detach()
