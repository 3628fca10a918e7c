"""The curves of a training run as files. Importing this needs no Altair; writing the files does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vggdeploy.bundle import MANIFEST_NAME
from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME
from vggdeploy.errors import UsageError
from vggdeploy.report.history import Point, read_history
from vggdeploy.system.optional import require

NAMES = ("curves.png", "curves.html")


def need_plots() -> None:
    """Find out before any work whether pictures can be drawn.

    Raises:
        MissingDependencyError: Altair or vl-convert is not installed.
    """
    for module in ("altair", "vl_convert"):
        require(module, to="draw pictures", extra="plots")


def write_curves(
    checkpoint: str | os.PathLike[str], target: str | os.PathLike[str] | None = None, *, title: str = ""
) -> tuple[Path, ...]:
    """Draw the loss and accuracy of a checkpoint's run as ``curves.png`` and ``curves.html``.

    Args:
        checkpoint: a checkpoint's directory (of a run that has just ended too: both of its files have to be there).
        target: the directory for the pictures; made where it is not there. Default: the checkpoint's.
        title: of the pictures. Default: the directory's name.

    Returns:
        The files written.

    Raises:
        CheckpointError: no checkpoint, or no record of a run in it.
        UsageError: the checkpoint belongs to a bundle, whose files are fixed, and no other directory was given.
        MissingDependencyError: Altair or vl-convert is not installed.
    """
    root = Path(checkpoint)
    need_plots()
    history = read_history(root)
    directory = root if target is None else Path(target)
    if (directory / CHECKPOINT_NAME).is_file() and (directory.absolute().parent / MANIFEST_NAME).is_file():
        raise UsageError(f"{directory} is part of a bundle, whose files are fixed", "give another directory: -o DIR")
    return draw_curves(history, directory, name=title or root.resolve().name)


def draw_curves(history: Sequence[Point], directory: Path, *, name: str) -> tuple[Path, ...]:
    """The same from points in memory.

    Raises:
        MissingDependencyError: Altair or vl-convert is not installed.
    """
    need_plots()
    from vggdeploy.report import plots  # only now: it imports Altair

    epochs = max(point.epoch for point in history)
    splits = [split for split in plots.SPLITS if any(p.split == split for p in history)]
    title = f"Training of {name}"
    text = f"Loss and accuracy over {epochs:g} epochs: {', '.join(splits)}."
    chart = plots.training_curves(history)
    files = tuple(directory / file for file in NAMES)
    for file in files:
        shown = chart.properties(title=title) if file.suffix == ".png" else chart
        plots.save_chart(shown, file, title=title, text=text, grid=plots.curves_grid(history))
    return files
