"""Which rank each layer gets, when the multiply-accumulates of the whole network are what counts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vggdeploy.errors import TargetError
from vggdeploy.model.layers import Layer, layers_of
from vggdeploy.optimize.channels import check_share, macs_of
from vggdeploy.spec import ModelSpec

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
