"""Building an engine from a bundle's ONNX and adding it to that bundle; and how much repeated builds of it differ."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np

from vggdeploy.build.cache import ENGINE, LOG, EngineCache, EngineFile, build_entry, copy_file
from vggdeploy.build.memory import ProfileMemory, session_memory
from vggdeploy.build.request import BuildPlan, BuildRequest, make_request
from vggdeploy.build.tensorrt import BuildResult
from vggdeploy.bundle import BuildRecord, Bundle, Manifest, RebuildSpread, Variant, update_bundle
from vggdeploy.errors import BuildError, BundleError, UsageError
from vggdeploy.model.formats.admission import check_variant
from vggdeploy.records import SCHEMA_VERSION, ParityRecord, Record
from vggdeploy.runtime import open_session, runnable
from vggdeploy.runtime.sessions import run_batch
from vggdeploy.system.files import scratch_directory
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import OnProgress, TensorSpec, Verdict, silent

WARM_UP, CALLS = 10, 100  # calls of an engine whose latency is measured


class BuildReport(Record, frozen=True, kw_only=True):
    """What ``vggdeploy build --json`` prints: the variant as the manifest has it, its bytes and their hash.

    ``cached``: the engine was built before, and copied from the cache. ``memory``: what a session will take on the GPU.
    """

    schema_version: int = SCHEMA_VERSION
    bundle: str
    variant: Variant
    size: int
    sha256: str
    cached: bool = False
    memory: tuple[ProfileMemory, ...] = ()


@dataclass(frozen=True)
class BundledEngine:
    """The bundle as it stands now, and the engine that was added to it."""

    bundle: Bundle
    variant: Variant
    cached: bool = False

    def report(self) -> BuildReport:
        size, sha256 = self.bundle.size(self.variant), self.bundle.sha256(self.variant.path)
        return BuildReport(
            bundle=str(self.bundle.root),
            variant=self.variant,
            size=size,
            sha256=sha256,
            cached=self.cached,
            memory=session_memory(self.bundle.manifest, self.variant),
        )


def build_into(
    bundle: Bundle,
    plan: BuildPlan,
    *,
    rebuilds: int = 1,
    cache: EngineCache | None = None,
    on_progress: OnProgress = silent,
) -> BundledEngine:
    """Build an engine from the bundle's ONNX of that precision, and add it to the bundle in one step.

    An engine for the same GPUs and batches, from the same release of the same library and of the same precision, is
    replaced; others stay beside it. The result is `Verdict.UNPROVEN` until ``verify`` ran it.

    Args:
        rebuilds: build that often, without the cache, and record how the builds differ. The first one is kept.
        cache: where an engine of the same ONNX, library, GPU and options is looked for, and kept. Default: nowhere.
        on_progress: called with the share that is done, from 0 to 1, and the name of the phase.

    Raises:
        UsageError: an unknown engine or target, or targets for an engine that has none.
        BundleError: the bundle has no ONNX of that precision, or it was altered.
        IncompatibleError: the library, an option of it or the GPU that it needs is missing.
        BuildError: the library refused the model; ParityError: the built precision is not the asked one.
    """
    request = make_request(bundle, plan)
    if rebuilds < 1:
        raise UsageError(f"--rebuilds is {rebuilds}, and a build needs at least one", "give 1 or more: --rebuilds 3")
    if rebuilds > 1:
        cache = None  # a copy says nothing about the next build
    with made_engine(bundle, request, cache=cache, on_progress=on_progress) as engine:
        record = request.record(engine.entry.seconds, engine.log.decode(errors="replace"))
        if rebuilds > 1:
            variant = engine_variant(request, engine, record, request.name(bundle.manifest))
            rebuild_spread = spread(bundle, request, variant, engine, rebuilds, on_progress)
            record = msgspec.structs.replace(record, rebuilds=rebuild_spread)
        return add_engine(bundle, request, engine, record)


@contextmanager
def made_engine(
    bundle: Bundle, request: BuildRequest, *, cache: EngineCache | None, on_progress: OnProgress = silent
) -> Iterator[EngineFile]:
    """The engine of a request, built or found in the cache; its graph is the bundle's. It is gone with the block."""
    check_variant(bundle, request.source)
    source = bundle.main_file(request.source)
    key, about = request.key(), request.about()

    def build(target: Path) -> BuildResult:
        return request.build(source, target, on_progress)

    def wait() -> None:
        on_progress(0.0, "waiting for another process that builds it")

    # A cache that cannot be written is no reason not to build.
    if cache is not None and cache.writable():
        with cache.engine(key, about, build, on_wait=wait) as engine:
            if engine.cached:
                on_progress(1.0, "copied from the cache")
            _check_graph(engine, bundle.manifest, request.source)
            yield engine
        return
    with scratch_directory(bundle.root) as scratch:
        entry = build_entry(scratch, key, about, build)
        engine = EngineFile(scratch / ENGINE, entry, (scratch / LOG).read_bytes(), cached=False)
        _check_graph(engine, bundle.manifest, request.source)
        yield engine


