"""OpenVINO of the same ONNX file: one stream for the lowest latency, arrays shared and not copied; in FP32 and in BF16.

Sources: docs.openvino.ai, "Optimizing for Latency" and "High-level Performance Hints" (PERFORMANCE_HINT=LATENCY); "Precision
Control" (INFERENCE_PRECISION_HINT); "OpenVINO Python API Advanced Inference" (share_inputs, share_outputs).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from opponents.job import Job, Loop, batches, calls

NEEDS = "openvino"


def fp32(job: Job) -> Iterator[Any]:
    return _in_precision(job, "f32")


def bf16(job: Job) -> Iterator[Any]:
    return _in_precision(job, "bf16")


def _in_precision(job: Job, precision: str) -> Iterator[Any]:
    import openvino as ov

    core = ov.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": job.threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    model = core.read_model(job.onnx)
    model.reshape(list(job.floats[: job.batch].shape))  # static shapes: "Optimizing for Latency"
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    yield from calls(
        lambda part: request.infer([part], share_inputs=True, share_outputs=True)[0], batches(job.floats, job.batch)
    )


LOOPS: dict[str, Loop] = {"openvino, FP32": fp32, "openvino, BF16": bf16}
