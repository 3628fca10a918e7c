"""Named stretches of work for NVIDIA's profilers (Nsight Systems): NVTX ranges. Off, and free, unless they are asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, wraps
from types import ModuleType
from typing import ParamSpec, TypeVar

from vggdeploy.system.optional import require

VARIABLE = "VGGDEPLOY_NVTX"
DOMAIN = "vggdeploy"
P = ParamSpec("P")
T = TypeVar("T")


def asked() -> bool:
    """Whether this process was started with ``VGGDEPLOY_NVTX`` set to anything but 0."""
    return os.environ.get(VARIABLE, "0") not in ("", "0")


def ranged(name: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator: each call of the function is a range of that name in the domain ``vggdeploy``.

    Where no ranges are asked for when the function is defined, it is left as it is. Calls raise MissingDependencyError
    where they are asked for and the package ``nvtx`` is not installed.
    """

    def mark(function: Callable[P, T]) -> Callable[P, T]:
        if not asked():
            return function

        @wraps(function)
        def marked(*args: P.args, **kwargs: P.kwargs) -> T:
            with _nvtx().annotate(name, domain=DOMAIN):
                return function(*args, **kwargs)

        return marked

    return mark


@cache
def _nvtx() -> ModuleType:
    return require("nvtx", to=f"mark NVTX ranges, as {VARIABLE} asks", extra="nvtx")