def add_engine(
    bundle: Bundle, request: BuildRequest, engine: EngineFile, record: BuildRecord, parity: ParityRecord | None = None
) -> BundledEngine:
    """Put an engine into the bundle as it is now: others may have been added while this one was built.

    Args:
        parity: the proof, where it was run already.

    Raises:
        BundleError: the ONNX that the engine was built from is not the bundle's any more.
    """
    latest = Bundle.open(bundle.root, only=())
    source = {v.name: v for v in latest.manifest.variants}.get(request.source.name)
    if source is None or latest.sha256(source.path) != request.source_sha256:
        raise BundleError(
            f"{request.source.name} of {bundle.root} was replaced while its engine was built", "run this command again"
        )
    variant = engine_variant(request, engine, record, request.name(latest.manifest))
    if parity is not None:
        named = msgspec.structs.replace(parity, variant=variant.name)
        variant = msgspec.structs.replace(variant, parity=named, distances=named.distances)
    with update_bundle(latest) as draft:
        copy_file(engine.path, draft.path(variant.path))
        # Hashed as the library gave it, or when it was found in the cache; every reader hashes it again.
        draft.known(variant.path, engine.entry.sha256)
        draft.write(f"{PurePosixPath(variant.path).parent}/{LOG}", engine.log)
        draft.manifest = latest.manifest.with_variants(variant)
    return BundledEngine(Bundle(bundle.root, draft.manifest), variant, engine.cached)


def engine_variant(request: BuildRequest, engine: EngineFile, record: BuildRecord, name: str) -> Variant:
    """The engine as a manifest has it: not proven yet."""
    variant = Variant(
        name=name,
        format=request.backend.name,
        precision=request.precision,
        path=f"variants/{name}/{ENGINE}",
        batch=request.batch,
        proof=engine.entry.proof,
        build=msgspec.structs.replace(record, scratch=engine.entry.scratch),
    )
    return msgspec.structs.replace(variant, parity=_unproven(variant))


def _check_graph(engine: EngineFile, manifest: Manifest, source: Variant) -> None:
    """The engine's inputs and outputs have to be those that every user of the bundle relies on."""

    def plain(specs: Sequence[TensorSpec]) -> dict[str, Any]:
        return {spec.name: (spec.dtype, spec.item_shape) for spec in specs}

    entry = engine.entry
    if plain(entry.inputs) != plain([manifest.input]) or plain(entry.outputs) != plain(manifest.outputs):
        texts = ", ".join(map(str, (*entry.inputs, *entry.outputs)))
        raise BuildError(
            f"the engine of {source.name} has other inputs and outputs than the manifest: {texts}",
            "export the bundle again: vggdeploy export CHECKPOINT -o BUNDLE --force",
        )


def _unproven(variant: Variant) -> ParityRecord:
    """The record of an engine that was not compared yet: it says why, and which command compares it."""
    here = runnable(variant)
    if here.runs:
        reason = "built and not run yet (vggdeploy verify BUNDLE)"
    else:
        reason = f"built where it cannot run: {here.reason}; the golden pair proves it there: vggdeploy verify BUNDLE"
    return ParityRecord(
        variant=variant.name, backend=variant.format, device="cuda", verdict=Verdict.UNPROVEN, reasons=(reason,)
    )


def spread(
    bundle: Bundle,
    request: BuildRequest,
    variant: Variant,
    first: EngineFile,
    builds: int,
    on_progress: OnProgress = silent,
) -> RebuildSpread:
    """Build ``builds`` − 1 times more, and compare with the ``first``. Each engine is gone before the next is built."""
    source = bundle.main_file(request.source)
    runs = runnable(variant).runs
    hashes, sizes, seconds = {first.entry.sha256}, [first.entry.size], [first.entry.seconds]
    latencies = [_p50(bundle, variant, first.file)] if runs else []
    for number in range(2, builds + 1):
        with scratch_directory(bundle.root) as scratch:
            built = request.build(source, scratch / ENGINE, _numbered(on_progress, number, builds))
            hashes.add(built.sha256)
            sizes.append(built.size)
            seconds.append(built.seconds)
            if runs:
                latencies.append(_p50(bundle, variant, HashedFile(scratch / ENGINE, built.sha256)))
    return RebuildSpread(
        builds=builds,
        distinct=len(hashes),
        sizes=tuple(sizes),
        seconds=tuple(round(value, 3) for value in seconds),
        p50_ms=tuple(round(value, 4) for value in latencies),
    )


def _numbered(on_progress: OnProgress, number: int, builds: int) -> OnProgress:
    return lambda share, phase: on_progress(share, f"build {number} of {builds}: {phase}")


def _p50(bundle: Bundle, variant: Variant, engine: HashedFile) -> float:
    """Median milliseconds of a batch of the optimal size, from the golden images."""
    inputs, _ = bundle.golden()
    images = np.resize(inputs[bundle.manifest.input.name], (variant.batch.opt, *bundle.manifest.input.item_shape))
    times = []
    with open_session(bundle, variant, file=engine) as session:
        for call in range(WARM_UP + CALLS):
            start = time.perf_counter_ns()
            run_batch(session, images)
            if call >= WARM_UP:
                times.append(time.perf_counter_ns() - start)
    return float(np.median(times)) / 1e6
