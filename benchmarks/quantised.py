"""One network in INT8 by the recipes that others document, and beside it in FP32: for `int8.py` and `search.py`.

Every recipe starts from what a user has (the exported ONNX file, or the network in PyTorch), sees the same calibration
images, and is run by the library that it was made for, with nothing set but the number of threads.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from vggdeploy.bundle import Bundle
from vggdeploy.parity.metrics import paired_drop
from vggdeploy.preprocess import normalise
from vggdeploy.system.optional import import_silent, installed

BASELINE = "onnxruntime FP32"
NNCF, STATIC, OLIVE, TORCHAO = (
    "openvino + nncf", "onnxruntime quantize_static", "olive", "torch.compile + torchao",
)  # fmt: skip
PEERS = {NNCF: "nncf", STATIC: "onnxruntime", OLIVE: "olive", TORCHAO: "torchao"}  # and the package that each needs
FILES = {NNCF: "nncf.xml", STATIC: "ort.onnx", OLIVE: "olive/model.onnx"}
VERSIONS = ("onnxruntime", "openvino", "nncf", "olive-ai", "torch", "torchao")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Network:
    """``run`` takes what ``prepare`` made of uint8 pixels [N, H, W, C], which no clock sees, and gives logits."""

    run: Callable[[Any], Array]
    prepare: Callable[[Array], Any] = lambda images: images


@dataclass(frozen=True)
class Job:
    """What every process needs, in plain values. ``home`` holds the bundle (with the checkpoint it was made from), the
    quantised files, images.npy to run and calibration.npy."""

    home: str
    threads: int

    def path(self, name: str) -> Path:
        return Path(self.home, name)

    @property
    def bundle(self) -> Path:
        return self.path("bundle")

    @property
    def fp32(self) -> Path:
        return self.bundle / "variants" / "onnx-fp32" / "model.onnx"


def peers() -> list[str]:
    return [name for name, package in PEERS.items() if installed(package)]


def quantise_by_peers(job: Job) -> None:
    """The files of all recipes that make one. torchao's network cannot be written: its process makes it."""
    images = np.load(job.path("calibration.npy"))
    batches = [{"image": images[at : at + 4]} for at in range(0, len(images), 4)]
    make = {NNCF: lambda: _nncf(job, images), STATIC: lambda: _static(job, batches), OLIVE: lambda: _olive(job)}
    for name in peers():
        if name in make:
            make[name]()


def _nncf(job: Job, images: Array) -> None:
    """As NNCF's guide to post-training quantisation has it."""
    ov, nncf = import_silent("openvino"), import_silent("nncf")
    single = [images[at : at + 1] for at in range(len(images))]
    found = nncf.quantize(ov.Core().read_model(job.fp32), nncf.Dataset(single), subset_size=len(single))
    ov.save_model(found, job.path(FILES[NNCF]))


def _static(job: Job, batches: list[dict[str, Array]]) -> None:
    """What ONNX Runtime advises for x86 with VNNI: Q/DQ, unsigned activations, signed weights, after its preparation."""
    from onnxruntime.quantization import QuantFormat, QuantType, quant_pre_process, quantize_static

    quant_pre_process(job.fp32, job.path("prepared.onnx"))
    quantize_static(
        job.path("prepared.onnx"),
        job.path(FILES[STATIC]),
        Reader(batches),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


class Reader:
    """Batches, as `quantize_static` asks for them."""

    def __init__(self, batches: list[dict[str, Array]]) -> None:
        self._rest = iter(batches)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._rest, None)


OLIVE_DATA = """import numpy as np
from olive.data.registry import Registry

@Registry.register_dataset()
def calibration_images(path, **_):
    return [({"image": image}, 0) for image in np.load(path)]
"""


