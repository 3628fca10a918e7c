"""VGG as a torch module, built from its spec. State-dict keys are torchvision's: ``features.N``, ``classifier.N``."""

from __future__ import annotations

import msgspec
import torch
from torch import Tensor, nn

from vggdeploy.model.layers import Layer, layers_of
from vggdeploy.spec import CUSTOM, HeadPool, ModelSpec


class VGG(nn.Module):
    """Normalised ``float [N, C, S, S]`` → logits ``[N, classes]``, S the spec's image size; without a classifier, the last
    feature map.

    Unlike torchvision's there is no adaptive pool before the classifier: the image size is part of the spec, where the
    pool is the identity (and a Cast–Pool–Cast in an FP16 graph).
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        layers = layers_of(spec)
        self.features = nn.Sequential(*(_module(x, spec) for x in layers if x.part == "features"))
        self.neck = nn.Flatten() if spec.head_pool == "none" else GlobalPool(spec.head_pool)
        self.classifier = nn.Sequential(*(_module(x, spec) for x in layers if x.part == "classifier"))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.classifier(self.neck(x)) if len(self.classifier) else x


class GlobalPool(nn.Module):
    """``[N, C, H, W]`` → ``[N, C]``: each channel's mean or maximum."""

    def __init__(self, kind: HeadPool) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if self.kind == "avg" else x.amax((2, 3))


def _module(layer: Layer, spec: ModelSpec) -> nn.Module:
    match layer.kind:
        case "conv":
            return _convolution(layer)
        case "batch_norm":
            return nn.BatchNorm2d(layer.outputs)
        case "relu":
            return nn.ReLU(inplace=True)
        case "pool":
            return nn.MaxPool2d(kernel_size=2, stride=2)
        case "linear":
            return _linear(layer)
        case "dropout":
            return nn.Dropout(spec.dropout)


def _convolution(layer: Layer) -> nn.Module:
    if not layer.rank:
        return nn.Conv2d(layer.inputs, layer.outputs, kernel_size=3, padding=1)
    return nn.Sequential(
        nn.Conv2d(layer.inputs, layer.rank, kernel_size=(3, 1), padding=(1, 0), bias=False),
        nn.Conv2d(layer.rank, layer.outputs, kernel_size=(1, 3), padding=(0, 1)),
    )


def _linear(layer: Layer) -> nn.Module:
    if not layer.rank:
        return nn.Linear(layer.inputs, layer.outputs)
    return nn.Sequential(nn.Linear(layer.inputs, layer.rank, bias=False), nn.Linear(layer.rank, layer.outputs))


def new_vgg(spec: ModelSpec, *, seed: int = 0) -> VGG:
    """A VGG with fresh weights: Xavier-uniform (Glorot & Bengio 2010, eq. 16) for convolutions and linear layers,
    zero biases, identity batch norms. The same seed gives the same weights."""
    with torch.device("meta"):  # skips torch's own initialisation: half the time, and no global random state
        model = VGG(spec)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return model


def fold_batch_norm(model: VGG) -> VGG:
    """The same function without batch norm: each is multiplied into the convolution before it.

    Computed in FP64 and rounded once: w' = w·γ/√(σ²+ε), b' = (b−μ)·γ/√(σ²+ε) + β. A model without batch norm is
    returned as it is, not copied. The linear layers are shared with ``model``.
    """
    if not model.spec.batch_norm:
        return model
    spec = plain_spec(model.spec)
    state = {k: v for k, v in model.state_dict().items() if k.startswith("classifier.")}
    convs, targets = ([x for x in layers_of(any_spec) if x.kind == "conv"] for any_spec in (model.spec, spec))
    norms = [m for m in model.features if isinstance(m, nn.BatchNorm2d)]
    for layer, norm, target in zip(convs, norms, targets, strict=True):
        last = ".1" if layer.rank else ""  # of a product, the second factor has the outputs
        if layer.rank:
            state[f"{target.key}.0.weight"] = model.get_parameter(f"{layer.key}.0.weight").detach()
        conv = model.get_submodule(f"{layer.key}{last}")
        mean, var = norm.running_mean, norm.running_var
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None  # noqa: S101  # for mypy: we built them
        assert mean is not None and var is not None  # noqa: S101  # likewise
        factor = norm.weight.double() / torch.sqrt(var.double() + norm.eps)
        weight = conv.weight.double() * factor[:, None, None, None]
        bias = (conv.bias.double() - mean.double()) * factor + norm.bias.double()
        state[f"{target.key}{last}.weight"] = weight.to(conv.weight.dtype).detach()
        state[f"{target.key}{last}.bias"] = bias.to(conv.bias.dtype).detach()
    with torch.device("meta"):
        folded = VGG(spec)
    folded.load_state_dict(state, assign=True)
    return folded.train(model.training)


def plain_spec(spec: ModelSpec) -> ModelSpec:
    """The spec of the network after `fold_batch_norm`."""
    arch = spec.arch.removesuffix("_bn") if spec.arch != CUSTOM else CUSTOM
    return msgspec.structs.replace(spec, arch=arch, batch_norm=False)
