"""Rooms that can be called: ``vggdeploy.train`` is the folder ``train/``, and the function of that name beside it."""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from vggdeploy.system.interpreter import check_interpreter

HOME = "vggdeploy.verbs"


class Room(ModuleType):
    """A package that is called as its verb, so that neither hides the other."""

    @property
    def _verb(self) -> Any:
        return getattr(import_module(HOME), self.__name__.rpartition(".")[2])

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        check_interpreter()
        return self._verb(*arguments, **options)

    @property
    def __signature__(self) -> inspect.Signature:  # what `help` and notebooks show
        return inspect.signature(self._verb)


def callable_as_verb(package: str) -> None:
    """Let a package be called. To be called in its ``__init__``."""
    sys.modules[package].__class__ = Room
