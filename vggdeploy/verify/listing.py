"""The layers of a variant: of an ONNX file as its graph has them, of an engine as its library's inspector has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vggdeploy.build.readback import layer_type
from vggdeploy.bundle import Bundle, Variant
from vggdeploy.errors import VggdeployError
from vggdeploy.model.formats.chain import Chain, chain_of
from vggdeploy.model.formats.graph import Operator, Weight, operators_of
from vggdeploy.model.formats.onnx import TYPES
from vggdeploy.records.layers import LayerRow, LayersReport, VariantLayers
from vggdeploy.runtime import GpuOptions, backend_for, open_session
from vggdeploy.runtime.kernels import layer_map
from vggdeploy.runtime.tensorrt.profile import EngineLayer
from vggdeploy.runtime.tensorrt.session import EngineSession

_GRAPHS = ("onnx", "openvino")


def list_layers(bundle: Bundle, variants: Sequence[str] = ()) -> LayersReport:
    """The layers of the named variants; by default of all whose layers can be listed.

    Raises:
        UsageError: an unknown variant.
    """
    manifest = bundle.manifest
    chosen = [manifest.variant(name) for name in variants]
    chosen = chosen or [v for v in manifest.variants if v.build is not None or v.format in _GRAPHS]
    return LayersReport(bundle=str(bundle.root), variants=tuple(_listed(bundle, v) for v in chosen))


def _listed(bundle: Bundle, variant: Variant) -> VariantLayers:
    sha256, missing = (
        bundle.sha256(variant.path),
        f"a {variant.format} file is not listed; see: vggdeploy summary BUNDLE",
    )
    try:
        if variant.build is not None:
            return _of_engine(bundle, variant, sha256)
        if variant.format in _GRAPHS:
            rows = tuple(_of_graph(bundle, variant))
            return VariantLayers(variant=variant.name, sha256=sha256, source="the ONNX graph", layers=rows)
    except VggdeployError as error:
        missing = error.cause
    return VariantLayers(variant=variant.name, sha256=sha256, missing=missing)


def _of_graph(bundle: Bundle, variant: Variant) -> Iterator[LayerRow]:
    manifest = bundle.manifest
    chain = chain_of(manifest.spec, manifest.input, manifest.outputs, variant.path)
    with bundle.main_file(variant).open() as file:
        operators = operators_of(memoryview(file.map()), chain, variant.path)
    kind = manifest.input.dtype
    for operator in operators:
        yield _row(operator, chain, kind)
        kind = operator.type


def _row(operator: Operator, chain: Chain, entering: str) -> LayerRow:
    span = operator.span
    places = span or [max(0, span.start - 1)]
    return LayerRow(
        name=operator.name,
        kind=operator.kind,
        layers=tuple(dict.fromkeys(chain.steps[place].layer for place in places)),
        precision=operator.type,
        inputs=(_shape(entering, chain.shape(span.start)),),
        outputs=(_shape(operator.type, chain.shape(span.stop)),),
        weights=tuple(map(_weight, operator.weights)),
    )


def _weight(weight: Weight) -> str:
    return f"{TYPES.get(weight.type, weight.type)}[{', '.join(map(str, weight.dims))}]"


def _shape(kind: str, sample: Sequence[int]) -> str:
    return f"{kind}[{', '.join(map(str, ('N', *sample)))}]"


def _of_engine(bundle: Bundle, variant: Variant, sha256: str) -> VariantLayers:
    """Raises: IncompatibleError: it cannot be loaded here, and nobody else can list an engine's layers."""
    names = layer_map(bundle, variant)
    with open_session(bundle, variant, gpu=GpuOptions(contexts=1, graphs=False)) as session:
        inner = session.unchecked
        assert isinstance(inner, EngineSession)  # noqa: S101  # it has a build record
        described = inner.layers()
    members = names.layers([layer.nodes for layer in described])
    return VariantLayers(
        variant=variant.name,
        sha256=sha256,
        source=f"the engine inspector of {backend_for(variant).title}, batch {variant.batch.opt}",
        layers=tuple(engine_row(layer, of) for layer, of in zip(described, members, strict=True)),
        unnamed=names.missing,
    )


def engine_row(layer: EngineLayer, members: tuple[str, ...]) -> LayerRow:
    """A layer of an engine, of TensorRT 10 or of 11, which name some things otherwise."""
    about = layer.about
    return LayerRow(
        name=layer.name,
        kind=layer.kind,
        layers=members,
        precision=(layer_type(about) if about else None) or "",
        tactic=str(about.get("TacticName") or ""),
        inputs=tuple(map(_end, about.get("Inputs") or ())),
        outputs=tuple(map(_end, about.get("Outputs") or ())),
        weights=tuple(_constant(about[key]) for key in ("Weights", "Bias") if isinstance(about.get(key), dict)),
    )


def _end(end: Any) -> str:
    if not isinstance(end, dict):
        return str(end)
    kind = end.get("Datatype") or end.get("Format/Datatype") or "?"
    return f"{kind}[{', '.join(map(str, end.get('Dimensions') or ()))}]"


def _constant(held: dict[str, Any]) -> str:
    return f"{held.get('Type', '?')}[{held.get('Count', '?')}]"
