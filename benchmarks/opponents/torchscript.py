"""TorchScript, frozen and optimised for inference when it is loaded.

Source: docs.pytorch.org/docs/stable/generated/torch.jit.optimize_for_inference.html
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from opponents.job import Job, Loop, torch_calls

NEEDS = "torch"


def frozen(job: Job) -> Iterator[Any]:
    def prepare(model: Any, example: Any) -> Any:
        import torch

        return torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(model, example)))

    return torch_calls(job, prepare)


LOOPS: dict[str, Loop] = {"TorchScript, frozen": frozen}
