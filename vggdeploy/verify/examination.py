"""One ONNX file, examined layer by layer beside the network that it should be."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import NodeProto
from torch import Tensor, nn
from torch.nn import functional as F

from vggdeploy.bundle.variant import INT16
from vggdeploy.errors import BuildError, first_line
from vggdeploy.model.layers import layer_names, layers_of
from vggdeploy.model.outputs import INPUT, LOGITS
from vggdeploy.model.vgg import VGG, fold_batch_norm
from vggdeploy.parity.metrics import OutputStats
from vggdeploy.parity.saturation import int8_products
from vggdeploy.records import Evidence, LayerParity, OutputParity
from vggdeploy.types import Precision
from vggdeploy.verify.evidence import (
    differ,
    rounded_to_fit,
    rounding_tolerance,
    wrong_bias,
    wrong_pixels,
    wrong_rounding,
    wrong_values,
    wrong_weights,
)
from vggdeploy.verify.segments import PASSING, Graph, Rounding, Runner, Segment, segments
from vggdeploy.verify.structure import wrong_structure

Array = NDArray[Any]
# What a kernel may add when it sums in another order; one that sums in FP16 or BF16 adds more. Of a value and the layer's RMS.
_SUMS = {
    Precision.FP32: 1e-4, Precision.INT8: 1e-4, Precision.FP8: 1e-4, Precision.FP16: 5e-3, Precision.BF16: 4e-2,
}  # fmt: skip
_EXACT = 1e-5  # what a ReLU, a pool or the preprocessing may differ by, likewise
# Standard errors of a mean over images, which are no more alike than those that a bias was corrected with.
_DEVIATIONS = 6.0
_WRITE = "give an ONNX file that 'vggdeploy export' wrote"
_KERNELS = 1.5  # times the error of the same file run node by node: from there on a library's kernels are named


@dataclass(frozen=True)
class Finding:
    """Something wrong with a layer, as the end of a sentence that begins with its name.

    ``rank`` says how much it counts: 0 for wrong numbers, 1 for what is only built otherwise, 2 for a bias that bias correction
    may have left so on other images. ``certain``: the file alone shows it, whatever images it was calibrated with.
    """

    layer: str
    evidence: Evidence
    text: str
    rank: int
    certain: bool


class Examination:
    """One file, layer by layer, beside a model.

    Args:
        method: how an INT8 file's ranges were calibrated; "" where that is not known.

    Attributes:
        findings, rows: what is wrong, in the order of the layers; and each layer's distances.
    """

    def __init__(
        self, graph: Graph, model: VGG, precision: Precision, images: Array, *, method: str, threads: int | None
    ) -> None:
        self._graph, self._precision, self._images = graph, precision, images
        self._method, self._threads = method, threads
        self._segments = segments(graph, model.spec)
        if not self._segments:
            raise BuildError("the file has no convolution that is recognised", _WRITE)
        self.findings: list[Finding] = []
        self.rows: dict[str, LayerParity] = {}
        # What two neighbouring weights of an INT8 product may be together; there are none without a quantised input.
        self._limits = {p.node.output[0]: INT16 // p.high for p in int8_products(graph.model.graph, {})}
        self._network = _products(model)
        self._state = fold_batch_norm(model).state_dict()
        self._keys = {name: key for key, name in layer_names(model.spec).items()}
        self._dtype: Any = images.dtype  # of what enters the layer that is looked at
        self._before = INPUT  # the layer in front of it
        self._made: Array | None = images  # by the file's own layers so far
        self._want = images  # by the reference's
        self.note = self.foreign = ""  # of the whole file, where no layer is at fault

    @np.errstate(all="ignore")  # a faulty layer overflows, and that is said
    @torch.inference_mode()
    def run(self, pixels: Array) -> None:
        """Look at every layer. ``pixels``: the normalised images."""
        exact = fed = self._images  # the reference's values, and what the file is fed of them
        for segment in self._segments:
            want = pixels if segment.kind == "preprocess" else self._expected(segment, exact)
            alone = self._examine(segment, exact, fed, want)
            self.rows[segment.layer] = _row(segment.layer, want, alone, self._made)
            # Behind a quantiser that is the ReLU values are rounded, as they are elsewhere by a quantiser of their own.
            rounded = self._quantises(segment) or (segment.kind == "pool" and fed is not exact)
            fits = alone is not None and alone.shape == want.shape
            exact, fed = want, _wide(alone) if rounded and fits and alone is not None else want
            self._before, self._want = segment.layer, want

    def look(self, note: str) -> None:
        """Look at every layer's operations, and run none. ``note``: why none is run.

        Raises:
            BuildError: the layers cannot be told.
        """
        self.foreign = note
        try:
            for segment in self._segments:
                for text in wrong_structure(self._graph, segment, self._precision):
                    self._blame(segment.layer, "structure", text, 1)
        except (ValueError, LookupError) as error:
            raise BuildError(f"the file's layers cannot be told: {first_line(error)}", _WRITE) from error

    def add_shipped(self, answers: dict[str, Array]) -> None:
        """What the variant's own session answers, where no layer is at fault: its library's kernels may be."""
        last = self._segments[-1].layer
        if last not in answers or (alone := self.rows[last].relative_l2) is None:
            return
        want = self._want[: len(answers[last])]
        whole = _distances(last, want, answers[last]).relative_l2
        text = f"run node by node, {last} is {alone:.2g} from the network's (relative L2)"
        if whole > _KERNELS * alone + _EXACT:
            text += f", and this machine's kernels make {whole:.2g} of the same file"
        self.note = f"; {text}"

    def verdict(self, *, certain: bool = False) -> tuple[str | None, tuple[Evidence, ...], str]:
        """The first layer of those with what counts most; and why. ``certain``: of what the file alone shows."""
        findings = [f for f in self.findings if f.certain or not certain]
        highest = min((f.rank for f in findings), default=0)
        wrong = [f for f in findings if f.rank == highest]
        if not wrong and self.foreign:
            return None, (), f"no layer was run: {self.foreign}"
        if not wrong:
            return None, (), f"no layer is at fault: each makes what the network's makes, but for rounding{self.note}"
        named = sorted({f.layer for f in wrong}, key=[INPUT, *(segment.layer for segment in self._segments)].index)
        found = [f for f in findings if f.layer == named[0]]
        reason = "; it ".join(dict.fromkeys(f.text for f in found[:2]))
        others = f"; also seen at {', '.join(named[1:4])}{' and behind' if len(named) > 4 else ''}" if named[1:] else ""
        return named[0], tuple(dict.fromkeys(f.evidence for f in found)), f"{named[0]} {reason}{others}"

    def _blame(self, layer: str, evidence: Evidence, text: str, rank: int = 0, *, certain: bool = False) -> None:
        if text:
            self.findings.append(Finding(layer, evidence, text, rank, certain or evidence == "structure"))

    def _expected(self, segment: Segment, exact: Array) -> Array:
        """What the network's layer makes."""
        x = torch.from_numpy(exact)
        made: Array = (self._network[segment.layer](x) if segment.kind == "product" else _apply(segment, x)).numpy()
        return made

    def _examine(self, segment: Segment, exact: Array, fed: Array, want: Array) -> Array | None:
        """What the file's layer makes of the reference's input; None where it does not run."""
        numbers = [n for p in segment.products for n in (*p.input[:2], self._graph.bias(p)) if n]
        wanted = [segment.end, self._entry(segment), *numbers]
        made, self._made = self._made, None
        try:
            runner = Runner(self._graph, segment.start, wanted, self._dtype, self._threads)
            values = runner.run(fed.astype(self._dtype), self._images, wanted)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            self._blame(segment.layer, "output", f"does not run: {first_line(error)}")
            return None
        try:
            self._made = None if made is None else runner.run(made, self._images, [segment.end])[segment.end]
        except Exception:  # what a layer before it makes does not fit: that one is named
            self._made = None
        del runner  # and its copy of the weights
        self._dtype = values[segment.end].dtype
        self._inspect(segment, exact, fed, want, values)
        return values[segment.end]

    def _inspect(self, segment: Segment, exact: Array, fed: Array, want: Array, values: dict[str, Array]) -> None:
        layer, alone = segment.layer, _wide(values[segment.end])
        if not np.isfinite(alone).all():
            self._blame(layer, "output", wrong_values(alone, want))
        for text in wrong_structure(self._graph, segment, self._precision):
            self._blame(layer, "structure", text, 1)
        if alone.shape != want.shape:
            self._blame(layer, "output", f"makes {_image(alone)} of an image where the network makes {_image(want)}")
        elif segment.kind == "preprocess":
            text = wrong_pixels(alone, want) if differ(alone, want, _EXACT) else ""
            self._blame(layer, "output", text, certain=True)  # nothing is rounded yet
        elif segment.kind == "product":
            self._inspect_products(segment, exact, fed, values)
        elif self._quantises(segment):
            self._inspect_quantiser(segment, fed, alone)
        elif self._reads(segment, (segment.start, self._entry(segment)), values, fed):
            self._compare(
                segment, values, _apply(segment, torch.from_numpy(_wide(values[self._entry(segment)]))), _EXACT
            )

    def _inspect_products(self, segment: Segment, exact: Array, fed: Array, values: dict[str, Array]) -> None:
        layer, start = segment.layer, segment.start
        rows = "class" if layer == LOGITS else "channel" if layer.startswith("conv") else "output"
        right, made = torch.from_numpy(exact), torch.from_numpy(fed)
        for index, product in enumerate(segment.products):
            key = f"{self._keys[layer]}.{index}" if len(segment.products) > 1 else self._keys[layer]
            weight, bias = self._state[f"{key}.weight"], self._state.get(f"{key}.bias")
            if not self._reads(segment, (start, product.input[0]), values, made.numpy()):
                return
            got, name = _oriented(product, _wide(values[product.input[1]])), self._graph.bias(product)
            scale = self._graph.weight(product)[1]
            tolerance = rounding_tolerance(weight.numpy(), self._precision, scale)
            fits = partial(self._rounded_to_fit, product, got, weight.numpy(), scale)
            if text := wrong_weights(got, weight.numpy(), tolerance, rows, also=fits):
                self._blame(layer, "weights", text, certain=True)
                return
            own = torch.from_numpy(_wide(values[name]).reshape(-1)) if name else None
            right = _product(right, weight, bias)
            made = _product(torch.from_numpy(_wide(values[product.input[0]])), torch.from_numpy(got), own)
            if bias is not None:
                limit = self._bias_tolerance(bias.numpy(), scale, made - right)
                text = wrong_bias(None if own is None else own.numpy(), bias.numpy(), limit, rows)
                self._blame(layer, "weights", text, 0 if scale is None or own is None else 2)
            start = product.output[0]
        self._compare(segment, values, made, _SUMS[self._precision])

    def _rounded_to_fit(self, product: NodeProto, got: Array, want: Array, scale: Array | None) -> bool:
        limit = self._limits.get(product.output[0])
        return scale is not None and limit is not None and rounded_to_fit(got, want, scale, limit)

    def _bias_tolerance(self, bias: Array, scale: Array | None, error: Tensor) -> Array:
        """Half a step; of an INT8 layer any bias that takes back what rounding did to a channel's mean, as bias correction
        does: what is left of the mean is then that of so many images."""
        limit: Array = rounding_tolerance(bias[None], Precision.FP32 if scale is not None else self._precision, None)[0]
        if scale is None:
            return limit
        if self._method == "entropy":  # what it cuts off moves the means of some images alone
            return np.full_like(limit, np.inf)
        errors = error.transpose(0, 1).flatten(1)
        left, spread = errors.mean(1).abs().numpy(), errors.std(1, correction=0).numpy()
        chance = _DEVIATIONS * np.maximum(spread, spread.mean() / 2) / np.sqrt(len(error))
        return np.where(left <= chance, np.float32(np.inf), limit)

    def _inspect_quantiser(self, segment: Segment, fed: Array, got: Array) -> None:
        """A ReLU that is a range from 0."""
        want, rounding = _apply(segment, torch.from_numpy(fed)).numpy(), self._rounding(segment.start, segment.end)
        if not self._rounds_well(segment.layer, want, rounding):
            return
        if differ(got, np.clip(want, rounding.low, rounding.high), 0, rounding.tolerance(want)):
            self._blame(segment.layer, "output", wrong_values(got, want))

    def _rounds_well(self, layer: str, want: Array, rounding: Rounding) -> bool:
        if not self._precision.quantised:
            self._blame(layer, "structure", f"is rounded to 8 bits where the file promises {self._precision}")
            return False
        text = wrong_rounding(want, rounding, self._method)
        self._blame(layer, "output", text)
        return not text

    def _reads(self, segment: Segment, ends: tuple[str, str], values: dict[str, Array], made: Array) -> bool:
        """Whether what reaches a layer's operation is what the layer before made. Its rounding is that layer's matter."""
        got, layer = _wide(values[ends[1]]), segment.layer
        if got.size != made.size:
            self._blame(layer, "output", f"reads {_image(got)} of an image where the network reads {_image(made)}")
            return False
        want, step = made.reshape(got.shape), np.zeros(())
        if (rounding := self._rounding(*ends)).step:
            if not self._rounds_well(self._before, want, rounding):
                return True
            want, step = np.clip(want, rounding.low, rounding.high), rounding.tolerance(want)
        if differ(got, want, _SUMS[self._precision] / 5, step):  # a cast rounds less than sums do
            if {node.op_type for node in self._graph.path(*ends)} <= PASSING:
                self._blame(self._before, "output", f"is rounded by a cast before {layer} reads it")
                return True
            self._blame(layer, "output", f"reads other values than {self._before} makes")
            return False
        return True

    def _compare(self, segment: Segment, values: dict[str, Array], made: Tensor, limit: float) -> None:
        """What the layer makes with what the network's operation makes of the same numbers."""
        got, want = _wide(values[segment.end]), made.numpy()
        if got.shape == want.shape and differ(got, want, limit):
            self._blame(segment.layer, "output", wrong_values(got, want))

    def _entry(self, segment: Segment) -> str:
        """The tensor that a layer's first operation reads, after casts and rounding."""
        tensor = segment.start
        for node in self._graph.path(segment.start, segment.end):
            if node.op_type not in PASSING:
                break
            tensor = node.output[0]
        return tensor

    def _rounding(self, start: str, end: str) -> Rounding:
        """Of what stands between two tensors; a step of 0 for none."""
        return self._graph.rounding(self._graph.path(start, end)) or Rounding(0.0, -np.inf, np.inf)

    def _quantises(self, segment: Segment) -> bool:
        """Whether a quantiser stands in for a ReLU."""
        rounds = self._entry(segment) == segment.end and self._rounding(segment.start, segment.end).step > 0
        return segment.kind == "relu" and rounds


