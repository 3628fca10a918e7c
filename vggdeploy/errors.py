"""Every error that vggdeploy raises on purpose, and the exit code that each one ends a command with.

    VggdeployError                  1    a known error: one line of cause, one line of remedy
    ├── UsageError                  2    the call cannot mean anything: a bad name, a bad range
    ├── InputError                  1    an image or an array that cannot be used
    ├── DataError                   1    a data set that is missing, empty or damaged
    ├── CheckpointError             1    a checkpoint that is missing, damaged or from another spec
    │   └── UntoldError             1    weights that do not tell what the network is; an option does
    ├── TrainingError               1    a training run that cannot go on
    ├── BundleError                 1    a bundle that cannot be opened or written
    │   ├── ForeignModelError       1    a model file that is not what vggdeploy writes of the bundle's network
    │   └── IntegrityError          1    bytes that are not the ones the manifest names
    │       └── SignatureError      1    a bundle that no trusted key signed, or a policy that cannot be read
    ├── BuildError                  1    an exporter, parser or builder refused the model
    ├── ParityError                 3    what was built does not compute what was trained
    ├── Overloaded                  1    a server with a full queue: nothing was computed, try again later
    ├── DeadlineError               1    a request that was not answered in its time
    ├── TargetError                 4    an accuracy or speed target was missed
    ├── CudaError                   1    a call of the CUDA runtime failed
    │   └── GpuMemoryError          1    the GPU, or pinned host memory, has not enough room
    └── IncompatibleError           5    this machine or library cannot do it
        └── MissingDependencyError  5    a Python package is not installed

An interrupted command (Ctrl-C) ends with 130, one that was sent SIGTERM with 143.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path

EXIT_INTERRUPTED = 130


class VggdeployError(Exception):
    """A known error. ``cause`` says what is wrong, ``hint`` what to do about it; both are one line."""

    exit_code = 1

    def __init__(self, cause: str, hint: str = "") -> None:
        super().__init__(cause, hint)
        self.cause = one_line(cause)
        self.hint = one_line(hint)

    def __str__(self) -> str:
        return f"{self.cause} — {self.hint}" if self.hint else self.cause


class UsageError(VggdeployError):
    exit_code = 2


class InputError(VggdeployError):
    pass


class DataError(VggdeployError):
    pass


class CheckpointError(VggdeployError):
    pass


class UntoldError(CheckpointError):
    """``option`` tells what the weights do not, on the command lines that have it."""

    def __init__(self, cause: str, hint: str = "", option: str = "") -> None:
        super().__init__(cause, hint)
        self.option = option


class TrainingError(VggdeployError):
    pass


class BundleError(VggdeployError):
    pass


class ForeignModelError(BundleError):
    pass


class IntegrityError(BundleError):
    pass


class SignatureError(IntegrityError):
    pass


class BuildError(VggdeployError):
    pass


class ParityError(VggdeployError):
    exit_code = 3


class TargetError(VggdeployError):
    exit_code = 4


class Overloaded(VggdeployError):  # the word that clients and dashboards know
    pass


class DeadlineError(VggdeployError):
    pass


class CudaError(VggdeployError):
    """A call of the CUDA runtime failed. ``call`` is its name, ``code`` CUDA's name of the error."""

    def __init__(self, cause: str, hint: str = "", *, call: str = "", code: str = "") -> None:
        super().__init__(cause, hint)
        self.call = call
        self.code = code


class GpuMemoryError(CudaError):
    pass


class IncompatibleError(VggdeployError):
    exit_code = 5


class MissingDependencyError(IncompatibleError):
    pass


def one_line(text: str) -> str:
    """``text`` as one line that a terminal shows as it is: names in it may come from files that we did not write.

    White space becomes single spaces; control, bidirectional and other unprintable characters are shown escaped.
    """
    return printable(" ".join(text.split()))


def printable(text: str, *, keep: str = "") -> str:
    """``text`` with every control, bidirectional and other unprintable character shown escaped, but those of ``keep``."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape", "backslashreplace").decode() for c in text
    )


def unknown_name(kind: str, name: str, known: Iterable[str], *, meant: str = "") -> UsageError:
    """The error for a name that is not in ``known``: it offers ``meant``, or the closest match, then the whole list."""
    names = sorted(known)
    letters = sorted(name.lower())
    swapped = [known for known in names if sorted(known) == letters]  # vgg61 is vgg16, not vgg19
    close = [meant] * (meant in names) or swapped or _closest(name.lower(), names)
    offer = f"did you mean '{close[0]}'? " if close else ""
    return UsageError(f"the {kind} '{name}' is unknown", f"{offer}known: {', '.join(names) or 'none'}")


def _closest(name: str, names: list[str]) -> list[str]:
    """The likeliest of ``names``, as a list of one or none; of those that are as likely the one with the nearest number."""
    number = _number(name)

    def rank(known: str) -> tuple[float, int, str]:
        return -SequenceMatcher(None, known, name).ratio(), abs(_number(known) - number), known

    return sorted(get_close_matches(name, names, n=len(names) or 1, cutoff=0.5), key=rank)[:1]


def _number(name: str) -> int:
    return int("0" + "".join(letter for letter in name if letter in "0123456789")[:9])


def nearby(path: str | os.PathLike[str]) -> str:
    """``"did you mean PATH? "`` of something that lies there and has almost the name of a path that does not exist, or ""."""
    wanted = Path(path)
    try:
        names = [entry.name for entry in os.scandir(wanted.parent)]
    except (OSError, ValueError):
        return ""
    close = get_close_matches(wanted.name, names, n=1, cutoff=0.7)
    return f"did you mean {wanted.parent / close[0]}? " if close and close[0] != wanted.name else ""


def counted(number: int, noun: str) -> str:
    """``1 image``, ``1,024 images``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def first_line(error: BaseException) -> str:
    """The first line of an error's text: what fits on the one line that a user gets."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip()
