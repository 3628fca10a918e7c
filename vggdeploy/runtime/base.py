"""The session protocol, how a session uses a GPU, and the wrapper that checks every call once, so that no backend has to."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vggdeploy.bundle import BuildRecord
from vggdeploy.errors import IncompatibleError, InputError, UsageError, VggdeployError, counted
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.system.forks import Birthplace
from vggdeploy.system.machine import usable_cores
from vggdeploy.system.sealed import HashedFile, SealedFile
from vggdeploy.types import BatchRange, Device, Precision, TensorSpec

MAX_CONTEXTS = 64

# What a session on the CPU is set up for: a short answer, many answers a second from several calls at once, or little memory.
Hint = Literal["latency", "throughput", "memory"]


@dataclass(frozen=True)
class GpuOptions:
    """Settings of a session on a GPU.

    ``contexts``: how many batches run at the same time, each with buffers and scratch memory of its own; they are made
    when they are needed. ``graphs``: capture CUDA graphs. ``graph_batches``: of these batch sizes only; empty: those
    that the engine was built with, else every size that comes a second time. ``cache``: the directory of what was
    compiled on this machine; default: in the user's cache. ``weight_budget``: bytes of the weights that stay on the GPU,
    of an engine that was built for weight streaming; the others come from the host's memory with every batch. Default: all.
    """

    contexts: int = 4
    graphs: bool = True
    graph_batches: tuple[int, ...] = ()
    cache: Path | None = None
    weight_budget: int | None = None

    def __post_init__(self) -> None:
        if self.weight_budget is not None and self.weight_budget < 0:
            raise UsageError(f"the weight budget cannot be {self.weight_budget} bytes", "give 0 or more")
        if not 1 <= self.contexts <= MAX_CONTEXTS:
            raise UsageError(f"the number of contexts cannot be {self.contexts}", f"give 1 to {MAX_CONTEXTS}")
        if any(size < 1 for size in self.graph_batches):
            raise UsageError(
                f"CUDA graphs cannot be captured for batches of {self.graph_batches}", "give sizes above 0"
            )


class Handle(Protocol):
    """A batch under way."""

    def result(self) -> dict[str, Any]: ...


@runtime_checkable
class GpuSession(Protocol):
    """What a session on a GPU has beside `vggdeploy.runtime.base.Session`."""

    def run_async(self, feeds: Mapping[str, Any]) -> Handle: ...
    def run_on_device(
        self, feeds: Mapping[str, Any], *, out: Mapping[str, Any] | None = None, stream: int | None = None
    ) -> dict[str, Any]: ...


@runtime_checkable
class ProfiledSession(Protocol):
    """What a session that was opened to be profiled has beside `vggdeploy.runtime.base.Session`."""

    def kernels(self) -> list[tuple[Kernel, ...]]:
        """The kernels of each call since the session was opened, in order. Asked once, after the last call."""


@runtime_checkable
class CompiledSession(Protocol):
    """What a session of code that was compiled here has beside `vggdeploy.runtime.base.Session`: the SHA-256 of that code,
    since the bundle's file is not what runs."""

    compiled_sha256: str


Array = NDArray[Any]


def shareable(array: Array) -> Array:
    """The array itself where OpenVINO and PyTorch can read it where it lies, else a copy.

    Both take only what is aligned and writeable, though neither writes into it. PyTorch takes no negative strides.
    """
    return np.require(array, requirements=("C_CONTIGUOUS", "ALIGNED", "WRITEABLE"))


