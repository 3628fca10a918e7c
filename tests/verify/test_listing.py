"""`vggdeploy inspect --layers`: the layers of ONNX files here, and of engines as the inspector describes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes.gpu import Library
from msgspec.structs import replace

from vggdeploy.bundle import Bundle
from vggdeploy.cli.app import run
from vggdeploy.errors import UsageError
from vggdeploy.records import from_json
from vggdeploy.records.layers import LayersReport
from vggdeploy.runtime.tensorrt.profile import EngineLayer
from vggdeploy.verify.listing import engine_row, list_layers


def test_every_operator_of_a_graph_is_listed_with_its_layer_types_and_shapes(bundle: Bundle) -> None:
    [listed] = list_layers(bundle, ["onnx-fp16"]).variants
    assert (listed.source, listed.missing) == ("the ONNX graph", "")
    rows = {row.layers[0]: row for row in listed.layers if row.kind in ("Conv", "Gemm", "MaxPool")}
    conv, pool, last = rows["conv1_1"], rows["pool1"], rows["fc8"]
    assert (conv.precision, conv.inputs, conv.outputs) == ("fp16", ("fp16[N, 1, 32, 32]",), ("fp16[N, 8, 32, 32]",))
    assert conv.weights == ("fp16[8, 1, 3, 3]", "fp16[8]")
    assert pool.outputs == ("fp16[N, 8, 16, 16]",)
    assert last.outputs == ("fp16[N, 10]",)
    # The pixels come in as they are, and the answers leave in FP32, whatever is computed in between.
    assert listed.layers[0].inputs == ("uint8[N, 32, 32, 1]",)
    assert listed.layers[-1].outputs == ("fp32[N, 10]",)
    assert listed.layers[-1].layers == ("fc8",)


def test_each_operator_s_input_is_what_the_one_before_it_made(bundle: Bundle) -> None:
    for listed in list_layers(bundle, ["onnx-fp32", "onnx-fp16"]).variants:
        for before, row in zip(listed.layers, listed.layers[1:], strict=False):
            assert row.inputs == before.outputs


def test_what_cannot_be_listed_says_why(bundle: Bundle) -> None:
    [script] = list_layers(bundle, ["torchscript-fp32"]).variants
    assert (script.layers, script.missing) == ((), "a torchscript file is not listed; see: vggdeploy summary BUNDLE")
    with pytest.raises(UsageError, match="onnx-fp61"):
        list_layers(bundle, ["onnx-fp61"])
    assert {listed.variant for listed in list_layers(bundle).variants} == {"onnx-fp32", "onnx-fp16"}


def test_a_file_that_was_altered_is_not_listed(own_bundle: Path) -> None:
    opened = Bundle.open(own_bundle, only=())
    path = own_bundle / opened.manifest.variant("onnx-fp32").path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    [listed] = list_layers(opened, ["onnx-fp32"]).variants
    assert listed.layers == ()
    assert "altered" in listed.missing


def test_the_command_prints_one_document_or_a_table(bundle_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(bundle_dir), "--layers", "--variant", "onnx-fp32", "--json"]) == 0
    report = from_json(capsys.readouterr().out.encode(), LayersReport, what="it")
    assert [listed.variant for listed in report.variants] == ["onnx-fp32"]
    assert run(["inspect", str(bundle_dir), "--layers", "--variant", "onnx-fp32"]) == 0
    shown = capsys.readouterr().out
    assert "onnx-fp32, by the ONNX graph" in shown
    assert all(word in shown for word in ("conv1_1", "fp32[N, 10]", "node_conv2d"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--variant", "onnx-fp32"], "--variant belongs to --layers"),
        (["--layers", "--sbom"], "--layers does not go with"),
    ],
)
def test_what_does_not_go_together_is_refused(
    bundle_dir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert run(["inspect", str(bundle_dir), *arguments]) == 2
    assert said in capsys.readouterr().err


# A convolution of an FP16 engine, as TensorRT 10 describes it, and as 11 does.
TEN: dict[str, Any] = {
    "Name": "node_conv2d + node_relu",
    "LayerType": "CaskConvolution",
    "ParameterType": "Convolution",
    "Inputs": [{"Name": "x", "Dimensions": [8, 3, 224, 224], "Format/Datatype": "Channel major FP16 format"}],
    "Outputs": [{"Name": "y", "Dimensions": [8, 64, 224, 224], "Format/Datatype": "Channel major FP16 format"}],
    "Weights": {"Type": "Half", "Count": 1728},
    "Bias": {"Type": "Half", "Count": 64},
    "TacticName": "sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc",
}
ELEVEN = TEN | {
    end: [{"Name": "x", "Dimensions": [8, 3], "Format": "Row major linear", "Datatype": "Half"}]
    for end in ("Inputs", "Outputs")
}


def test_a_layer_of_an_engine_is_told_in_the_same_words_of_both_releases() -> None:
    row = engine_row(EngineLayer(TEN["Name"], TEN["LayerType"], TEN), ("conv1_1", "relu1_1"))
    assert (row.precision, row.tactic, row.layers) == ("fp16", TEN["TacticName"], ("conv1_1", "relu1_1"))
    assert row.inputs == ("Channel major FP16 format[8, 3, 224, 224]",)
    assert row.weights == ("Half[1728]", "Half[64]")
    newer = engine_row(EngineLayer("x", "conv", ELEVEN), ())
    assert (newer.precision, newer.inputs) == ("fp16", ("Half[8, 3]",))
    bare = engine_row(EngineLayer("node_conv2d", "", {}), ())  # built without details
    assert (bare.precision, bare.tactic, bare.inputs, bare.weights) == ("", "", (), ())


def test_an_engine_is_listed_for_a_batch_size_since_formats_of_a_dynamic_one_are_not_told(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fakes.gpu import CLASSES, C, Cudart, H, W

    from vggdeploy.runtime.base import Source
    from vggdeploy.runtime.gpu import cuda
    from vggdeploy.runtime.tensorrt import session as backend
    from vggdeploy.spec import ModelSpec, PreprocessSpec
    from vggdeploy.system.sealed import HashedFile
    from vggdeploy.types import BatchRange, Device, TensorSpec

    library, cudart = Library(), Cudart()
    library.cudart = cudart
    library.layers = [json.loads(json.dumps(TEN | {"Format/Datatype": "x"}))]
    monkeypatch.setattr(cuda, "bindings", lambda: cudart)
    monkeypatch.setattr(backend, "backend_library", lambda *a: library)
    path = tmp_path / "model.engine"
    path.write_bytes(b"engine")
    source = Source(
        file=HashedFile.of(path), spec=ModelSpec.named("vgg11", image_size=32), preprocess=PreprocessSpec(),
        inputs=(TensorSpec("image", "uint8", ("N", H, W, C)),),
        outputs=(TensorSpec("logits", "float32", ("N", CLASSES)),), batch=BatchRange(1, 2, 4), device=Device("cuda"),
    )  # fmt: skip
    with backend.EngineSession(source) as session:
        [layer] = session.layers()
    assert library.shapes == [(2, H, W, C)]  # the batch that it is tuned for
    assert layer.nodes == ("node_conv2d", "node_relu")
    assert layer.about["Format/Datatype"] == "x"
    assert not cudart.alive


def test_an_engine_of_a_machine_without_its_gpu_is_listed_by_nobody(bundle: Bundle, tmp_path: Path) -> None:
    from vggdeploy.bundle import BuildRecord

    record = BuildRecord(
        library="tensorrt_rtx", version="1.7.1", source="onnx-fp16", source_sha256="0" * 64, targets=("sm89",), options={},
        seconds=1,
    )  # fmt: skip
    engine = replace(
        bundle.manifest.variant("onnx-fp16"), name="tensorrt-rtx-fp16", format="tensorrt-rtx", build=record
    )
    manifest = bundle.manifest.with_variants(engine)
    [listed] = list_layers(Bundle(bundle.root, manifest), ["tensorrt-rtx-fp16"]).variants
    assert listed.layers == ()
    assert "cannot run here" in listed.missing
