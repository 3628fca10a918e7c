"""``vggdeploy optimize``: steps that change a checkpoint, then steps that add variants to a bundle, each one proven."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from vggdeploy.bundle import MANIFEST_NAME, Bundle
from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME
from vggdeploy.errors import UsageError, unknown_name
from vggdeploy.files import atomic_directory, check_replaceable, check_writable, link_tree, scratch_directory
from vggdeploy.pipeline.variants import Work, add_openvino
from vggdeploy.types import Precision

# A step on a checkpoint reads one directory and writes another; a step on a bundle adds to it, and gives it as it is then.
CheckpointStep = Callable[[Path, Path, Work], None]
BundleStep = Callable[[Bundle, Work], Bundle]

CHECKPOINT_STEPS: dict[str, CheckpointStep] = {}
BUNDLE_STEPS: dict[str, BundleStep] = {
    "openvino-fp32": lambda bundle, work: add_openvino(bundle, Precision.FP32, work),
    "openvino-bf16": lambda bundle, work: add_openvino(bundle, Precision.BF16, work),
}
STEPS = (*CHECKPOINT_STEPS, *BUNDLE_STEPS)


def optimize(
    source: str | os.PathLike[str],
    steps: Sequence[str],
    *,
    output: Path | None = None,
    work: Work | None = None,
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
    first, then = _ordered(steps)
    root, work = Path(source), work or Work()
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
        made = root / "checkpoint" if is_bundle and first else root
        for name in first:
            CHECKPOINT_STEPS[name](made, scratch / name, work)
            made = scratch / name
        if then:
            made = _with_variants(made, scratch / "bundle", then, work)
        with atomic_directory(output, marker=marker, overwrite=overwrite, unchanged=before) as target:
            link_tree(made, target)
    return output


def _ordered(steps: Sequence[str]) -> tuple[list[str], list[str]]:
    """The steps on the checkpoint, and those on the bundle."""
    if not steps:
        raise UsageError("no steps", f"name some, for example --step {STEPS[-1]}")
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


def _with_variants(source: Path, target: Path, steps: Sequence[str], work: Work) -> Path:
    """A bundle at ``target``, of the bundle or the checkpoint at ``source``, with the variants of the steps."""
    if (source / MANIFEST_NAME).is_file():
        Bundle.open(source)  # its hashes, before anything is done with it
        link_tree(source, target)
    else:
        from vggdeploy.pipeline.export import export_bundle

        export_bundle(
            source,
            target,
            formats=("onnx-fp32",),
            samples=work.samples,
            data_dir=work.data_dir,
            threads=work.threads,
            on_stage=work.on_stage,
        )
    bundle = Bundle.open(target)
    for name in steps:
        bundle = BUNDLE_STEPS[name](bundle, work)
    return target
