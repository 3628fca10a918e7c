"""ONNX → engine, through TensorRT 10, TensorRT 11 or TensorRT for RTX: one code path, the library is a parameter.

Networks are strongly typed: precision is what the ONNX says, and it is read back before anything is built.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import Any, BinaryIO

from vggdeploy.build import readback as precisions
from vggdeploy.build.progress import PhaseTracker, interruptible, monitor_for
from vggdeploy.bundle import PrecisionProof
from vggdeploy.bundle.precision import check
from vggdeploy.errors import BuildError, IncompatibleError, MissingDependencyError, UsageError
from vggdeploy.runtime.registry import Backend
from vggdeploy.runtime.tensorrt.api import Log, in_words, logger_for, no_collection, tensor_spec, title
from vggdeploy.system.optional import installed
from vggdeploy.system.sealed import shown
from vggdeploy.types import BatchRange, OnProgress, Precision, TensorSpec, silent

# Sets what was asked for (GPU targets, workspace) on an IBuilderConfig, or takes from it what the build left there.
Configure = Callable[[Any], None]


@dataclass(frozen=True)
class BuildResult:
    """What a build gives beside its file: graph inputs and outputs, proof of precision, seconds, the library's log.

    ``sha256`` and ``size`` are those of the engine's file, which is on the disk. ``scratch`` is what `BuildRecord` has.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    proof: PrecisionProof
    seconds: float
    log: str
    sha256: str
    size: int
    scratch: tuple[int, ...] = ()


def open_library(backend: Backend) -> ModuleType:
    """The module of the library that builds these engines.

    Raises:
        MissingDependencyError: it is not installed; the remedy says which extra brings it and what it needs.
        IncompatibleError: it is installed and does not import.
    """
    if "cpu" not in backend.builds_on and not installed(backend.library):
        raise MissingDependencyError(
            f"the Python package '{backend.library}' is needed to build {backend.name} engines, and it is not installed",
            f"on the machine with the NVIDIA GPU: pip install 'vggdeploy[{backend.extra}]' (it builds only there); "
            "without a GPU: --engine tensorrt-rtx",
        )
    return backend.import_library(to=f"build {backend.name} engines")


def build_engine(
    library: Any,
    source: Path,
    target: Path,
    *,
    precision: Precision,
    profiles: Sequence[BatchRange],
    configure: Configure | None = None,
    after: Configure | None = None,
    on_progress: OnProgress = silent,
) -> BuildResult:
    """Build the engine of an ONNX file and write it to ``target``, raw: the bytes are the library's own.

    Args:
        library: the module ``tensorrt`` or ``tensorrt_rtx``.
        source: the ONNX file; every axis but the batch is static.
        target: written as the engine comes, so put it into a draft that is thrown away on an error.
        profiles: the batch sizes of each optimisation profile, in ascending order.
        configure: called with the builder's configuration before the build.
        after: called with it once the engine is written.

    Raises:
        BuildError: the parser or the builder refused the model; the cause is the library's own, its log is a note.
        ParityError: a convolution or matrix product of the parsed network is not of ``precision``.
        UsageError: the graph's batch is fixed, and is not the one asked for.
        KeyboardInterrupt: Ctrl-C; the build was stopped first.
    """
    cancelled = Event()
    tracker = PhaseTracker(on_progress, cancelled)
    job = _Job(library, source, target, precision, profiles, configure, after, tracker)
    with interruptible(cancelled), no_collection():
        try:
            return job.run()
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # the error may live on; the builder and its memory must not
            if tracker.error is not None:  # the build failed because the caller's own callback did
                raise tracker.error from error
            error.add_note(f"log of {title(library)}:\n{job.log.text()}")
            raise


