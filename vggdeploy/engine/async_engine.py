"""An engine for many callers at once: their images are decoded off the event loop and computed together."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggdeploy.bundle import Manifest
from vggdeploy.engine.embedding import embedding
from vggdeploy.engine.engine import Engine, graph_input
from vggdeploy.engine.isolation import IsolatedDecoders
from vggdeploy.engine.lifetime import Health, Lease
from vggdeploy.engine.microbatch import BatchDone, MicroBatcher, Ticket
from vggdeploy.engine.predictions import Prediction, need_scores, predictions, probabilities
from vggdeploy.errors import DeadlineError, InputError, UsageError, counted
from vggdeploy.preprocess import MAX_PIXELS, ImageLike, describe, prepare, read_encoded
from vggdeploy.runtime.sessions import run_batch
from vggdeploy.spec import PreprocessSpec
from vggdeploy.system.machine import usable_cores
from vggdeploy.system.ranges import ranged

Array = NDArray[Any]
Outputs = dict[str, Array]
USUAL_BATCH = 32
_MAX_DELAY_MS = 60_000


@dataclass(frozen=True)
class Answer:
    """What the graph gave for one request, which bundle gave it, and where the time went (milliseconds).

    ``arrived``: when it came, in seconds of `time.perf_counter`; the three parts follow each other from there.
    ``decode_ms``: reading, decoding, resizing, and waiting for a thread to do that. ``queue_ms``: waiting for a batch.
    ``compute_ms``: the run of the batch, of ``batch`` rows.
    """

    outputs: Outputs
    manifest: Manifest
    variant: str
    arrived: float
    decode_ms: float
    queue_ms: float
    compute_ms: float
    batch: int


@dataclass(frozen=True)
class AsyncLimits:
    """How many requests are computed together, how long each may wait, and what is refused.

    Attributes:
        max_batch: images computed together at most. Default: 32, or what the variant takes if that is less.
        max_delay_ms: a batch that is not full waits this long at most, and only while more images are on their way.
        queue: requests that wait at most. One more is answered with `Overloaded` at once: memory stays bounded.
        timeout: seconds for a request from start to end; None for no limit. Each method can be given its own.
        decode_threads: images decoded at the same time. Default: the cores that this process may use.
        max_pixels: an image with more is refused before it is decoded.
        isolate: decode image files in processes that can do nothing else, one for each of ``decode_threads``: see
            `vggdeploy.engine.isolation`. (Linux.)

    Raises:
        UsageError: a number below its minimum.
    """

    max_batch: int | None = None
    max_delay_ms: float = 2.0
    queue: int = 256
    timeout: float | None = None
    decode_threads: int | None = None
    max_pixels: int = MAX_PIXELS
    isolate: bool = False

    def __post_init__(self) -> None:
        counts = {"max_batch": self.max_batch, "queue": self.queue, "decode_threads": self.decode_threads}
        for name, count in counts.items():
            if count is not None and count < 1:
                raise UsageError(f"{name} is {count}", "give at least 1")
        if not 0 <= self.max_delay_ms <= _MAX_DELAY_MS:
            raise UsageError(f"max_delay_ms is {self.max_delay_ms}", f"give 0 to {_MAX_DELAY_MS} milliseconds")
        if self.timeout is not None and not self.timeout > 0:
            raise UsageError(f"timeout is {self.timeout}", "give seconds above 0")


def batch_sizes(max_batch: int) -> tuple[int, ...]:
    """Powers of two up to ``max_batch``, and ``max_batch``."""
    powers = [2**n for n in range(max_batch.bit_length()) if 2**n < max_batch]
    return (*powers, max_batch)


class AsyncEngine:
    """Dynamic micro-batching over an `Engine`, for ``await``.

        async with AsyncEngine(vggdeploy.load("artifacts/digits")) as engine:
            await engine.classify("digit.png")

    Its methods may be awaited in any number of event loops and threads at once. It owns the engine: closing one closes
    the other. After a fork it says so instead of waiting for ever: make it in the child.

    Args:
        engine: an open engine.
        limits: how many images are computed together, how many wait, and for how long.
        warm_up: run the batch sizes once before the first request (`batch_sizes`; on a GPU batches are filled up to
            one of them, so no other size is ever served).
        on_batch: told of each batch, in the thread that ran it; it must not raise.

    Raises:
        UsageError: a ``max_batch`` that the variant does not take.
        IncompatibleError: ``isolate`` where a process cannot be confined.
    """

    def __init__(
        self,
        engine: Engine,
        limits: AsyncLimits = AsyncLimits(),
        *,
        warm_up: bool = True,
        on_batch: Callable[[BatchDone], None] | None = None,
    ) -> None:
        accepted = engine.variant.batch.max
        self.max_batch = min(USUAL_BATCH, accepted) if limits.max_batch is None else limits.max_batch
        if self.max_batch > accepted:
            raise UsageError(
                f"max_batch is {self.max_batch}, and {engine.variant.name} takes {accepted} at most",
                "ask for less, or export/build with a larger maximum batch",
            )
        self.engine = engine
        self._limits = limits
        self._process = os.getpid()
        if warm_up:
            engine.warm_up(batch_sizes(self.max_batch))
            Image.init()  # Pillow imports a format's plugin when it first meets one, 40 ms in the first request
        decoding = limits.decode_threads or usable_cores()
        self._isolated = IsolatedDecoders(decoding, max_pixels=limits.max_pixels) if limits.isolate else None
        on_gpu = engine.device.kind != "cpu"
        self._sizes = batch_sizes(self.max_batch) if on_gpu else ()
        self._batcher: MicroBatcher[Array, Outputs] = MicroBatcher(
            self._run,
            max_rows=self.max_batch,
            max_delay=limits.max_delay_ms / 1000,
            queue=limits.queue,
            runners=2 if on_gpu else 1,  # on a GPU one batch is copied while another computes
            on_batch=on_batch,
        )
        self._decoders = ThreadPoolExecutor(decoding, thread_name_prefix="vggdeploy-decode")

    async def classify(self, image: ImageLike, *, top: int = 5, timeout: float | None = None) -> list[Prediction]:
        """Labels and probabilities of one image, best first; arguments and errors as `Engine.classify`, and:

        Raises:
            Overloaded: too many requests are waiting; nothing was computed.
            DeadlineError: no answer within ``timeout`` seconds. What had not been started is not computed.
        """
        return (await self.classified(image, top=top, timeout=timeout))[1]

    async def embed(
        self,
        image: ImageLike,
        *,
        output: str | None = None,
        pool: str = "avg",
        normalise: bool = False,
        timeout: float | None = None,
    ) -> NDArray[np.float32]:
        """The vector of one image, ``float32 [D]``; arguments and errors as `Engine.embed` and `classify`."""
        answered = await self.embedded(image, output=output, pool=pool, normalise=normalise, timeout=timeout)
        return answered[1]

    async def run(self, feeds: Mapping[str, Array], *, timeout: float | None = None) -> Outputs:
        """Raw arrays of up to ``max_batch`` rows, as `Engine.run`; errors also as `classify`."""
        return (await self.answer_arrays(feeds, timeout=timeout)).outputs

    async def classified(
        self, image: ImageLike, *, top: int = 5, timeout: float | None = None
    ) -> tuple[Answer, list[Prediction]]:
        """`classify`, and where its time went."""
        if top < 1:
            raise UsageError(f"top is {top}", "ask for at least 1")
        need_scores(self.engine.bundle.manifest)
        answer = await self.answer(image, timeout=timeout)
        return answer, predictions(answer.manifest, probabilities(answer.outputs)[0], top)

    async def embedded(
        self,
        image: ImageLike,
        *,
        output: str | None = None,
        pool: str = "avg",
        normalise: bool = False,
        timeout: float | None = None,
    ) -> tuple[Answer, NDArray[np.float32]]:
        """`embed`, and where its time went."""
        embedding(self.engine.bundle.manifest.outputs, output, pool=pool, normalise=normalise)  # a typo costs no image
        answer = await self.answer(image, timeout=timeout)
        vectors = embedding(answer.manifest.outputs, output, pool=pool, normalise=normalise)
        return answer, vectors(answer.outputs)[0]

    async def answer(self, image: ImageLike, *, timeout: float | None = None) -> Answer:
        """What the graph gives for one image, and where the time went; errors as `classify`."""
        ticket = self._enter()
        try:
            work = self._decoders.submit(self._decode, ticket, image)
        except BaseException as error:
            self._batcher.fail(ticket, error)
            raise
        # Of a request that is cancelled before a thread has taken it, not even the image is read.
        ticket.future.add_done_callback(lambda future: work.cancel() if future.cancelled() else None)
        return await self._answer(ticket, timeout)

    async def answer_arrays(self, feeds: Mapping[str, Array], *, timeout: float | None = None) -> Answer:
        """What the graph gives for raw arrays, and where the time went; errors as `run`."""
        ticket = self._enter()
        try:
            session = ticket.group.opened.session
            session.check(feeds, least=1)  # alone, before it can spoil a batch
            batch = feeds[session.inputs[0].name]
            if len(batch) > self.max_batch:
                raise InputError(
                    f"{counted(len(batch), 'row')} came in one request, and {self.max_batch} are computed together at most",
                    "split them",
                )
            self._batcher.submit(ticket, batch, len(batch))
        except BaseException as error:
            self._batcher.fail(ticket, error)
        return await self._answer(ticket, timeout)

    async def reload(self, path: str | os.PathLike[str] | None = None) -> None:
        """`Engine.reload`, off the event loop: requests go on meanwhile, and none is lost."""
        await asyncio.to_thread(self.engine.reload, path)

    def health(self) -> Health:
        """The engine's: see `Engine.health`."""
        return self.engine.health()

    @property
    def waiting(self) -> int:
        """Requests that wait to be computed."""
        return self._batcher.waiting

    @property
    def longest_wait(self) -> float:
        """Seconds that a request has waited for its batch, of those that wait."""
        return self._batcher.longest_wait

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """`close`, off the event loop."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Take no more requests, answer those that were taken, and close the engine. A second call does nothing."""
        if os.getpid() != self._process:
            return  # its threads live in the parent
        self._batcher.close()
        self._decoders.shutdown()
        if self._isolated is not None:
            self._isolated.close()
        self.engine.close()

    def _enter(self) -> Ticket[Array, Outputs]:
        held = self.engine.hold()
        try:
            ticket = self._batcher.enter(held)
        except BaseException as error:
            self.engine.release(held, error)
            raise
        # Through a reload a request stays with the bundle that it was prepared for.
        ticket.future.add_done_callback(
            lambda future: self.engine.release(
                held, asyncio.CancelledError() if future.cancelled() else future.exception()
            )
        )
        return ticket

    def _decode(self, ticket: Ticket[Array, Outputs], image: ImageLike) -> None:
        """In a thread of the pool: the image as the graph takes it, into the queue."""
        manifest: Manifest = ticket.group.opened.bundle.manifest
        try:
            array = self._prepare(image, manifest.preprocess)
            self._batcher.submit(ticket, graph_input(manifest, array[None]))
        except BaseException as error:  # it fails alone, and who waits for it is told
            self._batcher.fail(ticket, error)

    @ranged("decode")
    def _prepare(self, image: ImageLike, spec: PreprocessSpec) -> Array:
        limit = self._limits.max_pixels
        if self._isolated is None or isinstance(image, (Image.Image, np.ndarray)):  # there, nothing is to be decoded
            return prepare(image, spec, max_pixels=limit)
        return self._isolated.prepare(read_encoded(image, describe(image), limit), spec)

    def _run(self, held: Lease, arrays: Sequence[Array]) -> list[Outputs]:
        """One batch, in the batcher's thread; the answer of each request owns its memory."""
        batch = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        rows = len(batch)
        if self._sizes:
            size = next(size for size in self._sizes if size >= rows)
            batch = np.concatenate([batch, np.repeat(batch[-1:], size - rows, axis=0)])
        outputs = run_batch(held.opened.session, batch)
        if len(arrays) == 1:
            return [{name: array[:rows] for name, array in outputs.items()}]
        parts: list[Outputs] = []
        start = 0
        for array in arrays:
            stop = start + len(array)
            parts.append({name: values[start:stop].copy() for name, values in outputs.items()})
            start = stop
        return parts

    async def _answer(self, ticket: Ticket[Array, Outputs], timeout: float | None) -> Answer:
        limit = self._limits.timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(limit):
                outputs = await asyncio.wrap_future(ticket.future)
        except TimeoutError:
            if limit is None:  # it came from somewhere else
                raise
            raise DeadlineError(
                f"there was no answer within {limit:g} s", "allow more time, or send less at a time"
            ) from None
        opened = ticket.group.opened
        return Answer(
            outputs=outputs,
            manifest=opened.bundle.manifest,
            variant=opened.variant.name,
            arrived=ticket.arrived,
            decode_ms=(ticket.ready - ticket.arrived) * 1e3,
            queue_ms=(ticket.started - ticket.ready) * 1e3,
            compute_ms=(ticket.finished - ticket.started) * 1e3,
            batch=ticket.batch_rows,
        )
