"""The base of every record, and JSON both ways."""

from __future__ import annotations

import math
import re
from importlib import import_module
from itertools import islice
from typing import Any, TypeVar

import msgspec

from vggdeploy.errors import BundleError, UsageError, first_line

SCHEMA_VERSION = 1
# Of the results that `report` reads: 2 has the command that made them, and of a bench its rounds and its quantiles.
RESULT_VERSION = 2
R = TypeVar("R")
_DIGITS = 300
_LONG = re.compile(rb"\d{%d}" % _DIGITS)
_GIANT = re.compile(rb"\d[eE]\+?[1-9]\d\d")  # in a string, too: a digest may have one
_GIANTS = 10_000


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of every record: immutable, and an unknown field is an error. (``kw_only`` is not inherited.)"""

    def _repr_html_(self) -> str | None:
        return notebook_html(self)


def notebook_html(shown: object) -> str | None:
    """What a Jupyter notebook shows of a result or a bundle; None where it is to print it.

    The tables belong to a floor above, which is imported when a notebook asks, and by nothing else here.
    """
    html: str | None = import_module("vggdeploy.report.notebook").html_of(shown)
    return html


def to_json(record: Any) -> bytes:
    """Indented UTF-8 JSON with a final newline.

    Raises:
        BundleError: a NaN or infinity is in it; JSON has neither, and null would read back as something else.
    """
    _refuse_non_finite(msgspec.to_builtins(record))
    return msgspec.json.format(msgspec.json.encode(record, order="deterministic"), indent=2) + b"\n"


# What JSON lets stand as it is, and terminals obey: DEL, C1 controls, marks of direction, separators of lines.
_OBEYED = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


def json_text(data: bytes) -> str:
    """JSON for a stream that may be a terminal: the same document, without a letter that a terminal obeys."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", data.decode())


def _refuse_non_finite(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise BundleError(f"{value} cannot be written as JSON", "run with --debug and report it")
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    for part in inside:
        _refuse_non_finite(part)


def check_numbers(data: bytes) -> None:
    """Refuse JSON whose numbers no record has. msgspec needs 20 µs for a float such as 1e308: a large file of them, minutes.

    Raises:
        UsageError: an integer beyond the floats, or thousands of floats beyond 1e100. Errors of `msgspec.json.decode`.
    """
    if next(islice(_GIANT.finditer(data), _GIANTS, None), None):
        raise UsageError(f"it has more than {_GIANTS:,} numbers beyond 1e100")
    if _LONG.search(data):
        _refuse_huge(msgspec.json.decode(data))


def _refuse_huge(value: Any) -> None:
    """Integers beyond the floats count nothing: formulas and tables compute with floats."""
    if isinstance(value, int) and abs(value) >= 10**_DIGITS:
        raise UsageError(f"a number in it has more than {_DIGITS} digits")
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in inside:
        _refuse_huge(part)


def from_json(data: bytes, kind: type[R], *, what: str) -> R:
    """Decode and validate; ``what`` names the document in the error.

    Raises:
        BundleError: not JSON, cut short, or not of the schema.
    """
    try:
        check_numbers(data)
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ArithmeticError, UsageError) as error:
        cause = error.cause if isinstance(error, UsageError) else first_line(error)
        raise BundleError(f"{what} cannot be read: {cause}", "restore it from its source") from error
