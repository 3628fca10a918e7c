"""What every change of structure has around it: fine-tuning, the proof against the original, and the new checkpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME, WEIGHTS_NAME, Checkpoint, read_checkpoint
from vggdeploy.data.sources import get_dataset
from vggdeploy.errors import TargetError, TrainingError, counted
from vggdeploy.model.formats.sparsity import sparse_weights
from vggdeploy.model.vgg import VGG
from vggdeploy.model.weights import load_model, save_checkpoint
from vggdeploy.optimize.held_out import DECIDES, HeldOut, images_to_show, origin_of, size_of
from vggdeploy.optimize.tuning import Hits, Tuning, TuningJob
from vggdeploy.records import AccuracyDrop, SparsityRecord, StepRecord, to_json
from vggdeploy.system.files import (
    atomic_directory,
    atomic_write,
    check_replaceable,
    check_writable,
    link_tree,
    scratch_directory,
)
from vggdeploy.train.distill import check_teacher
from vggdeploy.train.environment import thread_count
from vggdeploy.train.loop import TrainOptions, train
from vggdeploy.train.recipe import LIKE_INIT, Recipe
from vggdeploy.verify.prove import tool_versions

# Taken over from the recipe that the network was trained with, where that is known.
_KEPT = ("augment", "batch_size", "label_smoothing", "weight_decay", "per_class")


@dataclass(frozen=True)
class ChangedNetwork:
    """What a step made of a model, before any fine-tuning; the rest as `StepRecord` has it."""

    model: VGG
    widths: dict[str, int] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    sensitivity: dict[str, dict[int, float]] = field(default_factory=dict)
    sparse: tuple[str, ...] = ()


def restructure(
    name: str,
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    change: Callable[[VGG, HeldOut], ChangedNetwork],
    job: TuningJob,
) -> StepRecord:
    """Change a checkpoint's network, fine-tune it, compare it with the original, and write it, in one step.

    Raises:
        TargetError: the accuracy fell by more than ``job.max_drop``. Nothing is written.
        VggdeployError: as the steps of `vggdeploy.optimize.steps.structure` say.
    """
    started = time.perf_counter()
    root, target = Path(source), Path(output)
    check_replaceable(target, marker=CHECKPOINT_NAME, overwrite=job.overwrite)
    check_writable(target)
    before = read_checkpoint(root)
    data = HeldOut.of(before, dataset=job.dataset, data_dir=job.data_dir)
    if job.tuning.epochs and job.tuning.distill:  # before the work
        check_teacher(job.tuning.distill, get_dataset(data.name).classes, before.preprocess)
    with thread_count(job.threads), scratch_directory(target) as scratch:
        model = load_model(root)
        job.on_progress(None, "measuring the accuracy of the original")
        origin = origin_of(before, root, data, model)
        changed = change(model, data)
        untuned = data.hits(changed.model)
        begun = Checkpoint(
            spec=changed.model.spec,
            preprocess=before.preprocess,
            labels=before.labels,
            dataset=data.name,
            training={"recipe": before.training["recipe"]} if "recipe" in before.training else {},
            origin=origin,
            steps=before.steps,
            tools=tool_versions(),
        )
        made = scratch / "changed"
        save_checkpoint(made, changed.model, begun)
        teacher = ""
        hits = untuned
        if job.tuning.epochs:
            recipe = tuning_recipe(begun, made, str(root), job.tuning)
            made, teacher = _tune(recipe, scratch / "tuned", job)
            hits = data.hits(load_model(made))
        drops = data.drops(origin, hits)
        step = StepRecord(
            step=name,
            source=before.weights_sha256,
            before=size_of(before.spec, root),
            after=size_of(changed.model.spec, made),
            untuned=_mean(untuned)[DECIDES],
            accuracy=_mean(hits),
            drop=drops,
            widths=changed.widths,
            ranks=changed.ranks,
            sparsity=_sparsity(made, changed.sparse),
            sensitivity={name: tuple(rises.items()) for name, rises in changed.sensitivity.items()},
            epochs=job.tuning.epochs,
            teacher=teacher,
            seconds=round(time.perf_counter() - started, 2),
        )
        _judge(step, drops[DECIDES], job.max_drop)
        _write(made, target, step, source=root, overwrite=job.overwrite)
    return step


def _sparsity(made: Path, wanted: tuple[str, ...]) -> SparsityRecord | None:
    """What is 2:4 in the weights that were written; None where that was no aim.

    Raises:
        TargetError: a layer of ``wanted`` is not.
    """
    if not wanted:
        return None
    checkpoint = read_checkpoint(made)
    found = sparse_weights(made / WEIGHTS_NAME, checkpoint.spec)
    if lost := [name for name in wanted if name not in found]:
        raise TargetError(f"{lost[0]} is not 2:4 sparse after its fine-tuning", "run with --debug and report it")
    return SparsityRecord(sha256=checkpoint.weights_sha256, layers=found)


def tuning_recipe(begun: Checkpoint, path: Path, source: str, tuning: Tuning) -> Recipe:
    """The recipe of the fine-tuning of the checkpoint at ``path``, which was made from ``source``."""
    known = begun.training.get("recipe", {})
    kept = {name: known[name] for name in _KEPT if name in known}
    teacher = source if tuning.distill is None else tuning.distill
    values: dict[str, Any] = {
        **kept,
        "dataset": begun.dataset,
        "arch": LIKE_INIT,
        "init": str(path),
        "fresh": "nothing",
        "epochs": tuning.epochs,
        "lr": tuning.lr,
        "warmup": 0.1,
        "keep": "last",
        "quantisation_aware": tuning.quantisation_aware,
        "keep_zeros": tuning.keep_zeros,
        "seed": tuning.seed,
    }
    if teacher:
        values |= {
            "distill": teacher, "temperature": tuning.temperature, "distill_weight": tuning.distill_weight,
        }  # fmt: skip
    return msgspec.convert(values, Recipe)


def _tune(recipe: Recipe, output: Path, job: TuningJob) -> tuple[Path, str]:
    """The fine-tuned checkpoint, and the SHA-256 of the teacher's weights."""
    job.on_progress(None, "fine-tuning")
    try:
        done = train(
            recipe,
            output=output,
            options=TrainOptions(data_dir=job.data_dir, device=job.device, threads=job.threads),
            teacher=job.teacher,
            on_step=job.on_step,
        )
    except TrainingError as error:  # its state is in the scratch directory, which goes with the step
        raise TrainingError(error.cause, f"fine-tune with a lower learning rate: --lr {recipe.lr / 10:g}") from error
    return output, done.training.teacher.sha256 if done.training.teacher else ""


