"""What applications hold: a session with its preprocessing and labels. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from types import TracebackType
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from vggdeploy.bundle import Bundle, Manifest, Variant
from vggdeploy.bundle.trust import Trust
from vggdeploy.engine.embedding import embedding
from vggdeploy.engine.lifetime import Health, Holder, Lease, LeasedHandle
from vggdeploy.engine.loading import LoadOptions, OpenVariant, beside, open_best
from vggdeploy.engine.predictions import Prediction, PredictionLists, need_scores, predictions, probabilities, softmax
from vggdeploy.errors import UsageError
from vggdeploy.preprocess import ImageLike, OneImage, normalise, prepare_batch
from vggdeploy.runtime import CheckedSession
from vggdeploy.runtime.registry import backend_for
from vggdeploy.runtime.sessions import run_batch
from vggdeploy.system import html
from vggdeploy.system.streams import is_file
from vggdeploy.types import Device, OnProgress

Array = NDArray[Any]
__all__ = ["Engine", "Health", "Prediction", "load", "softmax"]


class Engine:
    """An open variant of a bundle. Made by `load`; closed by ``close()`` or the end of its ``with`` block.

    Every method may be called from any number of threads.
    """

    def __init__(self, opened: OpenVariant, options: LoadOptions = LoadOptions()) -> None:
        self._holder = Holder(opened)
        self._options = options
        self._warm: tuple[int, ...] = ()

    @property
    def bundle(self) -> Bundle:
        return self._holder.present.bundle

    @property
    def variant(self) -> Variant:
        return self._holder.present.variant

    @property
    def device(self) -> Device:
        return self._holder.present.device

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, by class index."""
        return self.bundle.manifest.labels

    @property
    def closed(self) -> bool:
        return self._holder.closed

    @property
    def _session(self) -> CheckedSession:
        return self._holder.present.session

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free everything the engine holds, after the requests that are under way; a second call does nothing."""
        self._holder.close()

    def health(self) -> Health:
        """What it has done so far, and whether it can go on. Runs nothing."""
        return self._holder.health()

    def __repr__(self) -> str:
        return f"Engine({self.bundle.manifest.name}: {self.variant.name} on {self.device})"

    def _repr_html_(self) -> str:
        variant, state = self.variant, "closed" if self.closed else "open"
        about = (
            ("variant", variant.name),
            ("runs on", f"{backend_for(variant).title}, {self.device}"),
            ("parity", str(variant.verdict)),
            ("batches", f"{variant.batch.min} to {variant.batch.max}, tuned for {variant.batch.opt}"),
            ("state", state),
        )
        return html.heading("Engine") + html.facts(about) + (self.bundle._repr_html_() or "")

    def warm_up(self, batches: Iterable[int]) -> None:
        """Run black images, so that no request pays for buffers, kernels or compilation: each batch size twice, or the
        largest once where the backend prepares nothing for a size.

        A bundle that is loaded by `reload` is warmed up with the same sizes before it answers anybody.

        Raises:
            UsageError: a batch size that the variant does not take.
        """
        sizes = tuple(sorted(set(batches), reverse=True))  # the largest first: its buffers serve the others
        with self._holder.use() as held:
            _warm_up(held.opened, sizes)
        self._warm = sizes

    def reload(self, path: str | os.PathLike[str] | None = None) -> None:
        """Put another bundle (default: what now stands at the same path) in the place of this one, between two requests.

        It is opened with the options of `load`, has to repeat its golden pair, and is warmed up; only then do new
        requests get it. Requests under way finish on the old one, which is freed after the last of them: until then
        both are in memory. When anything fails, the old bundle goes on as before.

        Raises:
            Errors of `load`, and UsageError: the engine was warmed up with batch sizes that the new one does not take.
            IncompatibleError: this process was forked after the engine was opened.
        """
        self._holder.check_process()
        target = self.bundle.root if path is None else path
        options = replace(self._options, verify="always", rebuild=bool(self._options.rebuild))
        opened = open_best(target, options, gently=True)
        try:
            beside(opened.variant, opened.device)(lambda: _warm_up(opened, self._warm))
        except BaseException:
            opened.session.__exit__(None, None, None)
            raise
        self._holder.replace(opened)

    def hold(self) -> Lease:
        """The present variant, kept open through a reload until `release` gives it back: for what spans threads."""
        return self._holder.take()

    def release(self, held: Lease, error: BaseException | None = None) -> None:
        """Give back what `hold` gave, with the error that came of it, if any."""
        self._holder.give(held, error)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Raw arrays in, raw arrays out: graph input name → array, to output name → ``float32`` array ``[N, …]``.

        Raises:
            InputError: a wrong name, dtype or shape, an empty or too large batch, a NaN or infinity.
        """
        with self._holder.use() as held:
            return held.opened.session.run(feeds)

    def run_async(self, feeds: Mapping[str, Array]) -> LeasedHandle:
        """Start a batch and come back at once: ``result()`` of the handle waits for what `run` would have given.

        For engines on a GPU. ``feeds`` may be changed when this returns. A `reload` or `close` in between does not reach
        a batch that is under way. A handle that is dropped costs its answer, and is let go of with the next call.

        Raises:
            IncompatibleError: the variant's backend starts no batches.
            InputError: as for `run`.
        """
        held = self._holder.take()
        try:
            handle = held.opened.session.run_async(feeds)
        except BaseException as error:
            self._holder.give(held, error)
            raise
        return LeasedHandle(handle, self._holder, held)

    def stream(self, batches: Iterable[Mapping[str, Array]], *, depth: int = 2) -> Iterator[dict[str, Array]]:
        """The answer of each batch as `run` gives it, in order; of the batches only ``depth`` are in memory.

        On a GPU they are under way at the same time: one is copied in, while another computes and a third is copied
        out. Elsewhere they run one after the other. All are answered by the bundle that was there for the first, and
        count as one request.

        Raises:
            UsageError: ``depth`` below 1.
            InputError: as for `run`; the batches before were answered.
        """
        held = self._holder.take()
        try:
            yield from held.opened.session.stream(batches, depth=depth)
        except GeneratorExit:  # perhaps by the garbage collector
            self._holder.abandon(held)
            raise
        except BaseException as error:
            self._holder.give(held, error)
            raise
        self._holder.give(held)

    def run_on_device(
        self, feeds: Mapping[str, Any], *, out: Mapping[str, Any] | None = None, stream: int | None = None
    ) -> dict[str, Any]:
        """A batch from arrays on the GPU to arrays on the GPU, without a copy; it may be under way when this returns.

        For engines on a GPU. Types and shapes are checked; the numbers are not, since looking at them would be a copy.

        Args:
            feeds: graph input name → an array with ``__dlpack__`` or ``__cuda_array_interface__`` (PyTorch, CuPy, JAX,
                Numba): ``[N, …]``, contiguous, on the engine's GPU, at an address that is a multiple of 256.
            out: graph output name → such an array of ``float32``, to be written to. Default: new memory.
            stream: the ``cudaStream_t`` in whose order the batch runs. Without it the arrays' own protocols order it,
                and what is written to ``out`` is done on return.

        Returns:
            Output name → an array with both protocols, or the array of ``out`` that was given.

        Raises:
            IncompatibleError: the variant's backend takes no arrays of a GPU.
            InputError: an array that is not as said; nothing was started.
            GpuMemoryError: there is no room for the outputs.
        """
        with self._holder.use() as held:
            return held.opened.session.run_on_device(feeds, out=out, stream=stream)

    def run_prepared(self, batch: NDArray[np.uint8]) -> dict[str, Array]:
        """Images as `vggdeploy.preprocess.prepare_batch` makes them, ``uint8 [N, H, W, C]``, through the graph."""
        with self._holder.use() as held:
            return run_batch(held.opened.session, graph_input(held.opened.bundle.manifest, batch))

    # An array says with its shape whether it is one image; a str, bytes and a file are one, although they can be iterated.
    @overload
    def classify(self, images: NDArray[Any], *, top: int = 5) -> list[Any]: ...
    @overload
    def classify(self, images: OneImage, *, top: int = 5) -> list[Prediction]: ...  # type: ignore[overload-overlap]
    @overload
    def classify(self, images: Iterable[ImageLike], *, top: int = 5) -> list[list[Prediction]]: ...
    def classify(self, images: ImageLike | Iterable[ImageLike], *, top: int = 5) -> list[Any]:
        """Labels and probabilities, best first.

        Args:
            images: one image (path, bytes, open file, upload, PIL image, ``uint8`` array ``[H, W(, C)]``), or several: a
                sequence, a generator, a ``uint8`` array ``[N, H, W, C]``.
            top: how many answers an image; at most the number of classes.

        Returns:
            For one image a list of `Prediction`; for several a list of such lists, in their order.

        Raises:
            InputError: an image that cannot be used.
            UsageError: ``top`` below 1, or a bundle without class scores.
        """
        if top < 1:
            raise UsageError(f"top is {top}", "ask for at least 1")
        with self._holder.use() as held:
            manifest = held.opened.bundle.manifest
            need_scores(manifest)
            answers = PredictionLists(
                predictions(manifest, row, top)
                for outputs in _batches(held.opened, images, self._options.batch)
                for row in probabilities(outputs)
            )
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
        with self._holder.use() as held:
            vectors = embedding(held.opened.bundle.manifest.outputs, output, pool=pool, normalise=normalise)
            parts = [vectors(outputs) for outputs in _batches(held.opened, images, self._options.batch)]
        return np.concatenate([vectors.empty(), *parts])


