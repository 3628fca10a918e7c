"""The learning rate of every step: a function of recipe and step alone, so that a run can resume. Torch-free."""

from __future__ import annotations

import math

from vggdeploy.train.recipe import Recipe

# Of one-cycle: it starts at a 25th of the peak, and ends at a 10,000th of the start (torch's OneCycleLR, after Smith &
# Topin 2018).
START_SHARE, END_SHARE = 1 / 25, 1e-4


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The learning rate of step ``step`` of ``steps``, counted from 0."""
    return recipe.lr * rate_factor(recipe, step, steps)


def rate_factor(recipe: Recipe, step: int, steps: int) -> float:
    """The share of its peak that a learning rate has at step ``step`` of ``steps``.

    ``cosine``, ``step`` and ``constant`` rise linearly in the warm-up (Goyal et al. 2017, section 2.2), then follow
    half a cosine down to 0 (Loshchilov & Hutter 2017, eq. 5, without restarts), fall by ``step_factor`` after every
    ``step_every`` epochs, or stay. ``one-cycle`` rises and falls along half cosines, as torch's OneCycleLR does; its
    momentum stays.
    """
    if recipe.schedule == "one-cycle":
        return _one_cycle(recipe.warmup, step, steps)
    warm = recipe.warmup * steps
    if step < warm:
        return min(1.0, (step + 1) / warm)
    if recipe.schedule == "step":
        return recipe.step_factor ** (step * recipe.epochs // steps // recipe.step_every)
    if recipe.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def _one_cycle(warmup: float, step: int, steps: int) -> float:
    peak = max(0.0, warmup * steps - 1)
    if step <= peak and peak > 0:
        return _cosine(START_SHARE, 1.0, step / peak)
    return _cosine(1.0, START_SHARE * END_SHARE, (step - peak) / max(1.0, steps - 1 - peak))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
