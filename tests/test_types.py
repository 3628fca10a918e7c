"""The small types take what means something and refuse the rest in words."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggdeploy.errors import UsageError
from vggdeploy.types import MAX_BATCH, BatchRange, Device, Precision, TensorSpec, Verdict


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1:8:32", (1, 8, 32)), ("4", (4, 4, 4)), (" 1 : 2 : 3 ", (1, 2, 3)), ("1:1:1", (1, 1, 1)), ("007", (7, 7, 7))],
)
def test_a_batch_range_is_three_numbers_or_one(text: str, expected: tuple[int, int, int]) -> None:
    found = BatchRange.parse(text)
    assert (found.min, found.opt, found.max) == expected


@pytest.mark.parametrize(
    "text",
    ["", ":", "1:2", "1:2:3:4", "a", "1:8:x", "-1", "0", "0:1:2", "2:1:3", "1:3:2", "1.5", "1e3", "²", "1:²:3", "⅕", "9" * 5000,
     "65536", "1:8:99999", "+1", "1_0"],
    ids=lambda text: text[:10],
)  # fmt: skip
def test_what_is_no_batch_range_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="batch range") as caught:
        BatchRange.parse(text)
    assert "1:8:32" in caught.value.hint


@given(st.text(max_size=20))
def test_no_text_crashes_the_parsers(text: str) -> None:
    for parse in (BatchRange.parse, Device.parse):
        try:
            parse(text)
        except UsageError:
            continue


@given(st.lists(st.integers(1, MAX_BATCH), min_size=3, max_size=3).map(sorted))
def test_a_batch_range_prints_what_it_parses(sizes: list[int]) -> None:
    found = BatchRange(*sizes)
    assert BatchRange.parse(str(found)) == found


def test_a_batch_range_from_json_is_checked_too() -> None:
    with pytest.raises(UsageError, match="1 ≤ min ≤ opt ≤ max"):
        msgspec.json.decode(b'{"min": 3, "opt": 2, "max": 1}', type=BatchRange)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cpu", Device("cpu")), ("CPU", Device("cpu")), ("cuda", Device("cuda", 0)), ("cuda:1", Device("cuda", 1)),
        ("gpu", Device("cuda")), ("GPU:2", Device("cuda", 2)), (" cuda ", Device("cuda")),
    ],
)  # fmt: skip
def test_devices(text: str, expected: Device) -> None:
    assert Device.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "tpu", "cpu:0", "cpu:1", "cuda:", "cuda:x", "cuda:-1", "cuda:²", "cuda:1:2", "cuda:9999", ":1"]
)
def test_what_is_no_device_is_a_usage_error(text: str) -> None:
    """``cpu:1`` too: an index that nobody reads would be ignored in silence."""
    with pytest.raises(UsageError, match="is unknown"):
        Device.parse(text)


@pytest.mark.parametrize("text", ["cpu", "cuda:0", "cuda:3"])
def test_a_device_prints_what_it_parses(text: str) -> None:
    assert str(Device.parse(text)) == text


def test_a_tensor_prints_its_name_dtype_and_shape() -> None:
    spec = TensorSpec("image", "uint8", ("N", 224, 224, 3))
    assert str(spec) == "image: uint8[N, 224, 224, 3]"
    assert spec.item_shape == (224, 224, 3)


def test_enumerations_are_their_json() -> None:
    assert msgspec.json.encode([Precision.FP16, Verdict.UNPROVEN]) == b'["fp16","unproven"]'
    assert [p.value for p in Precision] == ["fp32", "tf32", "fp16", "bf16", "fp8", "int8"]
    assert [v.value for v in Verdict] == ["pass", "fail", "inconclusive", "unproven"]


def test_the_types_cannot_be_changed() -> None:
    for value, field in ((BatchRange(), "max"), (Device(), "kind"), (TensorSpec("a", "uint8", ("N",)), "name")):
        with pytest.raises(AttributeError):
            setattr(value, field, 1)
