"""What applications hold: a session with its preprocessing and labels. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from vggdeploy.bundle import Bundle, Variant
from vggdeploy.errors import UsageError
from vggdeploy.features import embedding
from vggdeploy.loading import open_best
from vggdeploy.preprocess import ImageLike, normalise, prepare_batch
from vggdeploy.runtime import CheckedSession
from vggdeploy.runtime.batches import run_batch
from vggdeploy.types import Device

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
    verify: str = "first-load",
    rebuild: bool = False,
    on_progress: Callable[[float, str], None] | None = None,
) -> Engine:
    """Open a bundle and the fastest variant of it that is proven and runs here.

    Every file's SHA-256 is checked first, and that an engine fits this machine's library, GPU and driver: only then does
    a library see its bytes. An engine, or a variant that nobody has run, must then repeat the golden pair.

    Args:
        path: the bundle's directory.
        backend: a backend's name, or ``"auto"``.
        variant: a variant's name, to take exactly that one.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``. Default: the backend's own.
        threads: CPU threads. Default: every core this process may use.
        verify: when to run the golden pair: ``"first-load"`` of an engine on this machine (a pass is remembered in the
            user's cache), ``"always"``, for every variant, or ``"never"``.
        rebuild: when the engines do not fit this machine, build one that does from the bundle's ONNX, prove it, and add
            it to the bundle (to the user's cache where the bundle cannot be written).
        on_progress: called during a rebuild with the share that is done, 0 to 1, and the name of the phase.

    Raises:
        BundleError: no bundle, or a damaged one.
        IncompatibleError: nothing in it runs here; the cause names what does not fit or is missing.
        ParityError: what was asked for does not compute what was trained.
    """
    opened = open_best(
        path,
        backend=backend,
        variant=variant,
        device=device,
        threads=threads,
        verify=verify,
        rebuild=rebuild,
        on_progress=on_progress,
    )
    return Engine(opened.bundle, opened.variant, opened.session, opened.device)
