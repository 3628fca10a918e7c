"""The library's words: which error is the cause, and what of it a user reads."""

from __future__ import annotations

import gc
from weakref import ref

import pytest
import tensorrt_rtx

from vggdeploy.runtime.tensorrt.api import Log, in_words, logger_for, numpy_name, precision_name, tensor_spec, title


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


def test_no_logger_is_ever_freed_and_one_whose_log_has_gone_gets_the_next():
    """The library keeps the first for the whole process: freed, a line of its plugin registry was a SIGSEGV."""
    severity = tensorrt_rtx.ILogger.Severity
    first = Log()
    bridge = logger_for(tensorrt_rtx, first)
    other = Log()
    assert logger_for(tensorrt_rtx, other) is not bridge  # two sessions at once do not share one
    address, kept = id(bridge), ref(bridge)
    del bridge, first
    gc.collect()
    assert kept() is not None
    kept().log(severity.ERROR, "to nobody")  # what a library says of a session that has ended
    third = Log()
    reused = logger_for(tensorrt_rtx, third)
    assert id(reused) == address
    reused.log(severity.ERROR, "to the third")
    assert (third.cause(), list(other.lines)) == ("to the third", [])


def test_many_sessions_one_after_another_make_one_logger():
    made = set()
    for _ in range(50):
        log = Log()
        made.add(id(logger_for(tensorrt_rtx, log)))
        del log
        gc.collect()
    assert len(made) == 1


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
