"""ONNX → engine with the real parser and builder of TensorRT for RTX, on a machine without a GPU."""

from __future__ import annotations

import enum
import errno
import signal
import types
from pathlib import Path

import onnx
import pytest
from fixtures.small import CONVOLUTIONS, IMAGE, LOGITS, PRODUCTS, SPEC, write_onnx

from vggdeploy.build.tensorrt import build_engine, network_flags
from vggdeploy.errors import BuildError, IncompatibleError, ParityError, UsageError
from vggdeploy.model.layers import summarise
from vggdeploy.types import BatchRange, Precision

FP16, FP32, BF16, INT8 = Precision.FP16, Precision.FP32, Precision.BF16, Precision.INT8
LAYERS = CONVOLUTIONS + PRODUCTS
SCALE_AND_SHIFT = 2 * 3 * 4  # bytes: the preprocessing's constants, FP32 for three channels


def parameters() -> int:
    return summarise(SPEC).parameters


def test_the_proof_counts_every_layer_and_every_weight_byte(build, onnx_files):
    half, _ = build(onnx_files[FP16])
    assert half.proof.layers == {"fp16": LAYERS}
    assert half.proof.weight_bytes == {"fp16": 2 * parameters(), "fp32": SCALE_AND_SHIFT}
    full, _ = build(onnx_files[FP32], precision=FP32)
    assert full.proof.layers == {"fp32": LAYERS}
    assert full.proof.weight_bytes == {"fp32": 4 * parameters() + SCALE_AND_SHIFT}


def test_the_proof_counts_bfloat16_which_numpy_does_not_have(build, onnx_files):
    built, _ = build(onnx_files[BF16], precision=BF16)
    assert built.proof.layers == {"bf16": LAYERS}
    assert built.proof.weight_bytes == {"bf16": 2 * parameters(), "fp32": SCALE_AND_SHIFT}


def test_the_proof_sees_int8_through_quantise_and_dequantise_pairs(build, onnx_files):
    built, _ = build(onnx_files[INT8], precision=INT8)
    assert built.proof.layers == {"int8": LAYERS}
    assert built.proof.weight_bytes["int8"] >= parameters() * 0.99  # the biases stay FP32


def test_an_int8_graph_is_not_fp16(build, onnx_files):
    with pytest.raises(ParityError, match="11 in int8"):
        build(onnx_files[INT8], precision=FP16)


def test_fp16_asked_and_fp32_parsed_is_a_parity_failure_before_anything_is_built(build, onnx_files, tmp_path):
    with pytest.raises(ParityError, match=r"fp16 was asked.*11 in fp32 \(of 11\)") as caught:
        build(onnx_files[FP32], precision=FP16)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "model.engine").exists()


def test_one_fp32_convolution_among_fp16_ones_is_found(build, onnx_files, tmp_path):
    model = onnx.load(onnx_files[FP16])
    in_fp32(model, "Conv", index=3)
    onnx.save(model, tmp_path / "mixed.onnx")
    with pytest.raises(ParityError, match=r"1 in fp32 \(of 11\)"):
        build(tmp_path / "mixed.onnx")


def test_the_built_graph_reports_its_inputs_and_outputs(build, onnx_files):
    built, _ = build(onnx_files[FP16])
    assert built.inputs == (IMAGE,)
    assert built.outputs == (LOGITS,)


