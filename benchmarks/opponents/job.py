"""What every peer gets: the same weights, images, threads and batch; and the loop that is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from vggdeploy.bundle import Bundle
from vggdeploy.preprocess import normalise

BASELINE = "onnxruntime"


@dataclass(frozen=True)
class Job:
    """In plain values, for other processes."""

    home: str
    batch: int
    threads: int

    @property
    def checkpoint(self) -> Path:
        return Path(self.home, "checkpoint")

    @property
    def bundle(self) -> Path:
        return Path(self.home, "bundle")

    @property
    def images(self) -> np.ndarray[Any, Any]:
        return np.load(Path(self.home, "images.npy"))

    @property
    def floats(self) -> np.ndarray[Any, Any]:
        return normalise(self.images, Bundle.open(self.bundle, only=()).manifest.preprocess)

    @property
    def onnx(self) -> Path:
        return Path(self.home, "plain.onnx")


# Endless steps, of which the first yields the answer to the first batch.
Loop = Callable[[Job], Iterator[Any]]


def batches(images: np.ndarray[Any, Any], size: int) -> list[np.ndarray[Any, Any]]:
    return [np.ascontiguousarray(images[at : at + size]) for at in range(0, len(images) - size + 1, size)]


def calls(run: Callable[[Any], Any], parts: Sequence[Any]) -> Iterator[Any]:
    yield np.array(run(parts[0])).tolist()
    for part in cycle(parts):
        run(part)
        yield None


def torch_model(job: Job) -> Any:
    """Torchvision's own class with the checkpoint's weights: what a user has who never heard of us."""
    import torch
    import torchvision
    from safetensors.torch import load_file

    torch.set_num_threads(job.threads)
    spec = Bundle.open(job.bundle, only=()).manifest.spec
    model = getattr(torchvision.models, spec.arch)(num_classes=spec.classes)
    model.load_state_dict(load_file(job.checkpoint / "model.safetensors"))
    return model.eval()


def torch_calls(
    job: Job, prepare: Callable[[Any, Any], Any], *, channels_last: bool = True, bf16: bool = False
) -> Iterator[Any]:
    """Torchvision's network, as ``prepare`` made it of the model and an example, in `torch.inference_mode`.

    Channels last and, for BF16, autocast: PyTorch's performance tuning guide, "CPU specific optimizations"
    (docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html).
    """
    import torch

    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = torch_model(job).to(memory_format=layout)
    parts = [torch.from_numpy(part).contiguous(memory_format=layout) for part in batches(job.floats, job.batch)]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        run = prepare(model, parts[0])
        yield from calls(lambda part: run(part).float().numpy(), parts)


def ort_calls(job: Job, path: Path) -> Iterator[Any]:
    """ONNX Runtime with nothing set but the number of threads; all graph optimisations are its default."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = job.threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    yield from calls(lambda part: session.run(None, {name: part})[0], batches(job.floats, job.batch))
