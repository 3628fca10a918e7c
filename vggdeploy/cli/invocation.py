"""The command line as it was given, for the records: a result that can be repeated says how."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from vggdeploy.records import Record

R = TypeVar("R", bound="Record")
_arguments: ContextVar[tuple[str, ...]] = ContextVar("arguments", default=())


@contextmanager
def invoked(arguments: Sequence[str]) -> Iterator[None]:
    """Within it, `with_command` writes these arguments."""
    token = _arguments.set(tuple(arguments))
    try:
        yield
    finally:
        _arguments.reset(token)


def command_line() -> str:
    """The line that is running; "" where none is."""
    arguments = _arguments.get()
    return shlex.join(["vggdeploy", *arguments]) if arguments else ""


def with_command(record: R) -> R:
    """The record with the line that made it in its ``command``; as it is where no command line is running."""
    from msgspec.structs import replace

    line = command_line()
    return replace(record, command=line) if line else record