def test_one_and_several_targets_build_and_differ(build, onnx_files):
    engines = {
        targets: build(onnx_files[FP16], targets=targets)[1]
        for targets in (("sm89",), ("sm120",), ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121"))
    }
    assert all(data.startswith(b"vtrt") for data in engines.values())  # raw: nothing of ours in front
    assert len(set(engines.values())) == 3


def test_a_second_build_is_byte_for_byte_the_first(build, onnx_files):
    first = build(onnx_files[FP16], targets=("sm86", "sm89"))[1]
    assert build(onnx_files[FP16], targets=("sm86", "sm89"))[1] == first


def test_streaming_and_one_piece_give_the_same_bytes(build, onnx_files, library):
    # TensorRT 10.3 has no stream writer; the same library without it takes the other path.
    older = types.SimpleNamespace(**{n: getattr(library, n) for n in dir(library) if n != "IStreamWriter"})
    assert not hasattr(older, "IStreamWriter")
    assert build(onnx_files[FP16], library=older)[1] == build(onnx_files[FP16])[1]


@pytest.mark.parametrize(
    ("name", "version", "flags"), [("tensorrt", "10.13.3", 2), ("tensorrt", "11.1.0", 0), ("tensorrt_rtx", "1.7.1", 0)]
)
def test_only_tensorrt_10_is_asked_for_a_strongly_typed_network(name, version, flags):
    bits = enum.IntEnum("NetworkDefinitionCreationFlag", {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1})  # TensorRT 10's
    fake = types.SimpleNamespace(__name__=name, __version__=version, NetworkDefinitionCreationFlag=bits)
    assert network_flags(fake) == flags


def test_a_tensorrt_before_10_is_refused():
    with pytest.raises(IncompatibleError, match=r"TensorRT 8\.6\.1 is too old"):
        network_flags(types.SimpleNamespace(__name__="tensorrt", __version__="8.6.1"))


def test_a_fixed_batch_is_built_as_it_is_and_no_other(build, tmp_path):
    source = write_onnx(tmp_path / "fixed.onnx", FP16, fixed_batch=3)
    built, _ = build(source, profiles=[BatchRange(3, 3, 3)])
    assert built.inputs[0].shape == (3, 32, 32, 3)
    with pytest.raises(UsageError, match="fixed batch of 3") as caught:
        build(source)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("damage", ["empty", "garbage", "half", "one byte short", "no nodes"])
def test_what_is_not_a_whole_model_is_one_clear_line(build, onnx_files, tmp_path, damage):
    data = onnx_files[FP16].read_bytes()
    nothing = onnx.helper.make_model(onnx.helper.make_graph([], "nothing", [], [])).SerializeToString()
    bad = {
        "empty": b"",
        "garbage": b"\xff\x00garbage" * 99,
        "half": data[: len(data) // 2],
        "one byte short": data[:-1],
        "no nodes": nothing,
    }[damage]
    (tmp_path / "bad.onnx").write_bytes(bad)
    with pytest.raises(BuildError, match=r"TensorRT for RTX .* bad\.onnx: \S") as caught:
        build(tmp_path / "bad.onnx")
    assert "\n" not in caught.value.cause + caught.value.hint
    assert not (tmp_path / "model.engine").exists()


def test_an_operator_that_the_library_lacks_is_named_with_its_node(build, onnx_files, tmp_path):
    model = onnx.load(onnx_files[FP16])
    model.graph.node[3].op_type = "Frobnicate"
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(BuildError, match=r"node 3 '\w+', operator Frobnicate") as caught:
        build(tmp_path / "odd.onnx")
    assert any("While parsing node number 3" in note for note in caught.value.__notes__)  # what --debug shows


def test_weights_outside_the_file_are_refused(build, onnx_files, tmp_path):
    model = onnx.load(onnx_files[FP16])
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../../../etc/hostname")
    (tmp_path / "outside.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BuildError, match="import initializer"):
        build(tmp_path / "outside.onnx")


def test_a_second_dynamic_axis_is_refused(build, onnx_files, tmp_path):
    model = onnx.load(onnx_files[FP16])
    del model.graph.value_info[:]
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "H"
    onnx.save(model, tmp_path / "dynamic.onnx")
    with pytest.raises(BuildError, match="no other dynamic axis"):
        build(tmp_path / "dynamic.onnx")


def test_the_builder_s_own_reason_reaches_the_user(build, onnx_files):
    with pytest.raises(BuildError, match=r"Cannot compile for target\(s\) sm75"):  # Turing has no bfloat16
        build(onnx_files[BF16], precision=BF16, targets=("sm75", "sm89"))
    with pytest.raises(BuildError, match="FP32 GEMM is not supported"):
        build(onnx_files[FP32], precision=FP32, targets=("sm75",))


def test_progress_rises_to_the_end(build, onnx_files):
    shares, phases = [], set()

    def note(share: float, phase: str) -> None:
        shares.append(share)
        phases.add(phase)

    build(onnx_files[FP16], on_progress=note)
    assert shares == sorted(shares)
    assert shares[0] < 0.1
    assert shares[-1] == 1
    assert len(phases) > 3


def test_ctrl_c_stops_the_build_and_is_raised_when_it_has_stopped(build, onnx_files):
    calls = []

    def interrupt(share: float, phase: str) -> None:
        calls.append(phase)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build(onnx_files[FP16], on_progress=interrupt)
    assert len(calls) == 1


def test_an_error_in_the_progress_callback_stops_the_build_and_comes_out(build, onnx_files):
    def broken(share: float, phase: str) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        build(onnx_files[FP16], on_progress=broken)


def test_a_full_disk_is_the_system_s_own_error(onnx_files, library):
    def one_target(config):
        config.num_compute_capabilities = 1
        config.set_compute_capability(library.ComputeCapability.SM89, 0)

    with pytest.raises(OSError) as caught:
        build_engine(
            library, onnx_files[FP16], Path("/dev/full"), precision=FP16, profiles=[BatchRange()], configure=one_target
        )
    assert caught.value.errno == errno.ENOSPC


def in_fp32(model: onnx.ModelProto, kind: str, *, index: int) -> None:
    """Put one FP16 node of a graph between casts, with its weights in FP32."""
    nodes = model.graph.node
    node = [n for n in nodes if n.op_type == kind][index]
    for tensor in model.graph.initializer:
        if tensor.name in node.input[1:]:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype("f4"), tensor.name))
    cast = onnx.helper.make_node
    before = cast("Cast", [node.input[0]], ["wide_in"], to=onnx.TensorProto.FLOAT)
    after = cast("Cast", ["wide_out"], [node.output[0]], to=onnx.TensorProto.FLOAT16)
    position = list(nodes).index(node)
    node.input[0], node.output[0] = "wide_in", "wide_out"
    nodes.insert(position, before)
    nodes.insert(position + 2, after)
