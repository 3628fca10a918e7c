"""Whole VGGs in PyTorch on the GPU: every precision, eager, as one CUDA graph and compiled, each against FP64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vggdeploy.doctor.gpu_day.roofs import DTYPES, in_precision
from vggdeploy.doctor.gpu_day.timing import Timed, timed
from vggdeploy.errors import first_line
from vggdeploy.model.deployable import Deployable
from vggdeploy.model.outputs import LOGITS, macs_of
from vggdeploy.model.vgg import VGG, fold_batch_norm, new_vgg
from vggdeploy.records.gpu_day import Check, NetworkRate
from vggdeploy.spec import ModelSpec, PreprocessSpec

IMAGES = 64
_GAIN = 2**0.5  # He et al. 2015: with ReLU, Xavier's weights would shrink the activations by half at every layer
_BATCHES = (1, 8, 64, 256)
Call = Callable[[Tensor], Tensor]


class Network:
    """One architecture with random weights, its images, and what it computes in FP64."""

    def __init__(self, spec: ModelSpec, name: str, device: str = "cuda") -> None:
        self.name, self.spec, self.device = name, spec, device
        self.macs = macs_of(self.spec, (LOGITS,))
        self.model = random_vgg(self.spec)
        self.images = random_images(max(_BATCHES), spec.image_size).to(device)
        with torch.inference_mode():
            double = Deployable(self.model.double(), PreprocessSpec()).to(device)
            parts = [double(part)[0] for part in self.parts(16)]
        self.reference = torch.cat(parts).double()
        self.model.float().cpu()

    def module(self, precision: str) -> nn.Module:
        """The network as it is deployed, in channels-last unless it is to be as it was trained."""
        module = Deployable(self.copy(), PreprocessSpec()).eval().to(self.device)
        module.features.to(DTYPES[precision])
        module.classifier.to(DTYPES[precision])
        return module if precision == "fp32" else module.to(memory_format=torch.channels_last)

    def copy(self) -> VGG:
        """Its weights in a model of their own, batch norm folded."""
        model = VGG(self.spec)
        model.load_state_dict(self.model.state_dict())
        return fold_batch_norm(model.eval())

    def parts(self, batch: int) -> list[Tensor]:
        """The images that have a reference, in batches."""
        return [self.images[i : i + batch] for i in range(0, IMAGES, batch)]

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def rate(self, call: Call, by: str, precision: str, batch: int, seconds: float = 0.8) -> NetworkRate:
        """Its speed at one batch size, and how far its answers are from FP64's."""
        with torch.inference_mode():
            answers = self._answers(call, batch)
            images = self.images[:batch].clone()
            found = timed(lambda: call(images), self.wait, seconds)
        return self.reading(by, precision, batch, found, answers, copies=False)

    def reading(
        self, by: str, precision: str, batch: int, found: Timed, answers: Tensor, *, copies: bool
    ) -> NetworkRate:
        """What was timed, and how far ``answers`` (FP64, of the first images) are from the reference's."""
        reference = self.reference[: len(answers)].to(answers.device)
        return NetworkRate(
            network=self.name,
            by=by,
            precision=precision,
            batch=batch,
            copies=copies,
            calls=found.calls,
            milliseconds=1e3 * found.single,
            images_per_second=batch / found.flow,
            tera_ops=2 * self.macs * batch / found.flow / 1e12,
            relative_l2=float((answers - reference).norm() / reference.norm()),
            flips=int((answers.argmax(1) != reference.argmax(1)).sum()),
            images=len(answers),
        )

    def _answers(self, call: Call, batch: int) -> Tensor:
        """At this batch size; of a size above ``IMAGES``, the images that have a reference."""
        if batch > IMAGES:
            return call(self.images[:batch].clone())[:IMAGES].double()
        return torch.cat([call(part.clone()).double() for part in self.parts(batch)])


def random_vgg(spec: ModelSpec) -> VGG:
    model = new_vgg(spec).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(_GAIN)
    return model


def random_images(count: int, size: int) -> Tensor:
    """Noise of random coarseness, so that answers differ from one image to the next."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for index in range(count):
        side = max(1, size >> index % 7)
        noise = torch.rand(1, 3, side, side, generator=generator)
        found.append(nn.functional.interpolate(noise, size, mode="nearest"))
    return (torch.cat(found) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def whole(arch: str) -> Iterator[NetworkRate | Check]:
    """Every precision and batch size, eager; FP16 and BF16 as one CUDA graph too."""
    network = Network(ModelSpec.named(arch), arch)
    torch.backends.cudnn.benchmark = True
    for precision in DTYPES:
        call = eager(network.module(precision), precision)
        for batch in _BATCHES:
            yield network.rate(call, "PyTorch", precision, batch)
            if precision in ("fp16", "bf16"):
                yield network.rate(captured(call, network.images[:batch]), "PyTorch, CUDA graph", precision, batch)


def briefly(arch: str) -> Iterator[NetworkRate | Check]:
    """Every precision at one large batch, and a single image in FP16 as one CUDA graph."""
    network = Network(ModelSpec.named(arch), arch)
    torch.backends.cudnn.benchmark = True
    for precision in DTYPES:
        call = eager(network.module(precision), precision)
        yield network.rate(call, "PyTorch", precision, 64)
        if precision == "fp16":
            yield network.rate(captured(call, network.images[:1]), "PyTorch, CUDA graph", precision, 1)


def compiled(arch: str) -> Iterator[NetworkRate | Check]:
    """``torch.compile`` as its users run it for inference: channels-last, fixed shapes, then with every search it has."""
    network = Network(ModelSpec.named(arch), arch)
    torch.backends.cudnn.benchmark = True
    for mode, batches in (("default", (1, 64, 256)), ("reduce-overhead", (1,)), ("max-autotune", (256, 1))):
        for batch in batches:
            torch._dynamo.reset()
            module = torch.compile(network.module("fp16"), mode=mode, dynamic=False, fullgraph=True)
            try:
                yield network.rate(eager(module, "fp16"), f"torch.compile, {mode}", "fp16", batch)
            except Exception as error:  # a compiler has many ways to fail, and the next mode may not
                yield Check(what=f"torch.compile, {mode}, batch {batch}", outcome="failed", reason=first_line(error))


def eager(module: Any, precision: str) -> Call:
    def call(images: Tensor) -> Tensor:
        answer: Tensor = module(images)[0]
        return answer

    def work(images: Tensor) -> Tensor:
        answer = in_precision(precision, lambda: call(images))()
        assert isinstance(answer, Tensor)  # noqa: S101  # for mypy
        return answer

    return work


def captured(call: Call, images: Tensor) -> Call:
    """The call as one CUDA graph. Its images lie where those of the capture lay, and its answer is overwritten."""
    place = images.clone()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(3):
            call(place)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        answer = call(place)

    def replay(given: Tensor) -> Tensor:
        place.copy_(given)
        graph.replay()
        return answer

    return replay
