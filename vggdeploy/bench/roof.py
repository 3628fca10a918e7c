"""The roof of a machine's CPUs: how fast a library multiplies two large matrices of a precision, here and now.

It is measured in a process of its own, by the libraries that run the variants: ``python -m vggdeploy.bench.roof``
prints it as JSON. The best of them is the roof.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import msgspec
import numpy as np

from vggdeploy.errors import IncompatibleError, VggdeployError, one_line
from vggdeploy.records import CpuRoof
from vggdeploy.runtime.tiny_onnx import model_bytes, node
from vggdeploy.system.optional import installed
from vggdeploy.types import Precision, TensorSpec

SIDE = 1024
_WARMUP, _SECONDS, _TIMEOUT = 3, 0.4, 120.0

Product = tuple[Precision, str, Callable[[], Any]]


def measure_roofs(threads: int) -> tuple[CpuRoof, ...]:
    """The fastest product of each precision that a library on this machine has.

    Raises:
        IncompatibleError: neither ONNX Runtime nor OpenVINO is installed.
        VggdeployError: the process that measures failed.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-m", "vggdeploy.bench.roof", str(threads)],
        capture_output=True, check=False, timeout=_TIMEOUT,
    )  # fmt: skip
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise VggdeployError(f"the roof could not be measured: {one_line(told[-1])}", "leave --roof out")
    roofs = msgspec.json.decode(done.stdout, type=tuple[CpuRoof, ...])
    if not roofs:
        raise IncompatibleError("no library here can measure the roof", "pip install 'vggdeploy[cpu]'")
    return roofs


def share_of_roof(tera_ops: float, precision: Precision, roofs: Iterable[CpuRoof]) -> float | None:
    """What 10¹² operations a second are of the roof of the precision that they compute in. None where it has none, and where
    more was reached than the roof: then it was measured too low, on a machine that was busier then.

    FP16 weights are widened on a CPU, and FP32's roof is theirs.
    """
    limit = limit_of(precision, roofs)
    return tera_ops / limit if limit and tera_ops <= limit else None


def limit_of(precision: Precision, roofs: Iterable[CpuRoof]) -> float | None:
    """The roof of what a precision computes in, 10¹² operations a second; None where it has none."""
    computes_in = Precision.FP32 if precision is Precision.FP16 else precision
    return next((r.tera_ops for r in roofs if r.precision is computes_in), None)


def _measure(threads: int) -> list[CpuRoof]:
    best: dict[Precision, CpuRoof] = {}
    for precision, library, product in _products(threads):
        for _ in range(_WARMUP):
            product()
        fastest, until = float("inf"), time.perf_counter() + _SECONDS
        while (begin := time.perf_counter()) < until:
            product()
            fastest = min(fastest, time.perf_counter() - begin)
        roof = CpuRoof(
            precision=precision, tera_ops=2 * SIDE**3 / fastest / 1e12, side=SIDE, threads=threads, library=library
        )
        if precision not in best or roof.tera_ops > best[precision].tera_ops:
            best[precision] = roof
    return list(best.values())


def _products(threads: int) -> Iterator[Product]:
    if installed("onnxruntime"):
        yield from _by_onnxruntime(threads)
    if installed("openvino"):
        yield from _by_openvino(threads)


def _by_onnxruntime(threads: int) -> Iterator[Product]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    random = np.random.default_rng(0)
    kinds = {
        Precision.FP32: ("MatMul", "float32", random.standard_normal((SIDE, SIDE), np.float32), "float32"),
        Precision.INT8: ("MatMulInteger", "uint8", random.integers(-127, 128, (SIDE, SIDE), np.int8), "int32"),
    }
    for precision, (kind, dtype, weights, result) in kinds.items():
        made = model_bytes(
            "product",
            [node(kind, ["a", "b"], "y")],
            {"b": weights},
            [TensorSpec("a", dtype, ("N", SIDE))],
            [TensorSpec("y", result, ("N", SIDE))],
        )
        session = ort.InferenceSession(made, options, providers=["CPUExecutionProvider"])
        left = random.integers(0, 256, (SIDE, SIDE)).astype(dtype)
        yield precision, f"ONNX Runtime {ort.__version__}", partial(session.run, None, {"a": left})


def _by_openvino(threads: int) -> Iterator[Product]:
    from vggdeploy.runtime.openvino import core, ov

    opset = ov.opset13
    random = np.random.default_rng(0)
    left = random.random((SIDE, SIDE), np.float32)
    weights = random.standard_normal((SIDE, SIDE), np.float32)
    able = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for precision, name in ((Precision.FP32, "FP32"), (Precision.BF16, "BF16"), (Precision.INT8, "INT8")):
        if name not in able:
            continue
        image = opset.parameter([SIDE, SIDE], ov.Type.f32, name="a")
        a, b = image, opset.constant(weights)
        if precision is Precision.INT8:  # as a quantiser writes it: the CPU plugin makes integers of both factors
            bounds = [np.float32(v) for v in (0, 1, 0, 1)]
            a = opset.fake_quantize(a, *bounds, 256)
            most = np.float32(np.abs(weights).max())
            b = opset.fake_quantize(b, -most, most, -most, most, 255)
        model = ov.Model([opset.matmul(a, b, False, False)], [image], "product")
        hint = "bf16" if precision is Precision.BF16 else "f32"
        compiled = core().compile_model(
            model, "CPU", {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": 1}
        )
        request = compiled.create_infer_request()
        request.set_input_tensor(ov.Tensor(left, shared_memory=True))
        yield precision, f"OpenVINO {ov.__version__.partition('-')[0]}", request.infer


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(_measure(int(sys.argv[1]))))
