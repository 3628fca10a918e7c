"""``vggdeploy inspect --sbom``: what a bundle is made of, as CycloneDX, held against the official schema."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from vggdeploy.bundle import Bundle
from vggdeploy.bundle.manifest import Manifest
from vggdeploy.cli.app import run
from vggdeploy.package.bom import bill_of_materials


def validated(document: dict[str, Any]) -> dict[str, Any]:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is None
    return document


def printed(bundle: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run(["inspect", str(bundle), "--sbom"]) == 0
    return validated(json.loads(capsys.readouterr().out))


def of_type(document: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {c["name"]: c for c in document["components"] if c["type"] == kind}


def changed(bundle: Bundle, **fields: Any) -> Bundle:
    manifest: Manifest = msgspec.structs.replace(bundle.manifest, **fields)
    return Bundle(bundle.root, manifest)


def test_it_names_every_file_with_the_hash_of_its_bytes(bundle_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = of_type(printed(bundle_dir, capsys), "file")
    there = {
        p.relative_to(bundle_dir).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in bundle_dir.rglob("*")
        if p.is_file() and p.name != "manifest.json"
    }
    assert {name: file["hashes"] for name, file in files.items()} == {
        name: [{"alg": "SHA-256", "content": sha256}] for name, sha256 in there.items()
    }


def test_each_variant_has_its_hash_its_files_its_verdict_and_its_distance(
    bundle_dir: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    document = printed(bundle_dir, capsys)
    parts = {d["ref"]: d["dependsOn"] for d in document["dependencies"]}
    models = of_type(document, "machine-learning-model")
    assert set(models) == {v.name for v in bundle.manifest.variants}
    for variant in bundle.manifest.variants:
        model = models[variant.name]
        properties = {p["name"]: p["value"] for p in model["properties"]}
        assert model["hashes"][0]["content"] == bundle.sha256(variant.path)
        assert properties["vggdeploy:verdict"] == variant.verdict == "pass"
        assert any(ref.startswith(f"file:{variant.path}") for ref in parts[f"variant:{variant.name}"])
    metrics = models["onnx-fp16"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    proof = bundle.manifest.variant("onnx-fp16").parity
    assert proof is not None
    assert float(metrics[0]["value"]) == pytest.approx(proof.outputs[0].relative_l2, rel=1e-5)


def test_the_card_has_architecture_task_data_preprocessing_and_accuracy(
    bundle_dir: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    document = printed(bundle_dir, capsys)
    model = document["metadata"]["component"]
    parameters = model["modelCard"]["modelParameters"]
    assert parameters["architectureFamily"] == "VGG"
    assert parameters["modelArchitecture"].startswith("vgg11_bn")
    assert parameters["task"] == "image classification"
    assert parameters["datasets"] == [{"ref": "data:digits"}]
    assert parameters["inputs"] == [{"format": "image: uint8[N, 32, 32, 1]"}]
    [accuracy] = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    known = bundle.manifest.reference_accuracy
    assert known is not None
    assert float(accuracy["value"]) == pytest.approx(known.hits / known.samples, rel=1e-5)
    properties = {(p["name"], p["value"]) for p in model["properties"]}
    assert ("vggdeploy:digest", bundle.manifest.digest) in properties
    assert ("vggdeploy:preprocess:crop", "32") in properties


def test_versions_and_licences_stand_where_they_are_known(
    bundle_dir: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    document = printed(bundle_dir, capsys)
    assert {name: c["version"] for name, c in of_type(document, "library").items()} == bundle.manifest.tools
    assert of_type(document, "data")["digits"]["licenses"] == [{"license": {"id": "CC-BY-4.0"}}]
    assert "licenses" not in of_type(document, "library")["torch"]
    mine = bill_of_materials(changed(bundle, dataset="folder:/photos"))
    assert "licenses" not in of_type(validated(mine), "data")["folder:/photos"]


@pytest.mark.parametrize("dataset", ["mnist", "fashion-mnist", "cifar10", ""])
def test_every_data_set_gives_a_valid_document(dataset: str, bundle: Bundle) -> None:
    validated(bill_of_materials(changed(bundle, dataset=dataset, reference_accuracy=None)))


def test_the_same_bundle_gives_the_same_document(bundle: Bundle) -> None:
    assert bill_of_materials(bundle) == bill_of_materials(Bundle.open(bundle.root))


def test_what_a_stranger_s_manifest_says_stays_text(bundle: Bundle) -> None:
    """Names and versions of a foreign manifest can be anything; the document stays valid, and each reference unique."""
    odd = "x@1?a=b#c/../\n\u202e\U0001f600"
    document = validated(
        bill_of_materials(
            changed(bundle, name=odd, created="yesterday", dataset=odd, tools={odd: odd, "a": "", "": "b"})
        )
    )
    references = [c["bom-ref"] for c in document["components"]]
    assert len(references) == len(set(references))
    assert "timestamp" not in document["metadata"]
    assert {c["purl"] for c in document["components"] if c["name"] == odd and c["type"] == "library"} == {
        "pkg:pypi/x%401%3Fa%3Db%23c%2F..%2F%0A%E2%80%AE%F0%9F%98%80@x%401%3Fa%3Db%23c%2F..%2F%0A%E2%80%AE%F0%9F%98%80"
    }


def test_a_damaged_bundle_gets_none(own_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = next(own_bundle.rglob("*.onnx"))
    file.write_bytes(file.read_bytes() + b"\0")
    assert run(["inspect", str(own_bundle), "--sbom"]) == 1
    assert capsys.readouterr().out == ""
