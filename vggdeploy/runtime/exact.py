"""FP32 that is FP32 in PyTorch, whatever the application around it allows; and TF32 where that was asked for, alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition
from typing import Any, NamedTuple


class _Precisions(NamedTuple):
    """Of each of `_kinds`, and what PyTorch's older settings of the same say: it refuses work where the two differ. None
    where they already do, so that the older one cannot be read."""

    kinds: tuple[str, ...]
    convolutions_in_tf32: bool | None
    products: str | None


# In the order of `_kinds`. TF32 is a GPU's: what runs on the CPU meanwhile stays exact.
_EXACT = _Precisions(("ieee",) * 5, False, "highest")
_TF32 = _Precisions(("tf32", "tf32", "tf32", "ieee", "ieee"), True, "high")


def _kinds(torch: Any) -> list[Any]:
    """What can be less than FP32 where FP32 was asked for: TF32 on GPUs, TF32 and BF16 on CPUs."""
    backends = torch.backends
    return [
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.cuda.matmul,
        backends.mkldnn.conv,
        backends.mkldnn.matmul,
    ]


def _read(torch: Any) -> _Precisions:
    kinds = tuple(kind.fp32_precision for kind in _kinds(torch))
    try:
        convolutions = torch.backends.cudnn.allow_tf32
    except RuntimeError:
        convolutions = None
    try:
        products = torch.get_float32_matmul_precision()
    except RuntimeError:
        products = None
    return _Precisions(kinds, convolutions, products)


def _set(torch: Any, wanted: _Precisions) -> None:
    """The older settings first: they change the newer ones with them."""
    if wanted.convolutions_in_tf32 is not None:
        torch.backends.cudnn.allow_tf32 = wanted.convolutions_in_tf32
    if wanted.products is not None:
        torch.set_float32_matmul_precision(wanted.products)
    for kind, precision in zip(_kinds(torch), wanted.kinds, strict=True):
        if kind.fp32_precision != precision:
            kind.fp32_precision = precision


class _Mode:
    """PyTorch's precisions of FP32 work are one setting for the process: whoever comes first sets them, the last gives
    them back, so that calls which overlap neither lose exactness nor keep it. Who needs the other setting waits for that."""

    def __init__(self) -> None:
        self._free = Condition()
        self._holders = 0
        self._wanted = _EXACT
        self._before = _EXACT

    def take(self, torch: Any, wanted: _Precisions) -> None:
        with self._free:
            self._free.wait_for(lambda: not self._holders or self._wanted == wanted)
            if not self._holders:
                self._before = _read(torch)
                _set(torch, wanted)
                self._wanted = wanted
            self._holders += 1

    def give_back(self, torch: Any) -> None:
        with self._free:
            self._holders -= 1
            if not self._holders:
                _set(torch, self._before)
                self._free.notify_all()


_mode = _Mode()


@contextmanager
def exact_fp32(torch: Any) -> Iterator[None]:
    """Inside it FP32 convolutions and products have 24 significant bits. Other settings, such as cuDNN's, stay.

    Args:
        torch: the module, which what imports this file must not need.
    """
    with _held(torch, _EXACT):
        yield


@contextmanager
def fp32_in_tf32(torch: Any) -> Iterator[None]:
    """Inside it a GPU may round the factors of FP32 convolutions and products to 11 significant bits.

    Never together with `exact_fp32` of another thread, which would be blurred: whoever comes second waits. A thread that
    holds one must not take the other.
    """
    with _held(torch, _TF32):
        yield


@contextmanager
def _held(torch: Any, wanted: _Precisions) -> Iterator[None]:
    _mode.take(torch, wanted)
    try:
        yield
    finally:
        _mode.give_back(torch)
