"""``--rebuild``: engines that do not fit this machine, built anew before a command goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vggdeploy.cli import render

if TYPE_CHECKING:
    from vggdeploy.builders.progress import OnProgress
    from vggdeploy.bundle import Bundle


def rebuilt(
    bundle: Bundle, *, backends: Sequence[str] = (), variants: Sequence[str] = (), device: str | None = None
) -> Bundle:
    """The bundle, with an engine for this machine in place of each that does not fit."""
    from vggdeploy.loading import rebuild_unfit
    from vggdeploy.types import Device

    where = Device.parse(device) if device else None
    with rebuild_bar() as tell:
        for backend in backends or ("auto",):
            bundle = rebuild_unfit(bundle, backend=backend, variants=variants, device=where, on_progress=tell)
    return bundle


@contextmanager
def rebuild_bar() -> Iterator[OnProgress]:
    """A progress bar that appears with the first sign of a build."""
    with render.progress() as bar:
        task = bar.add_task("building", total=100, visible=False)
        yield lambda share, phase: bar.update(task, completed=round(100 * share), description=phase, visible=True)
