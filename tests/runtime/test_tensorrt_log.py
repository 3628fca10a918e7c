"""The library's words: which error is the cause, and what of it a user reads."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import tensorrt_rtx
from cuda.bindings import runtime as cudart

import vggdeploy.runtime.cuda
from vggdeploy.runtime.tensorrt_api import Log, in_words, logger_for, numpy_name, precision_name, tensor_spec, title

ROOT = Path(vggdeploy.runtime.cuda.__file__).parents[1]
SOURCES = [*(ROOT / "builders").glob("*.py"), *(ROOT / "runtime").glob("tensorrt*.py"), ROOT / "runtime" / "cuda.py"]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Dimension mismatch for tensor image and "
            "profile 0. In validate at /_src/optimizer/api/network.cpp:4054)",
            "API Usage Error: Dimension mismatch for tensor image and profile 0.",
        ),
        (
            "[optimizer.cpp::computeCosts::4052] Error Code 10: Internal Error (Could not find any implementation for "
            "node conv1.)",
            "Internal Error: Could not find any implementation for node conv1.",
        ),
        (
            "IBuilder::buildSerializedNetwork: Error Code 9: Myelin ([pass.cpp:1500: run_passes] Cannot compile for "
            "target(s) sm75, because the model contains HW-specific datatypes: b16. In compile at /_src/a/b.cpp:77)",
            "Myelin: Cannot compile for target(s) sm75, because the model contains HW-specific datatypes: b16.",
        ),
        (
            "Assertion failed: model->ParseFromCodedStream(&codedInput): Failed to parse the ONNX model.",
            "Failed to parse the ONNX model.",
        ),
        ('creator && "Plugin not found, is the name correct?"', "Plugin not found, is the name correct?"),
        ("two\nlines   of  text", "two lines of text"),
        ("", "it gave no reason"),
    ],
)
def test_an_error_is_told_without_source_files_and_expressions(message, words):
    assert in_words(message) == words


def test_the_cause_is_the_first_error_of_the_step_and_not_its_echo():
    log = Log()
    log.add("ERROR", "an error of the step before")
    log.begin()
    log.add("WARNING", "careful")
    log.add("ERROR", "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (no driver)")
    log.add("ERROR", "what really happened")
    log.add("ERROR", "and what followed from it")
    assert log.cause() == "what really happened"
    assert log.text().count("\n") == 5


def test_without_an_error_there_is_no_invented_reason():
    assert Log().cause() == "it gave no reason"


def test_the_bridge_keeps_info_and_drops_verbose_lines():
    log, severity = Log(), tensorrt_rtx.ILogger.Severity
    bridge = logger_for(tensorrt_rtx, log)
    bridge.log(severity.VERBOSE, "a line for each tensor")
    bridge.log(severity.INFO, "told")
    bridge.log(severity.INTERNAL_ERROR, "broken")
    assert list(log.lines) == ["[INFO] told", "[INTERNAL_ERROR] broken"]
    assert log.cause() == "broken"


def test_types_have_numpy_s_and_our_own_names():
    kinds = tensorrt_rtx.DataType
    assert [numpy_name(k) for k in (kinds.FLOAT, kinds.HALF, kinds.UINT8, kinds.INT64)] == [
        "float32",
        "float16",
        "uint8",
        "int64",
    ]
    assert [precision_name(k) for k in (kinds.FLOAT, kinds.HALF, kinds.BF16, kinds.INT8)] == [
        "fp32",
        "fp16",
        "bf16",
        "int8",
    ]
    assert str(tensor_spec("image", kinds.UINT8, (-1, 32, 32, 3))) == "image: uint8[N, 32, 32, 3]"
    assert title(tensorrt_rtx).startswith("TensorRT for RTX 1.")


def attributes_of(*owners: str) -> set[str]:
    """Every ``owner.NAME`` and ``self.owner.NAME`` in our source."""
    found = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Attribute):
                owner = node.value
                name = (
                    owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
                )
                if name in owners:
                    found.add(node.attr)
    return found


def cuda_calls() -> set[str]:
    """Every name in our source that is handed to `cuda.call`, directly or to be called later."""
    texts = [
        node.value
        for source in SOURCES
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return {text for text in texts if text.startswith("cuda") and text[4:5].isupper()}


def test_every_name_that_our_code_takes_from_tensorrt_is_in_the_real_library():
    names = attributes_of("library") - {"__name__", "__version__"}
    assert {"Builder", "OnnxParser", "Runtime", "TensorIOMode", "IProgressMonitor"} <= names
    assert sorted(n for n in names if not hasattr(tensorrt_rtx, n)) == []


@pytest.mark.parametrize(
    ("owner", "real"),
    [
        ("builder", tensorrt_rtx.Builder),
        ("network", tensorrt_rtx.INetworkDefinition),
        ("parser", tensorrt_rtx.OnnxParser),
        ("profile", tensorrt_rtx.IOptimizationProfile),
        ("engine", tensorrt_rtx.ICudaEngine),
        ("context", tensorrt_rtx.IExecutionContext),
        ("runtime", tensorrt_rtx.Runtime),
        ("config", (tensorrt_rtx.IBuilderConfig, tensorrt_rtx.IRuntimeConfig)),
    ],
)
def test_every_method_that_our_code_calls_is_in_the_real_library(owner, real):
    names = attributes_of(owner)
    assert names
    classes = real if isinstance(real, tuple) else (real,)
    assert sorted(n for n in names if not any(hasattr(c, n) for c in classes)) == []


def test_every_cuda_function_and_constant_that_our_code_names_is_in_the_real_bindings():
    calls = cuda_calls()
    assert {"cudaMalloc", "cudaFree", "cudaMemcpyAsync", "cudaStreamSynchronize"} <= calls
    assert sorted(n for n in calls | attributes_of("cudart") if not hasattr(cudart, n)) == []
    kinds = attributes_of("errors", "cudaError_t")
    assert sorted(n for n in kinds if not hasattr(cudart.cudaError_t, n)) == []
