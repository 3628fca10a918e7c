"""One engine in the library's hands: read, hashed, deserialised, checked against the manifest, and shared by its contexts.

Deserialising an engine runs its code: the library sees no other bytes than the ones that were hashed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from vggdeploy.errors import BundleError, IncompatibleError, VggdeployError
from vggdeploy.runtime.base import Kernel, Source
from vggdeploy.runtime.preflight import needs_lean
from vggdeploy.runtime.tensorrt.api import Log, logger_for, new_runtime, no_collection, tensor_spec, title
from vggdeploy.runtime.tensorrt.lean import find_lean
from vggdeploy.runtime.tensorrt.profile import LayerTimes, inspected
from vggdeploy.runtime.tensorrt.refit import refit
from vggdeploy.system.ranges import asked
from vggdeploy.system.sealed import SealedFile
from vggdeploy.types import TensorSpec

_AGAIN = "build it again: vggdeploy build BUNDLE"


class LoadedEngine:
    """The library's logger, runtime and engine. The library's objects are reached only through here.

    A subclass says how a context is made, and whether CUDA graphs are captured by us (``may_capture``).
    """

    engine_name: ClassVar[str] = "tensorrt"
    may_capture: ClassVar[bool] = True

    def __init__(self, library: Any, source: Source) -> None:
        self.library = library
        self.source = source
        self.log = Log()
        self.times = LayerTimes(library) if source.profile else None
        self.logger: Any = None
        self.runtime: Any = None
        self.loader_runtime: Any = None  # what loaded ``runtime``, where that is of another release than the library
        self.engine: Any = None
        self.streams_weights = False

    @property
    def captures(self) -> bool:
        """Whether we capture CUDA graphs. Of an engine that copies its weights from the host with every batch we do not."""
        return self.may_capture and not self.streams_weights

    def load(self, file: SealedFile) -> None:
        """Deserialise the bytes, of which the library makes the only copy.

        Raises:
            IncompatibleError: the library refused it; the cause is its own.
            BundleError: its inputs, outputs or batch range are not the manifest's.
        """
        self.logger = logger_for(self.library, self.log)
        self.runtime = self._made(lambda: new_runtime(self.library, self.logger, self.log), "start")
        self.check_header(file)
        # engine_host_code_allowed stays False: an engine may hold no code for the CPU.
        self._load_lean()
        self.engine = self._made(lambda: self.runtime.deserialize_cuda_engine(file.map()), f"load {file.name}")
        if self.source.weights is not None:
            with self.source.weights() as onnx:
                refit(self.library, self.engine, self.logger, self.log, onnx)
        self._check_tensors()
        self._set_weight_budget()

    def _load_lean(self) -> None:
        """For a version-compatible engine of an older release: that release's lean runtime, which runs it."""
        found = find_lean() if needs_lean(self.source.build, str(self.library.__version__)) else None
        if found is not None:
            verb = f"load the lean runtime {found.version}"
            lean = self._made(lambda: self.runtime.load_runtime(str(found.path)), verb)
            self.loader_runtime, self.runtime = self.runtime, lean

    def check_header(self, file: SealedFile) -> None:
        """Refuse what the library can refuse without deserialising it."""

    def compiled(self) -> bytes:
        """What the library compiled on this machine so far. No other thread is in the library meanwhile."""
        return b""

    def keep(self, compiled: bytes) -> None:
        """Keep it for the next start."""

    def drop(self) -> None:
        """Let go of the library's objects, the last one made first."""
        self.engine = None
        self.runtime = None
        self.loader_runtime = None
        self.logger = None

    def scratch_size(self, profile: int) -> int:
        """Bytes of GPU memory that a context of that profile computes in, for its largest batch."""
        return int(self.engine.get_device_memory_size_for_profile_v2(profile))

    def new_context(self, profile: int, scratch: int, stream: int) -> Any:
        """An execution context that computes batches of that profile in ``stream``, in the memory at ``scratch``.

        Raises:
            IncompatibleError: the library cannot make one.
            VggdeployError: it refuses the profile.
        """
        since = self.log.mark()
        with no_collection(collect=False):
            context = self._made(self.create_context, "prepare the engine (GPU memory?)")
            try:
                # What a profile needs on the GPU may be copied in that stream: the one that its batches run in. A new context
                # is on the first profile.
                if profile and not context.set_optimization_profile_async(profile, stream):
                    raise self.failed(f"{title(self.library)} refused profile {profile} of {self.source.name}", since)
                if scratch:
                    context.set_device_memory(scratch, self.scratch_size(profile))
                self._watch(context)
                return context
            finally:
                del context  # it would live on in the traceback

    def _watch(self, context: Any) -> None:
        if self.times is not None:
            self.times.attach(context)
        elif not asked():
            # Engines are built with all details. At run time they only name NVTX ranges, and make each launch longer
            # (so TensorRT's documentation of this property says).
            context.nvtx_verbosity = self.library.ProfilingVerbosity.NONE

    def kernels(self) -> list[tuple[Kernel, ...]]:
        """See `vggdeploy.runtime.base.ProfiledSession`; of an engine that was loaded to be profiled."""
        return self.times.kernels(inspected(self.library, self.engine)) if self.times is not None else []

    def create_context(self) -> Any:
        """A context without memory of its own; None when the library cannot make one."""
        return self.engine.create_execution_context(self.library.ExecutionContextAllocationStrategy.USER_MANAGED)

    def mark(self) -> int:
        """Where a step starts, for `failed`."""
        return self.log.mark()

    def failed(self, what: str, since: int) -> VggdeployError:
        """The error for a call that the library answered with False."""
        return VggdeployError(
            f"{what}: {self.log.cause(since)}", "try a smaller batch, or prove it: vggdeploy verify BUNDLE"
        )

    def _made(self, make: Callable[[], Any], verb: str) -> Any:
        """What the library made, or why it made nothing."""
        since = self.log.mark()
        created = make()
        if created is None:
            raise IncompatibleError(
                f"{title(self.library)} cannot {verb}: {self.log.cause(since)}",
                f"build an engine for this machine: vggdeploy build BUNDLE --engine {self.engine_name}",
            )
        return created

    def _set_weight_budget(self) -> None:
        """Leave a part of the weights in the host's memory, where that was asked for. No context may exist yet."""
        asked, name = self.source.gpu.weight_budget, self.source.name
        if asked is None:
            return
        streamable = int(self.engine.streamable_weights_size)
        if not streamable:
            raise IncompatibleError(
                f"{name} was not built for weight streaming, and a weight budget was given",
                "leave the budget out, or build it again: vggdeploy build BUNDLE --weight-streaming",
            )
        budget, since = min(asked, streamable), self.log.mark()
        self.engine.weight_streaming_budget_v2 = budget
        if int(self.engine.weight_streaming_budget_v2) != budget:  # the setter does not say whether it was heeded
            raise self.failed(f"{title(self.library)} did not take a weight budget of {budget} bytes for {name}", since)
        self.streams_weights = budget < streamable

    def _check_tensors(self) -> None:
        """The engine has to have the inputs, outputs and profiles of the manifest: buffers and contexts are made by them."""
        source, engine = self.source, self.engine
        tensors: dict[bool, set[TensorSpec]] = {True: set(), False: set()}
        try:
            for index in range(engine.num_io_tensors):
                name = engine.get_tensor_name(index)
                spec = tensor_spec(name, engine.get_tensor_dtype(name), engine.get_tensor_shape(name))
                is_input = engine.get_tensor_mode(name) == self.library.TensorIOMode.INPUT
                tensors[is_input].add(_any_batch(spec))
                if not is_input:
                    continue
                if engine.num_optimization_profiles != len(source.profiles):
                    raise BundleError(
                        f"{source.name} has {engine.num_optimization_profiles} optimisation profiles; the manifest says "
                        f"{len(source.profiles)}",
                        _AGAIN,
                    )
                for number, batch in enumerate(source.profiles):
                    smallest, _, largest = (shape[0] for shape in engine.get_tensor_profile_shape(name, number))
                    if smallest > batch.min or largest < batch.max:
                        raise BundleError(
                            f"profile {number} of {source.name} takes batches of {smallest}…{largest}; the manifest says "
                            f"{batch}",
                            _AGAIN,
                        )
        finally:
            del engine  # it would live on in the traceback
        wanted = {_any_batch(s) for s in source.inputs}, {_any_batch(s) for s in source.outputs}
        if (tensors[True], tensors[False]) != wanted:
            texts = ", ".join(sorted(str(s) for s in tensors[True] | tensors[False]))
            raise BundleError(f"{source.name} has not the inputs and outputs of the manifest, but {texts}", _AGAIN)


def _any_batch(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, spec.dtype, ("N", *spec.item_shape))
