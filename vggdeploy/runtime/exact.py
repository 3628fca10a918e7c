"""FP32 that is FP32 in PyTorch, whatever the application around it allows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any


class _Exactness:
    """PyTorch's precisions of FP32 work are one setting for the process: whoever comes first sets them, the last gives
    them back, so that calls which overlap neither lose exactness nor keep it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._holders = 0
        self._before: list[str] = []

    def take(self, torch: Any) -> None:
        with self._lock:
            if not self._holders:
                self._before = [kind.fp32_precision for kind in _kinds(torch)]
                _set(torch, ["ieee"] * len(self._before))
            self._holders += 1

    def give_back(self, torch: Any) -> None:
        with self._lock:
            self._holders -= 1
            if not self._holders:
                _set(torch, self._before)


def _kinds(torch: Any) -> list[Any]:
    """What can be less than FP32 where FP32 was asked for: TF32 on GPUs, TF32 and BF16 on CPUs."""
    backends = torch.backends
    return [
        backends.cudnn.conv,
        backends.cudnn.rnn,  # PyTorch wants it equal to that of convolutions
        backends.cuda.matmul,
        backends.mkldnn.conv,
        backends.mkldnn.matmul,
    ]


def _set(torch: Any, precisions: list[str]) -> None:
    for kind, precision in zip(_kinds(torch), precisions, strict=True):
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
