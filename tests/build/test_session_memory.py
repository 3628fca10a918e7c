"""The memory that a session is said to take is the memory that it takes: the totals beside a GPU that counts its bytes."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from fakes import sessions
from fakes.gpu import Cudart, Library, pixels
from fakes.library import SUM_BYTES

from vggdeploy.build.memory import activation_bytes, session_memory
from vggdeploy.bundle import BuildRecord, Manifest, PrecisionProof, Variant
from vggdeploy.bundle.manifest import GoldenFiles
from vggdeploy.runtime import GpuOptions
from vggdeploy.runtime.base import Source
from vggdeploy.runtime.tensorrt.session import EngineSession
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.types import BatchRange, Precision

PROFILES = [(1, 1, 1), (2, 4, 4), (5, 16, 16)]
gpu, source = sessions.gpu, sessions.source  # a fake GPU, and an engine file for it
VGG16 = ModelSpec.named("vgg16")


def engine_of(precision: Precision = Precision.FP16, **changed: object) -> Variant:
    build = BuildRecord(
        library="tensorrt", version="11.4.0", source="onnx-fp16", source_sha256="0" * 64, targets=("sm89",), options={},
        seconds=1.0, profiles=tuple(BatchRange(*p) for p in PROFILES),
    )  # fmt: skip
    return Variant(
        name="tensorrt-fp16", format="tensorrt", precision=precision, path="variants/x/model.engine",
        batch=BatchRange(1, 16, 16), proof=PrecisionProof(layers={"fp16": 16}, weight_bytes={"fp16": 1000, "fp32": 24}),
        build=msgspec.structs.replace(build, **changed),
    )  # fmt: skip


def manifest_of(source: Source | None = None, spec: ModelSpec = VGG16) -> Manifest:
    from vggdeploy.model.outputs import input_spec, output_specs

    return Manifest(
        name="x", created="now", spec=spec, preprocess=PreprocessSpec(), labels=(), dataset="",
        input=source.inputs[0] if source else input_spec(spec, "uint8"),
        outputs=source.outputs if source else output_specs(spec, ("logits",)),
        golden=GoldenFiles(inputs={}, outputs={}, data=""), variants=(), tools={},
    )  # fmt: skip


def test_a_session_takes_what_was_predicted_from_what_its_engine_says(gpu, source) -> None:
    library, cudart = Library(), Cudart()
    library.profiles = list(PROFILES)
    gpu(cudart, library)
    variant = engine_of(scratch=tuple(p[2] * SUM_BYTES for p in PROFILES))
    opened = replace(source, build=variant.build, batch=variant.batch, gpu=GpuOptions(contexts=1, graphs=False))
    before = cudart.free
    with EngineSession(opened) as session:
        for predicted in session_memory(manifest_of(source), variant, contexts=1):
            session.run({"image": pixels(predicted.batch, 0)})
            assert before - cudart.free == predicted.activations + predicted.buffers
            assert predicted.total == predicted.weights + predicted.activations + predicted.buffers
            assert (predicted.asked, predicted.weights) == (True, 1024)


def test_every_context_counts_and_streamed_weights_do_not() -> None:
    one, four = (session_memory(manifest_of(), engine_of(), contexts=n)[-1] for n in (1, 4))
    assert four.total - four.weights == 4 * (one.total - one.weights)
    streamed = session_memory(manifest_of(), engine_of(options={"weight_streaming": "yes"}), contexts=4)[-1]
    assert streamed.total == four.total - four.weights


def test_without_a_gpu_the_two_largest_activations_of_vgg16_are_counted() -> None:
    """3.3 GB for 256 images in FP16, which docs/explanation/profiles.md works out by hand."""
    assert activation_bytes(VGG16, Precision.FP16) == 2 * 64 * 224 * 224 * 2
    assert activation_bytes(VGG16, Precision.FP32) == activation_bytes(VGG16, Precision.TF32) == 4 * 64 * 224 * 224 * 2
    assert activation_bytes(ModelSpec.named("vgg16_bn"), Precision.FP16) == activation_bytes(VGG16, Precision.FP16)
    found = session_memory(manifest_of(), engine_of())
    assert not found[0].asked
    assert [m.activations for m in found] == [
        activation_bytes(VGG16, Precision.FP16) * n for n in (1, 1 + 4, 1 + 4 + 16)
    ]


def test_scratch_of_another_number_of_profiles_is_not_believed() -> None:
    """The attack: a manifest whose engine says less than it has profiles."""
    found = session_memory(manifest_of(), engine_of(scratch=(1,)))
    assert [m.asked for m in found] == [False] * 3
    assert found == session_memory(manifest_of(), engine_of())


def test_what_is_no_engine_takes_no_memory_of_a_gpu() -> None:
    assert session_memory(manifest_of(), msgspec.structs.replace(engine_of(), build=None)) == ()


@pytest.mark.parametrize("outputs", [("logits",), ("conv1_1",)])
def test_the_buffers_are_those_of_the_graph_s_outputs(outputs: tuple[str, ...]) -> None:
    from vggdeploy.model.outputs import output_specs

    manifest = msgspec.structs.replace(manifest_of(), outputs=output_specs(VGG16, outputs))
    values = 1000 if outputs == ("logits",) else 64 * 224 * 224
    assert session_memory(manifest, engine_of())[0].buffers == 16 * (224 * 224 * 3 + 4 * values)
