"""The layers of a variant, as its file or its engine has them."""

from __future__ import annotations

from vggdeploy.records.base import SCHEMA_VERSION, Record


class LayerRow(Record, frozen=True, kw_only=True):
    """One operator of an ONNX graph, or one layer of an engine. What a file or a library does not tell is empty or None.

    ``layers`` are the network's layers that it computes. ``precision`` is what a convolution or product computes in (of an
    ONNX operator: the type of what it makes), ``tactic`` the kernel that TensorRT chose. ``inputs`` and ``outputs`` are
    shapes with their types, ``weights`` those of its constants.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    precision: str = ""
    tactic: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()


class VariantLayers(Record, frozen=True, kw_only=True):
    """The layers of one variant, in order. ``source`` is who described them; ``missing`` says why nobody did."""

    variant: str
    sha256: str
    source: str = ""
    layers: tuple[LayerRow, ...] = ()
    unnamed: str = ""
    missing: str = ""


class LayersReport(Record, frozen=True, kw_only=True):
    """What ``vggdeploy inspect --layers --json`` prints."""

    schema_version: int = SCHEMA_VERSION
    bundle: str
    variants: tuple[VariantLayers, ...]
