"""PyTorch without a compiler: as it comes, and as its tuning guide has it for CPUs (channels last, BF16 by autocast).

Source: docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from opponents.job import Job, Loop, torch_calls

NEEDS = "torch"


def eager(job: Job) -> Iterator[Any]:
    return torch_calls(job, lambda model, example: model, channels_last=False)


def channels_last(job: Job) -> Iterator[Any]:
    return torch_calls(job, lambda model, example: model)


def channels_last_bf16(job: Job) -> Iterator[Any]:
    return torch_calls(job, lambda model, example: model, bf16=True)


LOOPS: dict[str, Loop] = {
    "torch eager": eager,
    "torch channels-last": channels_last,
    "torch channels-last, BF16": channels_last_bf16,
}
