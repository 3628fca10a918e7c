"""What can be asked of a build beside precision, batch and targets. An option that a library lacks is refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggdeploy.build.timing import use_times
from vggdeploy.errors import BuildError, IncompatibleError, UsageError, unknown_name
from vggdeploy.runtime.tensorrt.api import title
from vggdeploy.types import BatchRange

HARDWARE = {"ampere+": "AMPERE_PLUS", "same-cc": "SAME_COMPUTE_CAPABILITY"}
# Weights are left out of the engine, which gets them at load: those it was built from, or any of the same network.
STRIP = {"identical": "REFIT_IDENTICAL", "any": "REFIT"}
MAX_OPT_LEVEL = 5  # both libraries take a larger number, and then use this one

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,3})?)\s*([kmgt]i?)?(b)?", re.IGNORECASE)

# What TensorRT for RTX 1.7 has in its module and does not do: the setters only warn, and the build goes on without.
_NOT_IN_RTX = {
    "timing_cache": "it times no kernels at build time; leave --timing-cache out",
    "hardware_compatible": "one engine serves every GPU that --target names, for example --target ampere,ada",
    "sparse": "its engines are byte for byte the same with it; leave --sparse out, or build with --engine tensorrt",
    "version_compatible": "it has no lean runtime: its engines load only in the release that built them",
}


@dataclass(frozen=True)
class BuildOptions:
    """What was asked for; None and False leave the library's default.

    ``workspace``: bytes of GPU memory that a kernel may use while it runs. ``opt_level``: how long the builder searches,
    0–5. ``timing_cache``: a file, read before the build and written after it. ``hardware_compatible``: a key of
    `HARDWARE`. ``version_compatible``: loads in later releases too, by their lean runtime. ``sparse``: 2:4 sparse kernels
    where the weights are so. ``strip``: a key of `STRIP`. ``weight_streaming``: a session may leave a part of the weights in
    the host's memory. ``graph_batches``: batch sizes that a session captures as CUDA graphs.
    """

    workspace: int | None = None
    opt_level: int | None = None
    timing_cache: Path | None = None
    hardware_compatible: str | None = None
    version_compatible: bool = False
    sparse: bool = False
    strip: str | None = None
    weight_streaming: bool = False
    graph_batches: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.workspace is not None and self.workspace < 1:
            raise UsageError("the workspace has 0 bytes", "give a size with its unit: --workspace 2GiB")
        if self.opt_level is not None and not 0 <= self.opt_level <= MAX_OPT_LEVEL:
            raise UsageError(
                f"the optimisation level is {self.opt_level}, which does not exist",
                f"give 0 to {MAX_OPT_LEVEL}: --opt-level 3",
            )
        if self.hardware_compatible is not None and self.hardware_compatible not in HARDWARE:
            raise unknown_name("hardware compatibility", self.hardware_compatible, HARDWARE)
        if self.strip is not None and self.strip not in STRIP:
            raise unknown_name("value of --strip", self.strip, STRIP)

    @classmethod
    def from_record(cls, options: Mapping[str, str], graph_batches: Sequence[int] = ()) -> BuildOptions:
        """What an engine was built with, to build it again. (A timing cache is a file of the machine that had it.)"""
        level = options.get("opt_level", "")
        return cls(
            workspace=parse_size(options["workspace"]) if "workspace" in options else None,
            opt_level=int(level) if level.isdecimal() else None,
            hardware_compatible=options.get("hardware_compatible"),
            version_compatible="version_compatible" in options,
            sparse="sparse" in options,
            strip=options.get("strip"),
            weight_streaming="weight_streaming" in options,
            graph_batches=tuple(graph_batches),
        )

    def as_text(self) -> dict[str, str]:
        """What decides the engine, for the manifest and for the cache's key.

        A timing cache does not: it spares measuring kernels, and grows with every build that it takes part in.
        """
        texts = {
            "workspace": None if self.workspace is None else str(self.workspace),
            "opt_level": None if self.opt_level is None else str(self.opt_level),
            "hardware_compatible": self.hardware_compatible,
            "version_compatible": "yes" if self.version_compatible else None,
            "sparse": "yes" if self.sparse else None,
            "strip": self.strip,
            "weight_streaming": "yes" if self.weight_streaming else None,
        }
        return {name: text for name, text in texts.items() if text is not None}

    def check(self, library: Any, batch: BatchRange, profiles: int = 1) -> None:
        """Refuse, before anything is built, what the library lacks and what the batch range makes senseless.

        Raises:
            IncompatibleError: the library, or this version of it, lacks an option that was asked for.
            UsageError: a CUDA graph for a batch size that the engine does not take; more profiles than it may have.
        """
        flags = library.BuilderFlag
        has = {
            "timing_cache": hasattr(library.IBuilderConfig, "set_timing_cache"),
            "hardware_compatible": self.hardware_compatible is None
            or hasattr(getattr(library, "HardwareCompatibilityLevel", None), HARDWARE[self.hardware_compatible]),
            "version_compatible": hasattr(flags, "VERSION_COMPATIBLE") and hasattr(flags, "EXCLUDE_LEAN_RUNTIME"),
            "sparse": hasattr(flags, "SPARSE_WEIGHTS"),
            "strip": hasattr(flags, "STRIP_PLAN") and hasattr(flags, STRIP.get(self.strip or "", "")),
            "weight_streaming": hasattr(flags, "WEIGHT_STREAMING"),
            "opt_level": hasattr(library.IBuilderConfig, "builder_optimization_level"),
        }
        for name, there in has.items():
            if getattr(self, name) in (None, False):
                continue
            missing = _NOT_IN_RTX.get(name) if library.__name__ == "tensorrt_rtx" else None
            if missing or not there:
                option = f"--{name.replace('_', '-')}"
                raise IncompatibleError(f"{title(library)} has no {option}", missing or f"leave {option} out")
        if self.strip is not None and profiles > 1:
            # "A refittable engine supports at most one": IBuilderConfig::addOptimizationProfile, NvInfer.h of 10 and 11.
            raise UsageError(
                f"an engine without weights takes one profile, and {profiles} were asked for",
                "give a range: --batch 1:8:64",
            )
        for size in self.graph_batches:
            if not batch.min <= size <= batch.max:
                raise UsageError(
                    f"a CUDA graph was asked for batches of {size}, and the engine takes {batch.min} to {batch.max}",
                    "change --cuda-graph-batches, or widen --batch",
                )

    def apply(self, library: Any, config: Any) -> None:
        """Put them on a builder's configuration, and read back what a setter might have ignored.

        Raises:
            BuildError: the library did not take one of them.
        """
        if self.workspace is not None:
            pool = library.MemoryPoolType.WORKSPACE
            config.set_memory_pool_limit(pool, self.workspace)
            _taken(library, "--workspace", self.workspace, config.get_memory_pool_limit(pool))
        if self.opt_level is not None:
            config.builder_optimization_level = self.opt_level
            _taken(library, "--opt-level", self.opt_level, config.builder_optimization_level)
        if self.hardware_compatible is not None:
            level = getattr(library.HardwareCompatibilityLevel, HARDWARE[self.hardware_compatible])
            config.hardware_compatibility_level = level
            _taken(library, "--hardware-compatible", level, config.hardware_compatibility_level)
        if self.version_compatible:
            config.set_flag(library.BuilderFlag.VERSION_COMPATIBLE)
            # Without this the engine holds a lean runtime: code for the CPU, which loading would have to allow.
            config.set_flag(library.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
        if self.sparse:
            config.set_flag(library.BuilderFlag.SPARSE_WEIGHTS)
        if self.strip is not None:
            config.set_flag(library.BuilderFlag.STRIP_PLAN)
            config.set_flag(getattr(library.BuilderFlag, STRIP[self.strip]))
        if self.weight_streaming:
            config.set_flag(library.BuilderFlag.WEIGHT_STREAMING)
        if self.timing_cache is not None:
            use_times(library, config, self.timing_cache)


def _taken(library: Any, option: str, asked: Any, used: Any) -> None:
    if asked != used:
        raise BuildError(f"{title(library)} does not take {option} {asked}: it uses {used}", f"leave {option} out")


def parse_size(text: str) -> int:
    """``"2GiB"``, ``"512 MB"``, ``"1048576"`` → bytes.

    Raises:
        UsageError: no size, or a small number without its unit: other tools mean MiB or GiB by it.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"'{text}' is not a size", "give a number and its unit, for example 2GiB or 512MiB")
    number, unit = match[1], (match[2] or "").lower()
    if not unit and not match[3] and (float(number) < 2**16):
        raise UsageError(f"the size '{text}' has no unit", f"give it: {number}GiB or {number}MiB")
    return int(float(number) * _UNITS[unit])
