"""DLPack's C structures: reading other libraries' capsules, and making our own. (dmlc/dlpack, include/dlpack/dlpack.h.)

Capsules are unversioned, which every producer has to offer when it is asked without ``max_version``.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np

CPU = 1
CUDA = 2
# DLPack's stream numbers of CUDA: 1 is the legacy default stream, 2 the per-thread one, above that a cudaStream_t.
LEGACY_STREAM = 1
NO_SYNC = -1

_NAME = b"dltensor"
_CODES = {"i": 0, "u": 1, "f": 2}
_KINDS = {code: kind for kind, code in _CODES.items()}


class _Device(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("id", ctypes.c_int32)]


class _DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]

# The capsule is a bare pointer in these prototypes: a destructor gets one that is already dying, and must not count it.
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class Tensor(NamedTuple):
    """What a capsule describes. ``dtype`` is NumPy's name, or DLPack's numbers where NumPy has none."""

    address: int
    shape: tuple[int, ...]
    dtype: str
    contiguous: bool
    device: tuple[int, int]


def read(capsule: object) -> Tensor:
    """What an unused capsule describes. It keeps its memory for as long as it lives.

    Raises:
        ValueError: it is no unversioned capsule, or a used one.
    """
    if not _is_valid(id(capsule), _NAME):
        raise ValueError("this is no unused, unversioned DLPack capsule")
    tensor = ctypes.cast(_pointer(id(capsule), _NAME), ctypes.POINTER(_Managed)).contents.tensor
    shape = tuple(tensor.shape[: tensor.ndim])
    kind = tensor.dtype
    known = kind.code in _KINDS and kind.lanes == 1 and kind.bits % 8 == 0
    dtype = np.dtype(f"{_KINDS[kind.code]}{kind.bits // 8}").name if known else f"dlpack{kind.code}x{kind.bits}"
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None
    device = (int(tensor.device.type), int(tensor.device.id))
    address = (tensor.data or 0) + tensor.byte_offset
    return Tensor(address, shape, dtype, strides is None or is_contiguous(shape, strides), device)


def is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...], item: int = 1) -> bool:
    """Whether the strides (in units of ``item``) are those of a C-ordered array. An axis of length 1 may have any."""
    step = item
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != step:
            return False
        step *= length
    return True


# What a capsule's consumer still needs, by the address of the managed tensor: its structures, and who owns the memory.
_exported: dict[int, tuple[Any, ...]] = {}


def _let_go(managed: Any) -> None:
    _exported.pop(ctypes.addressof(managed.contents), None)


def _destroy(capsule: int) -> None:
    if _is_valid(capsule, _NAME):  # nobody took it over: its consumer would have renamed it
        _exported.pop(int(_pointer(capsule, _NAME)), None)


_deleter = _Deleter(_let_go)
_destructor = _Destructor(_destroy)


def export(owner: object, address: int, shape: tuple[int, ...], dtype: str, device: tuple[int, int]) -> object:
    """A capsule of C-ordered memory. ``owner`` lives until its consumer lets go of it."""
    kind = np.dtype(dtype)
    lengths = (ctypes.c_int64 * len(shape))(*shape)
    # Strides, although C order needs none: DLPack 1.2 takes the permission to leave them out away.
    steps = (ctypes.c_int64 * len(shape))(*(int(np.prod(shape[i + 1 :])) for i in range(len(shape))))
    pointer = ctypes.POINTER(ctypes.c_int64)
    tensor = _Tensor(
        address,
        _Device(*device),
        len(shape),
        _DataType(_CODES[kind.kind], kind.itemsize * 8, 1),
        ctypes.cast(lengths, pointer),
        ctypes.cast(steps, pointer),
        0,
    )
    managed = _Managed(tensor, None, _deleter)
    place = ctypes.addressof(managed)
    _exported[place] = (owner, managed, lengths, steps)
    capsule: object = _new(place, _NAME, _destructor)
    return capsule


def exported() -> int:
    """How many capsules, or arrays made from them, still hold memory."""
    return len(_exported)
