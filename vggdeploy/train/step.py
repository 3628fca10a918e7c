"""One step of training: forward and backward in the run's precision, gradients of all processes, optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

from vggdeploy.data.loaders import Images
from vggdeploy.errors import TrainingError
from vggdeploy.model.deployable import Deployable
from vggdeploy.train.distill import Teacher, soft_losses
from vggdeploy.train.environment import ALONE, Processes, autocast
from vggdeploy.train.feed import DROPOUT, Batch, ahead, load, step_seed
from vggdeploy.train.optimizer import new_optimizer, rate_factor, set_rate
from vggdeploy.train.recipe import Recipe
from vggdeploy.types import Precision


class Stepper:
    """The network with its optimiser. ``network`` takes ``uint8 [N, H, W, C]``, its model is FP32 and channels-last.

    Args:
        steps: of the whole run; the schedule ends with them.
        precision: of the forward and backward pass, as `vggdeploy.train.environment.pick_precision` gives it.
        teacher: whose answers count beside the labels, on the same images.
    """

    def __init__(
        self,
        recipe: Recipe,
        network: Deployable,
        model: Any,
        *,
        steps: int,
        precision: Precision,
        device: torch.device,
        processes: Processes = ALONE,
        teacher: Teacher | None = None,
    ) -> None:
        self.recipe = recipe
        self.steps = steps
        self.optimizer = new_optimizer(recipe, model)
        # FP16's range is narrow: losses are scaled up so that small gradients survive. (A no-op where it is disabled.)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == Precision.FP16)
        self._network: nn.Module = torch.compile(network) if recipe.compile else network  # type: ignore[assignment]
        self._parameters = list(model.parameters())
        self._precision = precision
        self._device = device
        self._processes = processes
        self._teacher = teacher

    def __call__(self, batch: Batch) -> tuple[float, float]:
        """Make the step; returns the sum of the losses of the whole batch, and how many images it had right.

        Raises:
            TrainingError: the loss is no finite number. The weights are as they were before the step.
        """
        recipe, optimizer = self.recipe, self.optimizer
        # Dropout's numbers: seeded for each step, so that no random state has to be kept for a run that resumes.
        torch.manual_seed(step_seed(recipe.seed, batch.step, stream=DROPOUT, rank=self._processes.rank))
        with autocast(self._device, self._precision):
            logits = self._network(batch.images)[0]
        answers = self._teacher(batch.images, batch.positions) if self._teacher else None
        losses = _losses(logits, batch.labels, smoothing=recipe.label_smoothing)
        if answers is not None:
            share = recipe.distill_weight
            losses = (1 - share) * losses + share * soft_losses(logits, answers, recipe.temperature)
        # Divided by the whole batch, not by this process's share of it: gradients are added up, not averaged.
        loss = losses.sum() / batch.size
        with torch.no_grad():  # reported without smoothing and teacher: then it compares with the validation loss
            same = not recipe.label_smoothing and answers is None
            plain = loss.detach() * batch.size if same else _losses(logits, batch.labels).sum()
            right = (logits.argmax(dim=1) == batch.labels).sum()
        smoothed, total, hits = self._processes.total(*torch.stack([loss.detach(), plain, right.to(plain)]).tolist())
        self.check(smoothed, "loss", batch.step)
        set_rate(optimizer, rate_factor(recipe, batch.step, self.steps))
        optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self._processes.add_up_gradients(self._parameters)
        if recipe.clip:
            self.scaler.unscale_(optimizer)
            clip_grad_norm_(self._parameters, recipe.clip)
        self.scaler.step(optimizer)
        self.scaler.update()
        return total, hits

    def check(self, value: float, what: str, step: int) -> None:
        """Stop the run at a loss that is no finite number."""
        if not math.isfinite(value):
            raise TrainingError(
                f"the {what} became {value} at step {step + 1} of {self.steps}",
                f"train with a lower learning rate: --lr {min(self.recipe.lr / 10, 0.1):g}",
            )


def _losses(logits: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
    return functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")


EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy, and the share of images whose largest logit is the label's."""

    loss: float
    accuracy: float


def evaluate(
    network: nn.Module,
    data: Images,
    *,
    device: torch.device,
    batch_size: int = EVALUATION_BATCH,
    processes: Processes = ALONE,
    on_batch: Callable[[], None] = lambda: None,
) -> Score:
    """Score ``network`` (``uint8 [N, H, W, C]`` → a tuple whose first output is the logits) on every image of ``data``.

    Several processes share the work; each gets the whole score. The network comes back in the mode it was in, also where
    ``on_batch``, called after each batch, raises.
    """
    modes = [(module, module.training) for module in network.modules()]  # frozen parts have a mode of their own
    network.eval()
    places = np.arange(processes.rank, len(data), processes.count)
    cuts = [places[at : at + batch_size] for at in range(0, len(places), batch_size)]
    loss, hits = 0.0, 0.0
    try:
        with torch.inference_mode(), closing(ahead(load(data, cut, device) for cut in cuts)) as batches:  # type: ignore[type-var]
            for images, labels in batches:
                logits = network(images)[0]
                loss += functional.cross_entropy(logits, labels, reduction="sum").item()
                hits += int((logits.argmax(dim=1) == labels).sum())
                on_batch()
    finally:
        for module, training in modes:
            module.training = training
    loss, hits = processes.total(loss, hits)
    return Score(loss / len(data), hits / len(data))
