"""Named outputs: each is what its layer of the trained network computes, in every format, and nothing else is shipped."""

from __future__ import annotations

import json
import shutil
import warnings
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import vggdeploy
from vggdeploy.bundle import Bundle
from vggdeploy.bundle.checkpoint import Checkpoint
from vggdeploy.cli.app import run
from vggdeploy.errors import UsageError
from vggdeploy.export.bundle import ExportOptions, export_bundle
from vggdeploy.model.outputs import output_layers, output_specs
from vggdeploy.model.vgg import VGG, new_vgg
from vggdeploy.model.weights import load_model, save_checkpoint
from vggdeploy.parity import reference as parity
from vggdeploy.preprocess import normalise
from vggdeploy.runtime import open_session
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.system.optional import installed
from vggdeploy.types import TensorSpec, Verdict
from vggdeploy.verify import samples
from vggdeploy.verify.verify import VerifyOptions, verify_bundle

ASKED = ["fc7", "relu4_2", "pool3", "conv5_1", "probabilities"]
FILES = {"onnx-fp32": "model.onnx", "onnx-fp16": "model.onnx", "torchscript-fp32": "model.pt"}


def trained(arch: str) -> VGG:
    """Weights whose batch norms have seen data, so that folding them is not the identity."""
    spec = ModelSpec.named(arch, width=0.125, in_channels=3, classes=7, image_size=32, hidden=24)
    model = new_vgg(spec, seed=5).train()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.uniform_(-0.5, 0.5, generator=generator)
        for _ in range(3):
            model(torch.randn(16, 3, 32, 32, generator=generator))
    return model.eval()


def by_hooks(model: VGG, images: np.ndarray, preprocess: PreprocessSpec) -> dict[str, np.ndarray]:
    """Every named output of the unfolded network, caught layer by layer."""
    layers: dict[str, torch.Tensor] = {}
    for key, module in model.named_modules():
        module.register_forward_hook(lambda _, __, out, key=key: layers.update({key: out.clone()}))
    with torch.inference_mode():
        model(torch.from_numpy(normalise(images, preprocess)))
    found = {name: layers[layer.key] for name, layer in output_layers(model.spec).items()}
    found["probabilities"] = torch.softmax(found["probabilities"], 1)
    return {name: tensor.numpy() for name, tensor in found.items()}


@pytest.fixture(scope="module", params=["vgg11", "vgg11_bn"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with every output that there is."""
    root, model = tmp_path_factory.mktemp(request.param), trained(request.param)
    preprocess = PreprocessSpec(resize=32, crop=32)
    save_checkpoint(root / "ckpt", model, Checkpoint(spec=model.spec, preprocess=preprocess, labels=()))
    export_bundle(
        root / "ckpt",
        root / "bundle",
        ExportOptions(outputs=list(output_layers(model.spec)), formats=["onnx-fp32", "torchscript-fp32"]),
    )
    return Bundle.open(root / "bundle")


@pytest.fixture(scope="module")
def asked(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The outputs of the issue, of the trained digits."""
    path = tmp_path_factory.mktemp("asked") / "bundle"
    assert run(["export", str(checkpoint), "-o", str(path), "--outputs", ",".join(ASKED), "--samples", "100"]) == 0
    return Bundle.open(path)


@pytest.fixture(scope="module")
def only_features(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("features") / "bundle"
    return export_bundle(checkpoint, path, ExportOptions(outputs=["relu2_1", "pool1"], formats=list(FILES)))


@pytest.mark.parametrize("variant", ["onnx-fp32", "torchscript-fp32"])
def test_every_output_is_the_unfolded_networks_layer(whole: Bundle, variant: str) -> None:
    manifest = whole.manifest
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), np.uint8)
    expected = by_hooks(load_model(whole.path("checkpoint")), images, manifest.preprocess)
    with open_session(whole, manifest.variant(variant)) as session:
        found = session.run({"image": images})
    assert list(found) == [o.name for o in manifest.outputs] == list(expected)
    assert len(found) == 8 + 8 + 5 + 4
    for name, array in expected.items():
        scale = np.abs(array).max()
        np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=1e-5 * scale, err_msg=name)
        assert found[name].dtype == np.float32