class Session(Protocol):
    """One open variant. Nothing is allocated before ``__enter__``; everything is freed by ``__exit__``."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]: ...


@dataclass(frozen=True)
class Kernel:
    """One kernel of one call: its name and kind as the library has them, and the ONNX operators (or what they make) that
    it was made of, as far as the library tells."""

    name: str
    kind: str
    nodes: tuple[str, ...]
    ms: float


@dataclass(frozen=True)
class Source:
    """All that a backend needs to open a variant: its file, and what the graph promises."""

    file: HashedFile
    spec: ModelSpec
    preprocess: PreprocessSpec
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: BatchRange
    device: Device = field(default_factory=Device)
    threads: int | None = None
    gpu: GpuOptions = field(default_factory=GpuOptions)
    build: BuildRecord | None = None  # of an engine: with the batch sizes that get CUDA graphs
    precision: Precision = Precision.FP32
    hint: Hint = "latency"
    cannot_saturate: bool = False  # of an INT8 file: no image can, as its record says of these bytes
    weights: Callable[[], AbstractContextManager[SealedFile]] | None = None  # of an engine without: its checked ONNX
    profile: bool = False  # time every kernel: the session is a `ProfiledSession` then
    refuse: Callable[[SealedFile], None] = lambda file: None  # raises where no library may see the bytes

    def __post_init__(self) -> None:
        if self.profile:  # a graph's replay reports no kernels, and kernels of two contexts would disturb each other
            object.__setattr__(self, "gpu", replace(self.gpu, contexts=1, graphs=False))

    @property
    def sha256(self) -> str:
        return self.file.sha256

    @property
    def profiles(self) -> tuple[BatchRange, ...]:
        """The ranges of batch sizes with kernels of their own, in the engine's order; the one range of any other file."""
        return (self.build.profiles if self.build else ()) or (self.batch,)

    def profile_of(self, batch: int) -> int:
        """The number of the profile that takes a batch."""
        return bisect_left(self.profiles, batch, key=lambda profile: profile.max)

    @property
    def name(self) -> str:
        """The file's name, for messages."""
        return self.file.path.name

    @contextmanager
    def open(self) -> Iterator[SealedFile]:
        """The bytes, read once and hashed, which a library may see: the only way from a file to a library.

        Raises:
            IntegrityError: they are not the ones of the hash, or certainly not of this variant.
            BundleError: they cannot be read.
        """
        with self.file.open() as sealed:
            self.refuse(sealed)
            yield sealed

    @property
    def thread_count(self) -> int:
        """Threads to compute with: as asked, else every core that this process, or its container, may use."""
        return self.threads or usable_cores()


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run on this machine; if not, why, and the line that mends it.

    ``lacks``: precisions that it has no arithmetic for here, so that a variant in them would compute in another, or not at all.
    """

    runs: bool
    device: str = "cpu"
    reason: str = ""
    fix: str = ""
    version: str = ""
    builds: bool = False
    lacks: tuple[Precision, ...] = ()


class CheckedSession:
    """A session whose inputs and outputs are checked: names, dtypes, shapes, batch range, and finite numbers.

    Thread-safe as far as the backend's ``run`` is; all backends here allow concurrent calls. A child that was forked after it
    was opened is refused: some libraries would wait there for ever for the threads of the parent.
    """

    def __init__(self, session: Session, *, name: str, batch: BatchRange) -> None:
        self._session = session
        self.name = name
        self.batch = batch
        self.inputs = session.inputs
        self.outputs = session.outputs
        self._checks = [(s.name, np.dtype(s.dtype), s.item_shape, s.dtype.startswith("float")) for s in session.inputs]
        self._shapes = {s.name: s.item_shape for s in session.outputs}
        self._open = False
        self._birthplace = Birthplace()

    def __enter__(self) -> Self:
        self._session.__enter__()
        self._open, self._birthplace = True, Birthplace()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        if self._birthplace.here:  # in a forked child, to free it could wait for the parent's threads
            self._session.__exit__(kind, error, trace)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch: graph input name → array, to graph output name → ``float32`` array.

        Raises:
            InputError: a wrong name, dtype or shape, an empty or too large batch, a NaN or infinity.
            VggdeployError: the session is closed, or the model's answer is of another shape, or holds a NaN or infinity.
            IncompatibleError: this process was forked after the session was opened.
        """
        session = self._opened()
        self.check(feeds)
        return self._checked(session.run(feeds), _rows(feeds))

    def run_async(self, feeds: Mapping[str, Array]) -> Handle:
        """Start a batch; ``result()`` of the handle waits for what `run` would have given. For sessions on a GPU.

        Raises:
            IncompatibleError: the backend has no such way.
            InputError: as for `run`.
        """
        session = self._on_gpu("run_async")
        self.check(feeds)
        return _CheckedHandle(session.run_async(feeds), self, _rows(feeds))

    def run_on_device(
        self, feeds: Mapping[str, Any], *, out: Mapping[str, Any] | None = None, stream: int | None = None
    ) -> dict[str, Any]:
        """A batch from arrays on the GPU to arrays on the GPU, without a copy: see the backend's method of that name.

        Types and shapes are checked; the numbers are not, since looking at them would be a copy.
        """
        session = self._on_gpu("run_on_device")
        self._check_names(feeds)
        return session.run_on_device(feeds, out=out, stream=stream)

    def stream(self, batches: Iterable[Mapping[str, Array]], *, depth: int = 2) -> Iterator[dict[str, Array]]:
        """The answer of each batch, in order. On a GPU ``depth`` batches are under way at the same time: one is copied
        in, while another computes and a third is copied out. Elsewhere one after the other.
        """
        if depth < 1:
            raise UsageError(f"the number of batches under way cannot be {depth}", "give at least 1")
        if not isinstance(self._session, GpuSession):
            yield from map(self.run, batches)
            return
        under_way: deque[Handle] = deque()
        for feeds in batches:
            under_way.append(self.run_async(feeds))
            if len(under_way) > depth - 1:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    @property
    def unchecked(self) -> Session:
        """The backend's own session: what a benchmark takes apart."""
        return self._opened()

    @property
    def profiled(self) -> ProfiledSession:
        """The backend's own session, of one that `open_profiled` opened."""
        session = self._opened()
        assert isinstance(session, ProfiledSession)  # noqa: S101  # `open_session` saw to that
        return session

    def _opened(self) -> Session:
        if not self._open:
            raise VggdeployError(f"the session of {self.name} is closed", "use it inside its 'with' block")
        self._birthplace.check(f"the session of {self.name}", again="open it")
        return self._session

    def _on_gpu(self, what: str) -> GpuSession:
        session = self._opened()
        if not isinstance(session, GpuSession):
            raise IncompatibleError(
                f"{self.name} has no {what} on this backend", "use run(), or a variant of the tensorrt backends"
            )
        return session

    def _checked(self, results: dict[str, Array], rows: int) -> dict[str, Array]:
        for name, array in results.items():
            if array.shape != (rows, *self._shapes.get(name, array.shape[1:])):
                raise VggdeployError(
                    f"{self.name} gave '{name}' as {list(array.shape)} for {counted(rows, 'image')}",
                    "its file is not the network that the manifest describes: run vggdeploy verify BUNDLE --layers",
                )
            if not np.isfinite(array).all():
                raise VggdeployError(
                    f"{self.name} gave a NaN or infinity in '{name}'",
                    "the variant overflows on this input: use one of higher precision, and run vggdeploy verify BUNDLE",
                )
        return results

    def _check_names(self, feeds: Any) -> None:
        if not isinstance(feeds, Mapping):
            first = self.inputs[0].name
            raise InputError(
                f"a {type(feeds).__name__} names no input of the graph",
                f"give a dict: {{'{first}': batch}}; pictures of any size go to engine.classify",
            )
        if len(feeds) != len(self._checks) or any(name not in feeds for name, *_ in self._checks):
            wanted = ", ".join(str(s) for s in self.inputs)
            raise InputError(f"inputs {sorted(feeds)} are not the graph's", f"give {wanted}")

    def check(self, feeds: Mapping[str, Array], *, least: int | None = None) -> None:
        """Look at a batch as `run` does, and run nothing. ``least``: its smallest size, where it is to be filled up.

        Raises:
            InputError: as for `run`.
        """
        least = self.batch.min if least is None else least
        self._check_names(feeds)
        for (name, dtype, item, floating), spec in zip(self._checks, self.inputs, strict=True):
            array = feeds[name]
            if not isinstance(array, np.ndarray):
                raise InputError(f"input '{name}' is a {type(array).__name__}", f"give a NumPy array: {spec}")
            if array.dtype != dtype and array.dtype.newbyteorder("=") == dtype:
                cause = f"the numbers of input '{name}' are in the byte order of another machine ({array.dtype.str})"
                raise InputError(cause, f"convert them: array.astype('{dtype}')")
            if array.dtype != dtype or array.shape[1:] != item or array.ndim != len(item) + 1:
                raise InputError(f"input '{name}' is {array.dtype}{list(array.shape)}", f"give {spec}")
            if not least <= array.shape[0] <= self.batch.max:
                raise InputError(
                    f"a batch of {array.shape[0]} is outside {least}…{self.batch.max} of {self.name}",
                    "split it, or export/build with a larger maximum batch",
                )
            if floating and not np.isfinite(array).all():
                raise InputError(f"input '{name}' holds a NaN or infinity", "clean the input first")


def _rows(feeds: Mapping[str, Array]) -> int:
    return len(next(iter(feeds.values())))


class _CheckedHandle:
    """A batch under way, whose answer is checked like that of `CheckedSession.run`."""

    def __init__(self, handle: Handle, session: CheckedSession, rows: int) -> None:
        self._handle = handle
        self._session = session
        self._rows = rows

    def result(self) -> dict[str, Array]:
        return self._session._checked(self._handle.result(), self._rows)
