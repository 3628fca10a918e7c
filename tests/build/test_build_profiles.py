"""Optimisation profiles: how batch sizes become ranges, that the real builder takes them, and that engines of other batch
sizes stand beside each other."""

from __future__ import annotations

import msgspec
import pytest
from fixtures.small import write_onnx
from hypothesis import given
from hypothesis import strategies as st

from vggdeploy.build.engines import build_into
from vggdeploy.build.options import BuildOptions
from vggdeploy.build.profiles import MAX_PROFILES, as_text, default_profiles, parse_profiles, short_name, up_to, whole
from vggdeploy.build.request import BuildPlan, identity, make_request
from vggdeploy.bundle import BuildRecord, Bundle, update_bundle
from vggdeploy.bundle.manifest import parse_manifest, seal
from vggdeploy.errors import BundleError, UsageError
from vggdeploy.model.layers import summarise
from vggdeploy.spec import ModelSpec
from vggdeploy.types import BatchRange, Precision

ADA = "tensorrt-rtx-fp16-sm89"


def plan(batch: str | None = None, **settings) -> BuildPlan:
    profiles = parse_profiles(batch) if batch is not None else None
    return BuildPlan("rtx", targets=["ada"], profiles=profiles, **settings)


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("1,8,32", "1:1:1,2:8:8,9:32:32"),
        ("32, 8 ,1,8", "1:1:1,2:8:8,9:32:32"),
        ("8,32", "1:8:8,9:32:32"),
        ("1:8:32", "1:8:32"),
        ("8", "8:8:8"),
    ],
)
def test_a_list_gives_each_size_a_profile_up_to_it_and_a_range_is_one(text, ranges):
    assert as_text(parse_profiles(text)) == ranges


@pytest.mark.parametrize("text", ["", "1,", ",", "1;8", "0,8", "1,8:16:32", "1:2:4,8", "-1,8", "1,99999999", "1,²"])
def test_what_is_no_list_of_sizes_is_refused_with_an_example(text):
    with pytest.raises(UsageError) as caught:
        parse_profiles(text)
    assert "1:8:32" in caught.value.hint


def test_more_profiles_than_a_build_should_have_are_refused():
    up_to(range(1, MAX_PROFILES + 1))
    with pytest.raises(UsageError, match="17 profiles"):
        up_to(range(1, MAX_PROFILES + 2))


@pytest.mark.parametrize(
    ("onnx", "tuned"),
    [
        (BatchRange(1, 8, 256), [1, 8, 64, 256]),
        (BatchRange(1, 4, 16), [1, 4, 8, 16]),
        (BatchRange(1, 1, 1), [1]),
        (BatchRange(1, 8, 8), [1, 8]),
        (BatchRange(4, 4, 4), [4]),
        (BatchRange(4, 16, 100), [8, 16, 64, 100]),
    ],
)
def test_the_default_has_one_image_a_few_and_many_for_themselves(onnx, tuned):
    profiles = default_profiles(onnx)
    assert [profile.opt for profile in profiles] == tuned
    assert whole(profiles, onnx.opt) == onnx


@given(st.sets(st.integers(1, 500), min_size=1, max_size=MAX_PROFILES), st.integers(1, 500), st.data())
def test_every_size_has_exactly_one_profile_and_no_smaller_one_would_do(sizes, usual, data):
    profiles = up_to(sizes)
    size = data.draw(st.integers(1, max(sizes)))
    [mine] = [profile for profile in profiles if profile.min <= size <= profile.max]
    assert mine.max == min(s for s in sizes if s >= size)
    batch = whole(profiles, usual)
    assert (batch.min, batch.max) == (1, max(sizes))
    assert batch.opt == (usual if usual in sizes else max(sizes))


def test_names_say_which_batches_an_engine_is_for():
    assert [short_name(parse_profiles(text)) for text in ("8", "1:8:32", "1,8,32")] == ["b8", "b1to32", "b1-8-32"]


def test_the_real_builder_makes_one_engine_with_all_profiles_and_its_weights_once(build, tmp_path):
    """What a profile adds is code: were its weights added too, three would be three times as large."""
    spec = ModelSpec.named("vgg11", width=0.25, image_size=32, classes=10, hidden=2048)
    onnx = write_onnx(tmp_path / "fp16.onnx", Precision.FP16, spec=spec)
    counts = []

    def engine(text):
        return build(
            onnx, profiles=parse_profiles(text), after=lambda config: counts.append(config.num_optimization_profiles)
        )

    one, alone = engine("1:8:64")
    three, together = engine("1,8,64")
    assert counts == [1, 3]
    assert three.proof == one.proof
    weights = 2 * summarise(spec).parameters
    assert weights > 8 * 10**6
    assert 0 < len(together) - len(alone) < weights / 4