def test_every_output_of_every_format_is_proven(whole: Bundle) -> None:
    names = [o.name for o in whole.manifest.outputs]
    for variant in whole.manifest.candidates():
        assert variant.verdict is Verdict.PASS
        assert variant.parity is not None
        assert [o.output for o in variant.parity.outputs] == names


def test_the_outputs_come_in_the_order_asked(asked: Bundle) -> None:
    assert [o.name for o in asked.manifest.outputs] == ASKED
    graph = onnx.load(asked.path("variants/onnx-fp32/model.onnx")).graph
    assert [o.name for o in graph.output] == ASKED
    shapes = [[d.dim_value for d in o.type.tensor_type.shape.dim][1:] for o in graph.output]
    assert shapes == [list(o.item_shape) for o in asked.manifest.outputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and what libtorch loads
        scripted = torch.jit.load(asked.path("variants/torchscript-fp32/model.pt"))
    tensors = scripted(torch.zeros(2, 32, 32, 1, dtype=torch.uint8))
    assert [tuple(t.shape[1:]) for t in tensors] == [o.item_shape for o in asked.manifest.outputs]


def test_flips_are_counted_where_there_are_scores(asked: Bundle, only_features: Bundle) -> None:
    for variant in asked.manifest.candidates():
        assert variant.parity is not None and variant.parity.flips is not None
        assert variant.parity.flips.samples == 100
    for variant in only_features.manifest.candidates():
        assert variant.parity is not None and variant.parity.flips is None
        assert variant.verdict is Verdict.PASS


@pytest.mark.parametrize("variant", FILES)
def test_what_the_outputs_do_not_need_is_not_shipped(only_features: Bundle, variant: str) -> None:
    found = only_features.manifest.variant(variant)
    assert found.proof is not None
    assert found.proof.layers == {found.precision: 2}
    # conv1_1 and conv2_1 have 9·8 + 8 and 9·8·16 + 16 parameters of 2 or 4 bytes.
    weights = (80 + 1168) * (2 if found.precision == "fp16" else 4)
    size = only_features.path(found.path).stat().st_size
    assert weights < size < weights + 20_000
    whole = load_model(only_features.path("checkpoint"))
    assert size < 0.1 * sum(p.nbytes for p in whole.parameters())


def test_a_bundle_without_scores_verifies_and_is_measured(only_features: Bundle, capsys) -> None:
    assert run(["verify", str(only_features.root), "--samples", "50"]) == 0
    args = ["bench", str(only_features.root), "--batch", "2", "--seconds", "0.01", "--rounds", "3", "--json"]
    capsys.readouterr()
    assert run(args) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {r["variant"] for r in rows} == {"torch-fp32", *FILES}
    assert all(r["verdict"] == "pass" for r in rows)


def test_predict_on_a_bundle_without_scores_says_what_to_do(only_features: Bundle, digit_png: Path, capsys) -> None:
    assert run(["predict", str(only_features.root), str(digit_png)]) == 2
    cause, hint = capsys.readouterr().err.strip().splitlines()
    assert "no class scores, only pool1, relu2_1" in cause
    assert "vggdeploy embed" in hint and "--outputs logits" in hint


def test_probabilities_alone_classify(asked: Bundle, digit_png: Path) -> None:
    with vggdeploy.load(asked.root, variant="onnx-fp32") as engine:
        assert engine.classify(digit_png)[0].label == digit_png.stem


@pytest.mark.skipif(not installed("tensorrt_rtx"), reason="needs tensorrt-rtx")
@pytest.mark.parametrize("which", ["asked", "only_features"])
def test_a_tensorrt_engine_is_built_with_the_same_outputs(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from vggdeploy.build.engines import build_into
    from vggdeploy.build.request import BuildPlan

    source: Bundle = request.getfixturevalue(which)
    shutil.copytree(source.root, tmp_path / "bundle")
    build_into(
        Bundle.open(tmp_path / "bundle"), BuildPlan(engine="tensorrt-rtx", targets=["sm86"])
    )  # checks the outputs
    (variant,) = (v for v in Bundle.open(tmp_path / "bundle").manifest.variants if v.format == "tensorrt-rtx")
    assert variant.proof is not None
    layers = source.manifest.variant("onnx-fp16").proof.layers
    assert variant.proof.layers == layers


# What is kept while a variant is proven is bounded, whatever the size of the maps.


def specs(**shapes: tuple[int, ...]) -> list[TensorSpec]:
    return [TensorSpec(name, "float32", ("N", *shape)) for name, shape in shapes.items()]


def test_small_outputs_keep_every_row_and_large_ones_share_the_rest() -> None:
    vgg16 = output_specs(ModelSpec.named("vgg16"), ["fc7", "relu1_1", "pool3", "logits"])
    rows = parity.kept_rows(vgg16, 1000)
    assert rows["logits"] == rows["fc7"] == 1000
    assert 5 <= rows["relu1_1"] < rows["pool3"] < 1000
    assert sum(rows[o.name] * parity.sample_bytes(o) for o in vgg16) <= parity.KEPT_BYTES


def test_one_row_is_kept_even_of_what_does_not_fit() -> None:
    assert parity.kept_rows(specs(huge=(1000, 1000)), 50, limit=1000) == {"huge": 1}


def test_all_outputs_of_a_vgg16_together_stay_near_the_bound() -> None:
    everything = output_specs(ModelSpec.named("vgg16"), list(output_layers(ModelSpec.named("vgg16"))))
    rows = parity.kept_rows(everything, 1000)
    assert min(rows.values()) >= 1
    assert sum(rows[o.name] * parity.sample_bytes(o) for o in everything) <= 1.5 * parity.KEPT_BYTES


def test_a_reference_of_large_maps_says_how_few_images_it_has(
    only_features: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = sum(map(parity.sample_bytes, only_features.manifest.outputs))
    monkeypatch.setattr(parity, "kept_rows", lambda outputs, images: {o.name: 7 - i for i, o in enumerate(outputs)})
    monkeypatch.setattr(parity, "BATCH_BYTES", 3 * each)
    compare = import_module("vggdeploy.parity.compare")  # the package has a function of this name
    monkeypatch.setattr(compare, "COMPARED_VALUES", 1)
    report = verify_bundle(only_features, VerifyOptions(samples=40, variants=["onnx-fp32"]))
    (_, real) = report.variants
    assert real.data == "digits test (40 images), the first 7"
    assert {o.output: o.samples for o in real.outputs} == {"relu2_1": 7, "pool1": 6}
    assert report.verdict is Verdict.PASS


def test_scores_beside_large_maps_are_still_judged_on_every_image(
    asked: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = parity.kept_rows
    monkeypatch.setattr(parity, "kept_rows", lambda outputs, images: real(outputs, images, limit=200_000))
    (_, record) = verify_bundle(asked, VerifyOptions(samples=359, variants=["onnx-fp32"])).variants
    seen = {o.output: o.samples for o in record.outputs}
    assert record.flips is not None and record.flips.samples == 359
    assert seen["probabilities"] == 359
    assert seen["pool3"] < 359
    assert record.verdict is Verdict.PASS


def test_golden_maps_are_few_and_golden_vectors_many() -> None:
    spec = ModelSpec.named("vgg16")

    def count(*names: str) -> int:
        manifest = make_manifest(spec, names)
        return samples.golden_count(manifest)

    assert count("logits") == count("fc7") == 27  # 4 MiB of 224 × 224 × 3
    assert count("relu4_2") == 10
    assert count("relu1_1") == 1


def make_manifest(spec: ModelSpec, names: tuple[str, ...]):
    from vggdeploy.bundle import GoldenFiles, Manifest
    from vggdeploy.model.outputs import input_spec

    return Manifest(
        name="x", created="", spec=spec, preprocess=PreprocessSpec(), labels=(), input=input_spec(spec),
        outputs=output_specs(spec, names), golden=GoldenFiles(inputs={}, outputs={}, data=""), variants=(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "told"),
    [("fc7,fc7", "only once"), ("fc77", "did you mean 'fc7'"), ("relu5_3", "did you mean"), (",", "at least")],
)
def test_outputs_that_there_are_not_are_refused_before_any_work(
    checkpoint: Path, tmp_path: Path, capsys, text: str, told: str
) -> None:
    assert run(["export", str(checkpoint), "-o", str(tmp_path / "b"), "--outputs", text]) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_unknown_output_of_an_engine_is_refused(asked: Bundle, digit_png: Path) -> None:
    with vggdeploy.load(asked.root, variant="onnx-fp32") as engine, pytest.raises(UsageError, match="is unknown"):
        engine.embed(digit_png, output="logits")
