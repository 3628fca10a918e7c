"""How different two images look to the network: the distance between their feature maps, as LPIPS takes it. Torch-free.

d(a, b) = Σₗ meanₚ Σ꜀ w[l, c] · (â[l, c, p] − b̂[l, c, p])²

over the layers l, positions p and channels c, where â is the feature map divided at each position by its Euclidean length
over the channels (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", eq. 1). The
weights w are the heads that were fitted to people's judgements, or all 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from vggdeploy.bundle import Manifest
from vggdeploy.engine.engine import Engine
from vggdeploy.errors import InputError, UsageError
from vggdeploy.model.outputs import LPIPS_LAYERS
from vggdeploy.preprocess import ImageLike, prepare_batch

EXPORT = f"vggdeploy export CHECKPOINT -o BUNDLE --outputs {','.join(LPIPS_LAYERS)}"
_EPSILON = 1e-10  # added to each length, as the public package `lpips` does
_AT_ONCE = 4  # the maps of one image of a VGG-16 at 224 px are 28 MB

Array = NDArray[np.floating]
Heads = Mapping[str, Array]


def perceptual_distance(
    engine: Engine, first: ImageLike, others: Iterable[ImageLike], *, heads: Heads | None = None
) -> NDArray[np.float64]:
    """How different each of ``others`` looks from ``first``. 0: the same to every layer that is compared.

    Images go through the bundle's preprocessing first, so all of them are compared at its size.

    Args:
        engine: of a bundle that was exported with feature maps among its outputs.
        first: an image, as in `Engine.classify`.
        others: one or more images that it is compared with.
        heads: layer → the weight of each of its channels, ``[C]``, at least 0; the layers that are compared. Default: every
            feature map of the bundle, and all weights 1.

    Returns:
        ``float64 [N]``, a distance for each of ``others``, in their order.

    Raises:
        UsageError: the bundle has no feature maps, or not those of ``heads``.
        InputError: an image that cannot be used, or none.
    """
    weights = _weights(engine.bundle.manifest, heads)
    maps = _unit_maps(engine, chain([first], others), tuple(weights))
    reference = next(maps)
    found = [
        sum(float(np.tensordot(weights[name], ((reference[name] - maps_of[name]) ** 2).mean(axis=(1, 2)), 1))
            for name in weights)
        for maps_of in maps
    ]  # fmt: skip
    if not found:
        raise InputError("one image was given, and a distance is between two", "give at least two images")
    return np.asarray(found, np.float64)


def _export(manifest: Manifest) -> str:
    """The command that exports the last map of each block, by the names that this network has."""
    last = ",".join(f"relu{number}_{len(block)}" for number, block in enumerate(manifest.spec.blocks, 1))
    return f"vggdeploy export CHECKPOINT -o BUNDLE --outputs {last}"


def _weights(manifest: Manifest, heads: Heads | None) -> dict[str, NDArray[np.float64]]:
    """The channels' weights of each layer that is compared, checked against the outputs that the bundle has."""
    maps = {spec.name: spec.item_shape[0] for spec in manifest.outputs if len(spec.item_shape) == 3}
    if not maps:
        raise UsageError(
            "this bundle has no feature maps to compare", f"export it again with some: {_export(manifest)}"
        )
    if heads is None:
        return {name: np.ones(channels) for name, channels in maps.items()}
    missing = [name for name in heads if name not in maps]
    if missing or not heads:
        has = ", ".join(maps)
        raise UsageError(f"the heads are for {', '.join(missing) or 'no layer'}, and this bundle has {has}", EXPORT)
    return {name: _checked(name, head, maps[name]) for name, head in heads.items()}


def _checked(name: str, head: Array, channels: int) -> NDArray[np.float64]:
    weights = np.asarray(head, np.float64)
    if weights.shape != (channels,):
        raise UsageError(
            f"the head of {name} has the shape {list(weights.shape)}, and the layer has {channels} channels",
            "take heads that were fitted to this network; LPIPS's are for a full-width VGG-16",
        )
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise UsageError(f"the head of {name} has weights below 0, or that are no numbers", "fit it again")
    return weights


def _unit_maps(engine: Engine, images: Iterable[ImageLike], names: Sequence[str]) -> Iterator[dict[str, Array]]:
    """Each image's maps ``float64 [C, H, W]`` of length 1 at every position; those of few images are in memory."""
    rest = iter(images)
    while some := list(islice(rest, min(_AT_ONCE, engine.variant.batch.max))):
        outputs = engine.run_prepared(prepare_batch(some, engine.bundle.manifest.preprocess))
        for row in range(len(some)):
            yield {name: _unit(outputs[name][row]) for name in names}


def _unit(features: Array) -> NDArray[np.float64]:
    values = features.astype(np.float64)
    return np.asarray(values / (np.sqrt((values**2).sum(axis=0)) + _EPSILON))
