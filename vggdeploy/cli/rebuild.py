"""``--rebuild``: engines that do not fit this machine, built anew before a command goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vggdeploy.cli import render

if TYPE_CHECKING:
    from vggdeploy.bundle import Bundle


def rebuilt(
    bundle: Bundle, *, backends: Sequence[str] = (), variants: Sequence[str] = (), device: str | None = None
) -> Bundle:
    """The bundle, with an engine for this machine in place of each that does not fit."""
    from vggdeploy.loading import rebuild_unfit
    from vggdeploy.types import Device

    where = Device.parse(device) if device else None
    with render.progress() as tell:
        for backend in backends or ("auto",):
            bundle = rebuild_unfit(bundle, backend=backend, variants=variants, device=where, on_progress=tell)
    return bundle
