"""Proof of precision from the engine itself: what its layers compute in, as the library's inspector names them.

Only where the engine can be deserialised: on a machine with its GPU. Elsewhere the parsed network is the proof.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from vggdeploy.errors import BuildError
from vggdeploy.runtime.tensorrt_api import Log, logger_for, no_collection, title

# Kernels of convolutions and matrix products, by what the libraries call them; and what only moves their data.
_PRODUCT = re.compile(r"conv|gemm|matmul|matrixmultiply|fullyconnected", re.IGNORECASE)
_MOVES = re.compile(r"reformat|noop|constant|shape|shuffle|signal|wait", re.IGNORECASE)
# TensorRT 10 writes "Format/Datatype": "Channel major FP16 format where …", TensorRT 11 has "Datatype": "Half" apart.
_TYPES = (
    ("int8", re.compile(r"int8", re.IGNORECASE)),
    ("fp8", re.compile(r"fp8|float8", re.IGNORECASE)),
    ("bf16", re.compile(r"bf16|bfloat16", re.IGNORECASE)),
    ("fp16", re.compile(r"fp16|half|float16", re.IGNORECASE)),
    ("fp32", re.compile(r"fp32|float", re.IGNORECASE)),
)
_ORDER = [name for name, _ in _TYPES]


def inspect_engine(library: Any, engine: Path) -> dict[str, int]:
    """Convolutions and matrix products of an engine that was just built here, by type: ``{"fp16": 16}``.

    Raises:
        BuildError: the library cannot load what it built, or its inspector's answer is no JSON.
    """
    log = Log()
    logger = logger_for(library, log)
    with no_collection():
        runtime = library.Runtime(logger)
        loaded = runtime.deserialize_cuda_engine(engine.read_bytes()) if runtime is not None else None
        if loaded is None:
            raise BuildError(
                f"{title(library)} cannot load the engine that it built: {log.cause()}", "see: vggdeploy doctor"
            )
        inspector = loaded.create_engine_inspector()
        text = inspector.get_engine_information(library.LayerInformationFormat.JSON)
    return layers_by_type(text)


def layers_by_type(text: str) -> dict[str, int]:
    """What the inspector's JSON says, of TensorRT 10 and of 11. Fused layers count once, so there may be fewer.

    Raises:
        BuildError: it is not JSON, or has no list of layers.
    """
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise BuildError("the engine inspector's answer is no list of layers", "report it, with --debug") from error
    found: Counter[str] = Counter()
    for layer in layers:
        kind = _computes_in(layer) if isinstance(layer, dict) else None  # a bare name says no type
        if kind is not None:
            found[kind] += 1
    return dict(sorted(found.items()))


def _computes_in(layer: dict[str, Any]) -> str | None:
    """The narrowest of a product's first input and first output: the other may be cast on the way. None for the rest."""
    kind = f"{layer.get('LayerType', '')} {layer.get('ParameterType', '')}"
    if _MOVES.search(kind) or not _PRODUCT.search(f"{kind} {layer.get('Name', '')} {layer.get('TacticName', '')}"):
        return None
    ends = [*list(layer.get("Inputs") or ())[:1], *list(layer.get("Outputs") or ())[:1]]
    types = [name for end in ends if isinstance(end, dict) and (name := _type_of(end)) is not None]
    return min(types, key=_ORDER.index, default=None)


def _type_of(tensor: dict[str, Any]) -> str | None:
    text = str(tensor.get("Datatype") or tensor.get("Format/Datatype") or "")
    return next((name for name, pattern in _TYPES if pattern.search(text)), None)
