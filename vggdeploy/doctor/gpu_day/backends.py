"""A VGG through vggdeploy's own sessions on the GPU: ONNX Runtime's CUDA provider, and every TensorRT that runs here."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from vggdeploy.build.targets import resolve_targets, set_targets
from vggdeploy.build.tensorrt import build_engine, open_library
from vggdeploy.doctor.gpu_day.networks import IMAGES, Network
from vggdeploy.doctor.gpu_day.timing import timed
from vggdeploy.errors import IncompatibleError
from vggdeploy.export.onnx import export_onnx
from vggdeploy.model.deployable import Deployable
from vggdeploy.model.outputs import INPUT, LOGITS, input_spec, output_specs
from vggdeploy.records.gpu_day import NetworkRate
from vggdeploy.runtime import get_backend
from vggdeploy.runtime.base import Session, Source
from vggdeploy.runtime.gpu import cuda
from vggdeploy.runtime.registry import ENGINES
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.system.drafts import temporary_directory
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import BatchRange, Device, Precision

_CUDA = Device("cuda")
_BATCHES = (1, 8, 64, 256)
_RANGE = BatchRange(1, 64, 256)


def onnxruntime(arch: str) -> Iterator[NetworkRate]:
    """FP16 first: it is what one deploys."""
    backend = get_backend("onnxruntime")
    found = backend.probe(_CUDA)
    if not found.runs:
        raise IncompatibleError(found.reason, found.fix)
    network = Network(ModelSpec.named(arch), arch)
    with temporary_directory("vggdeploy-gpu-day-") as home:
        for precision in (Precision.FP16, Precision.FP32):
            source = _source(network, _exported(network, precision, home), precision)
            with backend.load().SESSION(source) as session:
                for batch in _BATCHES:
                    yield _rate(network, session, "ONNX Runtime", precision, batch)


def _exported(network: Network, precision: Precision, home: Path) -> Path:
    module = Deployable(network.copy(), PreprocessSpec()).eval()
    if precision is Precision.FP16:
        module.features.half()
        module.classifier.half()
    path = home / f"{precision}.onnx"
    export_onnx(module, path, image=input_spec(network.spec), batch=_RANGE)
    return path


def _source(network: Network, path: Path, precision: Precision) -> Source:
    return Source(
        file=HashedFile.of(path),
        spec=network.spec,
        preprocess=PreprocessSpec(),
        inputs=(input_spec(network.spec),),
        outputs=output_specs(network.spec, (LOGITS,)),
        batch=_RANGE,
        device=_CUDA,
        precision=precision,
    )


def _rate(
    network: Network, session: Session, by: str, precision: Precision, batch: int, seconds: float = 0.8
) -> NetworkRate:
    """With the copies to the GPU and back: it is what a program that embeds the session gets."""
    images = network.images.cpu().numpy()
    parts = [session.run({INPUT: part})[LOGITS] for part in _split(images[: max(batch, IMAGES)], batch)]
    answers = np.concatenate(parts)[:IMAGES].astype(np.float64)
    feeds = {INPUT: np.ascontiguousarray(images[:batch])}
    found = timed(lambda: session.run(feeds), lambda: None, seconds)
    return network.reading(by, precision, batch, found, torch.from_numpy(answers), copies=True)


def _split(images: np.ndarray, batch: int) -> list[np.ndarray]:
    return [images[i : i + batch] for i in range(0, len(images), batch)]


def engines(arch: str) -> Iterator[NetworkRate]:
    """Every TensorRT that runs here: its FP16 engine is built, and each batch size timed."""
    probed = [(engine, engine.probe(_CUDA)) for engine in ENGINES]
    if not any(found.runs for _, found in probed):
        raise IncompatibleError("; ".join(f"{e.title}: {found.reason}" for e, found in probed), probed[0][1].fix)
    network = Network(ModelSpec.named(arch), arch)
    with temporary_directory("vggdeploy-gpu-day-") as home:
        onnx = _exported(network, Precision.FP16, home)
        for engine in (engine for engine, found in probed if found.runs):
            path = home / f"{engine.name}.engine"
            library, configure = open_library(engine), None
            if "cpu" in engine.builds_on:
                targets = resolve_targets(library, [cuda.find_gpu(_CUDA).capability])
                configure = partial(set_targets, library, targets=targets)
            build_engine(library, onnx, path, precision=Precision.FP16, profiles=[_RANGE], configure=configure)
            with engine.load().SESSION(_source(network, path, Precision.FP16)) as session:
                for batch in _BATCHES:
                    yield _rate(network, session, engine.title, Precision.FP16, batch)
