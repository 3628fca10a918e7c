"""What becomes of class scores: probabilities, and the labels that go with the highest of them. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from vggdeploy.bundle import Manifest
from vggdeploy.errors import UsageError

Array = NDArray[Any]


class Prediction(msgspec.Struct, frozen=True):
    """One answer: the label, its class index, and its probability (0–1)."""

    label: str
    index: int
    probability: float


def need_scores(manifest: Manifest) -> None:
    """Raise a UsageError for a bundle without class scores."""
    names = {spec.name for spec in manifest.outputs}
    if not names & {"logits", "probabilities"}:
        raise UsageError(
            f"this bundle has no class scores, only {', '.join(sorted(names))}",
            "for features: vggdeploy embed, or engine.embed"
            + ("; for classes export it again with --outputs logits,…" if manifest.spec.classes else ""),
        )


def probabilities(outputs: Mapping[str, Array]) -> Array:
    """Class probabilities ``[N, classes]`` of a graph's outputs."""
    return outputs["probabilities"] if "probabilities" in outputs else softmax(outputs["logits"])


def predictions(manifest: Manifest, row: Array, top: int) -> list[Prediction]:
    """The ``top`` most probable classes of one image's probabilities, best first."""
    order = np.argsort(-row, kind="stable")[:top]
    labels = manifest.labels
    return [Prediction(labels[i] if labels else str(i), int(i), float(row[i])) for i in order.tolist()]


def softmax(logits: Array) -> Array:
    """Row-wise softmax, shifted by the row's maximum so that nothing overflows."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
