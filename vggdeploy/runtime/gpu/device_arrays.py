"""Arrays on the GPU, taken from and given to other libraries without a copy: PyTorch, CuPy, JAX, Numba.

Both protocols say who waits. DLPack: the consumer names its stream, and the producer makes that stream wait. CUDA array
interface (version 3): the producer names its stream, and the consumer waits for it.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vggdeploy.errors import GpuMemoryError, InputError, first_line
from vggdeploy.runtime.base import Array
from vggdeploy.runtime.gpu import cuda, dlpack
from vggdeploy.types import BatchRange, Device, TensorSpec

ALIGNMENT = 256  # TensorRT, IExecutionContext::setTensorAddress


class Borrowed(NamedTuple):
    """Memory of somebody else's array. ``keep`` holds it."""

    address: int
    shape: tuple[int, ...]
    keep: Any


def borrow(array: Any, spec: TensorSpec, device: Device, *, stream: int | None) -> Borrowed:
    """The memory of an array on the GPU, as a graph input or output.

    Args:
        stream: what is put into this stream from now on sees the array finished. None: the caller sees to that.

    Raises:
        InputError: no array of the GPU, another GPU's, of another type or shape, not contiguous, not aligned.
    """
    borrowed, keep = _described(array, spec, stream)
    if borrowed.device[0] != dlpack.CUDA:
        raise InputError(f"'{spec.name}' is not in CUDA memory", "give NumPy arrays to run(), arrays on the GPU here")
    if borrowed.device[1] != device.index:
        raise InputError(
            f"'{spec.name}' is on cuda:{borrowed.device[1]}, the session on {device}", f"move it to {device}"
        )
    if borrowed.dtype != spec.dtype or borrowed.shape[1:] != spec.item_shape or len(borrowed.shape) != len(spec.shape):
        raise InputError(f"'{spec.name}' is {borrowed.dtype}{list(borrowed.shape)}", f"give {spec}")
    if not borrowed.contiguous:
        raise InputError(f"'{spec.name}' is not contiguous", "give .contiguous() (PyTorch), ascontiguousarray (CuPy)")
    if borrowed.address % ALIGNMENT:
        raise InputError(
            f"'{spec.name}' starts at an address that is no multiple of {ALIGNMENT}",
            "give a copy of that slice: .clone()",
        )
    return Borrowed(borrowed.address, borrowed.shape, keep)


def _described(array: Any, spec: TensorSpec, stream: int | None) -> tuple[dlpack.Tensor, Any]:
    # DLPack first: PyTorch's CUDA array interface is of version 2, and names no stream to wait for.
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        kind, index = (int(n) for n in array.__dlpack_device__())
        if kind != dlpack.CUDA:  # asked before its capsule: a CPU's refuses a stream
            return dlpack.Tensor(0, (), "", True, (kind, index)), None
        try:
            capsule = array.__dlpack__(stream=dlpack.NO_SYNC if stream is None else stream)
            return dlpack.read(capsule), (array, capsule)
        except Exception as error:  # each library has its own: a tensor that needs a gradient, an exotic layout
            raise InputError(
                f"'{spec.name}' cannot be taken over: {first_line(error)}", "give a plain tensor: .detach()"
            ) from error
    interface = getattr(array, "__cuda_array_interface__", None)
    if not isinstance(interface, Mapping):
        raise InputError(
            f"'{spec.name}' is a {type(array).__name__}",
            "give an array with __dlpack__ or __cuda_array_interface__, or NumPy arrays to run()",
        )
    shape = tuple(int(n) for n in interface["shape"])
    dtype = np.dtype(interface["typestr"])
    strides = interface.get("strides")
    address = int(interface["data"][0] or 0)
    theirs = interface.get("stream")
    if stream is not None and theirs is not None:
        before = cuda.Event()
        before.record(int(theirs))
        before.hold(stream)
    contiguous = strides is None or dlpack.is_contiguous(shape, tuple(strides), dtype.itemsize)
    return dlpack.Tensor(address, shape, dtype.name, contiguous, (dlpack.CUDA, _device_of(address))), array


def _device_of(address: int) -> int:
    """Which GPU an address belongs to: the CUDA array interface does not say."""
    return int(cuda.call("cudaPointerGetAttributes", address).device)


def check_same_batch(arrays: Mapping[str, Any], allowed: BatchRange) -> int:
    """The batch size that all arrays have.

    Raises:
        InputError: they differ, or it is outside the range.
    """
    sizes = {name: array.shape[0] for name, array in arrays.items()}
    if len(set(sizes.values())) != 1:
        texts = ", ".join(f"'{name}' has {size}" for name, size in sizes.items())
        raise InputError(f"the batches differ in size: {texts}", "give all arrays the same first axis")
    batch: int = next(iter(sizes.values()))
    if not allowed.min <= batch <= allowed.max:
        raise InputError(
            f"a batch of {batch} is outside {allowed.min}…{allowed.max}",
            "split it, or export/build with a larger maximum batch",
        )
    return batch


class DeviceArray:
    """A result in GPU memory, C-ordered. ``torch.from_dlpack``, ``cupy.from_dlpack`` and others take it without a copy.

    The memory is its own, and is freed with the last reference to it or to what was made from it. Freeing waits for the
    whole GPU: in a loop, give ``run_on_device`` arrays of yours to write to.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str, device: Device) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.device = device
        self.ready: cuda.Event | None = None  # from it on, the values are there
        self.address = int(cuda.call("cudaMalloc", max(1, self.nbytes)))
        self._free = weakref.finalize(self, cuda.call, "cudaFree", self.address)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype}{list(self.shape)} on {self.device})"

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.device.index

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """A capsule; the consumer's ``stream`` waits for the values (None is the legacy default stream, −1 none).

        Raises:
            BufferError: a copy or another device was asked for.
        """
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("a DeviceArray is given as it is: without a copy, on its own GPU")
        if self.ready is not None and stream != dlpack.NO_SYNC:
            self.ready.hold(dlpack.LEGACY_STREAM if stream is None else stream)
        return dlpack.export(self, self.address, self.shape, self.dtype.name, self.__dlpack_device__())

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3. The values are waited for here, so that nobody has to know the stream they were made in."""
        if self.ready is not None:
            self.ready.wait()
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "stream": None,
            "version": 3,
        }

    def numpy(self) -> Array:
        """A copy on the host."""
        if self.ready is not None:
            self.ready.wait()
        host = np.empty(self.shape, self.dtype)
        kind = cuda.bindings().cudaMemcpyKind.cudaMemcpyDeviceToHost
        cuda.call("cudaMemcpy", host.ctypes.data, self.address, host.nbytes, kind)
        return host


def allocate(specs: tuple[TensorSpec, ...], batch: int, device: Device) -> dict[str, DeviceArray]:
    """Memory for the outputs of a batch; where one does not fit, the others are freed again.

    Raises:
        GpuMemoryError: there is no room.
    """
    made: dict[str, DeviceArray] = {}
    try:
        for spec in specs:
            made[spec.name] = DeviceArray((batch, *spec.item_shape), spec.dtype, device)
    except GpuMemoryError:
        made.clear()  # the error's traceback would keep them for as long as somebody handles it
        raise
    return made
