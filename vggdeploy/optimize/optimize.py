"""``vggdeploy optimize``: steps that change a checkpoint, then steps that add variants to a bundle, each one proven."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from vggdeploy.bundle import MANIFEST_NAME, Bundle
from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME
from vggdeploy.errors import IncompatibleError, UsageError, unknown_name
from vggdeploy.optimize.steps.int8 import add_fp8, add_int8
from vggdeploy.optimize.variants import StepContext, add_openvino, add_torch_tf32
from vggdeploy.system.files import atomic_directory, check_replaceable, check_writable, link_tree, scratch_directory
from vggdeploy.system.optional import require
from vggdeploy.types import Precision

# A step on a checkpoint reads one directory and writes another; a step on a bundle adds to it, and gives it as it is then.
CheckpointStep = Callable[[Path, Path, StepContext], None]
BundleStep = Callable[[Bundle, StepContext], Bundle]


def _prune(source: Path, target: Path, work: StepContext) -> None:
    from vggdeploy.optimize.steps.structure import prune_checkpoint

    assert work.structure.keep is not None  # noqa: S101  # for mypy: `_check_numbers` was here
    prune_checkpoint(source, target, work.structure.keep, job=work.structure.job)


def _low_rank(source: Path, target: Path, work: StepContext) -> None:
    from vggdeploy.optimize.steps.structure import low_rank_checkpoint

    asked = work.structure
    low_rank_checkpoint(source, target, asked.ranks, keep=asked.rank_keep, job=asked.job)


def _qat(source: Path, target: Path, work: StepContext) -> None:
    from vggdeploy.optimize.steps.structure import quantisation_aware_checkpoint

    quantisation_aware_checkpoint(source, target, job=work.structure.job)


def _sparse(source: Path, target: Path, work: StepContext) -> None:
    from vggdeploy.optimize.steps.structure import sparse_checkpoint

    sparse_checkpoint(source, target, job=work.structure.job)


CHECKPOINT_STEPS: dict[str, CheckpointStep] = {
    "prune": _prune, "low-rank": _low_rank, "sparse": _sparse, "qat": _qat,
}  # fmt: skip
BUNDLE_STEPS: dict[str, BundleStep] = {
    "openvino-fp32": lambda bundle, work: add_openvino(bundle, Precision.FP32, work),
    "openvino-bf16": lambda bundle, work: add_openvino(bundle, Precision.BF16, work),
    "torch-tf32": add_torch_tf32,
    "int8": add_int8,
    "fp8": add_fp8,
}
STEPS = (*CHECKPOINT_STEPS, *BUNDLE_STEPS)


def optimize(
    source: str | os.PathLike[str],
    steps: Sequence[str],
    *,
    output: Path | None = None,
    work: StepContext | None = None,
    overwrite: bool = False,
) -> Path:
    """Do the steps one after the other; the result appears whole, or not at all.

    Args:
        source: a checkpoint or a bundle.
        steps: of `STEPS`; those that change the checkpoint come first.
        output: the directory of the result: a bundle, or a checkpoint where no step makes variants. A bundle without
            it is changed in place.
        work: what the steps share.

    Returns:
        That directory.

    Raises:
        UsageError: an unknown step, steps in an order that cannot be, or no output where one is needed.
        ParityError: a variant does not compute what was trained; nothing is written.
    """
    first, then = ordered(steps)
    work = work or StepContext()
    _check_numbers(first, work)
    root = Path(source)
    is_bundle = (root / MANIFEST_NAME).is_file()
    before: bytes | None = None
    if output is None:
        if first or not is_bundle:
            raise UsageError("the result of these steps is a new directory", "name it: -o DIR")
        check_writable(root)
        output, overwrite, before = root, True, (root / MANIFEST_NAME).read_bytes()
    marker = MANIFEST_NAME if then else CHECKPOINT_NAME
    check_replaceable(output, marker=marker, overwrite=overwrite)
    with scratch_directory(output) as scratch:
        made = trained = checkpoint_in(root) if first else root
        for name in first:
            last = name == first[-1]
            CHECKPOINT_STEPS[name](made, scratch / name, _for_step(work, trained, last=last))
            made = scratch / name
        if then:
            made = _with_variants(made, scratch / "bundle", then, work)
        with atomic_directory(output, marker=marker, overwrite=overwrite, unchanged=before) as target:
            link_tree(made, target)
    return output


def checkpoint_in(source: Path) -> Path:
    """The checkpoint to start from: ``source`` itself, or the FP32 reference of a bundle.

    Raises:
        BundleError: a bundle that cannot be read, or a slim one, which has no reference.
        IntegrityError: the reference's files are not those of the manifest.
    """
    if not (source / MANIFEST_NAME).is_file():
        return source
    bundle = Bundle.open(source, only=())
    return bundle.path(bundle.manifest.reference().path)


def _check_numbers(steps: Sequence[str], work: StepContext) -> None:
    """Before the first step, not after it: what a later one misses."""
    if "prune" in steps and work.structure.keep is None:
        raise UsageError("prune does not know how much stays", "give the share of multiply-accumulates: --keep 0.5")
    if "low-rank" in steps and (work.structure.ranks is None) == (work.structure.rank_keep is None):
        raise UsageError(
            "low-rank takes ranks, or the share of multiply-accumulates that stays",
            "give one of both: --rank 64, or --rank-keep 0.5",
        )
    if steps:
        require("torch", to="change a network's structure", extra="train")
    if "prune" in steps:
        require("torch_pruning", to="prune channels", extra="optimize")


def _for_step(work: StepContext, trained: Path, *, last: bool) -> StepContext:
    """Every step learns from what was given, and the limit is for what comes out at the end."""
    job = work.structure.job
    tuning = job.tuning
    if tuning.distill is None:
        tuning = replace(tuning, distill=str(trained))
    job = replace(job, tuning=tuning, max_drop=job.max_drop if last else None)
    return replace(work, structure=replace(work.structure, job=job))


def ordered(steps: Sequence[str]) -> tuple[list[str], list[str]]:
    """The steps on the checkpoint, and those on the bundle.

    Raises:
        UsageError: none, an unknown one, one twice, or an order that cannot be.
    """
    if not steps:
        raise UsageError("no step is named", f"name some, for example --step {STEPS[-1]}")
    for name in steps:
        if name not in STEPS:
            raise unknown_name("step", name, STEPS)
        if steps.count(name) > 1:
            raise UsageError(f"{name} is asked for twice", "name each step once")
    first = [name for name in steps if name in CHECKPOINT_STEPS]
    then = [name for name in steps if name in BUNDLE_STEPS]
    if [*first, *then] != list(steps):
        raise UsageError(
            f"{then[0]} comes before {first[-1]}, which changes what it works on",
            f"give them as --step {','.join([*first, *then])}",
        )
    return first, then


def _with_variants(source: Path, target: Path, steps: Sequence[str], work: StepContext) -> Path:
    """A bundle at ``target``, of the bundle or the checkpoint at ``source``, with the variants of the steps."""
    if (source / MANIFEST_NAME).is_file():
        Bundle.open(source)  # its hashes, before anything is done with it
        link_tree(source, target)
    else:
        from vggdeploy.export.bundle import ExportOptions, export_bundle

        export_bundle(
            source,
            target,
            ExportOptions(formats=("onnx-fp32",), samples=work.samples, data_dir=work.data_dir, threads=work.threads),
            on_progress=work.on_progress,
        )
    bundle = Bundle.open(target)
    for name in steps:
        try:
            bundle = BUNDLE_STEPS[name](bundle, work)
        except (
            IncompatibleError
        ) as error:  # one is not done without the others: nothing asked for is left out in silence
            others = ",".join(other for other in steps if other != name)
            hint = f"without {name} the rest can be done: --step {others}" if others else error.hint
            raise type(error)(error.cause, hint) from error
    return target
