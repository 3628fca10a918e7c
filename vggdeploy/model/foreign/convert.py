"""A foreign state dict under this package's keys, layer by layer along `vggdeploy.model.layers`."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vggdeploy.errors import CheckpointError
from vggdeploy.model.foreign.facts import shortened
from vggdeploy.model.foreign.layouts import LEAVES, Foreign, Part
from vggdeploy.model.layers import Layer, layers_of
from vggdeploy.spec import ModelSpec


@dataclass(frozen=True)
class Converted:
    """Tensors by this package's keys; keys that were left out; the source's keys that nobody asked for."""

    state: dict[str, Tensor]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...]


def convert(foreign: Foreign, spec: ModelSpec, *, without: Collection[str] = ()) -> Converted:
    """The weights of ``spec`` out of ``foreign``, whose facts must already fit (see `vggdeploy.model.foreign.facts`).

    Args:
        without: names of layers to leave out, such as ``fc8``.

    Batch norms may lack ``num_batches_tracked``; a linear layer may lack its bias, and so may all convolutions: it is 0.

    Raises:
        CheckpointError: tensors that are missing, strange, of another shape, or not finite: the first few are named.
    """
    parts = {
        "conv": iter(foreign.convs), "batch_norm": iter(foreign.norms), "linear": iter(foreign.linears),
    }  # fmt: skip
    no_bias = not any("bias" in part.tensors for part in foreign.convs)
    state: dict[str, Tensor] = {}
    fresh: list[str] = []
    used: set[str] = set()
    wrong = [
        f"{_STRANGE}{key}" for key in foreign.strange if not without or key.startswith(f"{foreign.prefix}features.")
    ]
    for layer in layers_of(spec):
        if layer.kind not in parts:
            continue
        factors = [next(parts[layer.kind], None) for _ in range(2 if layer.rank else 1)]
        for name, shape in _shapes(layer).items():
            key = f"{layer.key}.{name}"
            place, _, leaf = name.rpartition(".")
            part = factors[int(place or 0)]
            tensor = part.tensors.get(leaf) if part else None
            if layer.name in without:
                fresh.append(key)
            elif part and tensor is None and leaf == "bias" and (no_bias or layer.kind == "linear"):
                state[key] = torch.zeros(shape)
            elif tensor is None or part is None:
                wrong += [f"missing {_theirs(part, leaf, key)}"] if leaf != "num_batches_tracked" else []
            else:
                if layer.name == "fc6" and name in ("weight", "0.weight") and spec.head_pool == "none":
                    tensor = fold_pool(tensor, layer.inputs, spec.blocks[-1][-1])
                wrong += _faults(f"{part.key}.{leaf}", tensor, shape)
                state[key] = tensor
                used |= {f"{part.key}.{leaf}", *part.read}
    if wrong:
        raise CheckpointError(f"{foreign.where} does not fit {spec.title}: {shortened(wrong)}", _remedy(wrong))
    unused = tuple(key for key in foreign.file.tensors if key not in used)
    return Converted(state, tuple(fresh), unused, _notes(foreign, spec, state, without, no_bias=no_bias))


def _remedy(wrong: list[str]) -> str:
    """What helps against these faults, where all of them are of one kind."""
    if all(fault.endswith(_NOT_FINITE) for fault in wrong):
        return "its training diverged: take weights that were saved before that"
    if all(fault.startswith(_STRANGE) for fault in wrong):
        return "these belong to no VGG: save the VGG alone, as torch.save(model.vgg.state_dict(), FILE)"
    return "use the network that it was saved from"


_NOT_FINITE, _STRANGE = " holds NaN or infinity", "unexpected "


def _shapes(layer: Layer) -> dict[str, tuple[int, ...]]:
    """The tensors of a layer, by what follows its key."""
    if layer.kind == "batch_norm":
        return {leaf: () if leaf == "num_batches_tracked" else (layer.outputs,) for leaf in LEAVES["batch_norm"]}
    kernel = (3, 3) if layer.kind == "conv" else ()
    if layer.rank:
        down, across = ((3, 1), (1, 3)) if kernel else ((), ())
        return {
            "0.weight": (layer.rank, layer.inputs, *down),
            "1.weight": (layer.outputs, layer.rank, *across),
            "1.bias": (layer.outputs,),
        }
    return {"weight": (layer.outputs, layer.inputs, *kernel), "bias": (layer.outputs,)}


def _theirs(part: Part | None, leaf: str, key: str) -> str:
    return f"{part.key}.{leaf}" if part else key


def _faults(name: str, tensor: Tensor, shape: tuple[int, ...]) -> list[str]:
    if tuple(tensor.shape) != shape:
        return [f"{name} is {list(tensor.shape)}, not {list(shape)}"]
    if name.endswith(".num_batches_tracked"):
        return []
    if not tensor.is_floating_point():
        return [f"{name} is {str(tensor.dtype).removeprefix('torch.')}"]
    # The extremes of a tensor with a NaN are NaN; unlike isfinite() they need no second tensor of its size.
    low, high = tensor.aminmax()
    return [] if low.isfinite() and high.isfinite() else [f"{name}{_NOT_FINITE}"]


def fold_pool(weight: Tensor, inputs: int, channels: int) -> Tensor:
    """fc6 behind an adaptive average pool, as torchvision's to 7×7 → fc6 that takes the map itself.

    Pooling is linear, so its matrix P ``[side², pooled²]`` multiplies into the weight: W' = W·Pᵀ for every channel. Where
    fc6 takes the map as it is, or no square map, the weight is returned unchanged.

    Args:
        weight: ``[outputs, channels · pooled²]``.
        inputs: what the result takes, ``channels · side²``.
    """
    pooled = math.isqrt(weight.shape[1] // channels) if weight.ndim == 2 else 0
    if not pooled or weight.shape[1] in (inputs, 0) or weight.shape[1] != channels * pooled**2:
        return weight
    side = round((inputs / channels) ** 0.5)
    basis = torch.eye(side**2, dtype=torch.float64).reshape(side**2, 1, side, side)
    pooling = functional.adaptive_avg_pool2d(basis, pooled).reshape(side**2, pooled**2)
    by_channel = weight.reshape(weight.shape[0] * channels, pooled**2)
    folded = torch.empty(by_channel.shape[0], side**2, dtype=torch.float32)
    # In slices: all of it in FP64 would be twice the largest tensor of the network.
    for rows, out in zip(by_channel.split(2**16), folded.split(2**16), strict=True):
        out.copy_(rows.double() @ pooling.T)
    return folded.reshape(weight.shape[0], inputs)


def _notes(
    foreign: Foreign, spec: ModelSpec, state: dict[str, Tensor], without: Collection[str], *, no_bias: bool
) -> tuple[str, ...]:
    notes = [*foreign.file.notes, *foreign.notes]
    if foreign.prefix:
        notes.append(f"the prefix '{foreign.prefix}' was cut off its keys")
    kinds = {str(t.dtype).removeprefix("torch.") for t in state.values() if t.is_floating_point()} - {"float32"}
    if kinds:
        notes.append(f"its {', '.join(sorted(kinds))} numbers became float32")
    if no_bias:
        notes.append("its convolutions have no bias; here the biases are 0")
    notes += [f"{part.key} has no bias; here it is 0" for part in foreign.linears if "bias" not in part.tensors]
    if foreign.facts.pools is None:
        notes.append(f"its keys do not tell where the pools stand; taken as in {spec.arch}")
    side, pooled = spec.image_size // spec.stride, foreign.facts.side
    if pooled and "fc6" not in without and pooled != side and spec.head_pool == "none":
        notes.append(
            f"fc6 was made for a map of {pooled} × {pooled}; its average pool was folded into it, which computes what the "
            f"original computes at {spec.image_size} px"
        )
    return tuple(notes)
