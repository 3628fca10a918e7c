"""torch.compile, with the weights frozen into the graph; and with every kernel's choice measured (max-autotune).

Sources: freezing, docs.pytorch.org/docs/stable/torch.compiler_inference.html and torch/_inductor/config.py ("freezing will
attempt to inline weights as constants"); max-autotune, docs.pytorch.org/docs/stable/generated/torch.compile.html; BF16 by
autocast around the compiled model, docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from opponents.job import Job, Loop, torch_calls

NEEDS = "torch"


def _compiled(*, max_autotune: bool = False) -> Callable[[Any, Any], Any]:
    def prepare(model: Any, example: Any) -> Any:
        import torch
        import torch._inductor.config as settings

        settings.freezing = True
        settings.max_autotune = max_autotune
        return torch.compile(model)

    return prepare


def frozen(job: Job) -> Iterator[Any]:
    return torch_calls(job, _compiled())


def autotuned(job: Job) -> Iterator[Any]:
    return torch_calls(job, _compiled(max_autotune=True))


def frozen_bf16(job: Job) -> Iterator[Any]:
    return torch_calls(job, _compiled(), bf16=True)


def autotuned_bf16(job: Job) -> Iterator[Any]:
    return torch_calls(job, _compiled(max_autotune=True), bf16=True)


LOOPS: dict[str, Loop] = {
    "torch.compile, frozen": frozen,
    "torch.compile, frozen, max-autotune": autotuned,
    "torch.compile, frozen, BF16": frozen_bf16,
    "torch.compile, frozen, max-autotune, BF16": autotuned_bf16,
}
