"""Muon for networks with batch norm: every matrix is turned by an angle and keeps its norm.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon): the momentum of a matrix is replaced by the nearest orthogonal one,
so that a step goes equally far in all of its directions, not only in the few that have large gradients. Batch norm makes
the scale of a convolution's weights meaningless, and with it the usual learning rate: here a learning rate of 0.1 turns the
weights by 0.1 radians, whatever their scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# The quintic iteration of Jordan et al.: a singular value from 0.05 to 1 comes out between 0.4 and 1.3 after three rounds.
_A, _B, _C = 3.4445, -4.7750, 2.0315
ROUNDS = 3
_LEAST = 1e-12  # of a norm: zeros stay zeros


class Muon(Optimizer):
    """Matrices turn, everything else follows its gradient; both with Nesterov's momentum.

    Args:
        groups: parameters with their ``lr``; with ``turn`` true they are matrices, ``[outputs, …]``, and it is an angle in
            radians. Nothing decays: the norm of what turns stays, and the rest is few.
        momentum: from 0 up to, not including, 1.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, momentum: float) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "turn": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step with the gradients that stand in the parameters; those without one stay."""
        if closure is not None:
            raise NotImplementedError("Muon takes one gradient a step")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)

    def _step(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        memory = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        ahead = gradient.add(memory, alpha=group["momentum"])
        if not group["turn"]:
            parameter.add_(ahead, alpha=-group["lr"])
            return
        direction = orthogonalised(ahead.flatten(1)).view(ahead.shape)
        radius = parameter.norm()
        parameter.sub_(direction * (group["lr"] * radius / direction.norm().clamp_min(_LEAST)))
        parameter.mul_(radius / parameter.norm().clamp_min(_LEAST))


def orthogonalised(matrix: Tensor) -> Tensor:
    """``[m, n]`` → nearly U·Vᵀ of its singular value decomposition U·S·Vᵀ: all singular values near 1. Zeros stay zeros."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp_min(_LEAST)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.T if tall else x
