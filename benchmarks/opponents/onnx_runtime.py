"""ONNX Runtime of the file that PyTorch's exporter writes: the baseline of all ratios.

Its CPU provider has no BF16 convolution for x86 (its switch, `mlas.enable_gemm_fastmath_arm64_bfloat16`, is ARM's), so there is
no BF16 row. Sources: onnxruntime.ai/docs/performance/tune-performance/threading.html; onnxruntime_session_options_config_keys.h
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from opponents.job import BASELINE, Job, Loop, ort_calls

NEEDS = "onnxruntime"


def plain(job: Job) -> Iterator[Any]:
    return ort_calls(job, job.onnx)


LOOPS: dict[str, Loop] = {BASELINE: plain}
