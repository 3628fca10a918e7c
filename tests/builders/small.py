"""Tiny VGGs as ONNX and as bundles, made once a session: real exporter, real files, random weights."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import torch

from vggdeploy.bundle import Bundle, GoldenFiles, Manifest, Origin, Variant, create_bundle
from vggdeploy.model.deployable import Deployable
from vggdeploy.model.vgg import VGG
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.types import BatchRange, Precision, TensorSpec

SPEC = ModelSpec.named("vgg11", width=0.125, image_size=32, classes=10, hidden=32)
PREPROCESS = PreprocessSpec(resize=32, crop=32)
IMAGE = TensorSpec("image", "uint8", ("N", 32, 32, 3))
LOGITS = TensorSpec("logits", "float32", ("N", 10))
BATCH = BatchRange(1, 4, 16)
CONVOLUTIONS, PRODUCTS = 8, 3  # VGG-11 (configuration A): eight convolutions, three fully connected layers


def model(spec: ModelSpec = SPEC) -> VGG:
    torch.manual_seed(0)
    return VGG(spec).eval()


def write_onnx(path: Path, precision: Precision, *, fixed_batch: int | None = None, spec: ModelSpec = SPEC) -> Path:
    """One ONNX file of a VGG; by default of the tiny one."""
    net = copy.deepcopy(model(spec))
    side = spec.image_size
    net = net.half() if precision is Precision.FP16 else net.bfloat16() if precision is Precision.BF16 else net
    shapes = None if fixed_batch else {"image": {0: torch.export.Dim("N", min=1, max=64)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Deployable(net, PREPROCESS).eval(),
            (torch.zeros(fixed_batch or 2, side, side, 3, dtype=torch.uint8),),
            path,
            dynamo=True,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=shapes,
            external_data=False,
            verbose=False,
        )
    return path


def write_bundle(root: Path, onnx_files: dict[Precision, Path]) -> Bundle:
    """A bundle with those ONNX files and a golden pair of the FP32 model: a slim one, without that model."""
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    with torch.inference_mode():
        logits = Deployable(model(), PREPROCESS).eval()(torch.from_numpy(images))[0].numpy()
    with create_bundle(root) as draft:
        variants = []
        for precision, file in onnx_files.items():
            path = f"variants/onnx-{precision}/model.onnx"
            draft.write(path, file.read_bytes())
            variants.append(
                Variant(name=f"onnx-{precision}", format="onnx", precision=precision, path=path, batch=BATCH)
            )
        draft.manifest = Manifest(
            name="tiny",
            created="2026-11-24T00:00:00Z",
            spec=SPEC,
            preprocess=PREPROCESS,
            labels=(),
            input=IMAGE,
            outputs=(LOGITS,),
            variants=tuple(variants),
            golden=GoldenFiles(
                inputs=draft.save_arrays("golden/inputs", {"image": images}),
                outputs=draft.save_arrays("golden/outputs", {"logits": logits}),
                data="random pixels",
            ),
            origin=Origin(bundle="none", digest="0" * 64, reference_sha256="0" * 64),
        )
    return Bundle.open(root)


def quantised(source: Path, target: Path, *, side: int = 32) -> Path:
    """INT8 by ONNX Runtime's quantiser, symmetric as TensorRT wants it."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Pixels(CalibrationDataReader):
        def __init__(self) -> None:
            rng = np.random.default_rng(0)
            self._batches = iter(
                [{"image": rng.integers(0, 256, (2, side, side, 3), dtype=np.uint8)} for _ in range(2)]
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

    quantize_static(
        source,
        target,
        Pixels(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "Gemm"],
        extra_options={"ActivationSymmetric": True, "QuantizeBias": False},
    )
    return target
