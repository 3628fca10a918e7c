"""Whether this machine can run a variant, and a session of it where it can."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TypeVar

import numpy as np

from vggdeploy.bundle import Bundle, Manifest, Variant
from vggdeploy.errors import IncompatibleError, UsageError
from vggdeploy.model.formats.admission import admit, admitted
from vggdeploy.runtime import preflight
from vggdeploy.runtime.base import Array, Availability, CheckedSession, GpuOptions, Hint, Session, Source
from vggdeploy.runtime.registry import BACKENDS, backend_for, default_device
from vggdeploy.system.machine import ISA_VARIABLES, allowed_cores, fingerprint, int8_saturates
from vggdeploy.system.sealed import HashedFile, SealedFile
from vggdeploy.types import Device, Precision, TensorSpec


def runnable(variant: Variant, device: Device | None = None) -> Availability:
    """Whether this machine can run a variant, and why not: its backend has to run here and to have its precision, and
    an engine has to fit."""
    backend = backend_for(variant)
    where = device or default_device(backend)
    availability = backend.probe(where)
    if availability.runs and variant.precision in availability.lacks:
        reason = f"{backend.title} has no {variant.precision} arithmetic on this {where.kind}"
        elsewhere = variant.precision is Precision.TF32 and where.kind == "cpu"
        fix = "give a GPU that has it: --device cuda" if elsewhere else "use another variant of the bundle"
        return replace(availability, runs=False, reason=reason, fix=fix)
    if availability.runs and _may_saturate(variant):
        return replace(availability, runs=False, reason=_SATURATES, fix=_REQUANTISE)
    if not availability.runs or variant.build is None:
        return availability
    wrong = preflight.mismatch(variant, preflight.host_of(variant, where))
    return replace(availability, runs=False, reason=wrong.cause, fix=wrong.fix) if wrong else availability


def conditions(variant: Variant, device: Device) -> dict[str, str]:
    """What a variant's answers depend on beside its bytes: the machine, the library and its version, a GPU's driver, and
    the variables that keep a library from instructions that the CPU has."""
    found = runnable(variant, device)
    gpu = preflight.host_of(variant, device).gpu
    return {
        "machine": fingerprint(),
        "backend": backend_for(variant).name,
        "version": found.version,
        "device": found.device,
        "driver": gpu.driver if gpu else "",
        **{name: os.environ[name] for name in ISA_VARIABLES if name in os.environ},
    }


def depends_on_machine(variant: Variant, device: Device) -> bool:
    """Whether the same bytes may answer otherwise on another machine than rounding of FP32 explains.

    An engine does, and so does whatever runs on a GPU. On a CPU the instructions decide what narrow types are computed
    in; OpenVINO and PyTorch choose their kernels by them, too.
    """
    narrow = variant.precision is not Precision.FP32
    return bool(variant.build) or device.kind != "cpu" or narrow or backend_for(variant).by_machine


_SATURATES = "INT8 products may saturate on this CPU, which has no VNNI, and nothing proves that this file's cannot"
_REQUANTISE = "quantise it again: vggdeploy optimize BUNDLE --step int8"


def _may_saturate(variant: Variant, sha256: str = "") -> bool:
    inexact = variant.precision is Precision.INT8 and not backend_for(variant).exact_int8
    return inexact and int8_saturates() and not variant.cannot_saturate(sha256)


def open_session(
    bundle: Bundle,
    variant: Variant,
    *,
    device: Device | None = None,
    threads: int | None = None,
    file: HashedFile | None = None,
    outputs: tuple[TensorSpec, ...] = (),
    gpu: GpuOptions | None = None,
    hint: Hint = "latency",
) -> CheckedSession:
    """A session of one variant, ready to be entered: then its file is read, and its hash compared.

    Args:
        file: the variant's file where it is not in the bundle, but in the engine cache.
        outputs: in place of the manifest's; only the reference, which is a model and no graph, can give others.
        gpu: contexts, CUDA graphs and caches of a session on a GPU.
        hint: what the session is set up for, on a backend that can be told.

    Raises:
        UsageError: fewer than one thread; settings of a GPU for a session on the CPU; a hint for a backend without.
        IncompatibleError: this machine cannot run it; cause and remedy are the probe's or the preflight's.
        IntegrityError: the manifest has no hash for its file. On entering: as `Source.open`.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"the number of threads cannot be {threads}", "give at least 1")
    backend = backend_for(variant)
    where = device or default_device(backend)
    if gpu is not None and where.kind == "cpu":
        raise UsageError(
            f"settings of a GPU do not fit {variant.name} on the CPU",
            "leave them out, or give --device cuda",
        )
    if hint not in backend.hints:
        raise UsageError(
            f"{variant.name} cannot be set up for {hint}: {backend.name} has no such setting", "leave the hint out"
        )
    source = replace(_source(bundle, variant, where, file), threads=threads, gpu=gpu or GpuOptions(), hint=hint)
    return _checked(variant, replace(source, outputs=outputs) if outputs else source)


