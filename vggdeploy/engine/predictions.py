"""What becomes of class scores: probabilities, and the labels that go with the highest of them. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggdeploy.bundle import Manifest
from vggdeploy.errors import UsageError
from vggdeploy.system import html

Array = NDArray[Any]


class Prediction(dict[str, Any]):
    """One answer: the label, its class index, and its probability (0–1).

    It is a dictionary with these three keys, so that every JSON encoder and web framework takes it as it is.
    """

    __slots__ = ()

    def __init__(self, label: str, index: int, probability: float) -> None:
        super().__init__(label=label, index=index, probability=probability)

    @property
    def label(self) -> str:
        return str(self["label"])

    @property
    def index(self) -> int:
        return int(self["index"])

    @property
    def probability(self) -> float:
        return float(self["probability"])

    def __repr__(self) -> str:
        return f"Prediction(label={self.label!r}, index={self.index}, probability={self.probability:.4f})"

    def __reduce__(self) -> tuple[type[Prediction], tuple[str, int, float]]:
        return Prediction, (self.label, self.index, self.probability)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """What FastAPI documents for a handler that says it returns a `Prediction`. (Called by pydantic, where it is.)"""
        from pydantic_core import core_schema

        kinds = {
            "label": core_schema.str_schema(),
            "index": core_schema.int_schema(),
            "probability": core_schema.float_schema(),
        }
        return core_schema.typed_dict_schema({name: core_schema.typed_dict_field(kind) for name, kind in kinds.items()})


class Predictions(list[Prediction]):
    """The answers to one image, best first: a list, which a notebook shows as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return html.table(("label", "index", "probability"), map(_cells, self), left=(True, False, False))


class PredictionLists(list[Predictions]):
    """The answers to several images, in their order: a list of lists, which a notebook shows as one table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        rows = ((f"{number:,}", *_cells(answer)) for number, answers in enumerate(self) for answer in answers)
        return html.table(("image", "label", "index", "probability"), rows, left=(False, True, False, False))


def _cells(answer: Prediction) -> tuple[str, str, str]:
    return answer.label, str(answer.index), f"{answer.probability:.2%}"


def need_scores(manifest: Manifest) -> None:
    """Raise a UsageError for a bundle without class scores."""
    names = {spec.name for spec in manifest.outputs}
    if not names & {"logits", "probabilities"}:
        raise UsageError(
            f"this bundle has no class scores, only {', '.join(sorted(names))}",
            "for features: vggdeploy embed BUNDLE IMAGE -o vectors.npy, or engine.embed"
            + ("; for classes export it again with --outputs logits,…" if manifest.spec.classes else ""),
        )


def probabilities(outputs: Mapping[str, Array]) -> Array:
    """Class probabilities ``[N, classes]`` of a graph's outputs."""
    return outputs["probabilities"] if "probabilities" in outputs else softmax(outputs["logits"])


def predictions(manifest: Manifest, row: Array, top: int) -> Predictions:
    """The ``top`` most probable classes of one image's probabilities, best first."""
    order = np.argsort(-row, kind="stable")[:top]
    labels = manifest.labels
    found = ((labels[i] if labels else str(i), int(i), float(row[i])) for i in order.tolist())
    return Predictions(Prediction(*answer) for answer in found)


def softmax(logits: Array) -> Array:
    """Row-wise softmax, shifted by the row's maximum so that nothing overflows."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
