"""The spec of a network from its weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import msgspec
from torch import Tensor

from vggdeploy.errors import CheckpointError, UntoldError, UsageError
from vggdeploy.model.foreign.facts import POOLED, Facts, Head
from vggdeploy.model.foreign.files import StateFile
from vggdeploy.model.foreign.head import settled
from vggdeploy.model.foreign.layouts import Foreign, recognise
from vggdeploy.spec import (
    ARCHITECTURES,
    CUSTOM,
    Blocks,
    HeadPool,
    ModelSpec,
    flat,
    format_blocks,
    grouped,
    named,
    named_width,
    pools,
    scaled_blocks,
    split_arch,
)

IMAGE_SIZE = 224  # pixels, of weights that do not tell: the paper's


def spec_from_state(
    state: Foreign | Mapping[str, Tensor],
    *,
    arch: str | None = None,
    blocks: Blocks | None = None,
    image_size: int | None = None,
) -> ModelSpec:
    """What network these weights are of.

    Blocks, width, batch norm, input channels, hidden widths and classes are in the shapes; the image size is in fc6's
    inputs, unless its map is pooled or there is no fc6: then it is 224 px. Where the pools stand is not in weights: it is
    taken from the paper's network with these convolutions (at any width), as long as the positions of the keys do not
    contradict it. What stands between the linear layers: see `vggdeploy.model.foreign.head`.

    Args:
        arch: insist on this network.
        blocks: where the pools stand, for any other network.
        image_size: another size than fc6 was made for. Only a network with an adaptive pool can, as torchvision's: it is
            folded into fc6 (see `vggdeploy.model.foreign.convert`).

    Raises:
        CheckpointError: the shapes make no VGG, or another one than was asked for.
        UsageError: both ``arch`` and ``blocks``, an unknown name, or an image size that does not fit.
    """
    if arch and blocks:
        raise UsageError("both an architecture and blocks were given", "give one of --arch and --blocks")
    foreign = state if isinstance(state, Foreign) else recognise(StateFile("the state dict", dict(state)))
    foreign = foreign if foreign.head else settled(foreign)
    facts, where = foreign.facts, foreign.where
    _check_chain(foreign, where)
    derived = _blocks(facts, where, arch, blocks)
    name, width = _name(derived, facts.channels)
    pool, size = _map(foreign, 2 ** len(derived), image_size)
    outputs = [outputs for _, outputs in facts.linears]
    scores = bool(outputs) and not (foreign.head and foreign.head.relus[-1])
    try:
        spec = ModelSpec(
            arch=f"{name}_bn" if facts.batch_norm and name != CUSTOM else name,
            blocks=derived,
            batch_norm=facts.batch_norm,
            width=width,
            in_channels=facts.in_channels,
            classes=outputs[-1] if scores else 0,
            image_size=2 ** len(derived) * (facts.side if facts.side and pool == "none" else POOLED),
            hidden=tuple(outputs[:-1] if scores else outputs),
            head_pool=pool,
        )
    except UsageError as error:  # what is in a file is no slip of the user's
        raise CheckpointError(f"{where} is no VGG that can be built: {error.cause}", error.hint) from error
    resized = msgspec.structs.replace(spec, image_size=size)  # refuses a size that fits no map
    if pool == "none" and outputs and not facts.fits_map(size // spec.stride):
        raise CheckpointError(
            f"{where} was made for images of {spec.image_size} px, not {size} (its fc6 takes {facts.linears[0][0]} inputs)",
            f"give --image-size {spec.image_size}, or leave it out; if the map is averaged first: --head avg,{foreign.head}",
        )
    return resized


def _map(foreign: Foreign, stride: int, image_size: int | None) -> tuple[HeadPool, int]:
    """How the last map enters the first linear layer, and the size of images."""
    facts, where, head = foreign.facts, foreign.where, foreign.head or Head()
    size = IMAGE_SIZE if image_size is None else image_size
    if not facts.linears:
        return "none", size
    inputs, channels = facts.linears[0][0], facts.channels[-1]
    if facts.side is None:
        raise CheckpointError(
            f"{where}: its first linear layer takes {inputs} inputs, no square map of {channels} channels",
            "a VGG flattens a square map",
        )
    if head.pool == "max" and facts.side > 1:
        raise CheckpointError(
            f"{where}: its first linear layer takes a {facts.side} × {facts.side} map, no maximum of each channel",
            f"leave max out if the map is flattened: --head {Head(relus=head.relus)}",
        )
    if head.pool != "none":
        return head.pool if facts.side == 1 else "none", size
    if facts.side == 1 and image_size != stride and not foreign.asserted:
        raise CheckpointError(
            f"{where}: its first linear layer takes {inputs} inputs, one for each channel: the 1 × 1 map of {stride} px "
            "images, or the mean or maximum of a larger map",
            f"say which: --image-size {stride}, or --image-size {size} --head {Head('avg', head.relus)} (or max)",
        )
    return "none", facts.side * stride if image_size is None else image_size


def _check_chain(foreign: Foreign, where: str) -> None:
    """Every layer takes what the one before it gives."""
    parts = [*foreign.convs, *foreign.linears]
    for before, after in pairwise(parts):
        gives, takes = before.tensors["weight"].shape[0], after.tensors["weight"].shape[1]
        into_fc6 = before.kind == "conv" and after.kind == "linear"
        if gives != takes and not into_fc6:
            raise CheckpointError(
                f"{where}: {after.key} takes {takes} inputs, and {before.key} before it gives {gives}",
                "this is no plain chain of layers, as a VGG is",
            )


def _blocks(facts: Facts, where: str, arch: str | None, blocks: Blocks | None) -> Blocks:
    if blocks:
        if flat(blocks) != facts.channels:
            raise CheckpointError(
                f"{where} has convolutions of {facts.channels} channels, not {flat(blocks)}", "give its own blocks"
            )
        return blocks
    base, width = (split_arch(arch)[0], None) if arch else named(facts.channels)
    if arch:
        if split_arch(arch)[1] != facts.batch_norm:
            other = base if split_arch(arch)[1] else f"{base}_bn"
            raise CheckpointError(
                f"{where} has {'' if facts.batch_norm else 'no '}batch norm, so it is no {arch}", f"try --arch {other}"
            )
        width = named_width(base, facts.channels)
    found = scaled_blocks(ARCHITECTURES[base], width) if base != CUSTOM and width else None
    if found and facts.odd and not arch:
        option = f"--arch {base}{'_bn' * facts.batch_norm}"
        raise UntoldError(
            f"{where} has the convolutions of {base}, and more layers between them than ReLUs and single pools",
            f"if those do nothing in use, as Dropout, say so: {option}",
            option,
        )
    if found is None or (facts.pools is not None and facts.pools != pools(found)):
        guess = "" if facts.pools is None else format_blocks(grouped(facts.channels, facts.pools))
        what = f"{arch} at any width" if arch else "one of vgg11, vgg13, vgg16, vgg19 at any width"
        option = f"--blocks {guess or '1x64,1x128,2x256'}"
        raise UntoldError(
            f"{where} is not {what}: {len(facts.channels)} convolutions of {facts.channels[0]} … "
            f"{facts.channels[-1]} channels{'' if found is None else ', with the pools elsewhere'}",
            f"say where the pools stand: {option}{' (as its keys look)' if guess else ''}",
            option,
        )
    return found


def _name(blocks: Blocks, channels: tuple[int, ...]) -> tuple[str, float]:
    arch, width = named(channels)
    return (arch, width) if arch != CUSTOM and scaled_blocks(ARCHITECTURES[arch], width) == blocks else (CUSTOM, 1.0)
