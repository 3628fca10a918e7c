"""Learning from a teacher: the answers of another network, softened, beside the labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vggdeploy.bundle.checkpoint import Checkpoint, read_checkpoint
from vggdeploy.data.loaders import Images
from vggdeploy.errors import CheckpointError
from vggdeploy.model.deployable import Deployable
from vggdeploy.model.weights import load_model
from vggdeploy.spec import PreprocessSpec
from vggdeploy.train.environment import autocast, pick_precision
from vggdeploy.train.recipe import Recipe, TrainingPrecision
from vggdeploy.train.record import TeacherRecord

# What happens to an image before the network: two networks that differ in it see different images. Mean and std do not
# count: each network brings its own.
_PIXELS = ("mode", "resize", "crop", "interpolation")

_KNOWN_BYTES = 256 * 2**20
_BATCH = 128


def check_teacher(path: str, labels: tuple[str, ...], preprocess: PreprocessSpec) -> Checkpoint:
    """The record of a checkpoint that can teach a network with these classes, which sees such images.

    Raises:
        CheckpointError: it cannot; or it is no checkpoint, or a damaged one.
    """
    checkpoint = read_checkpoint(Path(path))
    found = checkpoint.labels
    if checkpoint.spec.classes != len(labels):
        raise CheckpointError(
            f"the teacher {path} has {checkpoint.spec.classes} classes, this run {len(labels)}", _SAME_DATA
        )
    odd = next((i for i, (a, b) in enumerate(zip(found, labels, strict=False)) if a != b), None)
    if odd is not None:
        raise CheckpointError(
            f"class {odd} of the teacher {path} is '{found[odd]}', of this run '{labels[odd]}'", _SAME_DATA
        )
    for field in _PIXELS:
        theirs, ours = getattr(checkpoint.preprocess, field), getattr(preprocess, field)
        if theirs != ours:
            raise CheckpointError(
                f"the teacher {path} sees other images: its {field} is {theirs}, this run's {ours}",
                "learn from a checkpoint with the same preprocessing: --arch init takes that of --init",
            )
    return checkpoint


class Teacher:
    """A checkpoint's network in evaluation mode, without gradients: ``uint8 [N, H, W, C]`` → logits ``[N, classes]``.

    Args:
        precision: as a recipe has it. What ``auto`` means is the teacher's own, whatever its student computes in: so its
            answers are the same for all students.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or one of other classes or other preprocessing.
    """

    def __init__(
        self,
        path: str,
        *,
        labels: tuple[str, ...],
        preprocess: PreprocessSpec,
        device: torch.device,
        precision: TrainingPrecision = "auto",
    ) -> None:
        checkpoint = check_teacher(path, labels, preprocess)
        self.record = TeacherRecord(source=path, sha256=checkpoint.weights_sha256)
        model = load_model(path).requires_grad_(False)
        network = Deployable(model, checkpoint.preprocess)
        self._network = network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

        self._device = device
        self._precision = pick_precision(Recipe(precision=precision), checkpoint.spec, device)
        self._known: Tensor | None = None
        self._known_for = ""

    def __call__(self, images: Tensor, positions: NDArray[np.int64] | None = None) -> Tensor:
        """``positions``: where the images lie in the split that `remember` has seen, if it has seen one."""
        if self._known is not None and positions is not None:
            return self._known[torch.from_numpy(positions).to(self._device)]
        with torch.no_grad(), autocast(self._device, self._precision):
            logits: Tensor = self._network(images)[0]
        return logits

    def remember(self, images: Images, *, digest: str) -> None:
        """Answer a whole split once, where the same images come in every epoch and the answers fit into memory.

        Batches are the same whenever it is done, so a run that resumes learns from the same answers, to the bit.

        Args:
            digest: names the images; what is known already is not asked again.
        """
        if self._known_for == digest:
            return
        self.forget()
        if 4 * len(images) * len(images.classes) > _KNOWN_BYTES:
            return
        parts = (np.arange(at, min(at + _BATCH, len(images))) for at in range(0, len(images), _BATCH))
        answers = [self(torch.from_numpy(images.batch(part)).to(self._device)).float() for part in parts]
        self._known, self._known_for = torch.cat(answers), digest

    def forget(self) -> None:
        """The images to come are not those of a split: each of them is a new question."""
        self._known, self._known_for = None, ""


_SAME_DATA = "learn from a checkpoint that was trained on the same classes"


def soft_losses(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)) of each image, in nats: ``[N, classes]`` twice → ``[N]``.

    Hinton, Vinyals & Dean 2015, section 2. Gradients of softened classes shrink as 1/T², so T² keeps the balance with
    the labels' loss when T changes. The divergence is their cross-entropy less the teacher's entropy, which no weight
    of the student moves: so a perfect student has a loss of 0.
    """
    theirs = functional.log_softmax(teacher / temperature, dim=1)
    ours = functional.log_softmax(student / temperature, dim=1)
    divergence = functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1)
    return temperature**2 * divergence