def _batches(opened: OpenVariant, images: Any, wanted: int | None) -> Iterator[dict[str, Array]]:
    manifest, sizes = opened.bundle.manifest, opened.variant.batch
    rest = iter([images] if _is_one(images) else images)
    while batch := list(islice(rest, min(wanted or sizes.opt, sizes.max))):
        yield run_batch(opened.session, graph_input(manifest, prepare_batch(batch, manifest.preprocess)))


def _warm_up(opened: OpenVariant, sizes: Sequence[int]) -> None:
    """``sizes``: the largest first."""
    spec, limits = opened.bundle.manifest.input, opened.variant.batch
    for size in sizes:
        if not 1 <= size <= limits.max:
            raise UsageError(
                f"a batch of {size} is outside 1…{limits.max} of {opened.variant.name}",
                "serve smaller batches, or export/build with a larger maximum batch",
            )
    any_batch = opened.device.kind in backend_for(opened.variant).any_batch_on
    for size in sizes[:1] if any_batch else sizes:
        batch = np.zeros((size, *spec.item_shape), spec.dtype)
        for _ in range(1 if any_batch else 2):  # TorchScript compiles for the shapes that it saw in its first run
            run_batch(opened.session, batch)


def graph_input(manifest: Manifest, batch: NDArray[np.uint8]) -> Array:
    """Prepared images, ``uint8 [N, H, W, C]``, as the graph takes them: as they are, or normalised where it does not."""
    return batch if manifest.input.dtype == "uint8" else normalise(batch, manifest.preprocess)