def _judge(step: StepRecord, drop: AccuracyDrop, limit: float | None) -> None:
    if limit is None or drop.upper <= limit:
        return
    fell = f"{100 * drop.drop:.2f} points (up to {100 * drop.upper:.2f} at one-sided 95%, {counted(drop.samples, 'image')})"
    needed = images_to_show(limit, drop.samples)
    few = (
        f"; {needed:,} validation images or more can show so small a drop, whatever the network"
        if needed and needed < 10**9
        else ""
    )
    raise TargetError(
        f"accuracy fell by {fell}, the limit is {100 * limit:g}; the network had {step.after.macs / step.before.macs:.0%} "
        f"of the multiply-accumulates and {step.after.parameters / step.before.parameters:.0%} of the parameters",
        f"keep more, fine-tune for more epochs, or allow a larger drop{few}; nothing was written",
    )


def _write(made: Path, target: Path, step: StepRecord, *, source: Path, overwrite: bool) -> None:
    """Put the checkpoint at its place, with the step in its record and no path of the scratch directory."""
    checkpoint = read_checkpoint(made, check_weights=False)
    training = dict(checkpoint.training)
    if isinstance(training.get("init"), dict):
        training["init"] = {**training["init"], "source": str(source)}
    if isinstance(training.get("recipe"), dict):
        training["recipe"] = {**training["recipe"], "init": str(source) if "init" in training else ""}
    written = msgspec.structs.replace(checkpoint, training=training, steps=(*checkpoint.steps, step))
    with atomic_directory(target, marker=CHECKPOINT_NAME, overwrite=overwrite) as draft:
        link_tree(made, draft)
        atomic_write(draft / CHECKPOINT_NAME, to_json(written))


def _mean(hits: dict[str, Hits]) -> dict[str, float]:
    return {split: float(right.mean()) for split, right in hits.items()}
