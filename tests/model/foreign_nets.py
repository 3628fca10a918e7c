"""Small networks as other programs write them: torchvision's, timm's, and the textbook's plain Sequential."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torchvision.models.vgg import VGG as TorchvisionVGG
from torchvision.models.vgg import make_layers

Net = TypeVar("Net", bound=nn.Module)

CLASSES = 5
# VGG-11 at an eighth of its width, and one that is none of the paper's.
VGG11: tuple[int | str, ...] = (8, "M", 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M")
OTHER: tuple[int | str, ...] = (8, 8, "M", 24, "M", 24, "M")


def torchvision_net(
    plan: tuple[int | str, ...] = VGG11, *, batch_norm: bool = False, classes: int = CLASSES, channels: int = 3
) -> nn.Module:
    """torchvision's own class, adaptive pool included, with narrow linear layers."""
    with torch.device("meta"):  # its own classifier has 120 million weights
        net = TorchvisionVGG(nn.Identity(), num_classes=2, init_weights=False)
    net.features = make_layers(list(plan), batch_norm=batch_norm)
    last = [c for c in plan if isinstance(c, int)][-1]
    net.classifier = nn.Sequential(
        nn.Linear(last * 49, 24), nn.ReLU(True), nn.Dropout(), nn.Linear(24, 16), nn.ReLU(True), nn.Dropout(),
        nn.Linear(16, classes),
    )  # fmt: skip
    if channels != 3:
        net.features[0] = nn.Conv2d(channels, int(plan[0]), 3, padding=1)
    return filled(net)


class TimmVGG(nn.Module):
    """The modules and the forward pass of timm/models/vgg.py (Apache-2.0) as far as a VGG-11 needs them."""

    def __init__(self, *, batch_norm: bool = False) -> None:
        super().__init__()
        self.features = make_layers(list(VGG11), batch_norm=batch_norm)
        self.pre_logits = nn.ModuleDict({"fc1": nn.Conv2d(64, 24, 7), "fc2": nn.Conv2d(24, 16, 1)})
        self.head = nn.ModuleDict({"fc": nn.Linear(16, CLASSES)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        if x.shape[-1] < 7:
            x = nn.functional.adaptive_avg_pool2d(x, 7)
        x = torch.relu(self.pre_logits["fc2"](torch.relu(self.pre_logits["fc1"](x))))
        return self.head["fc"](x.mean((2, 3)))


def textbook_net(
    plan: tuple[int | str, ...] = VGG11,
    *,
    flat: bool = False,
    batch_norm: bool = False,
    size: int = 64,
    channels: int = 1,
) -> nn.Sequential:
    """d2l.ai's VGG: a Sequential of blocks, then Flatten and three linear layers; or the same without the blocks."""
    blocks: list[list[nn.Module]] = [[]]
    for width in plan:
        if width == "M":
            blocks[-1].append(nn.MaxPool2d(2, 2))
            blocks.append([])
        else:
            norm = [nn.BatchNorm2d(int(width))] if batch_norm else []
            blocks[-1] += [nn.Conv2d(channels, int(width), 3, padding=1), *norm, nn.ReLU()]
            channels = int(width)
    blocks.pop()
    inputs = channels * (size // 2 ** len(blocks)) ** 2
    head = [
        nn.Flatten(), nn.Linear(inputs, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 16), nn.ReLU(), nn.Dropout(),
        nn.Linear(16, CLASSES),
    ]  # fmt: skip
    body = [module for block in blocks for module in block] if flat else [nn.Sequential(*block) for block in blocks]
    return filled(nn.Sequential(*body, *head))


def filled(net: Net, *, seed: int = 0) -> Net:
    """Weights with which every layer matters, batch norms that are not the identity, and evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in net.state_dict().items():
        if tensor.ndim > 1:
            nn.init.kaiming_uniform_(tensor, nonlinearity="relu", generator=generator)
        elif tensor.is_floating_point():
            low, high = (0.5, 1.5) if "running_var" in name or name.endswith("weight") else (-0.2, 0.2)
            tensor.uniform_(low, high, generator=generator)
    return net.eval()


class Pooled(nn.Module):
    """A fine-tuned VGG as tutorials make it: features, one number for each channel, linear layers."""

    def __init__(self, head: nn.Module, *, pool: str = "avg") -> None:
        super().__init__()
        self.features = torchvision_net().features
        self.pool = nn.AdaptiveAvgPool2d(1) if pool == "avg" else nn.AdaptiveMaxPool2d(1)
        self.classifier = head

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


class Functional(nn.Module):
    """Linear layers under names of their own, their activations in ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.fc3 = nn.Linear(16, CLASSES)  # the order in which they are written is not the order in which they are used
        self.fc1 = nn.Linear(64 * 4, 24)
        self.fc2 = nn.Linear(24, 16)
        self.features = torchvision_net().features

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.fc1(self.features(x).flatten(1)))
        return self.fc3(torch.relu(self.fc2(x)))


class Appended(nn.Module):
    """A whole network and one more linear layer, with or without a ReLU between them."""

    def __init__(self, *, relu: bool) -> None:
        super().__init__()
        self.backbone = torchvision_net()
        self.fc = nn.Linear(CLASSES, 3)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.backbone(x)
        return self.fc(torch.relu(x) if self.relu else x)


def with_head(*layers: nn.Module) -> nn.Module:
    """torchvision's class, with another classifier."""
    net = torchvision_net()
    net.classifier = layers[0] if len(layers) == 1 else nn.Sequential(*layers)
    return filled(net)


def nested() -> nn.Module:
    """``classifier[6]`` replaced by a small network."""
    net = torchvision_net()
    assert isinstance(net.classifier, nn.Sequential)
    net.classifier[6] = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 3))
    return filled(net)


def grown() -> nn.Module:
    """A linear layer added behind the last one of torchvision's classifier."""
    net = torchvision_net()
    assert isinstance(net.classifier, nn.Sequential)
    net.classifier.add_module("7", nn.Linear(CLASSES, 3))
    return filled(net)
