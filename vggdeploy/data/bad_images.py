"""The images of a folder that cannot be used: all of them at once, not one a run. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vggdeploy.data.folder import SKIPPING
from vggdeploy.errors import InputError
from vggdeploy.preprocess import prepare
from vggdeploy.spec import PreprocessSpec
from vggdeploy.system.machine import usable_cores

_NAMED = 20  # of them in one line; the rest are counted


def bad_images(paths: Iterable[Path], spec: PreprocessSpec) -> dict[Path, str]:
    """Path → what is wrong with it, for those that cannot be used. Every image is read and decoded once."""
    paths = list(paths)
    with ThreadPoolExecutor(usable_cores()) as pool:  # decoders release Python's lock
        found = pool.map(lambda path: _cause(path, spec), paths)
        return {path: cause for path, cause in zip(paths, found, strict=True) if cause}


def _cause(path: Path, spec: PreprocessSpec) -> str:
    try:
        prepare(path, spec)
    except InputError as error:
        return error.cause
    return ""


def listed(causes: Sequence[str]) -> str:
    """What is wrong, in one line."""
    more = f"; and {len(causes) - _NAMED:,} more" if len(causes) > _NAMED else ""
    return "; ".join(causes[:_NAMED]) + more


def refusal(paths: Sequence[Path], spec: PreprocessSpec, first: InputError) -> InputError:
    """The error that names every bad image among ``paths``; ``first`` is the one that was met."""
    causes = list(bad_images(paths, spec).values()) or [first.cause]
    images = f"{len(causes):,} of {len(paths):,} images cannot be used: " if len(causes) > 1 else ""
    them = "them" if len(causes) > 1 else "it"
    return InputError(
        images + listed(causes),
        f"replace or remove {them}, or leave {them} out: vggdeploy train --skip-bad -o CHECKPOINT, elsewhere {SKIPPING}PATH",
    )
