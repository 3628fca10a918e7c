"""The GPU memory that a session needs, predicted before any of it is taken, and compared with what the GPU has.

The prediction is a lower bound: kernels, captured graphs and the driver take some more.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod

import numpy as np

from vggdeploy.errors import GpuMemoryError
from vggdeploy.runtime.base import Source
from vggdeploy.runtime.gpu import cuda
from vggdeploy.types import Device, TensorSpec

_REBUILD = "build an engine for smaller batches: vggdeploy build BUNDLE --batch 1,8"


@dataclass(frozen=True)
class Room:
    """How many lanes a session may have, and what is to be said about it: "" where all that was asked for fits."""

    contexts: int
    note: str = ""


def room_for(source: Source, scratch: Sequence[int]) -> Room:
    """What of a session fits beside the weights, which are on the GPU already.

    Every lane has to be able to take the largest batch that fits at all: a thread takes whichever lane is free.

    Args:
        scratch: bytes that a context of each profile computes in.

    Raises:
        GpuMemoryError: not even one lane for the smallest profile fits.
    """
    free, wanted, profiles = cuda.room(source.device), source.gpu.contexts, source.profiles
    needs = [buffer_bytes(source) + lane_scratch(scratch[: index + 1]) for index in range(len(profiles))]
    fits = [index for index, need in enumerate(needs) if need <= free]
    if not fits:
        raise _too_little(f"a context of {source.name} for batches up to {profiles[0].max}", needs[0], free, _REBUILD)
    best = fits[-1]
    contexts = min(wanted, free // needs[best]) if needs[best] else wanted
    if best + 1 < len(profiles):
        return Room(
            contexts,
            f"{source.name}: batches above {profiles[best].max} do not fit, since those up to {profiles[-1].max} need "
            f"{size_text(needs[-1])} of GPU memory and {size_text(free)} is free; {_REBUILD}",
        )
    if contexts < wanted:
        return Room(
            contexts,
            f"{source.name}: {contexts} of {wanted} contexts fit, since each needs {size_text(needs[-1])} of GPU memory for "
            f"batches of {profiles[-1].max} and {size_text(free)} is free; ask for fewer contexts, or {_REBUILD}",
        )
    return Room(wanted)


def check_weights(source: Source, size: int) -> None:
    """Refuse an engine whose weights, about the ``size`` of its file, do not fit, before the library reads them.

    Raises:
        GpuMemoryError: they do not.
    """
    free = cuda.room(source.device)
    if source.gpu.weight_budget is None and size > free:
        raise _too_little(
            f"the file of {source.name}, which is about what its weights take,",
            size,
            free,
            "close what else is on the GPU (nvidia-smi), or stream the weights: vggdeploy build BUNDLE --weight-streaming",
        )


def scratch_block(stack: ExitStack, size: int, largest: int, device: Device) -> int:
    """The address of ``size`` bytes for batches up to ``largest``; they are freed when ``stack`` is closed.

    Raises:
        GpuMemoryError: the GPU has no room for them; the cause says for what.
    """
    free = cuda.room(device)
    if size > free:
        raise _too_little(f"a context for batches up to {largest}", size, free, "use smaller batches")
    return cuda.device_memory(stack, size)


def lane_scratch(scratch: Sequence[int]) -> int:
    """Bytes that a lane computes in once it had batches of all these profiles: a block for each that needs a larger one."""
    taken, largest = 0, 0
    for size in scratch:
        if size > largest:
            taken, largest = taken + size, size
    return taken


def buffer_bytes(source: Source) -> int:
    """Bytes of a lane's inputs and outputs on the GPU, for the largest batch."""
    return tensor_bytes((*source.inputs, *source.outputs), source.batch.max)


def tensor_bytes(specs: Sequence[TensorSpec], batch: int) -> int:
    """Bytes of tensors for so many images."""
    return sum(batch * prod(spec.item_shape) * np.dtype(spec.dtype).itemsize for spec in specs)


def size_text(size: int) -> str:
    """``3,277 MiB``."""
    return f"{size / 2**20:,.0f} MiB" if size >= 2**20 else f"{size:,} bytes"


def _too_little(what: str, size: int, free: int, hint: str) -> GpuMemoryError:
    cause = f"{what} needs {size_text(size)} of GPU memory, and {size_text(free)} is free"
    return GpuMemoryError(cause, hint, call="cudaMemGetInfo")
