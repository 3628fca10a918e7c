"""One rule says whether a file is of the precision that was asked, whoever counted what its products compute in."""

from __future__ import annotations

import pytest

from vggdeploy.bundle.precision import computes_in, type_name
from vggdeploy.types import Precision


@pytest.mark.parametrize(
    ("layers", "asked", "answer"),
    [
        ({"fp16": 16}, Precision.FP16, True),
        ({"fp16": 15, "fp32": 1}, Precision.FP16, False),
        ({"bf16": 15, "fp32": 1}, Precision.BF16, False),
        ({"int8": 1, "fp32": 15}, Precision.INT8, True),  # the layers that INT8 hurts stay wide
        ({"fp32": 16}, Precision.INT8, False),
        ({}, Precision.FP32, False),
    ],
)
def test_every_product_computes_in_the_precision_and_in_int8_some_do(
    layers: dict[str, int], asked: Precision, answer: bool
) -> None:
    assert computes_in(layers, asked) is answer


def test_a_type_has_one_name_whatever_a_library_calls_it() -> None:
    assert {type_name(text) for text in ("float32", "FLOAT", "Float")} == {"fp32"}
    assert {type_name(text) for text in ("float16", "HALF")} == {"fp16"}
    assert [type_name(text) for text in ("bfloat16", "BF16", "INT8", "FP8")] == ["bf16", "bf16", "int8", "fp8"]
