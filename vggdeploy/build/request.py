"""One engine that is asked for: all that decides its bytes, and so its key in the cache and its name in a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import msgspec

from vggdeploy.build.options import BuildOptions
from vggdeploy.build.profiles import Profiles, as_text, default_profiles, short_name, whole
from vggdeploy.build.readback import inspect_engine
from vggdeploy.build.sparsity import sparse_kernels, sparse_layers
from vggdeploy.build.targets import check_targets, default_targets, resolve_targets, set_targets
from vggdeploy.build.tensorrt import BuildResult, build_engine, open_library
from vggdeploy.build.timing import keep_times
from vggdeploy.bundle import BuildRecord, Bundle, Manifest, Variant
from vggdeploy.bundle.precision import check_engine
from vggdeploy.errors import BundleError, IncompatibleError, UsageError
from vggdeploy.runtime.gpu.cuda import Gpu, find_gpu, use
from vggdeploy.runtime.preflight import release
from vggdeploy.runtime.registry import Backend, get_engine
from vggdeploy.system.cache import key_of
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import BatchRange, Device, OnProgress, Precision, silent

# Raise it when `vggdeploy.build.tensorrt` sets up a build in another way: older cache entries are then no hits.
RECIPE = 1
FIRST_GPU = Device("cuda")


@dataclass(frozen=True)
class BuildRequest:
    """A build that was checked: the library is there and has every option. ``gpu`` is the one it is tuned on, if any;
    ``device`` is where the engine can be looked at, if there is a GPU."""

    backend: Backend
    library: Any
    source: Variant
    source_sha256: str
    precision: Precision
    profiles: Profiles
    targets: tuple[str, ...]
    gpu: Gpu | None
    options: BuildOptions
    device: Device = FIRST_GPU
    sparse: tuple[str, ...] = ()  # layers of the ONNX that are 2:4, where that was asked for

    @property
    def batch(self) -> BatchRange:
        """The batches of all profiles, and the one that the ONNX is meant for, where a profile is tuned for it."""
        return whole(self.profiles, self.source.batch.opt)

    def about(self) -> dict[str, str]:
        """All that decides the bytes, by name."""
        gpu = self.gpu
        return {
            "recipe": str(RECIPE),
            "onnx": self.source_sha256,
            "library": self.backend.library,
            "version": self.library.__version__,
            "precision": str(self.precision),
            "batch": as_text(self.profiles),
            "targets": ",".join(self.targets),
            "gpu": f"{gpu.name}, {gpu.capability}, driver {gpu.driver}" if gpu else "",
            **{f"option {name}": text for name, text in self.options.as_text().items()},
        }

    def key(self) -> str:
        """The name of this build in the cache: SHA-256 of `about`."""
        return key_of(self.about())

    def build(self, source: HashedFile, target: Path, on_progress: OnProgress = silent) -> BuildResult:
        """Build the engine of ``source`` and write it to ``target``. Raises as `build_engine`, and as `inspect_engine`."""
        if self.gpu is not None:
            use(self.device)
        with source.open() as file:
            built = build_engine(
                self.library,
                file.path,
                target,
                precision=self.precision,
                profiles=self.profiles,
                configure=self._configure,
                after=self._after,
                on_progress=on_progress,
            )
        if not self._runs_here():
            return built
        # The network said what was asked for; where there is a GPU, the engine says what it became.
        use(self.device)
        facts = inspect_engine(self.library, HashedFile(target, built.sha256))
        check_engine(facts.layers, self.precision, source=source.path.name)
        proof = msgspec.structs.replace(built.proof, engine=facts.layers)
        return replace(built, proof=proof, scratch=facts.scratch)

    def _runs_here(self) -> bool:
        if self.gpu is not None:
            return True
        availability = self.backend.probe(self.device)
        return availability.runs and find_gpu(self.device).capability in self.targets

    def _configure(self, config: Any) -> None:
        if "cpu" in self.backend.builds_on:
            set_targets(self.library, config, self.targets)
        self.options.apply(self.library, config)

    def _after(self, config: Any) -> None:
        if self.options.timing_cache is not None:
            keep_times(self.library, config, self.options.timing_cache)

    def record(self, seconds: float, log: str = "") -> BuildRecord:
        """What the manifest says about the build. ``log``: the library's."""
        return BuildRecord(
            library=self.backend.library,
            version=self.library.__version__,
            source=self.source.name,
            source_sha256=self.source_sha256,
            targets=self.targets,
            options={"batch": as_text(self.profiles), **self.options.as_text()},
            seconds=round(seconds, 3),
            gpu=self.gpu.name if self.gpu else "",
            driver=self.gpu.driver if self.gpu else "",
            graph_batches=self.options.graph_batches,
            profiles=self.profiles,
            sparse=sparse_kernels(self.sparse, log) if self.sparse else None,
        )

    def name(self, manifest: Manifest) -> str:
        """The variant's name: ``tensorrt-rtx-fp16``, with the targets behind it where they are not the default.

        An engine for the same GPUs and batches, from the same release of the library, is replaced. Any other keeps its
        name; then the new one gets its batches behind, or the release, or a number.
        """
        mine = identity(self.record(0), self.precision)
        taken = {v.name: v for v in manifest.variants}
        for variant in manifest.variants:
            if (
                variant.format == self.backend.name
                and variant.build
                and identity(variant.build, variant.precision) == mine
            ):
                return variant.name
        base = f"{self.backend.name}-{self.precision}{'-stripped' if self.options.strip else ''}"
        if "cpu" not in self.backend.builds_on or self.targets != default_targets(self.library, self.precision):
            base = "-".join([base, *self.targets])
        if base in taken and taken[base].profiles != self.profiles:
            base = f"{base}-{short_name(self.profiles)}"
        of_release = f"{base}-{'.'.join(map(str, release(self.library.__version__)))}"
        numbered = (f"{of_release}-{number}" for number in count(2))
        return next(name for name in chain((base, of_release), numbered) if name not in taken)


