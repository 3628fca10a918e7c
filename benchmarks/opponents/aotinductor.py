"""AOTInductor: torch.export, then a package of compiled code that needs no Python; weights frozen into it.

Sources: docs.pytorch.org/docs/stable/torch.compiler_aot_inductor.html; freezing as a setting, torch/_inductor/config.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opponents.job import Job, Loop, torch_calls

NEEDS = "torch"


def frozen(job: Job) -> Iterator[Any]:
    return torch_calls(job, lambda model, example: _package(job, model, example, "fp32"))


def frozen_bf16(job: Job) -> Iterator[Any]:
    return torch_calls(job, lambda model, example: _package(job, model, example, "bf16"), bf16=True)


def _package(job: Job, model: Any, example: Any, name: str) -> Any:
    import torch

    path = torch._inductor.aoti_compile_and_package(
        torch.export.export(model, (example,)),
        package_path=str(Path(job.home, f"{name}.pt2")),
        inductor_configs={"freezing": True},
    )
    return torch._inductor.aoti_load_package(path)


LOOPS: dict[str, Loop] = {"AOTInductor, frozen": frozen, "AOTInductor, frozen, BF16": frozen_bf16}
