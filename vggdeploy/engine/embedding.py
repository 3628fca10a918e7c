"""What becomes of an output after the graph: pooled vectors of unit length, and Gram matrices. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggdeploy.errors import InputError, UsageError, unknown_name
from vggdeploy.types import TensorSpec

Array = NDArray[Any]

SCORES = frozenset({"logits", "probabilities"})
USUAL = "fc7"  # what "VGG features" means in the literature since Simonyan & Zisserman 2014, appendix B
POOLS: dict[str, Callable[[Array], Array]] = {
    "avg": lambda maps: maps.mean(axis=(2, 3)),
    "max": lambda maps: maps.max(axis=(2, 3)),
    "none": lambda maps: maps,
}


@dataclass(frozen=True)
class Embedding:
    """How one output becomes one vector an image. Call it with a batch's outputs."""

    output: TensorSpec
    pool: str = "avg"
    normalise: bool = False

    @property
    def is_map(self) -> bool:
        """Whether the output is a feature map ``[C, H, W]``, and not a vector."""
        return len(self.output.item_shape) == 3

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image's vector: ``(D,)``, or ``(C, H, W)`` for a feature map that is not pooled."""
        shape = self.output.item_shape
        return shape[:1] if self.is_map and self.pool != "none" else shape

    def __call__(self, outputs: Mapping[str, Array]) -> NDArray[np.float32]:
        values = outputs[self.output.name]
        if self.is_map:
            values = POOLS[self.pool](values)
        return np.asarray(unit_length(values) if self.normalise else values, np.float32)

    def empty(self) -> NDArray[np.float32]:
        """The vectors of no image."""
        return np.empty((0, *self.shape), np.float32)


def embedding(
    outputs: Sequence[TensorSpec], name: str | None = None, *, pool: str = "avg", normalise: bool = False
) -> Embedding:
    """The embedding that was asked for, of a bundle's outputs.

    Args:
        outputs: the manifest's.
        name: of the output. Default: the only one that is no class score, or ``fc7``.
        pool: for feature maps: ``avg`` or ``max`` over all positions, or ``none``.
        normalise: whether each vector is divided by its length.

    Raises:
        UsageError: an unknown output or pool, or none that goes without saying.
    """
    if pool not in POOLS:
        raise unknown_name("pool", pool, POOLS)
    specs = {spec.name: spec for spec in outputs}
    features = [spec for spec in specs if spec not in SCORES]
    if name is None:
        if not features:
            raise UsageError(
                "this bundle has class scores and no features",
                f"export it again with --outputs {USUAL},logits; or embed the scores: --output {next(iter(specs))}",
            )
        if len(features) > 1 and USUAL not in features:
            raise UsageError("this bundle has several features", f"name one as the output: {_names(features)}")
        name = USUAL if USUAL in features else features[0]
    if name not in specs:
        raise unknown_name("output", name, specs)
    return Embedding(specs[name], pool, normalise)


def _names(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(names)


def unit_length(vectors: Array) -> Array:
    """Each of ``[N, …]`` divided by its Euclidean length, so that a dot product is a cosine. A zero vector stays zero."""
    flat = vectors.reshape(len(vectors), -1)
    # FP64: squares of FP32 values overflow at 2e19, and vanish below 4e-23.
    lengths = np.linalg.norm(flat.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(np.divide(flat, lengths, out=np.zeros(flat.shape), where=lengths > 0)).reshape(vectors.shape)


def gram_matrix(features: Array, *, normalise: bool = True) -> NDArray[np.float32]:
    """How strongly each two channels of a feature map fire together, wherever that is: the style of an image.

    G[c, d] = Σₚ F[c, p] · F[d, p] over all positions p (Gatys, Ecker & Bethge 2015, "A Neural Algorithm of Artistic
    Style", eq. 3), divided by C · H · W (Johnson, Alahi & Fei-Fei 2016, eq. 3), so that layers and image sizes compare.

    Args:
        features: maps ``[N, C, H, W]``, for example ``engine.run(…)["relu2_1"]``.
        normalise: False leaves the division out, as Gatys et al. do.

    Returns:
        ``float32 [N, C, C]``, symmetric and positive semi-definite.

    Raises:
        InputError: other than four dimensions, or no values.
    """
    if features.ndim != 4 or 0 in features.shape[1:]:
        raise InputError(f"features of shape {list(features.shape)} are no feature maps", "give [N, C, H, W]")
    flat = features.reshape(*features.shape[:2], -1).astype(np.float32, copy=False)
    grams = np.matmul(flat, flat.transpose(0, 2, 1))
    return np.asarray(grams / (flat.shape[1] * flat.shape[2]) if normalise else grams, np.float32)
