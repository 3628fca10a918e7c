"""Low rank: layers as products of two smaller ones, where their answers hardly need all of the large one.

fc6 and fc7 become two matrices; a 3×3 convolution becomes one of 3×1 and one of 1×3 (Jaderberg et al. 2014, "Speeding up
Convolutional Neural Networks with Low Rank Expansions", scheme 2).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import torch
from torch import Tensor

from vggdeploy.errors import UsageError, unknown_name
from vggdeploy.model.layers import Layer
from vggdeploy.model.vgg import VGG
from vggdeploy.model.weights import new_with_state
from vggdeploy.optimize.answers import Answers, blind_answers, matrix_of, product_layers, scaled_matrix
from vggdeploy.spec import Blocks, ModelSpec

Tensors = dict[str, Tensor]


def factorise(model: VGG, ranks: Mapping[str, int], answers: Mapping[str, Answers] | None = None) -> VGG:
    """A network in which the layers that are named have these ranks. ``model`` stays as it is.

    A linear layer's matrix W becomes U·(Uᵀ·W), U the ``rank`` directions in which its outputs vary the most: the leading
    eigenvectors of the covariance of W·x. That is the best approximation of what the layer answers on those images (Zhang
    et al. 2016, "Accelerating Very Deep Convolutional Networks", section 3.1); what is lost is the mean, which the new bias
    gives back. A convolution's matrix M (see `matrix_of`) becomes (M·V)·Vᵀ likewise, V the leading eigenvectors of
    S·Mᵀ·C·M·S: C the covariance of the patches that it sees, S the batch norm's factors.

    Without ``answers`` all inputs count alike, and the product is the truncated singular value decomposition, the best
    approximation of the matrix itself (Eckart & Young 1936). Computed in FP64, rounded once.

    A layer that is a product already is multiplied out first; its new rank may only be lower.

    Raises:
        UsageError: an unknown layer, or a rank that its matrix, or the product that it is, does not have.
    """
    layers = product_layers(model)
    for name, rank in ranks.items():
        if name not in layers:
            raise unknown_name("layer with a rank", name, layers)
        most = layers[name].rank or full_rank(layers[name])
        if not 1 <= rank <= most:
            kind = "rank" if layers[name].rank else "full rank"
            raise UsageError(f"rank {rank} of {name}", f"its {kind} is {most}: give 1 to {most}")
    answers = blind_answers(model) if answers is None else answers
    gone = tuple(f"{layers[name].key}." for name in ranks)
    # Copies: whoever measures the new network's batch norms anew must not move the old one's.
    state = {key: t.detach().clone() for key, t in model.state_dict().items() if not key.startswith(gone)}
    for name, rank in ranks.items():
        layer = layers[name]
        product = _linear if layer.kind == "linear" else _convolution
        made = product(model, layer, rank, answers[name])
        state |= {f"{layer.key}.{leaf}": tensor.float().contiguous() for leaf, tensor in made.items()}
    spec = with_ranks(model.spec, ranks)
    return new_with_state(spec, state, where="the factorised network").train(model.training)


def full_rank(layer: Layer) -> int:
    return (3 if layer.kind == "conv" else 1) * min(layer.inputs, layer.outputs)


def with_ranks(spec: ModelSpec, ranks: Mapping[str, int]) -> ModelSpec:
    """``spec`` with other ranks of the layers that are named; the rest stays."""
    old: Blocks = spec.conv_ranks or tuple((0,) * len(block) for block in spec.blocks)
    convs = tuple(
        tuple(ranks.get(f"conv{b}_{c}", rank) for c, rank in enumerate(block, 1)) for b, block in enumerate(old, 1)
    )
    fc6, fc7 = (ranks.get(name, rank) for name, rank in zip(("fc6", "fc7"), spec.ranks, strict=True))
    return msgspec.structs.replace(spec, ranks=(fc6, fc7), conv_ranks=convs if any(map(any, convs)) else ())


def _linear(model: VGG, layer: Layer, rank: int, answers: Answers) -> Tensors:
    weight, bias = (tensor.double() for tensor in matrix_of(model, layer))
    directions = _leading(answers.spread, rank)
    back = bias + answers.mean - directions @ (directions.T @ answers.mean)
    return {"0.weight": directions.T @ weight, "1.weight": directions, "1.bias": back}


def _convolution(model: VGG, layer: Layer, rank: int, answers: Answers) -> Tensors:
    matrix, scale = scaled_matrix(model, layer)
    directions = _leading(answers.spread, rank)
    first = (matrix @ directions).T.reshape(rank, layer.inputs, 3, 1)
    second = (directions.T / scale).reshape(rank, layer.outputs, 3).permute(1, 0, 2)[:, :, None]
    # Each output sums what the matrix answers in the three columns of the kernel: so it does with the mean that is lost.
    lost = (answers.mean - directions @ (directions.T @ answers.mean)) / scale
    bias = matrix_of(model, layer)[1].double() + lost.reshape(layer.outputs, 3).sum(dim=1)
    return {"0.weight": first, "1.weight": second, "1.bias": bias}


def _leading(spread: Tensor, rank: int) -> Tensor:
    directions: Tensor = torch.linalg.eigh(spread).eigenvectors[:, -rank:]
    return directions
