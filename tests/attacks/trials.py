"""Trials of blame: a fault of each kind in turn at a layer drawn at random, and the layer that is named for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from attacks.faults import FAULTS, KINDS, Fault, places, planted
from attacks.network import Array, known

from vggdeploy.bundle import Bundle
from vggdeploy.model.weights import load_model
from vggdeploy.preprocess import normalise
from vggdeploy.types import Precision
from vggdeploy.verify.examination import Examination
from vggdeploy.verify.segments import Graph

_FATAL = 4  # ONNX Runtime's log severity
_DRAWS = 200


@dataclass(frozen=True)
class Trial:
    """``moved``: ‖answers − those of the healthy file‖ ∕ ‖those‖; infinite where there is nothing to compare."""

    kind: str
    fault: str
    layer: str
    moved: float
    named: str | None
    reason: str

    @property
    def right(self) -> bool:
        return self.named == self.layer


class Subject:
    """One variant of a bundle, to plant in and to examine on a few golden images."""

    def __init__(self, bundle: Bundle, variant: str, *, images: int = 16) -> None:
        self.spec, self.known = bundle.manifest.spec, known(bundle)
        chosen = bundle.manifest.variant(variant)
        self.precision, self.graph = chosen.precision, onnx.load(bundle.path(chosen.path))
        self._model = load_model(bundle.root / "checkpoint").eval()
        self._images = bundle.golden()[0]["image"][:images]
        self._pixels = normalise(self._images, bundle.manifest.preprocess)

    def blamed(self, graph: onnx.ModelProto, *, method: str = "min-max") -> tuple[str | None, str]:
        """The layer that is named for a graph, and why. ``method``: of an INT8 graph's calibration."""
        examined = Examination(Graph(graph), self._model, self.precision, self._images, method=method, threads=1)
        examined.run(self._pixels)
        culprit, _, reason = examined.verdict()
        return culprit, reason

    def answers(self, graph: onnx.ModelProto) -> Array | None:
        """Class scores as the file is run in production; None where it does not run."""
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = _FATAL, 1
        try:
            session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
            return session.run(["logits"], {"image": self._images})[0]
        except Exception:  # ONNX Runtime's exceptions share no base class
            return None

    def trials(self, count: int, *, seed: int) -> Iterator[Trial]:
        """As many of each of the twelve kinds as ``count`` gives. A fault that changes no answer is drawn again."""
        random = np.random.default_rng(seed)
        right = self.answers(self.graph)
        for index in range(count):
            kind = KINDS[index % len(KINDS)]
            fault, layer, graph, moved = self._draw(kind, random, right)
            yield Trial(kind, fault.name, layer, moved, *self.blamed(graph))

    def _draw(
        self, kind: str, random: np.random.Generator, right: Array | None
    ) -> tuple[Fault, str, onnx.ModelProto, float]:
        int8 = self.precision is Precision.INT8
        found = [
            f for f in FAULTS.values() if f.kind == kind and (f.int8 if int8 else f.floats) and places(f, self.spec)
        ]
        for _ in range(_DRAWS):
            fault = found[random.integers(len(found))]
            layers = places(fault, self.spec)
            layer = layers[random.integers(len(layers))]
            try:
                graph = planted(self.graph, self.spec, fault, layer, seed=int(random.integers(2**32)), **self.known)
            except LookupError:
                continue
            answers = self.answers(graph)
            if answers is None or right is None or answers.shape != right.shape:
                return fault, layer, graph, np.inf
            if not np.array_equal(answers, right):
                return fault, layer, graph, float(np.linalg.norm(answers - right) / np.linalg.norm(right))
        raise LookupError(f"no fault of the kind {kind} changes an answer")
