"""The training run: seeded SGD on uint8 batches, the best epoch kept, the test split looked at once."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import Tensor
from torch.nn import functional

from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME, Checkpoint
from vggdeploy.bundle.store import now
from vggdeploy.data.loaders import ImageSet, load_split
from vggdeploy.data.specs import SPLITS, get_dataset
from vggdeploy.errors import TrainingError
from vggdeploy.files import check_replaceable
from vggdeploy.model.deployable import Deployable
from vggdeploy.model.vgg import new_vgg
from vggdeploy.model.weights import save_checkpoint
from vggdeploy.optional import version
from vggdeploy.train.batches import batches_per_epoch, epoch_batches, epoch_seed
from vggdeploy.train.environment import check_writable, pick_device, repeatable, thread_count
from vggdeploy.train.evaluate import Score, evaluate
from vggdeploy.train.recipe import Recipe, learning_rate
from vggdeploy.train.record import EpochRecord, OnProgress, Progress, TrainingRecord, TrainingResult
from vggdeploy.types import Device, Precision


def train(
    recipe: Recipe,
    *,
    output: str | os.PathLike[str],
    overwrite: bool = False,
    data_dir: str | os.PathLike[str] | None = None,
    device: Device | None = None,
    threads: int | None = None,
    on_progress: OnProgress | None = None,
) -> TrainingResult:
    """Train a network and write its checkpoint, in one step, at the end.

    The weights kept are those of the epoch with the best validation accuracy (of equals, the latest).
    The same recipe gives bit-identical weights on one machine with one number of threads.

    Args:
        recipe: what to train, on what, and how.
        output: the checkpoint's directory.
        overwrite: replace a checkpoint that stands there.
        data_dir: see `vggdeploy.data.loaders.load_split`.
        device: default the first CUDA device, else the CPU.
        threads: CPU threads to compute with; default PyTorch's own choice. Set back when the run ends.
        on_progress: called after every step and every epoch.

    Raises:
        UsageError: ``output`` may not be replaced, or a number of threads below 1. Found before the work begins.
        DataError: the data set cannot be found, downloaded or read.
        IncompatibleError: the device is not here.
        TrainingError: the loss became infinite or not a number; nothing is written.
    """
    started = time.perf_counter()
    target = Path(output)
    check_replaceable(target, marker=CHECKPOINT_NAME, overwrite=overwrite)
    check_writable(target)
    where = pick_device(device)
    spec, preprocess, dataset = recipe.model_spec(), recipe.preprocess(), get_dataset(recipe.dataset)
    # The test split too is read now: a damaged file is to be found before the work, not after it.
    data, validation, test = (load_split(recipe.dataset, split, preprocess, data_dir=data_dir) for split in SPLITS)
    with thread_count(threads) as used, repeatable(where):
        model = new_vgg(spec, seed=recipe.seed).to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        network = Deployable(model, preprocess).to(where)
        run = _Run(recipe, network, data, validation, where, on_progress)
        run.all_epochs()
        score = evaluate(network, test, device=where)
    best = run.history[run.best_epoch - 1]
    record = TrainingRecord(
        recipe=recipe,
        history=tuple(run.history),
        best_epoch=run.best_epoch,
        loss=best.loss,
        train_accuracy=best.train_accuracy,
        validation_accuracy=best.validation_accuracy,
        test_loss=score.loss,
        test_accuracy=score.accuracy,
        samples={"train": len(data), "validation": len(validation), "test": len(test)},
        images_per_second=round(run.images / run.seconds, 1),
        seconds=round(time.perf_counter() - started, 2),
        device=str(where),
        threads=used,
        created=now(),
    )
    checkpoint = Checkpoint(
        spec=spec,
        preprocess=preprocess,
        labels=dataset.classes,
        dataset=dataset.name,
        training=msgspec.to_builtins(record),
        tools={name: version(name) or "" for name in ("vggdeploy", "torch")},
    )
    written = save_checkpoint(target, model, checkpoint, overwrite=overwrite)
    return TrainingResult(str(target), written, record)


@dataclass
class _Meter:
    """Running means over the images of an epoch, and the time they took."""

    started: float
    loss_sum: float = 0.0
    hits: int = 0
    images: int = 0
    stopped: float | None = None

    def add(self, loss: float, hits: int, images: int) -> None:
        self.loss_sum += loss * images
        self.hits += hits
        self.images += images

    @property
    def loss(self) -> float:
        return self.loss_sum / self.images

    @property
    def accuracy(self) -> float:
        return self.hits / self.images

    @property
    def seconds(self) -> float:
        return (self.stopped or time.perf_counter()) - self.started


class _Run:
    """The state of one run: what it has seen, and the best weights so far."""

    def __init__(
        self,
        recipe: Recipe,
        network: Deployable,
        data: ImageSet,
        validation: ImageSet,
        device: torch.device,
        on_progress: OnProgress | None,
    ) -> None:
        self.recipe = recipe
        self.network = network
        self.device = device
        self.images = 0
        self.seconds = 0.0
        self.history: list[EpochRecord] = []
        self.best_epoch = 0
        self._validation = validation
        self._on_progress = on_progress
        self._pixels = torch.from_numpy(data.images)
        self._labels = torch.from_numpy(data.labels)
        self._steps = recipe.epochs * batches_per_epoch(len(data), recipe.batch_size)
        self._optimizer = torch.optim.SGD(
            network.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True
        )

    def all_epochs(self) -> None:
        """Train every epoch, then put the best one's weights back into the network."""
        best, kept = 0.0, self.network.state_dict()
        for epoch in range(self.recipe.epochs):
            score = self._epoch(epoch)
            if score.accuracy >= best:  # of equals the latest: its learning rate was lower
                best, self.best_epoch = score.accuracy, epoch + 1
                kept = {key: tensor.clone() for key, tensor in self.network.state_dict().items()}
        self.network.load_state_dict(kept)

    def _epoch(self, epoch: int) -> Score:
        recipe = self.recipe
        torch.manual_seed(epoch_seed(recipe.seed, epoch))
        self.network.train()
        batches = epoch_batches(len(self._labels), recipe.batch_size, seed=recipe.seed, epoch=epoch)
        first = epoch * len(batches)
        meter = _Meter(time.perf_counter())
        for step, positions in enumerate(batches, first):
            meter.add(*self._step(torch.from_numpy(positions), step), len(positions))
            self._report(meter, epoch, step)
        meter.stopped = time.perf_counter()
        self.images += meter.images
        self.seconds += meter.seconds
        score = evaluate(self.network, self._validation, device=self.device)
        self._finite(score.loss, "validation loss", first + len(batches) - 1)
        self.history.append(
            EpochRecord(
                epoch=epoch + 1,
                loss=meter.loss,
                train_accuracy=meter.accuracy,
                validation_loss=score.loss,
                validation_accuracy=score.accuracy,
                seconds=round(meter.seconds, 3),
            )
        )
        self._report(meter, epoch, first + len(batches) - 1, score.accuracy)
        return score

    def _step(self, positions: Tensor, step: int) -> tuple[float, int]:
        """One step of SGD; returns the batch's mean loss and how many images it had right."""
        recipe = self.recipe
        images, labels = self._pixels[positions].to(self.device), self._labels[positions].to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.precision == Precision.BF16):
            logits = self.network(images)[0]
        loss = functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        self._finite(loss.item(), "loss", step)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step, self._steps)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        with torch.no_grad():  # reported without smoothing: then it compares with the validation loss
            return functional.cross_entropy(logits, labels).item(), int((logits.argmax(dim=1) == labels).sum())

    def _finite(self, value: float, what: str, step: int) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"the {what} became {value} at step {step + 1} of {self._steps}",
                f"train with a lower learning rate: --lr {self.recipe.lr / 10:g}",
            )

    def _report(self, meter: _Meter, epoch: int, step: int, validation: float | None = None) -> None:
        if self._on_progress is None:
            return
        self._on_progress(
            Progress(
                epoch=epoch + 1,
                epochs=self.recipe.epochs,
                step=step + 1,
                steps=self._steps,
                loss=meter.loss,
                accuracy=meter.accuracy,
                images_per_second=meter.images / meter.seconds,
                validation=validation,
            )
        )