def open_profiled(
    bundle: Bundle, variant: Variant, *, device: Device | None = None, threads: int | None = None
) -> CheckedSession:
    """As `open_session`: a session that times every kernel, which slows it down. See `vggdeploy.runtime.kernels`.

    Raises:
        UsageError: the variant's backend times none on that device.
    """
    backend = backend_for(variant)
    where = device or default_device(backend)
    if where.kind not in backend.profiles_on:
        able = "; ".join(f"{b.name} on {' and '.join(b.profiles_on)}" for b in BACKENDS if b.profiles_on)
        raise UsageError(f"{backend.name} does not time its layers on {where.kind}", f"these do: {able}")
    return _checked(variant, replace(_source(bundle, variant, where, None), threads=threads, profile=True))


def _checked(variant: Variant, source: Source) -> CheckedSession:
    session: Session = backend_for(variant).load().SESSION(source)
    return CheckedSession(session, name=variant.name, batch=variant.batch)


def _source(bundle: Bundle, variant: Variant, where: Device, file: HashedFile | None) -> Source:
    """All that a backend needs to open a variant that may run here. Raises as `open_session`."""
    availability = runnable(variant, where)
    if not availability.runs:
        raise IncompatibleError(f"{variant.name} cannot run here: {availability.reason}", availability.fix)
    manifest = bundle.manifest
    file = file or bundle.main_file(variant)
    if _may_saturate(variant, file.sha256):  # the record that `runnable` believed is of another file
        raise IncompatibleError(f"{variant.name} cannot run here: {_SATURATES}", _REQUANTISE)
    return Source(
        file=file,
        spec=manifest.spec,
        preprocess=manifest.preprocess,
        inputs=(manifest.input,),
        outputs=manifest.outputs,
        batch=variant.batch,
        device=where,
        build=variant.build,
        precision=variant.precision,
        cannot_saturate=variant.cannot_saturate(file.sha256),
        refuse=lambda sealed: _refuse(variant, manifest, sealed),
        weights=_weights(bundle, variant),
    )


def _weights(bundle: Bundle, variant: Variant) -> Callable[[], AbstractContextManager[SealedFile]] | None:
    """Where an engine that was built without weights gets them: from the ONNX in the bundle that its record names.

    Raises:
        IncompatibleError: it is not there.
    """
    if variant.build is None or "strip" not in variant.build.options:
        return None
    source = preflight.built_from(bundle, variant)
    if source is None:
        raise IncompatibleError(
            f"{variant.name} has no weights of its own, and the ONNX with them, {variant.build.source}, is not in the bundle",
            "use the bundle that it was built in, or build an engine with weights: vggdeploy build BUNDLE",
        )
    return lambda: admitted(bundle, source)


def _refuse(variant: Variant, manifest: Manifest, sealed: SealedFile) -> None:
    """What a file has to be before a library sees one of its bytes.

    Raises:
        IntegrityError: it is certainly no engine of its library. ForeignModelError: it is not the manifest's network.
    """
    preflight.check_engine(variant, sealed)
    admit(manifest, variant, sealed)


def run_batch(session: CheckedSession, batch: Array) -> dict[str, Array]:
    """Run a batch of at most the session's maximum: graph output name → array.

    One below the minimum (the rest of a data set on an engine for batches of 8) is filled up with copies of its last
    sample, whose answers are dropped.

    Raises:
        InputError: an empty or too large batch, a wrong dtype or shape, a NaN or infinity.
    """
    count, name = len(batch), session.inputs[0].name
    if 0 < count < session.batch.min:
        batch = np.concatenate([batch, np.repeat(batch[-1:], session.batch.min - count, axis=0)])
    return {key: array[:count] for key, array in session.run({name: batch}).items()}


MAX_WORKERS = 8  # decoding is the smaller part of the work: more threads only take cores from the session
T = TypeVar("T")
R = TypeVar("R")


def in_order(function: Callable[[T], R], items: Iterable[T], *, ahead: int) -> Generator[tuple[T, Future[R]]]:
    """Each item with its result, computed on a few threads at most ``ahead`` items before it is asked for."""
    workers = min(MAX_WORKERS, allowed_cores())
    waiting: deque[tuple[T, Future[R]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prepare")
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)
