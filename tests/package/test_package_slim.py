"""A slim bundle: opened, loaded, run and proven without the FP32 reference, and honest about what it lacks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

import vggdeploy
from vggdeploy.bundle import MANIFEST_NAME, Bundle, update_bundle
from vggdeploy.bundle.manifest import UNSEALED, _digest_of, _with_digest, parse_manifest, seal
from vggdeploy.cli.app import run
from vggdeploy.data.loaders import ImageSet
from vggdeploy.errors import BundleError, IntegrityError, ParityError, UsageError
from vggdeploy.package.base import Order
from vggdeploy.package.slim import package_slim
from vggdeploy.types import Verdict
from vggdeploy.verify.verify import VerifyOptions, verify_bundle


@pytest.fixture(scope="module")
def slim_dir(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slim") / "slim"
    package_slim(Order(bundle=Bundle.open(bundle_dir), output=path, variants=("onnx-fp16",)))
    return path


@pytest.fixture
def own_slim(slim_dir: Path, tmp_path: Path) -> Iterator[Path]:
    yield Path(shutil.copytree(slim_dir, tmp_path / "slim"))


def test_it_holds_one_variant_and_the_golden_pair_and_nothing_else(slim_dir: Path) -> None:
    found = {p.relative_to(slim_dir).as_posix() for p in slim_dir.rglob("*") if p.is_file()}
    anchor = Bundle.open(slim_dir).manifest.golden.anchor
    assert len(anchor) == 22
    assert found == {
        *anchor, "manifest.json", "golden/stress/logits.npy", "golden/inputs/image.npy",
        "golden/outputs/logits.npy", "variants/onnx-fp16/model.onnx",
    }  # fmt: skip


def test_it_answers_what_the_whole_bundle_answers(slim_dir: Path, bundle_dir: Path, digits_test: ImageSet) -> None:
    images = digits_test.images[:7]
    with vggdeploy.load(slim_dir) as slim, vggdeploy.load(bundle_dir, variant="onnx-fp16") as whole:
        assert slim.variant.name == "onnx-fp16"
        assert np.array_equal(slim.run({"image": images})["logits"], whole.run({"image": images})["logits"])
        assert slim.labels == whole.labels


def test_it_says_where_its_reference_is(slim_dir: Path, bundle_dir: Path) -> None:
    whole = Bundle.open(bundle_dir)
    origin = Bundle.open(slim_dir).manifest.origin
    assert origin is not None
    assert (origin.bundle, origin.digest) == (whole.manifest.name, whole.manifest.digest)
    assert origin.reference_sha256 == whole.sha256("checkpoint/model.safetensors")


def test_verify_proves_on_the_golden_pair_and_says_that_the_reference_is_not_there(slim_dir: Path) -> None:
    report = verify_bundle(Bundle.open(slim_dir))
    (record,) = report.variants
    assert report.verdict is Verdict.PASS
    assert record.data.startswith("golden pair")
    assert record.reasons == (
        "this slim bundle has no FP32 reference here: only its answers to the golden pair are compared with",
    )


def test_an_altered_variant_is_found_at_opening_and_a_wrong_one_by_its_golden_pair(own_slim: Path) -> None:
    golden = own_slim / "golden/outputs/logits.npy"
    values = np.load(golden)
    np.save(golden, values[:, ::-1])
    with pytest.raises(IntegrityError):
        Bundle.open(own_slim)
    manifest = parse_manifest((own_slim / MANIFEST_NAME).read_bytes(), where="x")
    with update_bundle(Bundle(own_slim, manifest)) as draft:
        draft.write("golden/outputs/logits.npy", golden.read_bytes())
    assert verify_bundle(Bundle.open(own_slim)).verdict is Verdict.FAIL


@pytest.mark.parametrize("option", [["--data", "digits"], ["--layers"]])
def test_what_needs_the_reference_is_refused_in_words(
    slim_dir: Path, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(slim_dir), *option]) == 1
    assert "slim bundle: its FP32 reference stayed in bundle" in capsys.readouterr().err


def test_verdicts_can_be_recorded_in_it(own_slim: Path) -> None:
    verify_bundle(Bundle.open(own_slim), VerifyOptions(record=True))
    opened = Bundle.open(own_slim)
    assert opened.manifest.variants[0].verdict is Verdict.PASS
    assert opened.manifest.origin is not None


def test_a_slim_bundle_of_a_slim_bundle_names_the_same_reference(slim_dir: Path, tmp_path: Path) -> None:
    first = Bundle.open(slim_dir)
    package_slim(Order(bundle=first, output=tmp_path / "again"))
    assert Bundle.open(tmp_path / "again").manifest.origin == first.manifest.origin


def test_a_variant_that_misses_the_golden_pair_is_not_packed(own_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(own_bundle)
    _, outputs = bundle.golden()
    with update_bundle(bundle) as draft:
        draft.save_arrays("golden/outputs", {"logits": np.ascontiguousarray(outputs["logits"][:, ::-1])})
    with pytest.raises(ParityError, match="misses the golden pair"):
        package_slim(Order(bundle=Bundle.open(own_bundle), output=tmp_path / "slim", variants=("onnx-fp32",)))
    assert list(tmp_path.iterdir()) == [own_bundle]


@pytest.mark.parametrize("damage", [b"", b"not json"])
def test_a_whole_bundle_is_never_replaced_by_a_slim_one(own_bundle: Path, damage: bytes) -> None:
    bundle = Bundle.open(own_bundle)
    if damage:
        (own_bundle / MANIFEST_NAME).write_bytes(damage)
    with pytest.raises(UsageError, match="holds a whole bundle"):
        package_slim(Order(bundle=bundle, output=own_bundle, overwrite=True))
    assert (own_bundle / "checkpoint/model.safetensors").is_file()


def test_a_manifest_has_either_a_reference_or_an_origin(slim_dir: Path, bundle_dir: Path) -> None:
    slim, whole = Bundle.open(slim_dir).manifest, Bundle.open(bundle_dir).manifest
    for wrong in (
        msgspec.structs.replace(slim, origin=None),
        msgspec.structs.replace(whole, origin=slim.origin),
        msgspec.structs.replace(slim, variants=()),
    ):
        with pytest.raises(BundleError):
            parse_manifest(seal(wrong), where="x")


def test_a_manifest_from_before_slim_bundles_still_opens(own_bundle: Path) -> None:
    file = own_bundle / MANIFEST_NAME
    document = json.loads(file.read_bytes())
    assert document.pop("origin") is None
    document["digest"] = UNSEALED
    data = json.dumps(document, indent=2).encode()
    file.write_bytes(_with_digest(data, _digest_of(data)))
    assert Bundle.open(own_bundle).manifest.origin is None


def test_an_engine_without_weights_is_not_cut_from_the_onnx_that_has_them(own_bundle: Path, tmp_path: Path) -> None:
    from vggdeploy.bundle import BuildRecord

    opened = Bundle.open(own_bundle)
    onnx = opened.manifest.variant("onnx-fp32")
    record = BuildRecord(
        library="tensorrt", version="10.13.0", source=onnx.name, source_sha256=opened.sha256(onnx.path), targets=("sm89",),
        options={"strip": "identical"}, seconds=1.0,
    )  # fmt: skip
    engine = msgspec.structs.replace(onnx, name="tensorrt-fp32", format="tensorrt", build=record)
    whole = Bundle(opened.root, opened.manifest.with_variants(engine))
    with pytest.raises(UsageError, match="was built without weights"):
        package_slim(Order(bundle=whole, output=tmp_path / "slim", variants=("tensorrt-fp32",)))
    assert not (tmp_path / "slim").exists()
