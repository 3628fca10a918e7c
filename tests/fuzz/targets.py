"""Every parser that reads what may come from anyone.

`TARGETS` has them by name. `LIBRARIES` are those whose content goes on to a library (ONNX, TorchScript, safetensors).
"""

from __future__ import annotations

from fuzz.binaries import (
    ArrayTarget,
    EngineFileTarget,
    FaultTarget,
    ImageTarget,
    KeyTarget,
    OnnxTarget,
    PuzzleTarget,
    SafetensorsTarget,
    TorchScriptTarget,
    WeightsTarget,
)
from fuzz.documents import (
    CheckpointTarget,
    EngineTarget,
    ManifestTarget,
    PolicyTarget,
    RecipeTarget,
    ReportTarget,
    SearchTarget,
    SignatureTarget,
)
from fuzz.target import Target

OURS: dict[str, type[Target]] = {
    t.name: t
    for t in (
        ManifestTarget, CheckpointTarget, RecipeTarget, PolicyTarget, SignatureTarget, KeyTarget, EngineTarget, ReportTarget,
        SearchTarget, ArrayTarget, ImageTarget, WeightsTarget, EngineFileTarget,
    )
}  # fmt: skip
LIBRARIES: dict[str, type[Target]] = {t.name: t for t in (OnnxTarget, TorchScriptTarget, SafetensorsTarget)}
TARGETS = {**OURS, **LIBRARIES, FaultTarget.name: FaultTarget, PuzzleTarget.name: PuzzleTarget}
