"""Learning rates: PyTorch's own schedulers are the known answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR, StepLR

from vggdeploy.train.optimizer import learning_rate
from vggdeploy.train.recipe import Recipe, Schedule

STEPS, EPOCHS = 60, 6


def torchs(make: Callable[[torch.optim.Optimizer], LRScheduler], lr: float) -> list[float]:
    """The rates of one of torch's schedulers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make(optimizer)
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("recipe", "make"),
    [
        (Recipe(schedule="cosine", warmup=0.0, lr=0.4), lambda o: CosineAnnealingLR(o, STEPS)),
        (
            Recipe(schedule="step", warmup=0.0, lr=0.4, step_every=2, step_factor=0.3),
            lambda o: StepLR(o, step_size=2 * STEPS // EPOCHS, gamma=0.3),
        ),
        (
            Recipe(schedule="one-cycle", warmup=0.3, lr=0.4),
            lambda o: OneCycleLR(o, max_lr=0.4, total_steps=STEPS, pct_start=0.3, cycle_momentum=False),
        ),
    ],
)
def test_rates_are_torchs(recipe: Recipe, make: Callable[[torch.optim.Optimizer], LRScheduler]) -> None:
    ours = [learning_rate(recipe, step, STEPS) for step in range(STEPS)]
    assert ours == pytest.approx(torchs(make, 0.4), rel=1e-9, abs=1e-12)


def test_the_rate_rises_to_its_peak_and_falls_to_nothing() -> None:
    recipe, steps = Recipe(lr=0.4, warmup=0.25), 100
    rates = [learning_rate(recipe, step, steps) for step in range(steps)]
    assert rates[0] == pytest.approx(0.4 / 25)
    assert rates[24] == rates[25] == 0.4
    assert rates[:25] == sorted(rates[:25])
    assert rates[25:] == sorted(rates[25:], reverse=True)
    assert rates[62] == pytest.approx(0.2, rel=0.03)  # half-way down the half cosine
    assert 0 < rates[-1] < 0.001


def test_a_constant_rate_stays_after_warm_up() -> None:
    recipe = Recipe(lr=0.1, warmup=0.0, schedule="constant")
    assert {learning_rate(recipe, step, 50) for step in range(50)} == {0.1}
    warm = Recipe(lr=0.1, warmup=0.1, schedule="constant")
    assert [learning_rate(warm, step, 50) for step in range(6)] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])


@given(
    steps=st.integers(1, 500),
    warmup=st.floats(0, 1, exclude_max=True),
    schedule=st.sampled_from(["cosine", "step", "one-cycle", "constant"]),
)
def test_the_rate_is_never_above_its_peak_nor_below_nought(steps: int, warmup: float, schedule: Schedule) -> None:
    recipe = Recipe(lr=0.1, warmup=warmup, schedule=schedule)
    assert all(0 <= learning_rate(recipe, step, steps) <= 0.1 * (1 + 1e-12) for step in range(steps))
