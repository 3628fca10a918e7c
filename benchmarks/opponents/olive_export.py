"""Olive's conversion and its peephole pass, with their defaults, in a plain ONNX Runtime session.

Source: microsoft.github.io/Olive, "OnnxConversion" and "OnnxPeepholeOptimizer".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opponents.job import Job, Loop, ort_calls

NEEDS = "olive"
_LOADER = """import sys
sys.path.insert(0, {benchmarks!r})
from opponents.job import Job, torch_model
def load(model_path=None):
    return torch_model(Job(home={home!r}, batch={batch}, threads={threads}))
"""


def plain(job: Job) -> Iterator[Any]:
    os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
    from olive.workflows import run

    home = Path(job.home, "olive")
    home.mkdir(exist_ok=True)
    script = home / "loader.py"
    about = {"benchmarks": str(Path(__file__).parents[1]), "home": job.home, "batch": job.batch, "threads": job.threads}
    script.write_text(_LOADER.format(**about), encoding="utf-8")
    shape = list(job.floats[: job.batch].shape)
    io = {"input_names": ["image"], "input_shapes": [shape], "input_types": ["float32"], "output_names": ["logits"]}
    model = {"type": "PyTorchModel", "model_script": str(script), "model_loader": "load", "io_config": io}
    passes = {"conversion": {"type": "OnnxConversion"}, "peephole": {"type": "OnnxPeepholeOptimizer"}}
    out, cache = home / "out", str(home / "cache")
    run({"input_model": model, "passes": passes, "output_dir": str(out), "cache_dir": cache, "log_severity_level": 3})
    return ort_calls(job, out / "model.onnx")


LOOPS: dict[str, Loop] = {"Olive's ONNX": plain}
