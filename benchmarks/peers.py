"""A VGG-16 at 224 px, batch 1: our variants beside what a user would pick instead, with the same weights and threads.

    python benchmarks/peers.py [--arch vgg16] [--rounds 11] [--steps 4] [--only 'NAME;NAME…']

Every loop has a process of its own and they take turns (`turns.py`). The peers get ready float tensors [N, 3, H, W],
normalised before the clock starts; ours gets uint8 [N, H, W, 3] and normalises in its graph. All walk through the same
distinct images, and each one's first answer has to be the reference's. OpenVINO's own `benchmark_app` measures in its
own process, with its own clock, between the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from measuring import run_process, write_result
from turns import ratio, take_turns

import vggdeploy
from vggdeploy.bundle import REFERENCE, Bundle
from vggdeploy.bundle.checkpoint import Checkpoint
from vggdeploy.preprocess import normalise
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.system.machine import machine
from vggdeploy.system.optional import installed, version

IMAGES = 16
BASELINE = "onnxruntime"
OURS = "vggdeploy "
# Largest |Δ| of the first answer, as a share of the reference's largest logit: rounding of that precision, and no more.
ALLOWED = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2, "int8": 3e-1}


@dataclass(frozen=True)
class Job:
    """What every process needs, in plain values."""

    home: str
    batch: int
    threads: int

    @property
    def checkpoint(self) -> Path:
        return Path(self.home, "checkpoint")

    @property
    def bundle(self) -> Path:
        return Path(self.home, "bundle")

    @property
    def images(self) -> np.ndarray[Any, Any]:
        return np.load(Path(self.home, "images.npy"))

    @property
    def floats(self) -> np.ndarray[Any, Any]:
        return normalise(self.images, Bundle.open(self.bundle, only=()).manifest.preprocess)

    @property
    def onnx(self) -> Path:
        return Path(self.home, "plain.onnx")


def torch_model(job: Job) -> Any:
    """Torchvision's own class with the checkpoint's weights: what a user has who never heard of us."""
    import torch
    import torchvision
    from safetensors.torch import load_file

    torch.set_num_threads(job.threads)
    spec = Bundle.open(job.bundle, only=()).manifest.spec
    model = getattr(torchvision.models, spec.arch)(num_classes=spec.classes)
    model.load_state_dict(load_file(job.checkpoint / "model.safetensors"))
    return model.eval()


def torch_calls(job: Job, prepare: Callable[[Any, Any], Any], *, channels_last: bool = True) -> Iterator[Any]:
    import torch

    model = torch_model(job)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    parts = [torch.from_numpy(part).contiguous(memory_format=layout) for part in batches(job.floats, job.batch)]
    with torch.inference_mode():
        run = prepare(model, parts[0])
        yield from calls(lambda part: run(part).numpy(), parts)


def eager(job: Job) -> Iterator[Any]:
    return torch_calls(job, lambda model, example: model, channels_last=False)


def channels_last(job: Job) -> Iterator[Any]:
    return torch_calls(job, lambda model, example: model)


def compiled(job: Job) -> Iterator[Any]:
    """torch.compile with the weights frozen into the graph, as PyTorch's inference guide has it."""

    def prepare(model: Any, example: Any) -> Any:
        import torch
        import torch._inductor.config as inductor

        inductor.freezing = True
        return torch.compile(model)

    return torch_calls(job, prepare)


def aot_inductor(job: Job) -> Iterator[Any]:
    def prepare(model: Any, example: Any) -> Any:
        import torch

        package = torch._inductor.aoti_compile_and_package(
            torch.export.export(model, (example,)), package_path=str(Path(job.home, "model.pt2"))
        )
        return torch._inductor.aoti_load_package(package)

    return torch_calls(job, prepare)


def torchscript_frozen(job: Job) -> Iterator[Any]:
    def prepare(model: Any, example: Any) -> Any:
        import torch

        return torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(model, example)))

    return torch_calls(job, prepare)


def onnxruntime(job: Job) -> Iterator[Any]:
    """PyTorch's own exporter, and a session with nothing but the number of threads."""
    return ort_calls(job, job.onnx)


