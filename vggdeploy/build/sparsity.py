"""What ``build --sparse`` had to work with, and what the library made of it."""

from __future__ import annotations

import re

from vggdeploy.bundle import Bundle, SparseKernels, Variant
from vggdeploy.errors import UsageError
from vggdeploy.model.formats.admission import admitted
from vggdeploy.model.formats.sparsity import sparse_products
from vggdeploy.model.layers import layer_names

# TensorRT 10 and 11 log, once for every pass of the builder: "(Sparsity) Found 13 layer(s) eligible to use sparse tactics" and
# "(Sparsity) Chose 4 layer(s) using sparse tactics", in some releases with the names behind. The last pass made the engine.
_ELIGIBLE = re.compile(r"\(Sparsity\) Found (\d{1,6}) layer\(s\) eligible to use sparse tactics")
_CHOSEN = re.compile(r"\(Sparsity\) Chose (\d{1,6}) layer\(s\) using sparse tactics")


def sparse_layers(bundle: Bundle, source: Variant) -> tuple[str, ...]:
    """The layers of an ONNX variant whose weights are 2:4.

    Raises:
        UsageError: there is none, so that ``--sparse`` could do nothing.
    """
    with admitted(bundle, source) as file:
        layers = sparse_products(file.path, layer_names(bundle.manifest.spec))
    if not layers:
        raise UsageError(
            f"no layer of {source.name} has 2:4 sparse weights, so --sparse could change nothing",
            "leave it out, or prune first: vggdeploy optimize CHECKPOINT --step sparse -o DIR, then export that",
        )
    return layers


def sparse_kernels(layers: tuple[str, ...], log: str) -> SparseKernels:
    """What a build with ``--sparse`` came to, by the library's log."""
    return SparseKernels(layers=layers, eligible=_last(_ELIGIBLE, log), chosen=_last(_CHOSEN, log))


def _last(pattern: re.Pattern[str], log: str) -> int | None:
    found = pattern.findall(log)
    return int(found[-1]) if found else None
