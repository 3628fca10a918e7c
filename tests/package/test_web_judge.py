"""The page judges the golden pair as Python does: the same verdict, in the same words, at planted distances of every size."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from package.web_modules import Modules, Refused, modules, needs_node, text

from vggdeploy.bundle import Bundle
from vggdeploy.package.web import limits
from vggdeploy.parity.criteria import Criteria, criteria_of
from vggdeploy.parity.judge import judge
from vggdeploy.parity.metrics import OutputStats
from vggdeploy.records import CEILINGS, Distance
from vggdeploy.types import ImageSource, Precision, Verdict

pytestmark = needs_node
Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def page() -> Iterator[Modules]:
    with modules() as opened:
        yield opened


def by_python(reference: Array, candidate: Array, criteria: Criteria, source: ImageSource) -> tuple[Any, list[str]]:
    stats = OutputStats("logits")
    stats.update(reference, candidate)
    outputs = (stats.result(),)
    verdict, _, reasons = judge(outputs, None, criteria.of(source), golden=True, allowed=criteria.allowed(source))
    assert (verdict is Verdict.PASS) == (not reasons)
    # What the page has no use for: the tolerance at which NumPy's allclose would pass.
    return outputs[0], [reason.partition(" (allclose")[0] for reason in reasons]


def by_page(
    page: Modules, reference: Array, candidate: Array, criteria: Criteria, source: ImageSource
) -> tuple[Any, list[str]]:
    answer = page(
        "judge", reference=text(reference.tobytes()), candidate=text(candidate.tobytes()),
        size=int(np.prod(reference.shape[1:])), limits=limits(criteria, source),
    )  # fmt: skip
    return answer["result"], answer["reasons"]


def compare(page: Modules, reference: Array, candidate: Array, criteria: Criteria, source: ImageSource) -> list[str]:
    expected, told = by_python(reference, candidate, criteria, source)
    found, reasons = by_page(page, reference, candidate, criteria, source)
    assert reasons == told
    for name in ("relative_l2", "cosine_min"):
        assert found[name] == pytest.approx(getattr(expected, name), rel=1e-9, abs=1e-15)
    assert found["samples"] == expected.samples
    return reasons


def planted(reference: Array, far: float, seed: int) -> Array:
    """An answer at about this relative L2 from the reference."""
    noise = np.random.default_rng(seed).standard_normal(reference.shape)
    size = np.linalg.norm(reference.astype(np.float64)) * far / np.linalg.norm(noise)
    return (reference + noise * size).astype(np.float32)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    precision=st.sampled_from([Precision.FP32, Precision.FP16, Precision.INT8]),
    source=st.sampled_from([ImageSource.GOLDEN, ImageSource.STRESS]),
    power=st.floats(-8, 1), recorded=st.one_of(st.none(), st.floats(1e-8, 0.3)), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_planted_distances_get_the_same_verdict_in_the_same_words(
    page: Modules, precision: Precision, source: ImageSource, power: float, recorded: float | None, seed: int
) -> None:
    reference = np.random.default_rng(seed).standard_normal((9, 10)).astype(np.float32)
    distances = () if recorded is None else (Distance(source=source, output="logits", relative_l2=recorded),)
    criteria = Criteria(precision, CEILINGS[precision], distances)
    compare(page, reference, planted(reference, 10.0**power, seed + 1), criteria, source)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.INT8])
@pytest.mark.parametrize("near", [0.999, 1.001])
def test_right_at_the_limit_both_stand_on_the_same_side(page: Modules, precision: Precision, near: float) -> None:
    criteria = Criteria(precision, CEILINGS[precision])
    reference = np.random.default_rng(2).standard_normal((16, 10)).astype(np.float32) * 100
    far = CEILINGS[precision].relative_l2 * near
    candidate = reference.copy()
    candidate[:, 0] += np.float32(np.linalg.norm(reference.astype(np.float64)) * far / 4)
    reasons = compare(page, reference, candidate, criteria, ImageSource.GOLDEN)
    assert any("relative L2" in reason for reason in reasons) == (near > 1)


def test_rows_of_zeros_and_references_of_nothing(page: Modules) -> None:
    criteria = Criteria(Precision.FP32, CEILINGS[Precision.FP32])
    zeros, ones = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    assert compare(page, zeros, zeros, criteria, ImageSource.GOLDEN) == []
    assert compare(page, zeros, ones, criteria, ImageSource.GOLDEN)
    assert compare(page, ones, zeros, criteria, ImageSource.GOLDEN)
    assert compare(page, ones, -ones, criteria, ImageSource.GOLDEN)


def test_a_number_that_is_none_is_never_near_anything(page: Modules) -> None:
    reference = np.ones((2, 3), np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        candidate = reference.copy()
        candidate[1, 1] = bad
        found, reasons = by_page(
            page, reference, candidate, Criteria(Precision.INT8, CEILINGS[Precision.INT8]), ImageSource.GOLDEN
        )
        assert reasons, found
        assert page("distance", reference=text(reference.tobytes()), candidate=text(candidate.tobytes())) == "Infinity"


def test_the_limits_of_a_bundle_are_the_manifests_under_the_ceiling_and_the_record(bundle: Bundle) -> None:
    variant = bundle.manifest.variant("onnx-fp16")
    strict = msgspec.structs.replace(CEILINGS[Precision.FP16], relative_l2=1e-3)
    stricter = msgspec.structs.replace(
        bundle.manifest, thresholds={**bundle.manifest.thresholds, Precision.FP16: strict}
    )
    found = limits(criteria_of(Bundle(bundle.root, stricter), variant), ImageSource.GOLDEN)
    (recorded,) = [d.relative_l2 for d in variant.distances if d.source is ImageSource.GOLDEN]
    assert found["relative_l2"] == 1e-3
    assert found["allowed"] == {"logits": max(3 * recorded, 1e-4)}
    assert found["repeat"] == 1e-4


def npy(array: NDArray[Any], version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version, allow_pickle=False)
    return file.getvalue()


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_arrays_are_read_as_numpy_wrote_them(page: Modules, version: tuple[int, int]) -> None:
    for array in (
        np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        np.arange(7, dtype=np.uint8),
        np.zeros((0, 3), np.float32),
    ):
        found = page("npy", file=text(npy(array, version)))
        assert found["shape"] == list(array.shape)
        assert found["data"] == array.ravel().tolist()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x93NUMPY", b"not an array at all, but long enough", npy(np.zeros(3, np.float64)),
        npy(np.zeros((2, 3), np.float32))[:-1],
        npy(np.zeros((2, 3), np.float32)) + b"x", npy(np.asfortranarray(np.zeros((2, 3), np.float32))),
    ],
)  # fmt: skip
def test_anything_else_is_refused_in_words(page: Modules, data: bytes) -> None:
    with pytest.raises(Refused) as refused:
        page("npy", file=text(data))
    assert refused.value.known


def test_the_difference_that_is_told_is_the_largest_over_all_pictures_that_are_counted(page: Modules) -> None:
    near, far = ({"output": "logits", "relative_l2": value} for value in (1e-7, 3e-6))
    assert page("worst", outputs=[near], stress=[far]) == page("worst", outputs=[far], stress=[near]) == 3e-6
    assert page("worst", outputs=[near], stress=[]) == 1e-7
