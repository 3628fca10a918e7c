"""What a search is for: this machine's CPUs, on which it measures; or an engine's GPU, for which it ranks and then builds."""

from __future__ import annotations

from dataclasses import dataclass

from vggdeploy.builders.engines import build_into
from vggdeploy.builders.request import BuildPlan
from vggdeploy.builders.tensorrt import open_library
from vggdeploy.builders.tensorrt_rtx import resolve_targets
from vggdeploy.bundle import Bundle, Variant
from vggdeploy.errors import UsageError
from vggdeploy.pipeline.optimize import BUNDLE_STEPS
from vggdeploy.records import Goal
from vggdeploy.runtime.registry import Backend, get_engine

CPU = "cpu"


@dataclass(frozen=True)
class Target:
    """``engine``: None for the CPUs. ``formats`` and ``steps`` make the variants of a trial; ``int8`` is the flavour of
    quantisation. Of an engine, the ONNX that it is built from stands for it: it has the same weights and the same Q/DQ
    pairs, and this machine can run it.
    """

    formats: tuple[str, ...]
    steps: tuple[str, ...]
    int8: str
    engine: Backend | None = None
    gpus: tuple[str, ...] = ()

    @classmethod
    def parse(cls, goal: Goal) -> Target:
        """``cpu``, ``tensorrt-rtx``, ``tensorrt-rtx:sm89,sm120``, ``tensorrt``.

        Raises:
            UsageError: another name, or a latency where none can be measured.
            MissingDependencyError: the engine's library is not installed.
        """
        name, _, gpus = goal.target.partition(":")
        if name == CPU:
            if gpus:
                raise UsageError(f"a search for {goal.target}", "the CPUs are those of this machine: --target cpu")
            return cls(("onnx-fp32",), tuple(BUNDLE_STEPS), "cpu")
        engine = get_engine(name)
        if goal.latency_ms is not None:
            raise UsageError(
                f"a latency limit for {goal.target}, which is not measured here",
                "leave --max-latency-ms out, and bench the engine on its GPU",
            )
        if "cpu" not in engine.builds_on and gpus:
            raise UsageError(f"GPUs for {engine.name}, which builds for the one it runs on", f"--target {engine.name}")
        wanted = tuple(part.strip() for part in gpus.split(",") if part.strip())
        library = open_library(engine)
        if wanted:
            resolve_targets(library, wanted)
        return cls(("onnx-fp32", "onnx-fp16"), ("int8",), "tensorrt", engine, wanted)

    @property
    def measured(self) -> bool:
        return self.engine is None

    def stands_for(self, variant: Variant) -> bool:
        """Whether a variant is a candidate: every one on the CPUs; those that an engine can be built from otherwise."""
        return self.engine is None or variant.name in ("onnx-fp16", "onnx-int8-symmetric")

    def build(self, bundle: Bundle, chosen: str) -> None:
        """Add the engine of the winner to its bundle. Errors: those of `build_into`."""
        if self.engine is not None:
            precision = bundle.manifest.variant(chosen).precision
            build_into(bundle, BuildPlan(self.engine.name, precision, targets=self.gpus or None))
