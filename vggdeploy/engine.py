"""What applications hold: a session with its preprocessing and labels. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from vggdeploy.bundle import Bundle, Variant
from vggdeploy.errors import ParityError, UsageError, VggdeployError
from vggdeploy.features import embedding
from vggdeploy.parity import check_golden
from vggdeploy.preprocess import ImageLike, normalise, prepare_batch
from vggdeploy.runtime import CheckedSession, open_session
from vggdeploy.runtime.batches import run_batch
from vggdeploy.runtime.registry import backend_for, default_device
from vggdeploy.selection import select
from vggdeploy.types import Device, Verdict

Array = NDArray[Any]


class Prediction(msgspec.Struct, frozen=True):
    """One answer: the label, its class index, and its probability (0–1)."""

    label: str
    index: int
    probability: float


class Engine:
    """An open variant of a bundle. Made by `load`; closed by ``close()`` or the end of its ``with`` block."""

    def __init__(self, bundle: Bundle, variant: Variant, session: CheckedSession, device: Device) -> None:
        self.bundle = bundle
        self.variant = variant
        self.device = device
        self._session = session
        self._run = session.run

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, by class index."""
        return self.bundle.manifest.labels

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.__exit__(kind, error, trace)

    def close(self) -> None:
        """Free everything the engine holds; a second call does nothing."""
        self._session.__exit__(None, None, None)

    def __repr__(self) -> str:
        return f"Engine({self.bundle.manifest.name}: {self.variant.name} on {self.device})"

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Raw arrays in, raw arrays out: graph input name → array, to output name → ``float32`` array ``[N, …]``.

        Raises:
            InputError: a wrong name, dtype or shape, an empty or too large batch, a NaN or infinity.
        """
        return self._run(feeds)

    def run_prepared(self, batch: NDArray[np.uint8]) -> dict[str, Array]:
        """Images as `vggdeploy.preprocess.prepare_batch` makes them, ``uint8 [N, H, W, C]``, through the graph."""
        manifest = self.bundle.manifest
        feed: Array = batch if manifest.input.dtype == "uint8" else normalise(batch, manifest.preprocess)
        return run_batch(self._session, feed)

    def classify(self, images: ImageLike | Iterable[ImageLike], *, top: int = 5) -> list[Any]:
        """Labels and probabilities, best first.

        Args:
            images: one image (path, bytes, PIL image, ``uint8`` array ``[H, W(, C)]``), or several: a sequence, a
                generator, a ``uint8`` array ``[N, H, W, C]``.
            top: how many answers an image; at most the number of classes.

        Returns:
            For one image a list of `Prediction`; for several a list of such lists, in their order.

        Raises:
            InputError: an image that cannot be used.
            UsageError: ``top`` below 1, or a bundle without class scores.
        """
        if top < 1:
            raise UsageError(f"top={top}", "ask for at least 1")
        answers = [self._predictions(row, top) for scores in self._scores(images) for row in scores]
        return answers[0] if _is_one(images) else answers

    def embed(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        output: str | None = None,
        pool: str = "avg",
        normalise: bool = False,
    ) -> NDArray[np.float32]:
        """One vector an image, from a named output of the graph.

        Args:
            images: one image or several, as in `classify`. Of a generator only a batch is in memory at a time.
            output: ``fc7``, ``pool5``, … of those that the bundle was exported with. Default: ``fc7`` where it is, else
                the only output that is no class score.
            pool: what makes a vector of a feature map ``[C, H, W]``: ``avg`` or ``max`` over all positions, or ``none``.
            normalise: divide each vector by its Euclidean length (a zero vector stays zero).

        Returns:
            ``float32 [N, D]``, in the order of the images; N is 1 for one image. ``[N, C, H, W]`` for a feature map
            with ``pool="none"``.

        Raises:
            InputError: an image that cannot be used.
            UsageError: an output or a pool that there is not.
        """
        vectors = embedding(self.bundle.manifest.outputs, output, pool=pool, normalise=normalise)
        parts = [vectors(found) for found in self._batches(images)]
        return np.concatenate([vectors.empty(), *parts])

    def _scores(self, images: Any) -> list[Array]:
        names = {spec.name for spec in self.bundle.manifest.outputs}
        if not names & {"logits", "probabilities"}:
            raise UsageError(
                f"this bundle has no class scores, only {', '.join(sorted(names))}",
                "for features: vggdeploy embed, or engine.embed; for classes export it again with --outputs logits,…",
            )
        ready = "probabilities" in names
        return [o["probabilities"] if ready else softmax(o["logits"]) for o in self._batches(images)]

    def _batches(self, images: Any) -> Iterator[dict[str, Array]]:
        rest = iter([images] if _is_one(images) else images)
        while batch := list(islice(rest, self.variant.batch.opt)):
            yield self.run_prepared(prepare_batch(batch, self.bundle.manifest.preprocess))

    def _predictions(self, probabilities: Array, top: int) -> list[Prediction]:
        order = np.argsort(-probabilities, kind="stable")[:top]
        return [
            Prediction(self.labels[i] if self.labels else str(i), int(i), float(probabilities[i]))
            for i in order.tolist()
        ]


def _is_one(images: Any) -> bool:
    if isinstance(images, np.ndarray):
        return images.ndim != 4
    return not isinstance(images, Iterable) or isinstance(images, (str, bytes, bytearray, memoryview))


def softmax(logits: Array) -> Array:
    """Row-wise softmax, shifted by the row's maximum so that nothing overflows."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def load(
    path: str | os.PathLike[str],
    *,
    backend: str = "auto",
    variant: str | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> Engine:
    """Open a bundle and the fastest variant of it that is proven and runs here.

    Every file's SHA-256 is checked first. A variant that was never run before (a GPU engine built on a machine
    without a GPU) must repeat the golden pair on this machine before it is handed out.

    Args:
        path: the bundle's directory.
        backend: a backend's name, or ``"auto"``.
        variant: a variant's name, to take exactly that one.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``. Default: the backend's own.
        threads: CPU threads. Default: every core this process may use.

    Raises:
        BundleError: no bundle, or a damaged one.
        IncompatibleError: nothing in it runs here; the cause names what is missing.
        ParityError: what was asked for does not compute what was trained.
    """
    bundle = Bundle.open(path)
    where = Device.parse(device) if device else None
    refused: list[str] = []
    for candidate in select(bundle, backend=backend, variant=variant, device=where):
        on = where or default_device(backend_for(candidate))
        session = open_session(bundle, candidate, device=on, threads=threads)
        session.__enter__()
        try:
            if candidate.verdict is Verdict.UNPROVEN:
                _prove_here(session, bundle, candidate, on)
        except VggdeployError as error:
            session.__exit__(None, None, None)
            if backend != "auto" or variant:
                raise
            refused.append(error.cause)
            continue
        except BaseException:
            session.__exit__(None, None, None)
            raise
        return Engine(bundle, candidate, session, on)
    raise ParityError(f"no variant of {path} could be proven here: {'; '.join(refused)}", "run: vggdeploy verify")


def _prove_here(session: CheckedSession, bundle: Bundle, variant: Variant, device: Device) -> None:
    record = check_golden(session, bundle, variant, device)
    if record.verdict is not Verdict.PASS:
        raise ParityError(
            f"{variant.name} misses the golden pair on this machine: {'; '.join(record.reasons)}",
            "build it again on this machine, or load another variant",
        )
