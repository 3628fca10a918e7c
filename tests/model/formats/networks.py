"""Small networks of every kind that a spec can say, as the files that the exporters write of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from vggdeploy.export.onnx import export_onnx
from vggdeploy.export.torch_export import export_program
from vggdeploy.export.torchscript import export_torchscript
from vggdeploy.model.deployable import Deployable
from vggdeploy.model.formats.chain import Chain, chain_of
from vggdeploy.model.outputs import default_outputs, input_spec, output_layers, output_specs
from vggdeploy.model.vgg import fold_batch_norm, new_vgg
from vggdeploy.spec import CUSTOM, ModelSpec, PreprocessSpec
from vggdeploy.types import BatchRange, Precision


@dataclass(frozen=True)
class Case:
    """``outputs``: names, ``()`` for the default ones, ``("*",)`` for all."""

    spec: ModelSpec
    outputs: tuple[str, ...] = ()
    dtype: str = "uint8"
    precision: Precision = Precision.FP32

    @cached_property
    def names(self) -> tuple[str, ...]:
        known = tuple(output_layers(self.spec))
        return known if self.outputs == ("*",) else self.outputs or default_outputs(self.spec)

    @cached_property
    def chain(self) -> Chain:
        image = input_spec(self.spec, self.dtype)
        return chain_of(self.spec, image, output_specs(self.spec, self.names), "the file")

    def module(self) -> Deployable:
        model = new_vgg(self.spec)
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                if name.endswith("bias"):
                    tensor.uniform_(0.1, 0.2)
        grey = PreprocessSpec(mode="L", resize=32, crop=32, mean=(0.5,), std=(0.5,))
        pixels = PreprocessSpec(resize=32, crop=32) if self.spec.in_channels == 3 else grey
        made = Deployable(fold_batch_norm(model.eval()), pixels, outputs=self.names, input_dtype=self.dtype).eval()
        made.narrow(self.precision)
        return made

    def torchscript(self, path: Path) -> bytes:
        export_torchscript(self.module(), path, image=self.chain.image)
        return path.read_bytes()

    def program(self, path: Path) -> bytes:
        export_program(self.module(), path, image=self.chain.image, batch=BatchRange(1, 4, 16))
        return path.read_bytes()

    def onnx(self, path: Path) -> bytes:
        export_onnx(self.module(), path, image=self.chain.image, batch=BatchRange(1, 4, 16))
        return path.read_bytes()


def _named(arch: str, **more: object) -> ModelSpec:
    return ModelSpec.named(arch, width=0.125, classes=10, image_size=32, hidden=24, **more)  # type: ignore[arg-type]


def _stack(*blocks: tuple[int, ...], **more: object) -> ModelSpec:
    about = {"classes": 7, "hidden": (12, 10), "image_size": 32} | more
    return ModelSpec(arch=CUSTOM, blocks=blocks, **about)  # type: ignore[arg-type]


SMALL = Case(_stack((4,), (6, 5)))
CASES = {
    "small": SMALL,
    "vgg11": Case(_named("vgg11")),
    "vgg16_bn of grey images": Case(_named("vgg16_bn", in_channels=1)),
    "vgg19 of normalised images": Case(_named("vgg19"), dtype="float32"),
    "every output of vgg13_bn": Case(_named("vgg13_bn"), ("*",)),
    "every output of a plain vgg11": Case(_named("vgg11"), ("*",), precision=Precision.FP16),
    "in FP16": Case(_named("vgg11_bn"), precision=Precision.FP16),
    "in BF16": Case(_named("vgg11_bn"), precision=Precision.BF16),
    "low ranks and a mean pool in BF16": Case(
        _stack((4,), (6, 5), ranks=(5, 0), conv_ranks=((3,), (0, 7)), head_pool="avg"),
        ("*",),
        precision=Precision.BF16,
    ),
    "features only": Case(_named("vgg11"), ("pool1", "relu2_1")),
    "before a ReLU": Case(_stack((4,), (6, 5)), ("conv1_1", "conv2_1"), "float32"),
    "probabilities alone": Case(_named("vgg11"), ("probabilities",), precision=Precision.FP16),
    "in another order": Case(_named("vgg11"), ("probabilities", "fc7", "logits", "pool3")),
    "a mean pool": Case(_stack((4,), (6, 5), head_pool="avg")),
    "a maximum pool": Case(_stack((4,), (6, 5), head_pool="max", hidden=()), precision=Precision.FP16),
    "no classifier": Case(_stack((4,), (6, 5), hidden=(), classes=0)),
    "no classes": Case(_stack((4,), (6, 5), hidden=(9,), classes=0)),
    "low ranks": Case(_stack((4,), (6, 5), ranks=(5, 0), conv_ranks=((3,), (0, 7))), ("*",)),
    "low ranks and batch norm": Case(
        _stack((4,), (6, 5), ranks=(5, 6), conv_ranks=((3,), (2, 7)), batch_norm=True), precision=Precision.FP16
    ),
    "one block": Case(_stack((3,), hidden=())),
    "a map of one pixel": Case(_stack((4,), (4,), (4,), (4,), (4,), hidden=(6,)), ("*",)),
}


def cases() -> Iterator[str]:
    yield from CASES
