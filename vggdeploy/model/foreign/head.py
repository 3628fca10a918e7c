"""The linear layers of a foreign network: in which order they stand, and what stands between them.

Weights hold matrices, and nothing of what has none: a pool before them, a ReLU behind each. Where the layers are numbered
in one Sequential, the numbers that are missing leave room for a ReLU; elsewhere nobody can know, and it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, permutations

import torch
from torch import Tensor

from vggdeploy.errors import CheckpointError, UsageError
from vggdeploy.model.foreign.facts import Head
from vggdeploy.model.foreign.layouts import APPENDED, Foreign, Part
from vggdeploy.spec import HeadPool

_MOST_APPENDED = 6  # layers whose order is looked for
_PAPERS = (0, 3, 6)  # where the paper's three stand in torchvision's classifier: ReLU and dropout between them
_SLICE = 2048  # columns of a matrix that are in FP64 at a time
_SAY = "say what follows each of its linear layers, in order"


def parse_head(text: str) -> Head:
    """``"relu,relu,none"``: what follows each linear layer. ``"avg,none"``: one behind a global average pool.

    Raises:
        UsageError: something else.
    """
    words = [word.strip().lower() for word in text.split(",")]
    pool: HeadPool = "avg" if words[0] == "avg" else "max" if words[0] == "max" else "none"
    rest = words if pool == "none" else words[1:]
    if not rest or any(word not in ("relu", "none") for word in rest):
        raise UsageError(
            f"'{text}' does not say what follows each linear layer",
            "give relu or none for each, after avg or max where such a pool comes first: --head relu,relu,none",
        )
    return Head(pool, tuple(word == "relu" for word in rest))


def settled(foreign: Foreign, head: Head | None = None) -> Foreign:
    """``foreign`` with its linear layers in order, a ReLU behind each but the class scores'; and what was assumed.

    Two without a ReLU between them are multiplied into one: W = W₂·W₁, b = W₂·b₁ + b₂, in FP64.

    Args:
        head: what the user says. Default: a ReLU where the keys leave room for one, which the notes say.

    Raises:
        CheckpointError: the keys do not tell enough.
        UsageError: ``head`` speaks of another number of layers.
    """
    linears, asserted = ordered(foreign).linears, head is not None
    notes: tuple[str, ...] = ()
    if head is None:
        head, notes = _told(foreign, linears)
    elif len(head.relus) != len(linears):
        raise UsageError(
            f"--head says what follows {len(head.relus)} linear layers, and {foreign.where} has {len(linears)}",
            f"{_SAY}: --head {_example(len(linears))}" if linears else "leave it out",
        )
    merged: list[Part] = []
    open_end = False  # whether the next one goes on where the last one ended
    for part, relu in zip(linears, head.relus, strict=True):
        if open_end:
            notes += (f"nothing stands between {merged[-1].key} and {part.key}: they became one layer",)
            merged[-1] = _product(merged[-1], part)
        else:
            merged.append(part)
        open_end = not relu
    return replace(foreign, linears=tuple(merged), head=head, asserted=asserted, notes=notes)


def ordered(foreign: Foreign) -> Foreign:
    """``foreign`` with its linear layers as they follow each other: those under names of their own as they fit in.

    Raises:
        CheckpointError: they fit in more than one order.
    """
    known = tuple(part for part in foreign.linears if part.position[0] != APPENDED)
    stems: dict[int, list[Part]] = {}
    for part in foreign.linears[len(known) :]:
        stems.setdefault(part.position[1], []).append(part)
    fitting = [
        chain
        for order in permutations(stems.values())
        if _fits(chain := [*known, *(part for stem in order for part in stem)], foreign)
    ] if len(stems) <= _MOST_APPENDED else []  # fmt: skip
    if len(fitting) > 1:
        names = ", ".join(part.key for part in foreign.linears[len(known) :])
        raise CheckpointError(
            f"{foreign.where} does not tell in which order {names} stand",
            "put them into one nn.Sequential, and save its state dict",
        )
    return replace(foreign, linears=tuple(fitting[0]) if fitting else foreign.linears)


def _fits(chain: Sequence[Part], foreign: Foreign) -> bool:
    first = _inputs(chain[0]) / foreign.facts.channels[-1] if chain else 1.0
    links = all(_outputs(a) == _inputs(b) for a, b in pairwise(chain))
    return links and first >= 1 and math.isqrt(int(first)) ** 2 == first


def _told(foreign: Foreign, linears: Sequence[Part]) -> tuple[Head, tuple[str, ...]]:
    """What the keys tell, and what had to be assumed on top of it."""
    count, where = len(linears), foreign.where
    if foreign.layout != "sequential" and [part.position for part in linears] == [(0, n) for n in _PAPERS[:count]]:
        if count == len(_PAPERS):
            return Head(relus=(True, True, False)), ()
        if foreign.layout == "timm":  # without head.fc it ends in what its pre_logits give, behind their ReLU
            return Head(relus=(True,) * count), ()
    between = [_between(x, y) for x, y in pairwise(linears)]
    head = Head(relus=(*map(bool, between), False) if linears else ())
    if not all(between):
        pairs = [f"{x.key} and {y.key}" for (x, y), n in zip(pairwise(linears), between, strict=True) if not n]
        raise CheckpointError(
            f"{where} does not tell whether a ReLU stands between {', or between '.join(pairs)}",
            f"{_SAY}: --head {head} where there is none, --head {_example(count)} with one everywhere",
        )
    if linears and _inputs(linears[-1]) == _outputs(linears[-1]):
        raise CheckpointError(
            f"{where} ends in {linears[-1].key} of {_outputs(linears[-1])} outputs, as many as inputs: "
            "class scores, or features whose last layer was taken off?",
            f"--head {head} for scores, --head {Head(relus=(True,) * count)} for features",
        )
    if count < 2:
        return head, ()
    where_relu = ", ".join(f"{x.key} and {y.key}" for x, y in pairwise(linears))
    return head, (
        f"taken: a ReLU between {where_relu}, where its keys leave room for one; class scores from {linears[-1].key} "
        f"(otherwise: --head, here {head})",
    )


def _between(before: Part, after: Part) -> int | None:
    """How many modules without weights stand between two linear layers; None where their numbers do not tell.

    0 tells nothing either: of a ``ModuleList``, or of one that was appended, the ReLU is in the program.
    """
    a, b = before.position, after.position
    named = 2 if APPENDED in (a[0], b[0]) else 1  # numbers count within one module only
    place = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    if place is None or place < named or len(a) > place + 1:
        return None
    return b[place] - a[place] - 1 + sum(b[place + 1 :])


def _product(first: Part, second: Part) -> Part:
    if _outputs(first) != _inputs(second):
        raise CheckpointError(
            f"{second.key} takes {_inputs(second)} inputs, and {first.key} before it gives {_outputs(first)}",
            "this is no plain chain of layers, as a VGG is",
        )
    one, two = first.tensors["weight"], second.tensors["weight"].double()
    # In slices: all of it in FP64 would be twice the largest tensor of the network.
    weight = torch.cat([(two @ columns.double()).float() for columns in one.split(_SLICE, dim=1)], dim=1)
    bias = two @ _bias(first) + _bias(second)
    read = (f"{part.key}.{leaf}" for part in (first, second) for leaf in part.tensors)
    return Part(
        f"{first.key}·{second.key}", "linear", first.position, {"weight": weight, "bias": bias.float()},
        (*first.read, *second.read, *read),
    )  # fmt: skip


def _bias(part: Part) -> Tensor:
    found = part.tensors.get("bias")
    return torch.zeros(_outputs(part), dtype=torch.float64) if found is None else found.double()


def _example(count: int) -> str:
    return str(Head(relus=(True,) * (count - 1) + (False,)))


def _inputs(part: Part) -> int:
    return int(part.tensors["weight"].shape[1])


def _outputs(part: Part) -> int:
    return int(part.tensors["weight"].shape[0])
