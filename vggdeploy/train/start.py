"""What a run starts from: fresh weights, or those of another network."""

from __future__ import annotations

from pathlib import Path

import msgspec

from vggdeploy.bundle.checkpoint import read_checkpoint
from vggdeploy.data.specs import DatasetSpec
from vggdeploy.model.foreign.initial import load_initial_weights
from vggdeploy.model.foreign.report import InitReport, KeepFresh
from vggdeploy.model.vgg import VGG
from vggdeploy.spec import PreprocessSpec
from vggdeploy.train.recipe import Recipe


def start_from(recipe: Recipe, model: VGG, dataset: DatasetSpec) -> InitReport | None:
    """Load the recipe's initial weights into ``model``; None where it starts from nothing.

    With ``fresh = "auto"`` the last layer stays fresh when it names other classes, or another number of them.

    Raises:
        UsageError, CheckpointError, DataError: see `vggdeploy.model.foreign.initial.load_initial_weights`.
    """
    if not recipe.init:
        return None
    if recipe.fresh != "auto":
        return load_initial_weights(recipe.init, model, keep_fresh=recipe.fresh)
    keep: KeepFresh = "head" if _other_classes(Path(recipe.init), dataset) else "nothing"
    return load_initial_weights(recipe.init, model, allow_head_mismatch=True, keep_fresh=keep)


def _other_classes(source: Path, dataset: DatasetSpec) -> bool:
    """Whether the source is a checkpoint of other classes. A last layer for other things is no start, if it fits too."""
    return source.is_dir() and read_checkpoint(source, check_weights=False).labels != dataset.classes


def preprocess_like(mine: PreprocessSpec, init: InitReport | None) -> PreprocessSpec:
    """``mine`` with the mean and std that the initial weights were trained with, where they are known and fit."""
    known = init.preprocess if init else None
    if known is None or known.channels != mine.channels:
        return mine
    return msgspec.structs.replace(mine, mean=known.mean, std=known.std)
