"""Start a network from weights that exist: one of our checkpoints, torchvision's, or a file of any known layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from vggdeploy.bundle.checkpoint import WEIGHTS_NAME, read_checkpoint
from vggdeploy.errors import CheckpointError, nearby, unknown_name
from vggdeploy.model.foreign.convert import Converted, convert
from vggdeploy.model.foreign.facts import (
    KEEP_FRESH,
    SOURCES,
    Difference,
    Facts,
    InitReport,
    KeepFresh,
    classifier_differences,
    facts_of,
    network_differences,
)
from vggdeploy.model.foreign.files import StateFile, read_state_file
from vggdeploy.model.foreign.head import ordered
from vggdeploy.model.foreign.layouts import Foreign, own_layout, recognise
from vggdeploy.model.foreign.published import Published, fetch, is_published, published
from vggdeploy.model.vgg import VGG
from vggdeploy.spec import ModelSpec, PreprocessSpec


@dataclass(frozen=True)
class _OpenSource:
    """A source, opened: its weights, and what it is known to be."""

    foreign: Foreign
    facts: Facts
    layout: str
    preprocess: PreprocessSpec | None = None


def load_initial_weights(
    source: str, model: VGG, *, allow_head_mismatch: bool = False, keep_fresh: KeepFresh = "nothing"
) -> InitReport:
    """Copy weights from elsewhere into ``model``, in place. Its device and memory format stay. All or nothing is copied.

    Args:
        source: a checkpoint directory; ``torchvision:NAME``; a ``.pth``, ``.pt`` or ``.safetensors``.
        model: a network with fresh weights, which stay where nothing is copied.
        allow_head_mismatch: leave the last layer fresh when the source has another number of classes, or none.
        keep_fresh: leave ``"head"`` (the last layer) or ``"classifier"`` (all linear layers) fresh whatever the source has.

    Returns:
        What was loaded, what stayed fresh and what the source holds beyond it. Print its ``lines()``.

    Raises:
        UsageError: an unknown name of weights.
        CheckpointError: the source is missing, damaged, holds more than data, or does not fit the model.
        DataError: torchvision's file cannot be downloaded.
    """
    if keep_fresh not in KEEP_FRESH:
        raise unknown_name("part to keep fresh", keep_fresh, KEEP_FRESH)
    spec = model.spec
    origin = _open(source, spec)
    _refuse(source, spec, network_differences(origin.facts, spec))
    last, everything = (spec.last,), (*spec.dense, spec.last)
    without: tuple[str, ...] = {"nothing": (), "head": last, "classifier": everything}[keep_fresh]
    if keep_fresh != "classifier":
        if not without and allow_head_mismatch and _other_head(origin.facts, spec):
            without = last
        _refuse(source, spec, classifier_differences(origin.facts, spec, head=not without))
    converted = convert(origin.foreign, spec, without=without)
    target = model.state_dict()
    with torch.no_grad():
        for key, tensor in converted.state.items():
            target[key].copy_(tensor)
    return report(source, origin.layout, origin.foreign.file, converted, origin.preprocess)


def report(
    source: str, layout: str, file: StateFile, found: Converted, preprocess: PreprocessSpec | None = None
) -> InitReport:
    """The record of what was converted."""
    weights = [tensor for key, tensor in found.state.items() if not key.endswith(".num_batches_tracked")]
    return InitReport(
        source=source,
        layout=layout,
        sha256=file.sha256,
        loaded=len(found.state),
        parameters=sum(tensor.numel() for tensor in weights),
        fresh=found.fresh,
        unused=(*found.unused, *file.unused),
        notes=found.notes,
        preprocess=preprocess,
    )


def locate(source: str, spec: ModelSpec) -> Published | Path:
    """What can be said about a source before any weight is read: that it exists, and names weights of this network.

    Raises:
        UsageError, CheckpointError: as `load_initial_weights`.
    """
    if is_published(source):
        wanted = published(source, arch=spec.arch)
        # Before half a gigabyte is fetched: torchvision has three channels and full width.
        _refuse(source, spec, network_differences(facts_of(wanted.spec), spec))
        return wanted
    path = Path(source)
    if not path.exists():
        raise CheckpointError(f"{source} does not exist", f"{nearby(source)}{SOURCES}")
    return path


def _open(source: str, spec: ModelSpec) -> _OpenSource:
    found = locate(source, spec)
    if isinstance(found, Published):
        foreign = recognise(fetch(found))
        return _OpenSource(foreign, foreign.facts, foreign.layout, found.preprocess(spec.image_size))
    if found.is_dir():
        checkpoint = read_checkpoint(found)
        foreign = own_layout(read_state_file(found / WEIGHTS_NAME), checkpoint.spec)
        return _OpenSource(foreign, facts_of(checkpoint.spec), "checkpoint", checkpoint.preprocess)
    foreign = ordered(recognise(read_state_file(found)))
    return _OpenSource(foreign, foreign.facts, foreign.layout)


def _other_head(found: Facts, spec: ModelSpec) -> bool:
    hidden = len(spec.hidden)
    return len(found.linears) == hidden or (len(found.linears) == hidden + 1 and found.linears[-1][1] != spec.classes)


def _refuse(source: str, spec: ModelSpec, differences: list[Difference]) -> None:
    if differences:
        causes = "; ".join(difference.cause for difference in differences)
        raise CheckpointError(f"{source} does not fit {spec.title}: {causes}", differences[0].hint)