@dataclass
class _Job:
    """One build. Library objects are locals of `run`, so that they are freed when it ends, however it ends."""

    library: Any
    source: Path
    target: Path
    precision: Precision
    profiles: Sequence[BatchRange]
    configure: Configure | None
    after: Configure | None
    tracker: PhaseTracker

    def __post_init__(self) -> None:
        self.log = Log()

    def run(self) -> BuildResult:
        started = time.perf_counter()
        logger = logger_for(self.library, self.log)
        try:
            builder = self.library.Builder(logger)
        except (TypeError, RuntimeError) as error:  # pybind11's "factory function returned nullptr"
            raise IncompatibleError(
                f"{title(self.library)} cannot start: {self.log.cause()}", "see what is missing: vggdeploy doctor"
            ) from error
        network = builder.create_network(network_flags(self.library))
        parser = self.library.OnnxParser(network, logger)  # it owns the weights: it has to live until the build is done
        self._parse(parser, network)
        inputs = _specs(network.num_inputs, network.get_input)
        outputs = _specs(network.num_outputs, network.get_output)
        proof = precisions.prove(self.library, network)
        check(proof, self.precision, source=shown(self.source))
        config = builder.create_builder_config()
        # On by default: FP32 layers would multiply 10-bit mantissas.
        set_or_clear = config.set_flag if self.precision is Precision.TF32 else config.clear_flag
        set_or_clear(self.library.BuilderFlag.TF32)
        config.profiling_verbosity = self.library.ProfilingVerbosity.DETAILED  # or the inspector names no types
        for batch in self.profiles:
            self._add_profile(builder, config, inputs, batch)
        if self.configure is not None:
            self.log.begin()
            self.configure(config)
        monitor = monitor_for(self.library, self.tracker)  # a local, since the config does not keep it alive
        config.progress_monitor = monitor
        self.log.begin()
        with self.target.open("wb") as file:
            done = serialise(self.library, builder, network, config, file)
        if not done:
            cause = self.log.cause()
            short = "workspace" in cause.lower()
            hint = "give a larger --workspace" if short else "try other GPU targets or another precision"
            raise self._refused("cannot build", cause, hint)
        if self.after is not None:
            self.after(config)
        seconds = time.perf_counter() - started
        sha256, size = flush_and_hash(self.target), self.target.stat().st_size
        return BuildResult(inputs, outputs, proof, seconds, self.log.text(), sha256, size)

    def _refused(self, verb: str, cause: str, hint: str = "export the bundle again") -> BuildError:
        return BuildError(
            f"{title(self.library)} {verb} {shown(self.source)}: {cause}",
            f"{hint}; --debug shows the library's whole log",
        )

    def _parse(self, parser: Any, network: Any) -> None:
        if not self.source.stat().st_size:
            raise self._refused("cannot read", "the file is empty")
        with self.source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            parsed = parser.parse(data)  # mapped, not read: the parser makes the only copy
        if not parsed or parser.num_errors:
            raise self._refused("cannot read", _parser_error(parser, self.log))
        # parse(b"") is True with 0 errors, and so is a graph without nodes.
        if not network.num_layers or not network.num_outputs or not network.num_inputs:
            counts = f"{network.num_layers} layers, {network.num_inputs} inputs and {network.num_outputs} outputs"
            raise self._refused("cannot use", f"the graph has {counts}")

    def _add_profile(self, builder: Any, config: Any, inputs: tuple[TensorSpec, ...], batch: BatchRange) -> None:
        profile = builder.create_optimization_profile()
        for spec in inputs:
            if not spec.shape or "N" in spec.shape[1:]:
                raise self._refused("cannot use", f"input {spec} needs a batch axis first, and no other dynamic axis")
            sizes = (batch.min, batch.opt, batch.max)
            if spec.shape[0] != "N" and set(sizes) != {spec.shape[0]}:
                raise UsageError(
                    f"{shown(self.source)} has a fixed batch of {spec.shape[0]}, and {batch} was asked for",
                    f"give --batch {spec.shape[0]}, or export with a dynamic batch",
                )
            profile.set_shape(spec.name, *((size, *spec.item_shape) for size in sizes))
        self.log.begin()
        if config.add_optimization_profile(profile) < 0:
            raise self._refused(f"refuses the batch range {batch} for", self.log.cause(), "try another --batch")


def network_flags(library: Any) -> int:
    """TensorRT 10 has to be asked for a strongly typed network; TensorRT 11 and RTX know no other.

    Raises:
        IncompatibleError: a TensorRT before 10.
    """
    if library.__name__ != "tensorrt":
        return 0
    major = int(library.__version__.partition(".")[0])
    if major < 10:
        raise IncompatibleError(
            f"{title(library)} is too old: engines are built with 10 or newer",
            "update it: pip install -U 'tensorrt>=10.3'",
        )
    return 0 if major > 10 else 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def flush_and_hash(path: Path) -> str:
    """The file's SHA-256. The disk writes it meanwhile, which the bundle's own flush would have to wait for."""
    with path.open("rb") as file, ThreadPoolExecutor(max_workers=1) as pool:
        flushed = pool.submit(os.fsync, file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        flushed.result()
    return digest


def serialise(library: Any, builder: Any, network: Any, config: Any, file: BinaryIO) -> bool:
    """Build, and write the engine to ``file``; whether there is one.

    Where the library can stream, the engine is never in memory as a whole: half of its size less at the peak.

    Raises:
        OSError: the file cannot be written.
    """
    if not hasattr(library, "IStreamWriter") or not hasattr(builder, "build_serialized_network_to_stream"):
        memory = builder.build_serialized_network(network, config)
        if memory is not None:
            file.write(memory)
        return memory is not None
    failed: list[Exception] = []

    def start(self: Any) -> None:
        library.IStreamWriter.__init__(self)

    def write(self: Any, data: bytes) -> int:
        try:
            return file.write(data)
        except Exception as error:  # it must not unwind through C++: a short count stops the build
            failed.append(error)
            return 0

    writer = type("FileWriter", (library.IStreamWriter,), {"__init__": start, "write": write})()
    done = builder.build_serialized_network_to_stream(network, config, writer)
    if failed:
        raise failed[0]
    return bool(done)


def _specs(count: int, get: Callable[[int], Any]) -> tuple[TensorSpec, ...]:
    return tuple(tensor_spec(t.name, t.dtype, t.shape) for t in (get(i) for i in range(count)))


def _parser_error(parser: Any, log: Log) -> str:
    """The parser's last error, with the node that it is about."""
    if not parser.num_errors:
        return log.cause()
    error = parser.get_error(parser.num_errors - 1)
    text = in_words(error.desc())
    if error.node() < 0:
        return text
    return f"{text} (node {error.node()} '{error.node_name()}', operator {error.node_operator()})"