def ort_calls(job: Job, path: Path) -> Iterator[Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = job.threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    yield from calls(lambda part: session.run(None, {name: part})[0], batches(job.floats, job.batch))


def openvino(job: Job) -> Iterator[Any]:
    """As it comes, which is in bf16 where the CPU has it: its first answer is allowed that."""
    return openvino_calls(job, {})


def openvino_fp32(job: Job) -> Iterator[Any]:
    return openvino_calls(job, {"INFERENCE_PRECISION_HINT": "f32"})


def openvino_calls(job: Job, config: dict[str, Any]) -> Iterator[Any]:
    import openvino as ov

    core = ov.Core()
    model = core.read_model(job.onnx)
    compiled_model = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": job.threads, **config})
    request = compiled_model.create_infer_request()
    yield from calls(lambda part: request.infer([part])[0], batches(job.floats, job.batch))


def timm_onnx(job: Job) -> Iterator[Any]:
    """timm's own VGG, exported with timm's own exporter, in a plain session."""
    import timm
    import torch
    from timm.utils.onnx import onnx_export

    model = timm.create_model(Bundle.open(job.bundle, only=()).manifest.spec.arch, pretrained=False, exportable=True)
    source, wanted = torch_model(job).state_dict(), model.state_dict()
    assert len(source) == len(wanted)  # the same tensors in the same order; timm's fc6 and fc7 are convolutions
    model.load_state_dict({k: v.reshape(w.shape) for (k, w), v in zip(wanted.items(), source.values(), strict=True)})
    path = Path(job.home, "timm.onnx")
    onnx_export(model, str(path), example_input=torch.from_numpy(job.floats[: job.batch]))
    del model
    return ort_calls(job, path)


OLIVE_LOADER = """import sys
sys.path.insert(0, {benchmarks!r})
from peers import Job, torch_model
def load(model_path=None):
    return torch_model(Job(home={home!r}, batch={batch}, threads={threads}))
"""


def olive_onnx(job: Job) -> Iterator[Any]:
    """Olive's conversion and its peephole pass, with their defaults, in a plain session."""
    os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
    from olive.workflows import run

    home = Path(job.home, "olive")
    home.mkdir(exist_ok=True)
    script = home / "loader.py"
    about = {"benchmarks": str(Path(__file__).parent), "home": job.home, "batch": job.batch, "threads": job.threads}
    script.write_text(OLIVE_LOADER.format(**about), encoding="utf-8")
    shape = list(job.floats[: job.batch].shape)
    io = {"input_names": ["image"], "input_shapes": [shape], "input_types": ["float32"], "output_names": ["logits"]}
    model = {"type": "PyTorchModel", "model_script": str(script), "model_loader": "load", "io_config": io}
    passes = {"conversion": {"type": "OnnxConversion"}, "peephole": {"type": "OnnxPeepholeOptimizer"}}
    out = home / "out"
    cache = str(home / "cache")
    run({"input_model": model, "passes": passes, "output_dir": str(out), "cache_dir": cache, "log_severity_level": 3})
    return ort_calls(job, out / "model.onnx")


def ours(job: Job, variant: str) -> Iterator[Any]:
    with vggdeploy.load(job.bundle, variant=variant, threads=job.threads) as engine:
        name = engine.bundle.manifest.input.name
        yield from calls(lambda part: engine.run({name: part})["logits"], batches(job.images, job.batch))


PEERS: dict[str, tuple[Callable[[Job], Iterator[Any]], str]] = {
    "torch eager": (eager, "torch"),
    "torch channels-last": (channels_last, "torch"),
    "torch.compile, frozen": (compiled, "torch"),
    "AOTInductor": (aot_inductor, "torch"),
    "TorchScript, frozen": (torchscript_frozen, "torch"),
    BASELINE: (onnxruntime, "onnxruntime"),
    "openvino, as it comes": (openvino, "openvino"),
    "openvino, FP32": (openvino_fp32, "openvino"),
    "timm's ONNX": (timm_onnx, "timm"),
    "Olive's ONNX": (olive_onnx, "olive"),
}


def batches(images: np.ndarray[Any, Any], size: int) -> list[np.ndarray[Any, Any]]:
    return [np.ascontiguousarray(images[at : at + size]) for at in range(0, len(images) - size + 1, size)]


def calls(run: Callable[[Any], Any], parts: Sequence[Any]) -> Iterator[Any]:
    """The loop: its first step yields the answer to the first batch, for the check."""
    yield np.array(run(parts[0])).tolist()
    for part in cycle(parts):
        run(part)
        yield None


def loop(name: str, job: Job) -> Iterator[Any]:
    """The loop of that name, whose first step is checked against the reference's answer."""
    warnings.simplefilter("ignore")  # TorchScript's deprecation, exporters' notes
    steps = ours(job, name.removeprefix(OURS)) if name.startswith(OURS) else PEERS[name][0](job)
    expected = np.load(Path(job.home, "expected.npy"))
    off = float(np.abs(np.asarray(next(steps)) - expected).max() / np.abs(expected).max())
    precision = "bf16" if name == "openvino, as it comes" else next((p for p in ALLOWED if name.endswith(p)), "fp32")
    if off > ALLOWED[precision]:
        sys.exit(f"{name}: its first answer is off by {off:.2g} of the largest logit")
    yield f"first answer off by {off:.1e} of the largest logit"
    yield from steps


def prepare(job: Job, arch: str, steps: Sequence[str]) -> list[str]:
    """Checkpoint, bundle, a plain ONNX file, images and the expected answer; returns our variants that run here."""
    from vggdeploy.model.vgg import new_vgg
    from vggdeploy.model.weights import save_checkpoint

    spec = ModelSpec.named(arch)
    labels = tuple(f"class {i}" for i in range(spec.classes))
    save_checkpoint(job.checkpoint, new_vgg(spec), Checkpoint(spec=spec, preprocess=PreprocessSpec(), labels=labels))
    cli = [sys.executable, "-m", "vggdeploy"]
    run_process([*cli, "export", job.checkpoint, "-o", job.bundle, "--samples", "64"])
    run_process([*cli, "optimize", job.bundle, "--step", ",".join(steps)])
    size = spec.image_size
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, size, size, 3), np.uint8)
    np.save(Path(job.home, "images.npy"), images)
    run_process([sys.executable, __file__, "--make-plain", msgspec.json.encode(job).decode()])
    found = json.loads(subprocess.check_output([*map(str, cli), "inspect", str(job.bundle), "--json"]))
    return [v["name"] for v in found["variants"] if v["name"] != REFERENCE and not v.get("build")]