def _olive(job: Job) -> None:
    """Olive's pass of static quantisation, with its defaults."""
    os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
    from olive.workflows import run

    script = job.path("olive_data.py")
    script.write_text(OLIVE_DATA, encoding="utf-8")
    data = {
        "name": "calibration",
        "user_script": str(script),
        "load_dataset_config": {"type": "calibration_images", "path": str(job.path("calibration.npy"))},
        "dataloader_config": {"batch_size": 4},
    }
    run({
        "input_model": {"type": "ONNXModel", "model_path": str(job.fp32)},
        "data_configs": [data],
        "passes": {"int8": {"type": "OnnxStaticQuantization", "data_config": "calibration"}},
        "output_dir": str(job.path(FILES[OLIVE]).parent),
        "cache_dir": str(job.path("olive-cache")),
        "log_severity_level": 3,
    })  # fmt: skip


def network(name: str, job: Job) -> Network:
    """The network of that name, opened in this process."""
    warnings.simplefilter("ignore")
    if name == TORCHAO:
        return _torchao(job)
    if name == NNCF:
        return openvino_run(job.path(FILES[NNCF]), job.threads)
    return onnxruntime_run(job.fp32 if name == BASELINE else job.path(FILES[name]), job.threads)


def onnxruntime_run(path: Path, threads: int) -> Network:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Network(lambda batch: np.asarray(session.run(["logits"], {"image": batch})[0]))


def openvino_run(path: Path, threads: int) -> Network:
    ov = import_silent("openvino")
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    request = ov.Core().compile_model(path, "CPU", config).create_infer_request()
    return Network(lambda batch: np.array(request.infer({"image": batch}, share_inputs=True)["logits"]))


def _torchao(job: Job) -> Network:
    """PyTorch 2 export quantisation for x86 with Inductor, as its tutorial has it: one image a call, in floats that lie
    channels last."""
    import torch
    import torch._inductor.config as inductor
    from torchao.quantization import pt2e
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    from vggdeploy.model.weights import load_model

    torch.set_num_threads(job.threads)
    inductor.freezing = True
    preprocess = Bundle.open(job.bundle, only=()).manifest.preprocess

    def floats(images: Array) -> Any:
        return torch.from_numpy(normalise(images, preprocess)).contiguous(memory_format=torch.channels_last)

    images = np.load(job.path("calibration.npy"))
    model = load_model(job.bundle / "checkpoint").eval().to(memory_format=torch.channels_last)
    with torch.no_grad():
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(torch.export.export(model, (floats(images[:1]),)).module(), quantizer)
        for at in range(len(images)):
            prepared(floats(images[at : at + 1]))
        converted = convert_pt2e(prepared)
        pt2e.move_exported_model_to_eval(converted)
        compiled = torch.compile(converted)

    def run(batch: Any) -> Array:
        with torch.no_grad():
            return np.concatenate([compiled(image).numpy() for image in batch.split(1)])

    return Network(run, floats)


def turns(opened: Network, images: Array) -> Iterator[Any]:
    """Single images through a network, one after the other, for `turns.take_turns`."""
    parts = [opened.prepare(images[at : at + 1]) for at in range(len(images))]
    opened.run(parts[0])
    yield "open"
    for part in cycle(parts):
        opened.run(part)
        yield None


def answers(opened: Network, images: Array) -> Array:
    return np.concatenate([opened.run(opened.prepare(images[at : at + 50])) for at in range(0, len(images), 50)])


def judged(logits: Array, reference: Array, labels: Array) -> dict[str, Any]:
    """Accuracy of a network's answers, and how far it fell below the reference's (paired, one-sided 95%)."""
    right, classes = reference.argmax(1) == labels, logits.argmax(1)
    drop = paired_drop(right, classes == labels)
    return {
        "accuracy": float((classes == labels).mean()),
        "drop_points": 100 * drop.drop,
        "drop_upper_points": 100 * drop.upper,
        "flips": int((classes != reference.argmax(1)).sum()),
        "relative_l2": float(np.linalg.norm(logits - reference) / np.linalg.norm(reference)),
    }


def bytes_of(path: Path) -> int:
    """Of a network's file, and of the weights beside it."""
    beside = path.with_suffix(".bin") if path.suffix == ".xml" else path.with_name(path.name + ".data")
    return path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)