def _products(model: VGG) -> dict[str, nn.Module]:
    """Layer → the convolution with its batch norm, or the flattening and the linear layer."""
    found: dict[str, list[nn.Module]] = {}
    for layer, module in zip(layers_of(model.spec), [*model.features, *model.classifier], strict=True):
        if layer.kind in ("conv", "linear"):
            name = LOGITS if layer.name == model.spec.last else layer.name
            found[name] = [module] if layer.kind == "conv" else [nn.Flatten(), module]
        elif layer.kind == "batch_norm":
            found[layer.name.replace("bn", "conv")].append(module)
    return {name: nn.Sequential(*modules) for name, modules in found.items()}


def _apply(segment: Segment, x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2) if segment.kind == "pool" else F.relu(x)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution that keeps the size, or a matrix product."""
    if weight.ndim == 4:
        return F.conv2d(x, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2))
    return F.linear(x.flatten(1), weight, bias)


def _oriented(product: NodeProto, weight: Array) -> Array:
    """``[out, in]``, however it is stored."""
    as_stored = weight.ndim > 2 or any(a.name == "transB" and a.i for a in product.attribute)
    return np.ascontiguousarray(weight if as_stored else weight.T)


def _wide(values: Array) -> Array:
    """FP32, and writable as torch wants it: what is stored in a file is not."""
    return np.require(values, np.float32, ["C", "W"])


def _image(values: Array) -> str:
    return " × ".join(map(str, values.shape[1:]))


def _row(layer: str, want: Array, alone: Array | None, made: Array | None) -> LayerParity:
    """``alone``: of the reference's input. ``made``: of what the file's own layers made."""
    whole, own = (
        _distances(layer, want, x) if x is not None and x.shape == want.shape else None for x in (made, alone)
    )
    return LayerParity(
        layer=layer,
        relative_l2=whole.relative_l2 if whole else None,
        isolated=own.relative_l2 if own else None,
        max_abs=whole.max_abs if whole else None,
        cosine_min=whole.cosine_min if whole else None,
        largest=float(np.abs(want).max(initial=0)),
        finite=all(bool(np.isfinite(x).all()) for x in (alone, made) if x is not None),
    )


def _distances(layer: str, want: Array, got: Array) -> OutputParity:
    stats = OutputStats(layer)
    # float16's infinities stay out of the sums; the row says that they were there.
    stats.update(want, np.nan_to_num(got.astype(np.float32), posinf=65504, neginf=-65504))
    return stats.result()