def test_the_order_of_sizes_does_not_matter_to_the_bytes_and_other_sizes_do(bundle):
    def key(text: str | None) -> str:
        return make_request(bundle, plan(text)).key()

    assert key("1,8,16") == key("16,1,8")
    assert len({key(None), key("1,8,16"), key("1:8:16"), key("1,4,16"), key("8,16")}) == 5


def test_an_engine_for_other_batches_does_not_replace_the_one_that_is_there(bundle):
    """`build --batch 8` once replaced the engine for 1:8:256 without a word, under the same name."""
    first = build_into(bundle, plan())
    eight = build_into(first.bundle, plan("8"))
    several = build_into(eight.bundle, plan("1,16"))
    assert [v.variant.name for v in (first, eight, several)] == [ADA, f"{ADA}-b8", f"{ADA}-b1-16"]
    again = build_into(several.bundle, plan("8", options=BuildOptions(workspace=2**31)))
    assert again.variant.name == f"{ADA}-b8"
    manifest = Bundle.open(bundle.root).manifest
    assert [v.name for v in manifest.variants if v.build] == [ADA, f"{ADA}-b8", f"{ADA}-b1-16"]
    assert again.bundle.sha256(f"variants/{ADA}/model.engine") == first.report().sha256
    assert manifest.variant(ADA).batch == BatchRange(1, 4, 16)
    assert manifest.variant(f"{ADA}-b8").batch == BatchRange(8, 8, 8)
    assert manifest.variant(f"{ADA}-b1-16").profiles == (BatchRange(1, 1, 1), BatchRange(2, 16, 16))


def as_it_was(bundle: Bundle, name: str, **changed) -> bytes:
    """The manifest with another record of that engine's build."""
    old = bundle.manifest.variant(name)
    build = msgspec.structs.replace(old.build, **changed)
    return seal(bundle.manifest.with_variants(msgspec.structs.replace(old, build=build)))


def test_a_bundle_from_before_the_field_opens_and_its_engine_is_replaced_by_one_of_the_same_range(bundle):
    built = build_into(bundle, plan("1:4:16"))
    data = as_it_was(built.bundle, ADA, profiles=())
    old = msgspec.json.decode(data)
    del next(v for v in old["variants"] if v["name"] == ADA)["build"]["profiles"]
    manifest = parse_manifest(seal(msgspec.convert(old, type(built.bundle.manifest))), where="old")
    variant = manifest.variant(ADA)
    assert variant.build.profiles == ()
    assert variant.profiles == (BatchRange(1, 4, 16),)
    assert identity(variant.build, Precision.FP16) == identity(built.variant.build, Precision.FP16)
    with update_bundle(built.bundle) as draft:
        draft.manifest = built.bundle.manifest.with_variants(variant)
    again = build_into(Bundle.open(bundle.root), plan("1:4:16"))
    assert again.variant.name == ADA and again.variant.build.profiles == (BatchRange(1, 4, 16),)


@pytest.mark.parametrize(
    "profiles",
    [
        (BatchRange(1, 1, 1), BatchRange(3, 16, 16)),  # 2 has none
        (BatchRange(2, 16, 16), BatchRange(1, 1, 1)),
        (BatchRange(1, 8, 8), BatchRange(8, 16, 16)),  # 8 has two
        (BatchRange(1, 1, 1), BatchRange(2, 8, 8)),  # the batch range goes on to 16
    ],
)
def test_profiles_that_are_not_the_batch_range_are_refused(bundle, profiles):
    built = build_into(bundle, plan())
    with pytest.raises(BundleError, match=f"lists profiles of {ADA} that are not its batch range"):
        parse_manifest(as_it_was(built.bundle, ADA, profiles=profiles), where="bundle")


def test_an_engine_without_weights_has_one_profile(library, bundle):
    """`IBuilderConfig::addOptimizationProfile`: a refittable engine supports at most one."""
    stripped = BuildOptions(strip="any")
    stripped.check(library, BatchRange(1, 8, 64), 1)
    with pytest.raises(UsageError, match="takes one profile, and 3 were asked for") as caught:
        stripped.check(library, BatchRange(1, 8, 64), 3)
    assert "--batch" in caught.value.hint


def test_an_engine_without_weights_does_not_replace_the_one_that_has_them():
    whole = BuildRecord(
        library="tensorrt", version="11.4.0", source="onnx-fp16", source_sha256="0" * 64, targets=("sm89",), options={},
        seconds=1.0,
    )  # fmt: skip
    stripped = msgspec.structs.replace(whole, options={"strip": "any"})
    assert identity(whole, Precision.FP16) != identity(stripped, Precision.FP16)
