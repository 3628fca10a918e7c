"""What the layers of a network see and answer on real images: what a product of low rank has to keep."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vggdeploy.model.layers import Layer, layers_of
from vggdeploy.model.vgg import VGG

PATCH_IMAGES = 256  # whose patches are measured: each has as many as it has pixels


@dataclass(frozen=True)
class OutputMoments:
    """Of one layer, in FP64: covariance of what its matrix answers, ``[outputs, outputs]`` (of a convolution ``[3·outputs,
    3·outputs]``, scaled), and the mean of that, without the bias."""

    spread: Tensor
    mean: Tensor


def product_layers(model: VGG) -> dict[str, Layer]:
    """The layers that can be products: every convolution and hidden linear layer."""
    return {x.name: x for x in layers_of(model.spec) if x.kind in ("conv", "linear") and x.name != model.spec.last}


def measure_answers(
    model: VGG, batches: Iterable[NDArray[Any]], *, patches: int = PATCH_IMAGES
) -> dict[str, OutputMoments]:
    """What every layer that can be a product answers.

    Args:
        batches: of normalised training images ``float32 [N, C, S, S]``; for fc6 and fc7 at least as many as their ranks.
        patches: the first so many images are looked at in convolutions too; 0 leaves them out.
    """
    layers = product_layers(model)
    at = {(x.part, x.index): name for name, x in layers.items()}
    sums: dict[str, Tensor] = {}
    products: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}
    positions: dict[str, int] = {}
    count = 0
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for images in batches:
                x = torch.from_numpy(images)
                for index, module in enumerate(model.features):
                    name = at.get(("features", index))
                    if name is not None and count < patches:
                        columns = vertical_patches(x[: patches - count])
                        products[name] = products.get(name, 0) + (columns @ columns.T).double()
                        seen[name] = seen.get(name, 0) + columns.sum(dim=1).double()
                        positions[name] = positions.get(name, 0) + columns.shape[1]
                    x = module(x)
                x = model.neck(x)
                for index, module in enumerate(model.classifier):
                    x = module(x)
                    name = at.get(("classifier", index))
                    if name is not None:
                        y = (x - matrix_of(model, layers[name])[1]).double()
                        sums[name] = sums.get(name, 0) + y.sum(dim=0)
                        products[name] = products.get(name, 0) + y.T @ y
                count += len(images)
    finally:
        model.train(was_training)
    found = {}
    for name, product in products.items():
        if name in sums:
            mean = sums[name] / count
            found[name] = OutputMoments(product / count - torch.outer(mean, mean), mean)
        else:
            matrix = scaled_matrix(model, layers[name])[0]
            patch = seen[name] / positions[name]
            spread = product / positions[name] - torch.outer(patch, patch)
            found[name] = OutputMoments(matrix.T @ spread @ matrix, matrix.T @ patch)
    return found


def blind_answers(model: VGG) -> dict[str, OutputMoments]:
    """The same without any image: as if all inputs counted alike and stood for themselves."""
    found = {}
    for name, layer in product_layers(model).items():
        if layer.kind == "linear":
            weight = matrix_of(model, layer)[0].double()
            found[name] = OutputMoments(weight @ weight.T, torch.zeros(len(weight), dtype=torch.float64))
        else:
            matrix = scaled_matrix(model, layer)[0]
            found[name] = OutputMoments(matrix.T @ matrix, torch.zeros(matrix.shape[1], dtype=torch.float64))
    return found


def vertical_patches(x: Tensor) -> Tensor:
    """``[N, C, H, W]`` → ``[3·C, N·H·W]``: each pixel with the one above and the one below it, zeros outside."""
    height = x.shape[2]
    padded = functional.pad(x, (0, 0, 1, 1))
    rows = torch.stack([padded[:, :, k : k + height] for k in range(3)], dim=2)
    return rows.permute(1, 2, 0, 3, 4).reshape(3 * x.shape[1], -1)


def matrix_of(model: VGG, layer: Layer) -> tuple[Tensor, Tensor]:
    """Weight and bias, multiplied out where they are a product.

    A linear layer's is ``[outputs, inputs]``. A convolution's is ``[3·inputs, 3·outputs]``: rows are (input, row of the
    kernel), columns (output, column of the kernel), so that its rank is that of a 3×1 and a 1×3 convolution.
    """
    module: Any = getattr(model, layer.part)[layer.index]
    if layer.kind == "linear":
        if not layer.rank:
            return module.weight.detach(), module.bias.detach()
        return (module[1].weight.detach().double() @ module[0].weight.detach().double()).float(), module[
            1
        ].bias.detach()
    if not layer.rank:
        weight = module.weight.detach()
        return weight.permute(1, 2, 0, 3).reshape(3 * layer.inputs, 3 * layer.outputs), module.bias.detach()
    first = module[0].weight.detach().double().reshape(layer.rank, 3 * layer.inputs)
    second = module[1].weight.detach().double()[:, :, 0].permute(1, 0, 2).reshape(layer.rank, 3 * layer.outputs)
    return (first.T @ second).float(), module[1].bias.detach()


def scaled_matrix(model: VGG, layer: Layer) -> tuple[Tensor, Tensor]:
    """A convolution's matrix in FP64, its columns multiplied by what the batch norm behind it makes of them, and these
    factors ``[3·outputs]``: an error counts as much as it is large after the batch norm."""
    matrix = matrix_of(model, layer)[0].double()
    scale = torch.ones(layer.outputs, dtype=torch.float64)
    norm = model.features[layer.index + 1]
    if isinstance(norm, nn.BatchNorm2d):
        assert norm.running_var is not None  # noqa: S101  # for mypy: VGG's have it
        scale = norm.weight.detach().double().abs() / torch.sqrt(norm.running_var.double() + norm.eps)
        scale = scale.clamp_min(
            1e-6 * float(scale.max().clamp_min(1e-30))
        )  # a dead channel has no direction of its own
    columns = scale.repeat_interleave(3)
    return matrix * columns, columns


# Batches of normalised images `float32 [N, C, S, S]` with their classes `int64 [N]`.
Batches = Iterable[tuple[NDArray[Any], NDArray[Any]]]


def recalibrate(model: VGG, batches: Batches) -> None:
    """Measure the statistics of every batch norm, in place: what stands before it is no longer what it was.

    Li et al. 2020, "EagleEye", section 3.2: without it the accuracy of a smaller network says little about what it can be
    fine-tuned to.

    Args:
        batches: of training images; all of them count alike.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    usual = [norm.momentum for norm in norms]
    was_training = model.training
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for the mean over all batches
        norm.train()
    with torch.no_grad():
        for images, _ in batches:
            model.features(torch.from_numpy(images))
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    model.train(was_training)
