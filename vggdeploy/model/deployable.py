"""A VGG with its preprocessing in front and its named outputs behind: the module that is exported."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vggdeploy.model.outputs import LOGITS, PROBABILITIES, output_layers, output_specs
from vggdeploy.model.vgg import VGG
from vggdeploy.spec import PreprocessSpec
from vggdeploy.types import Precision, TensorSpec

_DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}


class Deployable(nn.Module):
    """``image`` → a tuple of the named outputs, each ``float32``.

    Args:
        model: the network. Its own dtype is the precision of the computation, see `narrow`.
        preprocess: mean and std, which become a multiplication and an addition in FP32.
        outputs: names, see `vggdeploy.model.outputs`. What they do not need is not even here: a traced file would carry
            its weights.
        input_dtype: ``"uint8"`` for ``[N, H, W, C]`` pixels; ``"float32"`` for normalised ``[N, C, H, W]``.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, model: VGG, preprocess: PreprocessSpec, *, outputs: Sequence[str] = (LOGITS,), input_dtype: str = "uint8"
    ) -> None:
        super().__init__()
        output_specs(model.spec, outputs)  # refuses unknown names
        known = output_layers(model.spec)
        self.names = tuple(outputs)
        self.pixels = input_dtype == "uint8"
        last = max((known[name] for name in outputs), key=lambda layer: (layer.part == "classifier", layer.index))
        whole = last.part == "classifier"
        # A slice of a Sequential shares its modules and keeps their keys.
        self.features = model.features if whole else model.features[: last.index + 1]
        self.neck = model.neck
        self.classifier = model.classifier[: last.index + 1 if whole else 0]
        self._taps = {known[name].key: name for name in outputs if name not in (LOGITS, PROBABILITIES)}
        shape = (1, preprocess.channels, 1, 1)
        self.register_buffer("scale", torch.tensor(preprocess.scale).reshape(shape), persistent=False)
        self.register_buffer("shift", torch.tensor(preprocess.shift).reshape(shape), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        x = image
        if self.pixels:
            # Cast first: TensorRT takes a uint8 input only into a cast.
            x = x.float().permute(0, 3, 1, 2) * self.scale + self.shift
        x = x.to(self.dtype)
        outputs: dict[str, Tensor] = {}
        for part, modules in (("features", self.features), ("classifier", self.classifier)):
            if part == "classifier" and len(modules):
                x = self.neck(x)
            for index, module in enumerate(modules):
                x = module(x)
                name = self._taps.get(f"{part}.{index}")
                if name is not None:
                    outputs[name] = x.clone() if self._overwritten(modules, index) else x
        if LOGITS in self.names or PROBABILITIES in self.names:
            outputs[LOGITS] = x
        if PROBABILITIES in self.names:
            outputs[PROBABILITIES] = torch.softmax(x.float(), dim=1)
        return tuple(outputs[name].float() for name in self.names)

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return next(self.features.parameters()).dtype

    def narrow(self, precision: Precision) -> None:
        """Compute in FP16 or BF16 from now on; in FP32 it does already. The weights are rounded where they are, and the
        preprocessing stays in FP32."""
        dtype = _DTYPES[precision]
        self.features.to(dtype)
        self.classifier.to(dtype)

    @staticmethod
    def _overwritten(modules: nn.Module, index: int) -> bool:
        """Whether the next module is an in-place ReLU, which would change a tapped convolution's output."""
        following = list(modules.children())[index + 1 : index + 2]
        return bool(following) and isinstance(following[0], nn.ReLU)


def example_input(spec: TensorSpec, samples: int) -> Tensor:
    """Zeros of the input's dtype and shape."""
    return torch.zeros(samples, *spec.item_shape, dtype=getattr(torch, spec.dtype))
