"""The verbs as Python functions: ``vggdeploy.train(…)`` does what ``vggdeploy train …`` does, and returns the result.

Options are given by name, as on the command line with ``_`` for ``-``; their types stand in the classes that each function
names. A slip gets the closest name. Nothing heavy is imported before a function is called.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vggdeploy.errors import unknown_name
from vggdeploy.types import BatchRange, Device, OnProgress, silent

if TYPE_CHECKING:
    from vggdeploy.bench.run import Rounds, Scenarios
    from vggdeploy.bundle import Bundle
    from vggdeploy.records import BenchReport, ParityReport
    from vggdeploy.train.recipe import Recipe
    from vggdeploy.train.record import OnNote, OnStep, TrainingResult

T = TypeVar("T")
PathLike = str | os.PathLike[str]


def train(
    output: PathLike,
    recipe: str | Recipe | None = None,
    *,
    on_step: OnStep | None = None,
    on_note: OnNote | None = None,
    **options: Any,
) -> TrainingResult:
    """Train a network and write its checkpoint.

    Ctrl-C (the stop button of a notebook) ends the run after the step that is under way; ``resume=True`` goes on, and needs
    nothing else.

    Args:
        output: the checkpoint's directory.
        recipe: a built-in recipe's name, a TOML file, or a `vggdeploy.train.recipe.Recipe`. Default: the defaults.
        on_step: called after every step and every epoch, with a `vggdeploy.train.record.TrainingStep`.
        on_note: called with sentences that a user should read.
        options: fields of `vggdeploy.train.recipe.Recipe`, which change the recipe's, and of
            `vggdeploy.train.loop.TrainOptions`.

    Raises:
        UsageError, DataError, CheckpointError, IncompatibleError, TrainingError: as `vggdeploy.train.loop.train`.
        MissingDependencyError: torch is not installed.
    """
    from vggdeploy.system.optional import require

    require("torch", to="train", extra="train")
    from vggdeploy.train.loop import TrainOptions
    from vggdeploy.train.loop import train as run
    from vggdeploy.train.recipe import Recipe
    from vggdeploy.train.recipe_file import resolve_recipe
    from vggdeploy.train.state import Saver

    names = {field.name for field in fields(TrainOptions)}
    _check(options, (*names, *Recipe.__struct_fields__))
    changes = {name: value for name, value in options.items() if name not in names}
    where = _made(TrainOptions, {"save_on_interrupt": True} | {n: v for n, v in options.items() if n in names})
    source = Saver(Path(output)).standing().recipe if where.resume and recipe is None else recipe
    return run(resolve_recipe(source, changes), output=output, options=where, on_step=on_step, on_note=on_note)


def export(source: PathLike, output: PathLike, *, on_progress: OnProgress = silent, **options: Any) -> Bundle:
    """Export ONNX and TorchScript, prove each against the FP32 model, and write a bundle.

    Args:
        source: a checkpoint, ``torchvision:NAME``, or a file of weights (``.pth``, ``.safetensors``).
        output: the bundle's directory.
        on_progress: called with the share that is done, or None, and what is being done.
        options: fields of `vggdeploy.export.bundle.ExportOptions` (``batch`` may be the largest batch), and of
            `vggdeploy.export.source.SourceOptions` for weights that do not say all about themselves.

    Raises:
        UsageError, BundleError, CheckpointError, DataError: as `vggdeploy.export.bundle.export_bundle`.
        ParityError: a variant does not compute what was trained; nothing is written.
        MissingDependencyError: torch, onnx or another package is not installed.
    """
    from vggdeploy.system.optional import require

    for module in ("torch", "onnx", "onnxscript", "safetensors"):
        require(module, to="export a model", extra="train")
    from vggdeploy.export.bundle import ExportOptions, export_bundle
    from vggdeploy.export.source import SourceOptions, checkpoint_of

    names = {field.name for field in fields(ExportOptions)}
    _check(options, (*names, *(field.name for field in fields(SourceOptions))))
    wanted = _made(ExportOptions, {name: value for name, value in options.items() if name in names})
    about = _made(SourceOptions, {name: value for name, value in options.items() if name not in names})
    target = Path(output)
    with checkpoint_of(os.fspath(source), target, about, overwrite=wanted.overwrite) as (checkpoint, _):
        return export_bundle(checkpoint, target, wanted, on_progress=on_progress)


def verify(bundle: PathLike | Bundle, *, on_progress: OnProgress = silent, **options: Any) -> ParityReport:
    """Prove every variant again, on this machine. ``report.verdict`` is the whole's, ``report.records`` are the proofs.

    Args:
        bundle: a bundle, or its directory.
        on_progress: as in `export`.
        options: fields of `vggdeploy.verify.verify.VerifyOptions`.

    Raises:
        UsageError, BundleError, DataError, IncompatibleError: as `vggdeploy.verify.verify.verify_bundle`. A verdict that is
            no pass is no error here.
    """
    from vggdeploy.verify.verify import VerifyOptions, verify_bundle

    _check(options, [field.name for field in fields(VerifyOptions)])
    return verify_bundle(_opened(bundle), _made(VerifyOptions, options), on_progress=on_progress)


def bench(
    *bundles: PathLike | Bundle,
    method: Rounds | Scenarios | None = None,
    threads: int | None = None,
    record: bool = False,
    on_progress: OnProgress = silent,
    **options: Any,
) -> BenchReport:
    """Measure variants beside each other: ``report.rows`` has p50, p90, p99 and images/s, and whether each is valid.

    Args:
        bundles: one bundle or several, or their directories.
        method: `vggdeploy.bench.run.Rounds` (default), or ``Scenarios`` for MLPerf LoadGen's.
        threads: CPU threads of each session. Default: every core.
        record: write the medians to the manifest, where `vggdeploy.load` finds them.
        on_progress: as in `export`.
        options: fields of `vggdeploy.bench.run.BenchPlan`.

    Raises:
        UsageError, BundleError, IncompatibleError: as `vggdeploy.bench.run.bench_bundle`.
    """
    from vggdeploy.bench.run import BenchPlan, Rounds, bench_bundle

    _check(options, [field.name for field in fields(BenchPlan)])
    return bench_bundle(
        *map(_opened, bundles),
        plan=_made(BenchPlan, options),
        method=method or Rounds(),
        threads=threads,
        record=record,
        on_progress=on_progress,
    )


def _check(options: Mapping[str, Any], known: Any) -> None:
    for name in options:
        if name not in known:
            raise unknown_name("option", name, known)


def _made(kind: Callable[..., T], options: Mapping[str, Any]) -> T:
    """The options' class, made of what a caller wrote: a device as text, a path as text, one number for a range."""
    return kind(**{name: _KINDS.get(name, _as_it_is)(value) for name, value in options.items()})


def _as_it_is(value: Any) -> Any:
    return value


def _device(value: str | Device | None) -> Device | None:
    return Device.parse(value) if isinstance(value, str) else value


def _path(value: PathLike | None) -> Path | None:
    return None if value is None else Path(value)


def _batch(value: int | BatchRange) -> BatchRange:
    return BatchRange(1, min(8, value), value) if isinstance(value, int) else value


_KINDS: dict[str, Callable[[Any], Any]] = {
    "device": _device, "data_dir": _path, "labels": _path, "weights": _path, "batch": _batch,
}  # fmt: skip


def _opened(bundle: PathLike | Bundle) -> Bundle:
    from vggdeploy.bundle import Bundle

    return bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
