"""Steps that change a checkpoint's structure: checkpoint in, checkpoint out, with what it cost.

Each is a plain function of its numbers: the same numbers and seed give the same checkpoint on one machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from vggdeploy.errors import UsageError, unknown_name
from vggdeploy.model.layers import Layer
from vggdeploy.model.vgg import VGG
from vggdeploy.optimize.channels import FLOOR, Widths, allocate, check_share, widths_of
from vggdeploy.optimize.low_rank import factorise, linear_layers, measure_answers
from vggdeploy.optional import require
from vggdeploy.pipeline.held_out import DECIDES, HeldOut
from vggdeploy.pipeline.restructure import Changed, restructure
from vggdeploy.pipeline.tuning import Job
from vggdeploy.records import StepRecord

SCORED = 1024  # training images that channels are scored on
SENSED = 1000  # validation images that sensitivity is measured on
ANSWERED = 2048  # training images that the answers of fc6 and fc7 are measured on, at least


def prune_checkpoint(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    keep: float | Mapping[str, float] = 0.5,
    *,
    floor: float = FLOOR,
    job: Job | None = None,
) -> StepRecord:
    """Cut channels out of a network, fine-tune what is left, and write it as a checkpoint.

    Args:
        keep: the share of the multiply-accumulates that stays, of the whole network; or layer → the share of its
            channels that stays, for those that are named (see `vggdeploy.optimize.channels.widths_of`).
        floor: the share of its channels that every layer keeps, where ``keep`` is one number.

    Raises:
        UsageError: a share that is none, an unknown layer, or ``output`` may not be replaced.
        DataError: no data set is known, or its classes are not the model's.
        TargetError: the floor does not allow it, or the accuracy fell by more than ``job.max_drop``. Nothing is written.
        CheckpointError: no checkpoint, or a damaged one.
        MissingDependencyError: Torch-Pruning is not installed.
    """
    job = job or Job()
    require("torch_pruning", to="prune channels", extra="optimize")
    for name, share in keep.items() if isinstance(keep, Mapping) else (("", keep),):
        check_share(share, f"of {name} to keep" if name else "to keep")
    check_share(floor, "as the floor")

    def change(model: VGG, data: HeldOut) -> Changed:
        from vggdeploy.optimize.prune import (  # late: Torch-Pruning
            measure_sensitivity,
            prune,
            recalibrate,
            taylor_scores,
        )

        own = widths_of(model.spec)
        sensitivity: dict[str, dict[int, float]] = {}
        widths = _named_widths(own, keep) if isinstance(keep, Mapping) else own
        job.on_stage("scoring channels")
        scores = taylor_scores(model, data.batches("train", SCORED))
        if not isinstance(keep, Mapping):
            job.on_stage("measuring how sensitive each layer is")
            sensitivity = measure_sensitivity(model, scores, data.batches(DECIDES, SENSED))
            widths = allocate(model.spec, sensitivity, keep, floor=floor)
        changed = {name: width for name, width in widths.items() if width != own[name]}
        cut = prune(model, changed, scores)
        recalibrate(cut, data.batches("train", SCORED))
        return Changed(cut, widths=changed, sensitivity=sensitivity)

    return restructure("prune", source, output, change, job)


def low_rank_checkpoint(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    ranks: int | Mapping[str, int],
    *,
    job: Job | None = None,
) -> StepRecord:
    """Factorise fc6 and fc7, fine-tune the network, and write it as a checkpoint.

    Args:
        ranks: one for both layers, of which those get it that it makes smaller; or by name, ``{"fc6": 256}``.

    Raises:
        UsageError: a rank that a layer does not have, or that would not make it smaller; ``output`` may not be replaced.
        DataError, TargetError, CheckpointError: as `prune_checkpoint`.
    """
    job = job or Job()

    def change(model: VGG, data: HeldOut) -> Changed:
        chosen = _ranks(linear_layers(model), ranks)
        job.on_stage("measuring what fc6 and fc7 answer")
        count = max(ANSWERED, 2 * max(chosen.values()))
        answers = measure_answers(model, (images for images, _ in data.batches("train", count)))
        job.on_stage("factorising")
        changed = factorise(model, (chosen.get("fc6", 0), chosen.get("fc7", 0)), answers)
        return Changed(changed, ranks=chosen)

    return restructure("low-rank", source, output, change, job)


def _named_widths(own: Widths, keep: Mapping[str, float]) -> Widths:
    for name in keep:
        if name not in own:
            raise unknown_name("layer", name, own)
    return {name: max(1, round(keep.get(name, 1.0) * width)) for name, width in own.items()}


def _ranks(layers: Mapping[str, Layer], ranks: int | Mapping[str, int]) -> dict[str, int]:
    """Layer → rank, of the layers that become smaller."""
    found = {}
    for name, rank in (dict.fromkeys(layers, ranks) if isinstance(ranks, int) else ranks).items():
        if name not in layers:
            raise unknown_name("layer with a rank", name, layers)
        layer = layers[name]
        if rank < 1 or (rank > _full(layer) and not isinstance(ranks, int)):
            raise UsageError(f"rank {rank} of {name}", f"its full rank is {_full(layer)}: {_pays(layer)}")
        if rank * (layer.inputs + layer.outputs) < layer.macs:
            found[name] = rank
        elif not isinstance(ranks, int):
            raise UsageError(f"rank {rank} would not make {name} smaller", _pays(layer))
    if not found:
        hint = "; ".join(f"{name}: {_pays(layer)}" for name, layer in layers.items())
        raise UsageError(f"rank {ranks} makes neither fc6 nor fc7 smaller", hint)
    return found


def _full(layer: Layer) -> int:
    return min(layer.inputs, layer.outputs)


def _pays(layer: Layer) -> str:
    most = (layer.macs - 1) // (layer.inputs + layer.outputs)
    return f"give 1 to {most}" if most else "it cannot become smaller"