def identity(record: BuildRecord, precision: Precision) -> tuple[object, ...]:
    """What makes two engines serve the same machines and batches in the same precision: then one replaces the other."""
    compatible = record.options.get("hardware_compatible", ""), record.options.get("version_compatible", "")
    # Without hardware compatibility TensorRT tunes for one GPU model; with it for a capability, or for all from Ampere.
    gpu = record.gpu if not compatible[0] else ""
    targets = record.targets if compatible[0] != "ampere+" else ()
    # Bundles from before an engine could have several profiles name the one range among the options only.
    batches = as_text(record.profiles) or record.options.get("batch", "")
    stripped = "strip" in record.options
    return record.library, release(record.version), targets, gpu, compatible, precision, batches, stripped


@dataclass(frozen=True)
class BuildPlan:
    """The engine that is to be built.

    Attributes:
        engine: ``tensorrt-rtx`` (any machine) or ``tensorrt`` (a machine with the NVIDIA GPU that will run it).
        precision: of the ONNX that it is built from, and of the engine. TF32 is built from FP32.
        profiles: the batch sizes, see `vggdeploy.build.profiles`. Default: `default_profiles` of the ONNX variant's.
        targets: GPU generations or compute capabilities, for TensorRT for RTX only. Default: `default_targets`.
        options: those of the library.
        device: the GPU of this machine to build for. Default: the first for TensorRT; ``targets`` for TensorRT for RTX.
    """

    engine: str
    precision: Precision = Precision.FP16
    profiles: Profiles | None = None
    targets: Sequence[str] | None = None
    options: BuildOptions = field(default_factory=BuildOptions)
    device: Device | None = None


def make_request(bundle: Bundle, plan: BuildPlan) -> BuildRequest:
    """Check what was asked for, before anything is built. Errors are those of `build_into`."""
    backend, targets, options = get_engine(plan.engine), plan.targets, plan.options
    needs_gpu = "cpu" not in backend.builds_on
    if targets is not None and needs_gpu:
        raise UsageError(
            f"{backend.name} builds for the GPU of this machine, not for '{','.join(targets)}'",
            "leave --target out, or use --engine tensorrt-rtx",
        )
    device = gpu_device(plan.device)
    if targets is not None and plan.device is not None:
        raise UsageError("--target and --device both say which GPUs the engine is for", "leave one of them out")
    source = source_variant(bundle, plan.precision)
    library = open_library(backend)
    profiles = plan.profiles or (default_profiles(source.batch) if options.strip is None else (source.batch,))
    if plan.device is not None:
        targets = [find_gpu(device).capability]
    gpu = find_gpu(device) if needs_gpu else None
    if gpu is not None:
        sms: tuple[str, ...] = (gpu.capability,)
    else:
        sms = default_targets(library, plan.precision) if targets is None else resolve_targets(library, targets)
    check_targets(sms, plan.precision)
    options.check(library, whole(profiles, source.batch.opt), len(profiles))
    if options.strip is not None and gpu is None and not (found := backend.probe(Device("cuda"))).runs:
        raise IncompatibleError(
            f"{backend.title} leaves weights out only where it has a GPU to build on: {found.reason}",
            "build on the GPU's machine, or leave --strip out",
        )
    sha256 = bundle.sha256(source.path)
    sparse = sparse_layers(bundle, source) if options.sparse else ()
    return BuildRequest(backend, library, source, sha256, plan.precision, profiles, sms, gpu, options, device, sparse)


def gpu_device(device: Device | None) -> Device:
    """The GPU to build for: the one that was named, or the first.

    Raises:
        UsageError: what was named is no GPU.
    """
    if device is not None and device.kind != "cuda":
        raise UsageError(f"an engine cannot be built for {device}", "give cuda or cuda:INDEX, or leave --device out")
    return device or FIRST_GPU


def source_variant(bundle: Bundle, precision: Precision) -> Variant:
    """The ONNX variant to build from.

    Raises:
        BundleError: there is none of that precision; the hint names those that are there.
    """
    # Of two in INT8 the symmetric one: TensorRT takes no other.
    there = [v for v in bundle.manifest.variants if v.format == "onnx"]
    by_precision = {v.precision: v for v in sorted(there, key=_is_symmetric)}
    if precision.stored in by_precision:
        return by_precision[precision.stored]
    add = (
        f"vggdeploy optimize BUNDLE --step {precision}"
        if precision.quantised
        else (f"vggdeploy export CHECKPOINT -o BUNDLE --force --formats onnx-fp32,onnx-{precision.stored}")
    )
    raise BundleError(
        f"{bundle.root} has no ONNX in {precision.stored} to build from (ONNX there: {', '.join(by_precision) or 'none'})",
        f"choose one of those with --precision, or make it: {add}",
    )


def _is_symmetric(variant: Variant) -> bool:
    return variant.quantisation is not None and variant.quantisation.activations == "int8"
