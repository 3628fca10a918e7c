"""Whose state dict is it: its layout is recognised by keys and shapes, and its layers are put in order.

Three layouts are known. torchvision's ``features.N`` and ``classifier.N``; timm's, which has the linear layers as
convolutions ``pre_logits.fc1`` (7×7) and ``pre_logits.fc2`` (1×1), and ``head.fc``; and the plain ``nn.Sequential`` of
textbooks, flat (``0``, ``2``, …) or in blocks (``0.0``, ``0.2``, ``1.0``, …). Any prefix before them is cut off. timm's
``features_only`` writes ``features_N``. Beside features of the first two, linear layers may have any name (``fc``, ``1``).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import Tensor

from vggdeploy.errors import CheckpointError
from vggdeploy.model.foreign.facts import Facts, Head
from vggdeploy.model.foreign.files import StateFile
from vggdeploy.model.foreign.report import shortened
from vggdeploy.model.layers import layers_of
from vggdeploy.spec import ModelSpec

Layout = Literal["torchvision", "timm", "sequential"]
Kind = Literal["conv", "batch_norm", "linear"]

LEAVES: dict[Kind, tuple[str, ...]] = {
    "conv": ("weight", "bias"),
    "linear": ("weight", "bias"),
    "batch_norm": ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
}
# timm's linear layers, by where torchvision has them; the last may have become a Sequential.
_TIMM_LINEARS = {"pre_logits.fc1": 0, "pre_logits.fc2": 3, "head.fc": 6}
_TIMM = rf"({'|'.join(map(re.escape, _TIMM_LINEARS))})((?:\.\d+)*)"
_NAMES: dict[Layout, str] = {
    "torchvision": r"features[._]\d+(\.\d+)*|classifier(\.\d+)*",
    "timm": rf"features[._]\d+|{_TIMM}",
    "sequential": r"\d+(\.\d+)*",
}
FEATURES, CLASSIFIER, APPENDED = -1, 0, 1  # the first number of a position
_KNOWN = (
    "known: features.N with classifier.N (torchvision), or with pre_logits.fc1 and head.fc (timm); 0, 2, … (Sequential)"
)


@dataclass(frozen=True)
class Part:
    """One layer with parameters: its key, where it stands, and its tensors by the last part of their names.

    ``read``: of one that was made of others, the keys of their tensors.
    """

    key: str
    kind: Kind
    position: tuple[int, ...]
    tensors: dict[str, Tensor]
    read: tuple[str, ...] = ()


@dataclass(frozen=True)
class Foreign:
    """A state dict, recognised. ``strange`` are its keys that no layer of a VGG has.

    ``head`` is what stands between its linear layers, once that is settled: ``asserted`` by the user, or read from the keys
    with ``notes`` on what had to be assumed.
    """

    file: StateFile
    layout: Layout
    prefix: str
    convs: tuple[Part, ...]
    norms: tuple[Part, ...]
    linears: tuple[Part, ...]
    strange: tuple[str, ...]
    head: Head | None = None
    asserted: bool = False
    notes: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        return self.file.where

    @property
    def facts(self) -> Facts:
        """What the shapes and the positions tell."""
        shapes = [part.tensors["weight"].shape for part in self.convs]
        pools, odd = _pools(self.convs, batch_norm=bool(self.norms))
        return Facts(
            channels=tuple(int(shape[0]) for shape in shapes),
            in_channels=int(shapes[0][1]),
            batch_norm=bool(self.norms),
            linears=tuple((int(w.shape[1]), int(w.shape[0])) for w in (p.tensors["weight"] for p in self.linears)),
            pools=pools,
            odd=odd,
            # torchvision always pools to 7×7 before fc6, timm only where the map is smaller than that.
            adaptive="given" if self.head and self.head.pool == "avg" else _ADAPTIVE.get(self.layout, ""),
        )


_ADAPTIVE = {"torchvision": "any", "timm": "smaller"}


def recognise(file: StateFile) -> Foreign:
    """Put the layers of a state dict in order.

    Raises:
        CheckpointError: no known layout, layers that no VGG has, or several networks in one file.
    """
    prefix = _prefix(file.tensors, file.where)
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in file.tensors.items():
        module, _, leaf = key.rpartition(".")
        groups[module][leaf] = tensor
    layout = _layout([module.removeprefix(prefix) for module in groups if module.startswith(prefix)])
    if layout is None:
        keys = shortened(list(file.tensors)) or "nothing"
        raise CheckpointError(f"{file.where} is no VGG in a known layout; its keys: {keys}", _KNOWN)
    parts: list[Part] = []
    strange: list[str] = []
    stems: dict[str, int] = {}
    for module, tensors in groups.items():
        name = module.removeprefix(prefix) if module.startswith(prefix) else ""
        part = None
        if re.fullmatch(_NAMES[layout], name):
            part = _part(module, name, tensors)
        elif layout != "sequential" and module:
            part = _appended(module, tensors, stems)
        strange += [
            f"{module}.{leaf}".removeprefix(".") for leaf in tensors if not part or leaf not in LEAVES[part.kind]
        ]
        if part is not None:
            parts.append(part)
    parts.sort(key=lambda part: part.position)
    features = [part for part in parts if part.kind != "linear"]
    convs = tuple(part for part in features if part.kind == "conv")
    if not convs:
        raise CheckpointError(f"{file.where} holds no 3×3 convolution", _KNOWN)
    norms = _norms(features, file.where)
    linears = tuple(part for part in parts if part.kind == "linear")
    return Foreign(file, layout, prefix, convs, norms, linears, tuple(strange))


def own_layout(file: StateFile, spec: ModelSpec) -> Foreign:
    """The layers of one of our own checkpoints, whose spec says what they are. A product is two parts."""
    found: dict[str, list[Part]] = {"conv": [], "batch_norm": [], "linear": []}
    used: set[str] = set()
    for order, layer in enumerate(layers_of(spec)):
        for place in ("0", "1") if layer.rank else ("",) if layer.kind in found else ():
            key = f"{layer.key}.{place}" if place else layer.key
            kind: Kind = "conv" if layer.kind == "conv" else "linear" if layer.kind == "linear" else "batch_norm"
            tensors = {leaf: file.tensors[f"{key}.{leaf}"] for leaf in LEAVES[kind] if f"{key}.{leaf}" in file.tensors}
            used |= {f"{key}.{leaf}" for leaf in tensors}
            found[kind].append(Part(key, kind, (order,), tensors))
    strange = tuple(key for key in file.tensors if key not in used)
    return Foreign(
        file, "torchvision", "", tuple(found["conv"]), tuple(found["batch_norm"]), tuple(found["linear"]), strange
    )


def _prefix(keys: Collection[str], where: str) -> str:
    """What stands before every key: ``module.`` of a parallel run, ``_orig_mod.`` of a compiled one, ``model.`` …"""
    roots = [found[1] for key in keys if (found := re.fullmatch(r"((?:.+\.)?)features[._]0\.weight", key))]
    if len(roots) > 1:
        raise CheckpointError(
            f"{where} holds {len(roots)} networks: {shortened([root or '(no prefix)' for root in roots])}",
            "save the state dict of the one that you want",
        )
    if roots:
        return roots[0]
    prefix = ""
    while True:
        heads = {key.removeprefix(prefix).partition(".")[0] for key in keys}
        head = heads.pop() if len(heads) == 1 else "0"
        if head.isdecimal() or head in ("features", "classifier", "pre_logits", "head") or f"{prefix}{head}" in keys:
            return prefix
        prefix += f"{head}."


def _layout(names: Collection[str]) -> Layout | None:
    if any(re.fullmatch(r"features[._]\d+", name) for name in names):
        return "timm" if any(re.fullmatch(_TIMM, name) for name in names) else "torchvision"
    return "sequential" if any(re.fullmatch(_NAMES["sequential"], name) for name in names) else None


def _part(module: str, name: str, tensors: dict[str, Tensor]) -> Part | None:
    """The layer that these tensors make, or None where a VGG has no such layer."""
    weight = tensors.get("weight")
    if weight is None:
        return None
    numbers = tuple(int(number) for number in re.findall(r"\d+", name))
    timm = re.fullmatch(_TIMM, name)
    features = name.startswith("features")
    kind: Kind
    if timm and weight.ndim in (2, 4):
        kind, numbers = "linear", (_TIMM_LINEARS[timm[1]], *(int(number) for number in re.findall(r"\d+", timm[2])))
        tensors = {**tensors, "weight": weight.flatten(1)}  # a convolution of the whole map is the linear layer
    elif weight.ndim == 4 and weight.shape[2:] == (3, 3):
        kind = "conv"
    elif weight.ndim == 2:
        kind = "linear"
    elif weight.ndim == 1 and "running_mean" in tensors and not name.startswith("classifier"):
        kind = "batch_norm"
    else:
        return None
    return Part(module, kind, (FEATURES if features else CLASSIFIER, *numbers), _known(kind, tensors))


def _appended(module: str, tensors: dict[str, Tensor], stems: dict[str, int]) -> Part | None:
    """A linear layer under a name of its own. ``stems`` counts the modules that such layers stand in."""
    if (weight := tensors.get("weight")) is None or weight.ndim != 2:
        return None
    stem, numbers = re.fullmatch(r"(.+?)((?:\.\d+)*)", module).groups()  # type: ignore[union-attr]  # it fits anything
    position = APPENDED, stems.setdefault(stem, len(stems)), *(int(number) for number in re.findall(r"\d+", numbers))
    return Part(module, "linear", position, _known("linear", tensors))


def _known(kind: Kind, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {leaf: tensor for leaf, tensor in tensors.items() if leaf in LEAVES[kind]}


def _norms(features: Sequence[Part], where: str) -> tuple[Part, ...]:
    """The batch norms, one right behind each convolution, or none.

    Raises:
        CheckpointError: any other order: it would compute something else.
    """
    kinds = [part.kind for part in features]
    if "batch_norm" not in kinds:
        return ()
    hint = "only Conv–BatchNorm–ReLU can be converted"
    if kinds != ["conv", "batch_norm"] * (len(kinds) // 2):
        raise CheckpointError(f"{where}: not every convolution has its batch norm behind it", hint)
    for conv, norm in zip(features[::2], features[1::2], strict=True):
        if (*conv.position[:-1], conv.position[-1] + 1) != norm.position:
            raise CheckpointError(
                f"{where}: between {conv.key} and its batch norm {norm.key} stands another layer", hint
            )
    return tuple(features[1::2])


def _pools(convs: Sequence[Part], *, batch_norm: bool) -> tuple[tuple[bool, ...] | None, bool]:
    """For every convolution, whether a pool follows it (None where the positions do not tell), and whether anything
    beside Conv, BatchNorm, ReLU and one pool stands between two of them.

    Pools have no weights. Where ReLUs are modules, a pool is what makes the next convolution stand one further on; in a
    Sequential of blocks it ends each block.
    """
    step = 3 if batch_norm else 2
    parents = [part.position[:-1] for part in convs]
    in_blocks = len(set(parents)) < len(parents)
    told, odd = True, False
    found: list[bool] = []
    for before, after in pairwise(convs):
        inside = before.position[:-1] == after.position[:-1]
        extra = after.position[-1] - before.position[-1] - step if inside else 1
        told = told and extra in (0, 1) and (inside or in_blocks)
        odd = odd or extra > 1
        found.append(extra == 1)
    return (*found, True) if told else None, odd
