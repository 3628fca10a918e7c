"""Learning from a teacher: the answers of another network, softened, beside the labels."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from vggdeploy.bundle.checkpoint import Checkpoint, read_checkpoint
from vggdeploy.errors import CheckpointError
from vggdeploy.model.deployable import Deployable
from vggdeploy.model.weights import load_model
from vggdeploy.spec import PreprocessSpec
from vggdeploy.train.record import TeacherRecord

# What happens to an image before the network: two networks that differ in it see different images. Mean and std do not
# count: each network brings its own.
_PIXELS = ("mode", "resize", "crop", "interpolation")


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

    Raises:
        CheckpointError: no checkpoint, a damaged one, or one of other classes or other preprocessing.
    """

    def __init__(self, path: str, *, labels: tuple[str, ...], preprocess: PreprocessSpec, device: torch.device) -> None:
        checkpoint = check_teacher(path, labels, preprocess)
        self.record = TeacherRecord(source=path, sha256=checkpoint.weights_sha256)
        model = load_model(path, check_weights=False).requires_grad_(False)
        network = Deployable(model, checkpoint.preprocess)
        self._network = network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def __call__(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self._network(images)[0]
        return logits


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
