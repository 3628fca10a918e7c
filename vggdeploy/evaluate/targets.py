"""A checkpoint or a variant of a bundle, opened the same way: prepared images in, outputs by name out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggdeploy.bundle import MANIFEST_NAME, REFERENCE
from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME, WEIGHTS_NAME, read_checkpoint
from vggdeploy.engine.engine import load
from vggdeploy.errors import BundleError, IncompatibleError, UsageError, nearby
from vggdeploy.runtime import CheckedSession, backend_for, get_backend
from vggdeploy.runtime.base import Session, Source
from vggdeploy.runtime.registry import default_device
from vggdeploy.runtime.sessions import run_batch
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.system.machine import usable_cores
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import BatchRange, Device

Array = NDArray[Any]

_ACTIVATIONS = 64 * 2**20  # bytes of the first convolution's output, the largest there is, that a batch may take
_MAX_BATCH = 256


@dataclass(frozen=True)
class OpenModel:
    """An open model. ``run`` takes a batch of prepared images, ``uint8 [N, H, W, C]`` with N at most ``batch``."""

    variant: str
    backend: str
    device: str
    sha256: str
    spec: ModelSpec
    preprocess: PreprocessSpec
    labels: tuple[str, ...]
    dataset: str
    batch: int
    run: Callable[[NDArray[np.uint8]], dict[str, Array]]


@contextmanager
def open_model(
    path: Path,
    *,
    backend: str = "auto",
    variant: str | None = None,
    device: Device | None = None,
    threads: int | None = None,
) -> Iterator[OpenModel]:
    """Open what stands at ``path``, and close it at the end of the block.

    Args:
        path: a checkpoint, which the ``torch`` backend runs, or a bundle.
        backend, variant, device, threads: as in `vggdeploy.load`.

    Raises:
        BundleError: neither stands there. CheckpointError, IntegrityError: it is damaged.
        UsageError: a variant of a checkpoint, a backend that does not run it, or a variant of another backend.
        IncompatibleError, ParityError: it cannot run here, or does not compute what was trained.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"the number of threads cannot be {threads}", "give at least 1")
    if (path / MANIFEST_NAME).exists():
        opened = _bundle(path, backend, variant, device, threads)
    elif (path / CHECKPOINT_NAME).exists():
        opened = _checkpoint(path, backend, variant, device, threads)
    else:
        what = "is neither a bundle nor a checkpoint" if path.exists() else "does not exist"
        raise BundleError(f"{path} {what}", f"{nearby(path)}give what 'vggdeploy train' or 'vggdeploy export' made")
    with opened as model:
        yield model


@contextmanager
def _bundle(
    path: Path, backend: str, variant: str | None, device: Device | None, threads: int | None
) -> Iterator[OpenModel]:
    wanted = None if backend == "auto" else get_backend(backend)
    where = str(device) if device else None
    with load(path, backend=backend, variant=variant, device=where, threads=threads or usable_cores()) as engine:
        runner = backend_for(engine.variant)
        if wanted is not None and wanted is not runner:
            raise UsageError(f"{engine.variant.name} is run by {runner.name}, not by {wanted.name}", "leave one out")
        manifest = engine.bundle.manifest
        yield OpenModel(
            variant=engine.variant.name,
            backend=runner.name,
            device=str(engine.device),
            sha256=engine.bundle.sha256(engine.variant.path),
            spec=manifest.spec,
            preprocess=manifest.preprocess,
            labels=manifest.labels,
            dataset=manifest.dataset,
            batch=engine.variant.batch.opt,
            run=engine.run_prepared,
        )


@contextmanager
def _checkpoint(
    path: Path, backend: str, variant: str | None, device: Device | None, threads: int | None
) -> Iterator[OpenModel]:
    """A checkpoint in the session that also runs the reference of a bundle."""
    runner = get_backend("torch")
    if variant not in (None, REFERENCE) or (backend != "auto" and get_backend(backend) is not runner):
        asked = f"the variant {variant}" if variant not in (None, REFERENCE) else f"the backend {backend}"
        raise UsageError(
            f"{asked} is of a bundle, and {path} is a checkpoint",
            f"make a bundle first: vggdeploy export {path} -o BUNDLE",
        )
    where = device or default_device(runner)
    availability = runner.probe(where)
    if not availability.runs:
        raise IncompatibleError(f"{path} cannot run here: {availability.reason}", availability.fix)
    from vggdeploy.model.outputs import (
        LOGITS,
        input_spec,  # only now: both import torch, or lead to it
        output_specs,
    )

    checkpoint = read_checkpoint(path)
    spec = checkpoint.spec
    each = 4 * spec.blocks[0][0] * spec.image_size**2
    batch = BatchRange(1, max(1, min(_MAX_BATCH, _ACTIVATIONS // each)), _MAX_BATCH)
    source = Source(
        file=HashedFile(path / WEIGHTS_NAME, checkpoint.weights_sha256),
        spec=spec,
        preprocess=checkpoint.preprocess,
        inputs=(input_spec(spec),),
        outputs=output_specs(spec, (LOGITS,)),
        batch=batch,
        device=where,
        threads=threads,
    )
    session: Session = runner.load().SESSION(source)
    with CheckedSession(session, name=str(path / WEIGHTS_NAME), batch=batch) as opened:
        yield OpenModel(
            variant=REFERENCE,
            backend=runner.name,
            device=str(where),
            sha256=checkpoint.weights_sha256,
            spec=spec,
            preprocess=checkpoint.preprocess,
            labels=checkpoint.labels,
            dataset=checkpoint.dataset,
            batch=batch.opt,
            run=lambda images: run_batch(opened, images),
        )
