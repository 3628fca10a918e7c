"""What a library says that it ran, and which layers of the network that was.

A library names its kernels after the ONNX operators that they were made of. Those are places in the network's chain of
steps (`vggdeploy.model.formats.chain`), so a kernel is a stretch of that chain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vggdeploy.bundle import Bundle, Variant
from vggdeploy.errors import VggdeployError
from vggdeploy.model.formats.chain import Step, chain_of
from vggdeploy.model.formats.graph import Operator, operators_of
from vggdeploy.runtime.preflight import built_from


@dataclass(frozen=True)
class LayerMap:
    """The steps of a network, and which of them each ONNX operator computes. ``missing`` says why nothing is known."""

    steps: tuple[Step, ...] = ()
    spans: Mapping[str, range] = field(default_factory=dict)
    missing: str = ""

    def layers(self, kernels: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
        """The layers that each of a call's kernels computes, in their order. ``kernels``: the operators of each.

        A kernel computes all steps from its first operator to its last. Libraries name a fused kernel after one of its
        operators, so a step that no name has belongs to a neighbour: a ReLU to the kernel before it, since it is fused
        into what makes its input; everything else to the kernel behind it. One that only converts (a cast, a
        quantiser) is part of the layer whose values it converts.
        """
        stretches = [self._stretch(nodes) for nodes in kernels]
        # Which kernel computes the last step so far, the steps of that kernel, and the first that nobody has yet.
        place, last, end = -1, range(0), 0
        for index, found in enumerate(stretches):
            if not found:
                continue
            gap = list(range(end, found.start))
            while place >= 0 and gap and self.steps[gap[0]].kind == "relu":
                last = range(last.start, gap.pop(0) + 1)
            if place >= 0:
                stretches[place] = last
            last, place = range(gap[0] if gap else found.start, found.stop), index
            end = max(end, found.stop)
        if place >= 0:
            stretches[place] = range(last.start, max(last.stop, len(self.steps)))
        return [self._named(stretch) for stretch in stretches]

    def _stretch(self, nodes: Sequence[str]) -> range | None:
        """From the first step of these operators to the last; empty where they only convert, None where none is known."""
        spans = [self.spans[name] for name in nodes if name in self.spans]
        whole = [span for span in spans if span] or spans
        return range(min(s.start for s in whole), max(s.stop for s in whole)) if whole else None

    def _named(self, stretch: range | None) -> tuple[str, ...]:
        if stretch is None:
            return ()
        places = stretch or [max(0, stretch.start - 1)]
        return tuple(dict.fromkeys(self.steps[place].layer for place in places))


def layer_map(bundle: Bundle, variant: Variant) -> LayerMap:
    """Of an ONNX or OpenVINO variant, or of an engine by the ONNX that it was built from, which is read and not run."""
    manifest = bundle.manifest
    source = built_from(bundle, variant) if variant.build is not None else variant
    if source is None:
        return LayerMap(missing=f"the ONNX that {variant.name} was built from is not in the bundle")
    try:
        with bundle.main_file(source).open() as file:
            chain = chain_of(manifest.spec, manifest.input, manifest.outputs, source.path)
            return LayerMap(chain.steps, _spans(operators_of(memoryview(file.map()), chain, source.path)))
    except VggdeployError as error:
        return LayerMap(missing=error.cause)


def _spans(operators: Sequence[Operator]) -> dict[str, range]:
    """By the operator's name, and by the name of what it makes."""
    return {o.output: o.span for o in operators} | {o.name: o.span for o in operators if o.name}
