"""The TensorRT backend: one engine, and as many lanes (context, stream, buffers) as threads run at the same time.

`EngineSession` serves TensorRT for RTX too.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from vggdeploy.errors import IncompatibleError, InputError, VggdeployError
from vggdeploy.runtime.base import Array, Availability, Kernel, Source
from vggdeploy.runtime.gpu import cuda
from vggdeploy.runtime.gpu.device_arrays import Borrowed, DeviceArray, allocate, borrow, check_same_batch
from vggdeploy.runtime.gpu.lane import CLOSED, Lane
from vggdeploy.runtime.gpu.memory import check_weights, room_for
from vggdeploy.runtime.gpu.pool import Pending, Pool
from vggdeploy.runtime.tensorrt.api import backend_library, no_collection
from vggdeploy.runtime.tensorrt.engine import LoadedEngine
from vggdeploy.runtime.tensorrt.profile import EngineLayer, inspected
from vggdeploy.types import Device

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_KEPT = 8  # batch sizes after which a session keeps what was compiled; for others it does so at its end


_log = logging.getLogger("vggdeploy")


class EngineSession:
    """One engine file. Its methods may be called from any number of threads.

    A subclass names the class that loads an engine.
    """

    loader: ClassVar[type[LoadedEngine]] = LoadedEngine

    def __init__(self, source: Source) -> None:
        self.inputs = source.inputs
        self.outputs = source.outputs
        self._source = source
        self._pool: Pool | None = None
        self._loaded: LoadedEngine | None = None
        self._kept: set[int] = set()
        self._free: weakref.finalize[..., Any] | None = None

    def __enter__(self) -> Self:
        library = backend_library(self.loader.engine_name)
        source = self._source
        stack, unread = ExitStack(), ExitStack()
        file = unread.enter_context(source.open())
        loaded = self.loader(library, source)
        try:
            cuda.use(source.device)
            stack.callback(loaded.drop)
            check_weights(source, file.size)
            with unread, no_collection():  # once the library has the bytes, ours are gone
                loaded.load(file)
            room = room_for(source, [loaded.scratch_size(profile) for profile in range(len(source.profiles))])
            if room.note:
                _log.warning("%s", room.note)
            pool = Pool(lambda: Lane(loaded, source), room.contexts, refused=room.note)
            stack.callback(pool.close)
            pool.give(pool.take())  # the first lane is made here: what does not fit is said at once
        except BaseException as error:
            unread.close()
            cuda.release(stack.close, error)
            raise
        self._pool, self._loaded = pool, loaded
        # Also when nobody leaves the 'with' block: a generator that was dropped, an interpreter that ends.
        self._free = weakref.finalize(self, stack.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool = self._loaded = None
        if self._free is not None:
            cuda.release(self._free, error)

    @property
    def pool(self) -> Pool:
        """The lanes: what a benchmark measures.

        Raises:
            VggdeployError: the session is closed.
        """
        pool = self._pool
        if pool is None:
            raise VggdeployError(*CLOSED)
        return pool

    @contextmanager
    def lane(self) -> Iterator[Lane]:
        """A lane for this thread alone, ready to be used."""
        pool = self.pool
        lane = pool.take()
        try:
            with lane.lock:
                lane.begin()
                yield lane
        finally:
            pool.give(lane)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        with self.lane() as lane:
            batch = lane.stage(feeds)
            lane.enqueue(batch)
            results = lane.results(batch)
            if batch not in self._kept:
                self._keep(lane, batch)
            times = self._loaded.times if self._loaded is not None else None
            if times is not None:
                lane.report(batch)
                times.end_call()
            return results

    def _keep(self, lane: Lane, batch: int) -> None:
        """Let the library keep what it compiled for a batch size that came for the first time: a process may end without
        a goodbye. Later, where another thread is in the library just now."""
        pool, loaded = self._pool, self._loaded
        if pool is None or loaded is None or len(self._kept) >= MAX_KEPT:
            return
        with pool.alone(lane) as alone:
            if not alone:
                return
            compiled = loaded.compiled()
        self._kept.add(batch)
        loaded.keep(compiled)

    def layers(self) -> tuple[EngineLayer, ...]:
        """The engine's layers as the library's inspector describes them for the batch size that it is tuned for."""
        with self.lane() as lane:
            loaded = self._loaded
            assert loaded is not None  # noqa: S101  # there is a lane
            return lane.look(self._source.batch.opt, lambda context: inspected(loaded.library, loaded.engine, context))

    def kernels(self) -> list[tuple[Kernel, ...]]:
        """See `vggdeploy.runtime.base.ProfiledSession`."""
        return self._loaded.kernels() if self._loaded is not None else []

    def run_async(self, feeds: Mapping[str, Array]) -> Pending:
        """Start a batch and come back at once: ``result()`` of the handle waits for it. ``feeds`` may be changed then.

        With more batches under way than the session has contexts, the oldest one is waited for first.
        """
        pool = self.pool
        lane = pool.take()
        try:
            with lane.lock:
                lane.begin()
                batch = lane.stage(feeds)
                lane.enqueue(batch)
        except BaseException:
            pool.give(lane)
            raise
        return pool.start(lane, batch, self)

    def run_on_device(
        self, feeds: Mapping[str, Any], *, out: Mapping[str, Any] | None = None, stream: int | None = None
    ) -> dict[str, Any]:
        """A batch from arrays on the GPU to arrays on the GPU, without a copy; it may be under way when this returns.

        Args:
            feeds: graph input name → an array with ``__dlpack__`` or ``__cuda_array_interface__`` (PyTorch, CuPy, JAX,
                Numba), contiguous, on the session's GPU, at an address that is a multiple of 256.
            out: graph output name → such an array, to be written to. Default: new memory.
            stream: the ``cudaStream_t`` in whose order the batch runs: after what is in it now, before what comes.
                Without it the arrays' own protocols order it, and what is written to ``out`` is done on return.

        Returns:
            Output name → `DeviceArray`, or the array of ``out`` that was given.

        Raises:
            InputError: an array that is not as said; nothing was started.
            GpuMemoryError: there is no room for the outputs.
        """
        if out is not None and set(out) != {spec.name for spec in self.outputs}:
            raise InputError(f"outputs {sorted(out)} are not the graph's", f"give {', '.join(map(str, self.outputs))}")
        with self.lane() as lane:
            device = self._source.device
            orders = lane.stream if stream is None else None
            taken = {spec.name: borrow(feeds[spec.name], spec, device, stream=orders) for spec in self.inputs}
            given = {s.name: borrow(out[s.name], s, device, stream=orders) for s in self.outputs} if out else {}
            batch = check_same_batch({**taken, **given}, self._source.batch)
            made = {} if out else allocate(self.outputs, batch, device)
            if stream is not None:
                before = cuda.Event()
                before.record(stream)
                before.hold(lane.stream)
            arrays: dict[str, Borrowed | DeviceArray] = {**taken, **given, **made}
            addresses = {name: array.address for name, array in arrays.items()}
            done = lane.run_between(batch, addresses, (taken, given))
            if stream is not None:
                done.hold(stream)
            elif out is not None:
                done.wait()  # its owner's next use of it has nothing else to wait for
            for array in made.values():
                array.ready = done
            return dict(out) if out is not None else dict(made)


def probe(device: Device) -> Availability:
    """A GPU and its driver have to be here, both to run and to build."""
    library = backend_library("tensorrt")
    try:
        gpu = cuda.find_gpu(device)
    except IncompatibleError as error:
        return Availability(False, str(device), error.cause, error.hint, library.__version__)
    return Availability(True, f"{device} ({gpu.name}, {gpu.capability})", version=library.__version__, builds=True)


SESSION = EngineSession
