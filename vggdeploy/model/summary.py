"""Layer by layer: output shape, parameters, multiply-accumulates. From the spec alone, without torch."""

from __future__ import annotations

from vggdeploy.model.layers import layers_of
from vggdeploy.records import Record
from vggdeploy.spec import ModelSpec


class LayerRow(Record, frozen=True, kw_only=True):
    """One layer. ``shape`` is that of one sample's output; ``macs`` counts one image. A linear layer with a ``rank`` is
    the product of two matrices."""

    name: str
    kind: str
    key: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    rank: int = 0


class Summary(Record, frozen=True, kw_only=True):
    """What ``vggdeploy summary --json`` prints."""

    schema_version: int = 1
    title: str
    spec: ModelSpec
    layers: tuple[LayerRow, ...]
    parameters: int
    macs: int
    fp32_bytes: int


def summarise(spec: ModelSpec) -> Summary:
    """Every layer of ``spec`` and the totals; ``fp32_bytes`` is the size of the trainable parameters in FP32."""
    rows = tuple(
        LayerRow(name=x.name, kind=x.kind, key=x.key, shape=x.shape, parameters=x.parameters, macs=x.macs, rank=x.rank)
        for x in layers_of(spec)
    )
    parameters = sum(r.parameters for r in rows)
    return Summary(
        title=spec.title,
        spec=spec,
        layers=rows,
        parameters=parameters,
        macs=sum(r.macs for r in rows),
        fp32_bytes=4 * parameters,
    )