def make_plain(job: Job) -> None:
    """PyTorch's exporter, and the reference's answer, in a process that gives its memory back."""
    import torch

    model = torch_model(job)
    example = torch.from_numpy(job.floats[: job.batch])
    torch.onnx.export(model, (example,), job.onnx, dynamo=True, external_data=False, verbose=False)
    with torch.inference_mode():
        np.save(Path(job.home, "expected.npy"), model(example).numpy())


def benchmark_app(job: Job, seconds: int) -> dict[str, Any] | None:
    """OpenVINO's own tool on the same file and threads: its median, in its own words."""
    tool = Path(sys.executable).with_name("benchmark_app")
    if not tool.exists():
        return None
    shape = ",".join(map(str, (job.batch, *job.floats.shape[1:])))
    command = [tool, "-m", job.onnx, "-d", "CPU", "-api", "sync", "-hint", "none", "-nstreams", "1", "-t", seconds,
               "-nthreads", job.threads, "-infer_precision", "f32", "-shape", f"[{shape}]",
               "-json_stats", "-report_type", "no_counters", "-report_folder", job.home]  # fmt: skip
    run_process(command)
    report = json.loads(Path(job.home, "benchmark_report.json").read_text())
    return {"latency_median_ms": float(report["execution_results"]["latency (ms)"]), "seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="vgg16")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=4, help="calls of each loop in a round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", default="", help="these peers, separated by semicolons; ours are always there")
    parser.add_argument("--make-plain", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make_plain:
        make_plain(msgspec.json.decode(options.make_plain.encode(), type=Job))
        return 0
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as directory:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(directory, "inductor"))
        job = Job(directory, options.batch, options.threads)
        print("checkpoint, export …", flush=True)
        bf16 = {"avx512_bf16", "amx_bf16"} & set(machine().features)
        variants = prepare(job, options.arch, ["openvino-fp32", *["openvino-bf16"] * bool(bf16)])
        wanted = options.only.split(";") if options.only else list(PEERS)
        missing = [name for name in wanted if not installed(PEERS[name][1])]
        peers = [name for name in dict.fromkeys([BASELINE, *wanted]) if name not in missing]
        names = [*peers, *(OURS + name for name in variants)]
        found = take_turns(loop, names, job, rounds=options.rounds, steps=options.steps)
        app = benchmark_app(job, seconds=10) if "openvino, FP32" in peers else None
    rows = {
        name: {"median_ms": float(np.median(times)) * 1e3, "faster_than_onnxruntime": ratio(found[BASELINE], times)}
        for name, times in found.items()
    }
    measured = {
        "network": f"{options.arch} at 224 px, random weights",
        "batch": options.batch,
        "threads": options.threads,
        "rounds": options.rounds,
        "calls_a_round": options.steps,
        "rows": rows,
        "openvino_benchmark_app": app,
        "not_installed": missing,
        "peer_versions": {
            name: found
            for name in ("torch", "onnxruntime", "openvino", "timm", "olive-ai")
            if (found := version(name)) is not None
        },
    }
    for name, row in sorted(rows.items(), key=lambda item: item[1]["median_ms"]):
        r = row["faster_than_onnxruntime"]
        print(f"{row['median_ms']:9.1f} ms  {r['median']:5.2f} × [{r['low']:.2f}, {r['high']:.2f}]  {name}")
    return write_result("peers", measured, [])


if __name__ == "__main__":
    sys.exit(main())
