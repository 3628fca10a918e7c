"""A VGG-16 at 224 px, batch 1: our variants beside what a user would pick instead, with the same weights and threads.

    python benchmarks/peers.py [--arch vgg16] [--rounds 11] [--steps 4] [--only 'NAME;NAME…']

The peers are in `opponents/`, one file each. Every loop has a process of its own and they take turns (`turns.py`), at most
`GROUP` at a time and plain ONNX Runtime with each group. The peers get ready float tensors [N, 3, H, W], normalised before the
clock starts; ours gets uint8 [N, H, W, 3] and normalises in its graph. All walk through the same distinct images, and each
one's first answer has to be the reference's. OpenVINO's own `benchmark_app` measures in its
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from measuring import run_process, write_result
from opponents import BASELINE, LOOPS, NEEDS, Job
from opponents.job import batches, calls, torch_model
from turns import ratio, take_turns

import vggdeploy
from vggdeploy.bundle import REFERENCE
from vggdeploy.bundle.checkpoint import Checkpoint
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.system.machine import machine
from vggdeploy.system.optional import installed, version

IMAGES = 16
GROUP = 7  # networks in memory at the same time
OURS = "vggdeploy "
# Largest |Δ| of the first answer, as a share of the reference's largest logit: rounding of that precision, and no more.
ALLOWED = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2, "int8": 3e-1}


def ours(job: Job, variant: str) -> Iterator[Any]:
    with vggdeploy.load(job.bundle, variant=variant, threads=job.threads) as engine:
        name = engine.bundle.manifest.input.name
        yield from calls(lambda part: engine.run({name: part})["logits"], batches(job.images, job.batch))


def loop(name: str, job: Job) -> Iterator[Any]:
    """The loop of that name, whose first step is checked against the reference's answer."""
    warnings.simplefilter("ignore")  # TorchScript's deprecation, exporters' notes
    steps = ours(job, name.removeprefix(OURS)) if name.startswith(OURS) else LOOPS[name](job)
    expected = np.load(Path(job.home, "expected.npy"))
    off = float(np.abs(np.asarray(next(steps)) - expected).max() / np.abs(expected).max())
    precision = next((p for p in ALLOWED if name.lower().endswith(p)), "fp32")
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


def row(times: Sequence[float], baseline: Sequence[float]) -> dict[str, Any]:
    return {"median_ms": float(np.median(times)) * 1e3, "faster_than_onnxruntime": ratio(baseline, times)}


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
        wanted = options.only.split(";") if options.only else [n for n in LOOPS if bf16 or not n.endswith("BF16")]
        missing = [name for name in wanted if not installed(NEEDS[name])]
        peers = [name for name in dict.fromkeys([BASELINE, *wanted]) if name not in missing]
        names = [*peers, *(OURS + name for name in variants)]
        rows = {}
        others = [name for name in names if name != BASELINE]
        for first in range(0, len(others), GROUP):
            group = [BASELINE, *others[first : first + GROUP]]
            found = take_turns(loop, group, job, rounds=options.rounds, steps=options.steps)
            rows |= {name: row(times, found[BASELINE]) for name, times in found.items() if name not in rows}
        app = benchmark_app(job, seconds=10) if "openvino, FP32" in peers else None
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
    for name, found in sorted(rows.items(), key=lambda item: item[1]["median_ms"]):
        r = found["faster_than_onnxruntime"]
        print(f"{found['median_ms']:9.1f} ms  {r['median']:5.2f} × [{r['low']:.2f}, {r['high']:.2f}]  {name}")
    return write_result("peers", measured, [])


if __name__ == "__main__":
    sys.exit(main())
