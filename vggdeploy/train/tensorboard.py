"""The curve of a run as TensorBoard events, while it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vggdeploy.optional import require
from vggdeploy.train.record import OnStep, TrainingStep


@contextmanager
def events(directory: Path) -> Iterator[OnStep]:
    """Writes every point of the curve as ``loss/SPLIT`` and ``accuracy/SPLIT``, and the learning rate beside it.

    Raises:
        MissingDependencyError: TensorBoard is not installed.
    """
    require("tensorboard", to="write TensorBoard events", extra="tensorboard")
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(str(directory)) as writer:

        def write(now: TrainingStep) -> None:
            for point in now.points:
                writer.add_scalar(f"loss/{point.split}", point.loss, point.step)
                writer.add_scalar(f"accuracy/{point.split}", point.accuracy, point.step)
            if now.points:
                writer.add_scalar("learning_rate", now.learning_rate, now.step)

        yield write
