"""A manifest that is cut, altered, forged or absurd is one clear error, never a crash and never a guess."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forgery import Edit, resealed, sealed, set_at

from vggdeploy.bundle import MANIFEST_NAME, Bundle
from vggdeploy.bundle.manifest import parse_manifest
from vggdeploy.errors import BundleError, IntegrityError

Forge = Callable[[Edit], Path]


def cause_of(data: bytes, kind: type[BundleError] = BundleError) -> str:
    with pytest.raises(BundleError) as caught:
        parse_manifest(data, where="b")
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value.cause


def manifest_of(root: Path) -> bytes:
    return (root / MANIFEST_NAME).read_bytes()


# Damage


def test_cut_short_anywhere(original: Path) -> None:
    data = manifest_of(original)
    assert len(data) > 4000
    for end in range(0, len(data) - 1, 50):
        with pytest.raises(BundleError):
            parse_manifest(data[:end], where="b")


def test_the_last_newline_counts_too(original: Path) -> None:
    assert "was altered" in cause_of(manifest_of(original)[:-1], IntegrityError)


def test_a_thousand_mutations_are_refused_or_mean_the_same(original: Path) -> None:
    good = manifest_of(original)
    meant = parse_manifest(good, where="b")
    chance = random.Random(20261124)
    refused = 0
    for _ in range(1000):
        data = bytearray(good)
        for _ in range(chance.choice((1, 1, 1, 2, 5))):
            at = chance.randrange(len(data))
            match chance.randrange(5):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    data[at] ^= 1 << chance.randrange(8)
                case 2:
                    del data[at : at + chance.randrange(1, 9)]
                case 3:
                    data[at:at] = data[at : at + chance.randrange(1, 40)]
                case 4:
                    data[at:at] = chance.choice(
                        (b"9" * 30, b"-", b"null", b'"', b"[", b"{}", b"e999", b"\\ud800", b" ")
                    )
        try:
            found = parse_manifest(bytes(data), where="b")
        except BundleError:
            refused += 1
        else:
            assert found == meant
    assert refused > 950


def test_a_thousand_forged_values_are_refused_or_kept_consistent(original: Path) -> None:
    """The same with a digest that fits again: whatever opens is a manifest whose parts agree."""
    good = json.loads(manifest_of(original))
    chance = random.Random(7)
    wild: list[Any] = [
        None, True, -1, 0, 2**31, 2**63, 2**64, 10**400, 1e308, -1e308, "", "x", "..", "../x", "\0", "N", "fp32", "uint8",
        [], {}, [[]], {"": ""}, "a" * 5000, ["a"] * 50,
    ]  # fmt: skip
    for _ in range(1000):
        document = json.loads(json.dumps(good))
        parent, key = pick(document, chance)
        parent[key] = chance.choice(wild)
        try:
            manifest = parse_manifest(sealed(document), where="b")
        except BundleError:
            continue
        assert manifest.input.item_shape[-1] in (manifest.spec.in_channels, 32)
        assert len(manifest.labels) in (0, manifest.spec.classes)


def pick(document: Any, chance: random.Random) -> tuple[Any, Any]:
    """A random place in a JSON document."""
    while True:
        key = chance.choice(list(document)) if isinstance(document, dict) else chance.randrange(len(document))
        below = document[key]
        if not isinstance(below, (dict, list)) or not below or chance.random() < 0.2:
            return document, key
        document = below


NO_MANIFESTS = [
    b"", b"\0", b"\xff\xfe{}", b"[]", b"null", b"3", b'"x"', b"{", b"{}", b"PK\x03\x04", b"\x80\x04K\x01.",
    b"\xef\xbb\xbf{}", b'{"schema_version": 1, "name": "\xff"}', b"[" * 100_000, b'{"a":' * 100_000,
    b'{"schema_version": ' + b"[" * 100_000, b"9" * 100_000, b"NaN",
]  # fmt: skip


@pytest.mark.parametrize("data", NO_MANIFESTS, ids=map(str, range(len(NO_MANIFESTS))))
def test_no_manifest_at_all(data: bytes) -> None:
    assert "manifest.json cannot be read" in cause_of(data)


# Versions


@pytest.mark.parametrize(
    ("version", "hint"), [(2, "install a newer"), (2**62, "install a newer"), (0, "export"), (-1, "export")]
)
def test_another_schema_version_is_named_before_anything_else(version: int, hint: str) -> None:
    with pytest.raises(BundleError, match=f"has schema version {version}; this vggdeploy reads version 1") as caught:
        parse_manifest(json.dumps({"schema_version": version, "news": 1}).encode(), where="b")
    assert hint in caught.value.hint


@pytest.mark.parametrize("version", [None, "1", 1.5, True, [], 10**400])
def test_a_schema_version_of_another_type(version: Any) -> None:
    cause_of(json.dumps({"schema_version": version}).encode())


# Contents that fit no schema, or make no sense


NONSENSE: dict[str, tuple[Edit, str]] = {
    "unknown field": (set_at("extra", 1), "unknown field `extra`"),
    "unknown field below": (set_at("variants", 0, "extra", 1), "unknown field `extra`"),
    "missing field": (lambda d: d.pop("labels"), "missing required field `labels`"),
    "no digest": (lambda d: d.pop("digest"), "was altered"),
    "wrong type": (set_at("labels", 3), "Expected `array`, got `int`"),
    "number for text": (set_at("labels", 0, 7), "Expected `str`, got `int`"),
    "text for number": (set_at("files", 0, "size", "12"), "Expected `int`, got `str`"),
    "null": (set_at("golden", None), "Expected `object`, got `null`"),
    "unknown precision": (set_at("variants", 0, "precision", "fp4"), "Invalid enum value 'fp4'"),
    "the limits of tf32 for a file": (set_at("variants", 1, "precision", "tf32"), "what only engines and the checkpoint are"),
    "a file as the checkpoint": (set_at("variants", 1, "format", "checkpoint"), "is the checkpoint, which it is not"),
    "a checkpoint in fp16": (set_at("variants", 0, "precision", "fp16"), "is the checkpoint, which it is not"),
    "a variant twice": (lambda d: d["variants"].append(d["variants"][0]), "lists a variant twice"),
    "a file twice": (lambda d: d["files"].append(d["files"][0]), "lists a file twice"),
    "too few labels": (lambda d: d["labels"].pop(), "has 9 labels for 10 classes"),
    "an output twice": (lambda d: d["outputs"].append(d["outputs"][0]), "a name for each"),
    "no outputs": (set_at("outputs", []), "needs outputs"),
    "fixed batch": (set_at("input", "shape", [1, 32, 32, 1]), "describes no input or output"),
    "letters for sizes": (set_at("input", "shape", ["N", "H", "W", "C"]), "describes no input or output"),
    "no pixels": (set_at("input", "shape", ["N", 0, 0, 0]), "describes no input or output"),
    "unknown dtype": (set_at("input", "dtype", "object"), "describes no input or output"),
    "another crop": (set_at("input", "shape", ["N", 64, 64, 1]), "which its preprocessing does not make"),
    "another layout": (set_at("input", "shape", ["N", 1, 32, 32]), "which its preprocessing does not make"),
    "no thresholds": (set_at("thresholds", {}), "has no thresholds for fp32"),
    "bad batch range": (set_at("variants", 0, "batch", {"min": 4, "opt": 2, "max": 1}), "not 1 ≤ min ≤ opt ≤ max"),
    "bad architecture": (set_at("spec", "arch", "resnet50"), "architecture 'resnet50' is unknown"),
    "other blocks": (set_at("spec", "blocks", [[1], [1], [1], [1], [1]]), "the blocks are not those of vgg11_bn"),
    "width beyond numbers": (set_at("spec", "width", 1e308), "cannot be read"),
    "blocks beyond numbers": (set_at("spec", "blocks", [[1]] * 20_000), "cannot be read"),
    "huge integer": (set_at("files", 0, "size", 10**400), "more than 300 digits"),
    "negative size": (set_at("files", 0, "size", -1), "Expected `int` >= 0"),
    "no hash": (set_at("files", 0, "sha256", "abc"), "matching regex"),
    "infinite mean": (lambda d: d["preprocess"].update(mean=[10**400]), "manifest.json"),
    "crop beyond resize": (set_at("preprocess", "crop", 999), "does not fit resize"),
}  # fmt: skip


@pytest.mark.parametrize("case", NONSENSE)
def test_nonsense_is_named(forge: Forge, case: str) -> None:
    edit, cause = NONSENSE[case]
    with pytest.raises(BundleError) as caught:
        Bundle.open(forge(edit))
    assert cause in caught.value.cause
    assert str(caught.value).count("\n") == 0


def test_a_key_twice_in_one_object_is_refused(original: Path) -> None:
    """Other readers take the first of two, ours the last: what one checks the other must not miss."""
    data = manifest_of(original).replace(b'"dataset": "digits"', b'"dataset": "digits",\n  "dataset": "mnist"')
    assert cause_of(resealed(data)) == "b/manifest.json has the key 'dataset' twice in one object"


def test_a_hand_edit_is_found(root: Path) -> None:
    edited = manifest_of(root).replace(b'"resize": 32', b'"resize": 33')
    assert "was altered: its SHA-256 is not its digest" in cause_of(edited, IntegrityError)


# Paths that lead outside


OUTSIDE = [
    "../outside", "/etc/passwd", "checkpoint/../../outside", "C:\\x", "..\\outside", "", ".", "a//b", "x" * 300, "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE, ids=map(str, range(len(OUTSIDE))))
@pytest.mark.parametrize("where", ["files", "variants", "golden"])
def test_a_path_outside_is_refused_wherever_it_stands(forge: Forge, tmp_path: Path, where: str, path: str) -> None:
    (tmp_path / "outside").write_bytes(b"secret")

    def edit(document: dict[str, Any]) -> None:
        document["files"][0]["path"] = path
        if where == "variants":
            document["variants"][0]["path"] = path
        elif where == "golden":
            document["golden"]["inputs"]["image"] = path

    with pytest.raises(BundleError):
        Bundle.open(forge(edit))


@pytest.mark.parametrize("where", ["variants", "golden"])
def test_a_path_without_a_hash_is_refused(forge: Forge, where: str) -> None:
    def edit(document: dict[str, Any]) -> None:
        if where == "variants":
            document["variants"][1]["path"] = "manifest.json"
        else:
            document["golden"]["outputs"]["logits"] = "manifest.json"

    with pytest.raises(IntegrityError, match=r"no hash for 'manifest\.json'"):
        Bundle.open(forge(edit))


@pytest.mark.parametrize("size", [0, 1, 2**62])
def test_a_forged_size_is_refused(forge: Forge, size: int) -> None:
    with pytest.raises(IntegrityError, match=f"the manifest says {size}"):
        Bundle.open(forge(set_at("files", 1, "size", size)))


def test_a_forged_hash_is_refused(forge: Forge) -> None:
    with pytest.raises(IntegrityError, match="was altered"):
        Bundle.open(forge(set_at("files", 1, "sha256", "0" * 64)))
