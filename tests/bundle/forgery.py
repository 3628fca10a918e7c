"""Manifests to test with: a good one, and the tools of an attacker."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from vggdeploy.bundle import (
    REFERENCE,
    BuildRecord,
    GoldenFiles,
    Manifest,
    Measurement,
    PrecisionProof,
    ReferenceAccuracy,
    Variant,
)
from vggdeploy.bundle.manifest import UNSEALED, _digest_of, _with_digest
from vggdeploy.records import FlipCount, OutputParity, ParityRecord
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.types import BatchRange, Precision, TensorSpec, Verdict

SAMPLES = 4
CLASSES = 10

Edit = Callable[[dict[str, Any]], object]


def example_manifest(*, onnx_sha256: str = "0" * 64) -> Manifest:
    """A manifest in which every optional field is filled. A proof of other bytes than ``onnx-fp32`` has would not count."""
    batch = BatchRange(1, 2, 4)
    parity = ParityRecord(
        variant="onnx-fp32",
        backend="onnxruntime",
        device="cpu",
        verdict=Verdict.PASS,
        data="golden pair (4 images)",
        outputs=(
            OutputParity(
                output="logits", samples=SAMPLES, max_abs=1e-6, mean_abs=1e-7, relative_l2=1e-7, cosine_min=1.0,
                cosine_mean=1.0,
            ),
        ),
        flips=FlipCount(flips=0, samples=SAMPLES, lower=0.0, upper=0.527),
        reference_accuracy=0.5,
        candidate_accuracy=0.5,
        sha256=onnx_sha256,
        tools={"onnxruntime": "1.31.0"},
    )  # fmt: skip
    build = BuildRecord(
        library="tensorrt-rtx", version="1.7.1", source="variants/onnx-fp32/model.onnx", source_sha256="0" * 64,
        targets=("sm89",), options={"precision": "fp16"}, seconds=0.5,
    )  # fmt: skip
    measured = Measurement(machine="here", backend="onnxruntime", batch=1, threads=2, p50_ms=1.25)
    return Manifest(
        name="example",
        created="2026-11-24T00:00:00Z",
        spec=ModelSpec.named("vgg11_bn", width=0.25, in_channels=1, classes=CLASSES, image_size=32, hidden=64),
        preprocess=PreprocessSpec(mode="L", resize=32, crop=32, mean=(0.5,), std=(0.5,)),
        labels=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
        dataset="digits",
        input=TensorSpec("image", "uint8", ("N", 32, 32, 1)),
        outputs=(TensorSpec("logits", "float32", ("N", CLASSES)),),
        golden=GoldenFiles(
            inputs={"image": "golden/inputs/image.npy"}, outputs={"logits": "golden/outputs/logits.npy"}, data="digits",
            files=("golden/files/a.png",), prepared="golden/prepared.png", normalised="golden/normalised.npy",
            decoder="Pillow 13.0.0, libjpeg-turbo 3.2.0",
        ),
        reference_accuracy=ReferenceAccuracy(dataset="digits", samples=SAMPLES, hits=2),
        variants=(
            Variant(name=REFERENCE, format="checkpoint", precision=Precision.FP32, path="checkpoint", batch=batch),
            Variant(
                name="onnx-fp32", format="onnx", precision=Precision.FP32, path="variants/onnx-fp32/model.onnx",
                batch=batch, proof=PrecisionProof(layers={"fp32": 11}, weight_bytes={"fp32": 999}), parity=parity,
                measured=(measured,),
            ),
            Variant(
                name="tensorrt-rtx-fp16", format="tensorrt-rtx", precision=Precision.FP16,
                path="variants/tensorrt-rtx-fp16/model.engine", batch=batch, build=build,
            ),
        ),
        tools={"vggdeploy": "0.1.0"},
    )  # fmt: skip


def sealed(document: Any) -> bytes:
    """JSON with a digest that fits, whatever the document is."""
    if isinstance(document, dict) and "digest" in document:
        document["digest"] = UNSEALED
    return resealed(json.dumps(document, indent=2).encode())


def resealed(data: bytes) -> bytes:
    """The same bytes with a digest that fits."""
    return _with_digest(data, _digest_of(_with_digest(data, UNSEALED)))


def set_at(*path: Any) -> Edit:
    """An edit: the last argument is the value, what comes before it the place."""

    def edit(document: Any) -> None:
        for key in path[:-2]:
            document = document[key]
        document[path[-2]] = path[-1]

    return edit
