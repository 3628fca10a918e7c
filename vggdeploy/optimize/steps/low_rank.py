"""Low rank: layers as products of two smaller ones, where their answers hardly need all of the large one.

fc6 and fc7 become two matrices; a 3×3 convolution becomes one of 3×1 and one of 1×3 (Jaderberg et al. 2014, "Speeding up
Convolutional Neural Networks with Low Rank Expansions", scheme 2).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggdeploy.errors import TargetError, UsageError, unknown_name
from vggdeploy.model.layers import Layer, layers_of
from vggdeploy.model.vgg import VGG
from vggdeploy.model.weights import new_with_state
from vggdeploy.optimize.steps.activations import OutputMoments, blind_answers, matrix_of, product_layers, scaled_matrix
from vggdeploy.optimize.steps.widths import check_share, macs_of
from vggdeploy.spec import Blocks, ModelSpec

Tensors = dict[str, Tensor]


def factorise(model: VGG, ranks: Mapping[str, int], answers: Mapping[str, OutputMoments] | None = None) -> VGG:
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
    dense = tuple(ranks.get(name, rank) for name, rank in zip(spec.dense, spec.ranks, strict=True))
    return msgspec.structs.replace(spec, ranks=dense, conv_ranks=convs if any(map(any, convs)) else ())


def _linear(model: VGG, layer: Layer, rank: int, answers: OutputMoments) -> Tensors:
    weight, bias = (tensor.double() for tensor in matrix_of(model, layer))
    directions = _leading(answers.spread, rank)
    back = bias + answers.mean - directions @ (directions.T @ answers.mean)
    return {"0.weight": directions.T @ weight, "1.weight": directions, "1.bias": back}


def _convolution(model: VGG, layer: Layer, rank: int, answers: OutputMoments) -> Tensors:
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


# An eigenvalue below this share of all is rounding.
_NOISE = 1e-12


def choose_ranks(spec: ModelSpec, spectra: Mapping[str, NDArray[np.float64]], keep: float) -> dict[str, int]:
    """Ranks with which the network keeps at most the share ``keep`` of its multiply-accumulates: of the layers that get
    one, and no others.

    The product of the layers' energies (the shares of the sum of eigenvalues that their ranks keep) is made as large as it
    goes: Zhang et al. 2016, "Accelerating Very Deep Convolutional Networks", section 2.4. Greedily, each time the layer and
    the lower rank are taken that lose the least of its logarithm for what they save.

    Args:
        spectra: layer → eigenvalues of what it answers, in any order.

    Raises:
        UsageError: ``keep`` is no share.
        TargetError: even ranks of 1 leave more than ``keep``.
    """
    check_share(keep, "to keep")
    layers = {x.name: x for x in layers_of(spec) if x.name in spectra}
    costs = {name: _costs(layer) for name, layer in layers.items()}
    losses = {name: _losses(spectra[name], len(costs[name])) for name in layers}
    now = {name: len(cost) - 1 for name, cost in costs.items()}  # the last place is the layer as it is
    full = macs = macs_of(spec)
    while macs > keep * full:
        best = min((_step(costs[name], losses[name], now[name], name) for name in layers), default=None)
        if best is None or not np.isfinite(best[0]):
            raise TargetError(
                f"with ranks of 1 the network still has {macs / full:.1%} of its multiply-accumulates, not {keep:.1%}",
                f"keep more: {macs / full + 0.005:.2f}",
            )
        _, name, place = best
        macs -= int(costs[name][now[name]] - costs[name][place])
        now[name] = place
    return {name: place + 1 for name, place in now.items() if place < len(costs[name]) - 1}


def saving_ranks(layer: Layer) -> int:
    """The largest rank with which the layer has fewer multiply-accumulates than it has; 0 where there is none."""
    return (layer.macs - 1) // cost_of_rank(layer)


def cost_of_rank(layer: Layer) -> int:
    """Multiply-accumulates of each rank, for one image."""
    positions = 3 * layer.shape[1] * layer.shape[2] if layer.kind == "conv" else 1
    return positions * (layer.inputs + layer.outputs)


def _costs(layer: Layer) -> NDArray[np.int64]:
    """Of ranks 1, 2, … that save something; at the end of the layer as it is."""
    return np.array([*(cost_of_rank(layer) * (r + 1) for r in range(saving_ranks(layer))), layer.macs], np.int64)


def _losses(spectrum: NDArray[np.float64], places: int) -> NDArray[np.float64]:
    """−log of the energy that each of those ranks keeps; 0 for the layer as it is."""
    values = np.sort(np.clip(spectrum, 0, None))[::-1]
    energy = np.cumsum(values) / max(values.sum(), np.finfo(float).tiny)
    kept = energy[np.minimum(np.arange(places - 1), len(energy) - 1)]
    return np.append(-np.log(np.clip(kept, _NOISE, 1)), 0.0)


def _step(costs: NDArray[np.int64], losses: NDArray[np.float64], place: int, name: str) -> tuple[float, str, int]:
    """The loss for each multiply-accumulate saved, of the best lower place; infinite where there is none."""
    if place == 0:
        return (float("inf"), name, 0)
    rates = (losses[:place] - losses[place]) / (costs[place] - costs[:place])
    best = int(np.argmin(rates))
    return (float(rates[best]), name, best)