def _is_one(images: Any) -> bool:
    if isinstance(images, np.ndarray):
        return images.ndim != 4
    one = (str, bytes, bytearray, memoryview, os.PathLike)
    return not isinstance(images, Iterable) or isinstance(images, one) or is_file(images)


def load(
    path: str | os.PathLike[str],
    *,
    backend: str = "auto",
    variant: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    verify: str = "first-load",
    rebuild: bool | OnProgress = False,
    trust: Trust | None = None,
    batch: int | None = None,
) -> Engine:
    """Open a bundle and a variant of it that is proven and runs here.

    ``"auto"`` takes the one that was the fastest where variants were measured on this machine (`vggdeploy bench --record`,
    `search`, `fit`), else the first by precision and format, the order that `vggdeploy inspect` shows.

    Every file's SHA-256 is checked first, and that an engine fits this machine's library, GPU and driver: only then does
    a library see its bytes. An engine, or a variant that nobody has run, must then repeat the golden pair.

    Args:
        path: the bundle's directory.
        backend: a backend's name, or ``"auto"``.
        variant: a variant's name, to take exactly that one.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``. Default: the backend's own.
        threads: CPU threads. Default: as many as the variant was fastest with where it was measured on this machine
            (`vggdeploy optimize`, `bench --record`); else every core this process may use.
        verify: when to run the golden pair: ``"first-load"`` of an engine on this machine (a pass is remembered in the
            user's cache), ``"always"``, for every variant, or ``"never"``.
        rebuild: when the engines do not fit this machine, build one that does from the bundle's ONNX, prove it, and add
            it to the bundle (to the user's cache where the bundle cannot be written). A function does the same, and is
            called meanwhile with the share that is done, 0 to 1, and the name of the phase.
        trust: whose signature the bundle must have; it is checked before anything else is read. The policy that
            ``VGGDEPLOY_POLICY`` names is heeded in any case, and what is given here comes on top of it.
        batch: how many images you will mostly give at a time: of several engines the one that is tuned for it is taken,
            and longer lists of images are cut into batches of that size. Any number of images can be given.

    Raises:
        BundleError: no bundle, or a damaged one; SignatureError, when no trusted key signed it.
        IncompatibleError: nothing in it runs here; the cause names what does not fit or is missing.
        ParityError: what was asked for does not compute what was trained.
    """
    options = LoadOptions(backend, variant, device, threads, verify, rebuild, trust, batch)
    return Engine(open_best(path, options), options)
