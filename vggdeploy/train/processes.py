"""Several processes that train one network together: ``torchrun --nproc-per-node 2 -m vggdeploy train …``.

Every process computes its share of each batch and adds up the gradients of all; so each makes the same step, and the
weights stay the same everywhere without being sent. Only the first process writes and prints.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from vggdeploy.model.vgg import VGG


@dataclass(frozen=True)
class Processes:
    """How many there are, and which of them this is (counted from 0)."""

    count: int = 1
    rank: int = 0
    device: torch.device | None = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def total(self, *values: float) -> tuple[float, ...]:
        """Each value summed over all processes."""
        if self.count == 1:
            return values
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(summed)
        return tuple(summed.tolist())

    def add_up_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Give every parameter the sum of all processes' gradients, sent as one piece."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return
        piece = torch.cat([g.reshape(-1) for g in gradients])
        torch.distributed.all_reduce(piece)
        parts = piece.split([g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            torch.distributed.barrier()


ALONE = Processes()


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return torch.distributed.is_torchelastic_launched() and int(os.environ.get("WORLD_SIZE", "1")) > 1


def own_gpu() -> int:
    """The CUDA device that torchrun meant for this process; the first one without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0")) if launched() else 0


@contextmanager
def join_processes(device: torch.device) -> Iterator[Processes]:
    """Join torchrun's other processes: over gloo on the CPU, over NCCL on GPUs. Alone, where torchrun is not used."""
    if not launched():
        yield ALONE
        return
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(
            count=torch.distributed.get_world_size(),
            rank=torch.distributed.get_rank(),
            device=device,
        )
    finally:
        torch.distributed.destroy_process_group()


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs. (torch's own is deprecated since 2.14.)"""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        total = mine.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        torch.distributed.all_reduce(total)
        return total


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics are those of the whole batch, in all processes (torch's own is for GPUs only).

    Its state-dict keys are `nn.BatchNorm2d`'s, and alone it computes the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        count = x.numel() // x.shape[1]
        wide = x.float()
        local = torch.cat(
            [
                wide.sum(dim=(0, 2, 3), dtype=torch.float64),
                wide.square().sum(dim=(0, 2, 3), dtype=torch.float64),
                torch.full((1,), float(count), dtype=torch.float64, device=x.device),
            ]
        )
        sums: Tensor = _Sum.apply(local)
        total = sums[-1]
        mean = sums[: x.shape[1]] / total
        variance = (sums[x.shape[1] : -1] / total - mean.square()).clamp_min(0)
        with torch.no_grad():
            self._remember(mean.float(), (variance * total / (total - 1)).float())
        scale = self.weight * torch.rsqrt(variance + self.eps).float()
        shift = self.bias - mean.float() * scale
        return (wide * scale[:, None, None] + shift[:, None, None]).to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None  # noqa: S101  # for mypy: VGG's track them
        assert self.num_batches_tracked is not None and self.momentum is not None  # noqa: S101  # likewise
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


def share_batch_norms(model: VGG) -> None:
    """Replace every batch norm of ``model`` by a `SharedBatchNorm` with its parameters and statistics."""
    for at, module in enumerate(model.features):
        if isinstance(module, nn.BatchNorm2d):
            shared = SharedBatchNorm(module.num_features, eps=module.eps, momentum=module.momentum)
            shared.load_state_dict(module.state_dict())
            model.features[at] = shared.to(module.weight.device)
