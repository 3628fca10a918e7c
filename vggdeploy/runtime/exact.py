"""FP32 that is FP32 in PyTorch, whatever the application around it allows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, NamedTuple


class _Exactness:
    """PyTorch's precisions of FP32 work are one setting for the process: whoever comes first sets them, the last gives
    them back, so that calls which overlap neither lose exactness nor keep it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._holders = 0
        self._before = _Precisions((), None, None)

    def take(self, torch: Any) -> None:
        with self._lock:
            if not self._holders:
                self._before = _read(torch)
                _set(torch, _Precisions(("ieee",) * len(_kinds(torch)), False, "highest"))
            self._holders += 1

    def give_back(self, torch: Any) -> None:
        with self._lock:
            self._holders -= 1
            if not self._holders:
                _set(torch, self._before)


class _Precisions(NamedTuple):
    """Of each of `_kinds`, and what PyTorch's older settings of the same say: it refuses work where the two differ. None
    where they already do, so that the older one cannot be read."""

    kinds: tuple[str, ...]
    convolutions_in_tf32: bool | None
    products: str | None


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


_exactness = _Exactness()


@contextmanager
def exact_fp32(torch: Any) -> Iterator[None]:
    """Inside it FP32 convolutions and products have 24 significant bits. Other settings, such as cuDNN's, stay.

    Args:
        torch: the module, which what imports this file must not need.
    """
    _exactness.take(torch)
    try:
        yield
    finally:
        _exactness.give_back(torch)
