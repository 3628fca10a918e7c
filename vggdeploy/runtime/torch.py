"""The reference backend: the checkpoint's FP32 weights in PyTorch, eager, exactly as trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import torch

from vggdeploy.errors import VggdeployError, first_line
from vggdeploy.model.deployable import Deployable
from vggdeploy.model.weights import new_with_weights
from vggdeploy.runtime.base import Array, Availability, Source, shareable
from vggdeploy.runtime.exact import exact_fp32, fp32_in_tf32
from vggdeploy.system.forks import SharedThreads
from vggdeploy.system.machine import multiplies_bf16
from vggdeploy.types import Device, Precision

_FIRST_TF32 = (8, 0)  # compute capability: Ampere
# OpenMP has one pool of threads for the process.
_pool = SharedThreads("PyTorch", remedy="give one thread (threads=1)")


class ModuleSession(ABC):
    """A session whose answers a PyTorch module computes; a backend says in ``_open`` where its module comes from."""

    def __init__(self, source: Source) -> None:
        self.inputs = source.inputs
        self.outputs = source.outputs
        self._source = source
        self._module: Any = None

    def __enter__(self) -> Self:
        use_threads(self._source)
        self._module = self._open(self._source)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._module = None

    @abstractmethod
    def _open(self, source: Source) -> Any:
        """The module, ready to be called with images."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return run_module(self._module, feeds, self._source)


class TorchSession(ModuleSession):
    """The FP32 PyTorch model of a checkpoint, in evaluation mode."""

    def _open(self, source: Source) -> Any:
        names = tuple(spec.name for spec in source.outputs)
        with source.open() as file:
            model = new_with_weights(source.spec, file)
        deployable = Deployable(model, source.preprocess, outputs=names, input_dtype=source.inputs[0].dtype)
        return deployable.eval().to(str(source.device))


def use_threads(source: Source) -> None:
    """PyTorch's thread count is one number for the whole process.

    It changes only when a count was asked for, or when it is more than a container's quota lets run.

    Raises:
        IncompatibleError: several threads, in a child of a process that computed on several.
    """
    threads = torch.get_num_threads()
    if source.threads is not None or threads > source.thread_count:
        threads = source.thread_count
    if threads > 1:
        _pool.take()
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)


def run_module(module: Any, feeds: Mapping[str, Array], source: Source) -> dict[str, Array]:
    """Call a module with the graph's single input; its outputs come back as NumPy arrays by name."""
    # TF32 that nobody asked for would make the reference itself an approximation.
    precise = fp32_in_tf32 if source.precision is Precision.TF32 else exact_fp32
    image = torch.from_numpy(shareable(feeds[source.inputs[0].name])).to(str(source.device))
    try:
        with torch.inference_mode(), precise(torch):
            results = module(image)
    except RuntimeError as error:
        raise VggdeployError(f"PyTorch failed: {first_line(error)}", "try a smaller batch") from error
    if isinstance(results, torch.Tensor):
        results = (results,)
    return {spec.name: out.cpu().numpy() for spec, out in zip(source.outputs, results, strict=True)}


def probe(device: Device) -> Availability:
    if device.kind == "cuda" and not torch.cuda.is_available():
        return Availability(
            False,
            str(device),
            "PyTorch finds no CUDA device",
            "install the NVIDIA driver, or run on the CPU: --device cpu",
            str(torch.__version__),
        )
    in_tf32 = device.kind == "cuda" and torch.cuda.get_device_capability(device.index) >= _FIRST_TF32
    narrow = {Precision.TF32: in_tf32, Precision.BF16: device.kind != "cpu" or multiplies_bf16()}
    lacks = tuple(precision for precision, has in narrow.items() if not has)
    return Availability(True, str(device), version=str(torch.__version__), lacks=lacks)


SESSION = TorchSession
