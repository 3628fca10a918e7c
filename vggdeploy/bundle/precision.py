"""Proof of precision, one idea for every format: what the convolutions and matrix products of a shipped file compute in.

How a file is read is the business of whoever knows its format; what makes a proof of it, and what contradicts what was
asked, is here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vggdeploy.bundle.variant import PrecisionProof
from vggdeploy.errors import ParityError
from vggdeploy.types import Precision

_TYPE_NAMES = {
    "float": "fp32", "float32": "fp32", "half": "fp16", "float16": "fp16", "bfloat16": "bf16", "float8e4m3fn": "fp8",
}  # fmt: skip
_NAMED = 3  # layers that an error lists


class Product(NamedTuple):
    """A convolution or matrix product: its name, and the type that it computes in (``fp32``, ``fp16``, ``int8`` …)."""

    layer: str
    type: str


def by_type(products: Sequence[Product]) -> dict[str, int]:
    """How many there are of each type."""
    return dict(sorted(Counter(product.type for product in products).items()))


def type_name(text: str) -> str:
    """A type as `Precision` names it, of what a file or a library calls it: ``float16`` and ``HALF`` are ``fp16``."""
    name = text.lower()
    return _TYPE_NAMES.get(name, name)


def computes_in(layers: Mapping[str, int], asked: Precision) -> bool:
    """Whether a file with so many products of each type is of that precision: all compute in it; in INT8 and FP8, some, and
    the others in FP32."""
    right = layers.get(asked.stored, 0)
    wide = layers.get(Precision.FP32, 0) if asked.quantised else 0
    return bool(right) and right + wide == sum(layers.values())


def check_engine(layers: Mapping[str, int], asked: Precision, *, source: str) -> None:
    """As `check`, of what an engine's library says about it: it fuses layers, and names other types beside the asked.

    Raises:
        ParityError: a product computes in FP32, and less was asked. (In INT8 and FP8 files single layers may: then, none is.)
    """
    if asked.quantised and layers.get(asked):
        return
    if asked.stored is not Precision.FP32 and layers.get(Precision.FP32):
        raise ParityError(
            f"{asked} was asked for, and the engine of {source} has {layers[Precision.FP32]} convolutions or matrix products "
            "in fp32",
            f"this ONNX is not {asked}: export the bundle again (vggdeploy export CHECKPOINT -o BUNDLE --force)",
        )


def check(proof: PrecisionProof, asked: Precision, *, source: str, products: Sequence[Product] = ()) -> None:
    """Refuse a file that computes in another precision than the one that was asked for.

    Args:
        products: where they are known by name, those of the wrong type are named.

    Raises:
        ParityError: a convolution or matrix product computes in another type than asked (for INT8 and FP8: none in it).
    """
    if computes_in(proof.layers, asked):
        return
    total = sum(proof.layers.values())
    others = ", ".join(f"{count} in {name}" for name, count in proof.layers.items() if name != asked.stored)
    wrong = [product.layer for product in products if product.type != asked.stored]
    more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    named = f": {', '.join(wrong[:_NAMED])}{more}" if wrong else ""
    raise ParityError(
        f"{asked} was asked for, and {source} has convolutions and matrix products in another type: "
        f"{others or 'none at all'} (of {total}){named}",
        f"this file is not {asked}: export the bundle again (vggdeploy export CHECKPOINT -o BUNDLE --force)",
    )
