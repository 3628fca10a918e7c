"""Steps that change a checkpoint's structure: checkpoint in, checkpoint out, with what it cost.

Each is a plain function of its numbers: the same numbers and seed give the same checkpoint on one machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

import torch

from vggdeploy.errors import UsageError, unknown_name
from vggdeploy.model.layers import Layer
from vggdeploy.model.vgg import VGG
from vggdeploy.optimize.fine_tune import ChangedNetwork, restructure
from vggdeploy.optimize.held_out import DECIDES, HeldOut
from vggdeploy.optimize.steps.activations import PATCH_IMAGES, measure_answers, product_layers, recalibrate
from vggdeploy.optimize.steps.low_rank import choose_ranks, factorise, full_rank, saving_ranks
from vggdeploy.optimize.steps.sparse import pruned_to_2_4
from vggdeploy.optimize.steps.widths import FLOOR, Widths, allocate, check_share, widths_of
from vggdeploy.optimize.tuning import TuningJob
from vggdeploy.records import StepRecord
from vggdeploy.system.optional import require

SCORED = 1024  # training images that channels are scored on
SENSED = 1000  # validation images that sensitivity is measured on
ANSWERED = 2048  # training images that the answers of fc6 and fc7 are measured on, at least


def prune_checkpoint(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    keep: float | Mapping[str, float] = 0.5,
    *,
    floor: float = FLOOR,
    job: TuningJob | None = None,
) -> StepRecord:
    """Cut channels out of a network, fine-tune what is left, and write it as a checkpoint.

    Args:
        keep: the share of the multiply-accumulates that stays, of the whole network; or layer → the share of its
            channels that stays, for those that are named (see `vggdeploy.optimize.steps.widths.widths_of`).
        floor: the share of its channels that every layer keeps, where ``keep`` is one number.

    Raises:
        UsageError: a share that is none, an unknown layer, or ``output`` may not be replaced.
        DataError: no data set is known, or its classes are not the model's.
        TargetError: the floor does not allow it, or the accuracy fell by more than ``job.max_drop``. Nothing is written.
        CheckpointError: no checkpoint, or a damaged one.
        MissingDependencyError: Torch-Pruning is not installed.
    """
    job = job or TuningJob()
    require("torch_pruning", to="prune channels", extra="optimize")
    for name, share in keep.items() if isinstance(keep, Mapping) else (("", keep),):
        check_share(share, f"of {name} to keep" if name else "to keep")
    check_share(floor, "for the floor")

    def change(model: VGG, data: HeldOut) -> ChangedNetwork:
        from vggdeploy.optimize.steps.prune import measure_sensitivity, prune, taylor_scores  # late: Torch-Pruning

        own = widths_of(model.spec)
        sensitivity: dict[str, dict[int, float]] = {}
        widths = _named_widths(own, keep) if isinstance(keep, Mapping) else own
        job.on_progress(None, "scoring channels")
        scores = taylor_scores(model, data.batches("train", SCORED))
        if not isinstance(keep, Mapping):
            job.on_progress(None, "measuring how sensitive each layer is")
            sensitivity = measure_sensitivity(model, scores, data.batches(DECIDES, SENSED))
            widths = allocate(model.spec, sensitivity, keep, floor=floor)
        changed = {name: width for name, width in widths.items() if width != own[name]}
        cut = prune(model, changed, scores)
        recalibrate(cut, data.batches("train", SCORED))
        return ChangedNetwork(cut, widths=changed, sensitivity=sensitivity)

    return restructure("prune", source, output, change, job)


def low_rank_checkpoint(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    ranks: int | Mapping[str, int] | None = None,
    *,
    keep: float | None = None,
    job: TuningJob | None = None,
) -> StepRecord:
    """Make layers products of low rank, fine-tune the network, and write it as a checkpoint.

    Args:
        ranks: one for fc6 and fc7, of which those get it that it makes smaller; or by name, ``{"fc6": 256, "conv3_1": 90}``.
        keep: instead, the share of the multiply-accumulates that stays; the ranks of all layers, convolutions too, are
            chosen (see `vggdeploy.optimize.steps.low_rank.choose_ranks`).

    Raises:
        UsageError: neither or both; a rank that a layer does not have, or that would not make it smaller; a share that is
            none; ``output`` may not be replaced.
        DataError, TargetError, CheckpointError: as `prune_checkpoint`.
    """
    job = job or TuningJob()
    if (ranks is None) == (keep is None):
        raise UsageError("low-rank takes ranks, or how much stays", "give one of both: --rank 64, or --rank-keep 0.5")
    if keep is not None:
        check_share(keep, "to keep")

    def change(model: VGG, data: HeldOut) -> ChangedNetwork:
        layers = product_layers(model)
        chosen = {} if ranks is None else _ranks(layers, ranks)
        job.on_progress(None, "measuring what the layers answer")
        count = max(ANSWERED, 2 * max(chosen.values(), default=0))
        patches = PATCH_IMAGES if keep is not None or any(layers[name].kind == "conv" for name in chosen) else 0
        answers = measure_answers(model, (images for images, _ in data.batches("train", count)), patches=patches)
        job.on_progress(None, "factorising")
        if keep is not None:
            spectra = {name: torch.linalg.eigvalsh(found.spread).numpy() for name, found in answers.items()}
            chosen = choose_ranks(model.spec, spectra, keep)
        small = factorise(model, chosen, answers)
        if patches:
            recalibrate(small, data.batches("train", SCORED))
        return ChangedNetwork(small, ranks=chosen)

    return restructure("low-rank", source, output, change, job)


def quantisation_aware_checkpoint(
    source: str | os.PathLike[str], output: str | os.PathLike[str], *, job: TuningJob | None = None
) -> StepRecord:
    """Fine-tune a network with the rounding of INT8, and write it as a checkpoint of the same structure.

    For where INT8 after training misses its limit: the weights come to rest where rounding costs less.

    Raises:
        UsageError: no epoch to train for, or ``output`` may not be replaced.
        DataError, TargetError, CheckpointError: as `prune_checkpoint`.
    """
    job = job or TuningJob()
    if not job.tuning.epochs:
        raise UsageError("qat needs at least one epoch of training", "give it some: --epochs 3")
    # The zeros too: what was pruned to 2:4 before stays so.
    aware = replace(job, tuning=replace(job.tuning, quantisation_aware=True, keep_zeros=True))
    return restructure("qat", source, output, lambda model, data: ChangedNetwork(model), aware)


def sparse_checkpoint(
    source: str | os.PathLike[str], output: str | os.PathLike[str], *, job: TuningJob | None = None
) -> StepRecord:
    """Prune a network to 2:4, fine-tune it with those zeros held, and write it as a checkpoint of the same structure.

    TensorRT's sparse kernels (``vggdeploy build --sparse``) skip the zeros; nothing else is faster for them.

    Raises:
        UsageError: no layer has inputs in fours, or ``output`` may not be replaced.
        DataError, TargetError, CheckpointError: as `prune_checkpoint`.
    """
    job = job or TuningJob()
    held = replace(job, tuning=replace(job.tuning, keep_zeros=True))

    def change(model: VGG, data: HeldOut) -> ChangedNetwork:
        pruned, names = pruned_to_2_4(model)
        if not names:
            raise UsageError("no layer of this network has a multiple of four inputs", "take a wider network")
        recalibrate(pruned, data.batches("train", SCORED))
        return ChangedNetwork(pruned, sparse=names)

    return restructure("sparse", source, output, change, held)


def _named_widths(own: Widths, keep: Mapping[str, float]) -> Widths:
    for name in keep:
        if name not in own:
            raise unknown_name("layer", name, own)
    return {name: max(1, round(keep.get(name, 1.0) * width)) for name, width in own.items()}


def _ranks(layers: Mapping[str, Layer], ranks: int | Mapping[str, int]) -> dict[str, int]:
    """Layer → rank, of the layers that become smaller."""
    chosen = {}
    dense = [name for name, layer in layers.items() if layer.kind == "linear"]
    for name, rank in (dict.fromkeys(dense, ranks) if isinstance(ranks, int) else ranks).items():
        if name not in layers:
            raise unknown_name("layer with a rank", name, layers)
        layer = layers[name]
        full = full_rank(layer)
        if rank < 1 or (rank > full and not isinstance(ranks, int)):
            raise UsageError(f"{name} cannot have rank {rank}", f"its full rank is {full}: {_pays(layer)}")
        if rank <= saving_ranks(layer):
            chosen[name] = rank
        elif not isinstance(ranks, int):
            raise UsageError(f"rank {rank} would not make {name} smaller", _pays(layer))
    if not chosen:
        hint = "; ".join(f"{name}: {_pays(layers[name])}" for name in dense) or "name convolutions: --rank conv3_1=60"
        raise UsageError(f"rank {ranks} makes no hidden linear layer smaller", hint)
    return chosen


def _pays(layer: Layer) -> str:
    most = saving_ranks(layer)
    return f"give 1 to {most}" if most else "it cannot become smaller"
