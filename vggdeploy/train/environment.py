"""What a run borrows from the process and the machine: device, precision, threads, random state."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from vggdeploy.errors import IncompatibleError, UsageError
from vggdeploy.model.layers import summarise
from vggdeploy.model.vgg import VGG
from vggdeploy.spec import ModelSpec
from vggdeploy.system.machine import machine
from vggdeploy.train.recipe import Recipe
from vggdeploy.types import Device, Precision

# Multiply-accumulates of a batch, in all and for each parameter, from which bf16 is faster on a CPU that has it: below,
# casting activations and weights costs more than it saves. (Quarter-width VGG-11, two AVX-512 cores: at 32 px 0.5 to 1 × with
# fc6 and fc7 of 4096 and batch 64, 1.3 × with 128 and batch 128; at 64 px, with 4096 and batch 128, 1.7 ×.)
BF16_MACS, BF16_REUSE = 1e9, 180
_DTYPES = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


def pick_device(device: Device | None) -> torch.device:
    """The device asked for, if it is here; without a wish a GPU (torchrun's processes one each), else the CPU."""
    if device is not None and "+" in device.kind:
        raise UsageError(f"{device} is a device of ONNX Runtime", "train with --device cpu, cuda or cuda:INDEX")
    if device is None:
        return torch.device(f"cuda:{own_gpu()}" if torch.cuda.is_available() else "cpu")
    index = device.index or own_gpu()
    if device.kind == "cuda" and index >= torch.cuda.device_count():
        raise IncompatibleError(
            f"PyTorch finds no CUDA device {index}",
            "install the NVIDIA driver, or train on the CPU: --device cpu",
        )
    return torch.device("cpu" if device.kind == "cpu" else f"cuda:{index}")


def pick_precision(recipe: Recipe, spec: ModelSpec, device: torch.device) -> Precision:
    """The precision that ``auto`` means: bf16 where the device has it (on a CPU: and is faster with it), FP16 on older
    GPUs, else FP32.

    Raises:
        IncompatibleError: FP16 was asked for, and there is no GPU.
    """
    if recipe.precision == "fp16" and device.type != "cuda":
        raise IncompatibleError("FP16 training needs a GPU", "train with --precision bf16, or fp32, on the CPU")
    if recipe.precision != "auto":
        return Precision(recipe.precision)
    if device.type == "cuda":
        # bf16 needs no loss scaling; before Ampere it is emulated, slowly.
        return Precision.BF16 if torch.cuda.get_device_capability(device) >= (8, 0) else Precision.FP16
    has = {"avx512_bf16", "amx_bf16"} & set(machine().features)
    network = summarise(spec)
    enough = max(BF16_MACS, BF16_REUSE * network.parameters)
    return Precision.BF16 if has and network.macs * recipe.batch_size >= enough else Precision.FP32


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context that a forward pass has its precision from; none of its own for FP32."""
    dtype = _DTYPES.get(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


@contextmanager
def thread_count(threads: int | None) -> Iterator[int]:
    """Compute with that many threads, for a while; yields how many they are."""
    if threads is not None and threads < 1:
        raise UsageError(f"the number of threads cannot be {threads}", "give at least 1")
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Our own random state, given back afterwards, and on a GPU no algorithm that sums in a random order."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        cudnn.deterministic, cudnn.benchmark = True, False
        try:
            yield
        finally:
            cudnn.deterministic, cudnn.benchmark = before


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
