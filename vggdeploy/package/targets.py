"""Which packages there are. Adding one: a file beside this one, and a row here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from vggdeploy.errors import UsageError, unknown_name
from vggdeploy.package.base import MARKER, Made, Order


@dataclass(frozen=True)
class Target:
    """A row: where its function is, and the settings of an `Order` that mean something to it."""

    name: str
    module: str
    function: str
    settings: tuple[str, ...] = ()
    marker: str = MARKER

    def make(self, order: Order) -> Made:
        """Write the package.

        Raises:
            UsageError: a setting that this target would ignore.
        """
        for setting in ("name", "max_batch", "instances", "serve"):
            if getattr(order, setting) is not None and setting not in self.settings:
                raise UsageError(
                    f"--{setting.replace('_', '-')} means nothing to the target {self.name}", "leave it out"
                )
        function = getattr(importlib.import_module(self.module), self.function)
        return cast("Callable[[Order], Made]", function)(order)


TARGETS: tuple[Target, ...] = (
    Target("triton", "vggdeploy.package.triton", "package_triton", ("name", "max_batch", "instances")),
    Target("slim", "vggdeploy.package.slim", "package_slim", marker="manifest.json"),
    Target("cpp", "vggdeploy.package.cpp", "package_cpp"),
    Target("oci", "vggdeploy.package.oci", "package_oci", ("serve",)),
)


def get_target(name: str) -> Target:
    """The target of that name.

    Raises:
        UsageError: there is none; the closest name is offered.
    """
    for target in TARGETS:
        if target.name == name.strip().lower():
            return target
    raise unknown_name("target", name, [t.name for t in TARGETS])
