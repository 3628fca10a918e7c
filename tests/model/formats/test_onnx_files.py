"""ONNX files reach native parsers only if their graph is the chain of layers that the manifest's network is."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import CASES, SMALL, Case
from onnx_edits import EDITS, before_output, edited

from vggdeploy.bundle import Bundle, update_bundle
from vggdeploy.cli.app import run
from vggdeploy.errors import BundleError, ForeignModelError, VggdeployError
from vggdeploy.model.formats.graph import check_onnx
from vggdeploy.model.formats.onnx import read_onnx_file
from vggdeploy.runtime import open_session
from vggdeploy.types import Precision


def check(data: bytes, case: Case = SMALL) -> None:
    check_onnx(memoryview(data), case.chain, "the file")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return SMALL.onnx(tmp_path_factory.mktemp("honest") / "model.onnx")


@pytest.mark.parametrize("name", CASES)
def test_what_the_exporter_writes_is_admitted(name: str, tmp_path: Path) -> None:
    check(CASES[name].onnx(tmp_path / "model.onnx"), CASES[name])


@pytest.mark.parametrize("flavour", ["cpu", "tensorrt"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.precision is Precision.FP32])
def test_what_the_quantiser_writes_is_admitted(name: str, flavour: str, tmp_path: Path) -> None:
    for data in quantised(CASES[name], flavour, tmp_path):
        check(data, CASES[name])


def quantised(case: Case, flavour: str, tmp_path: Path) -> list[bytes]:
    """INT8 with every layer in it, and with the first two products in FP32."""
    from vggdeploy.optimize.steps import quantiser

    path = tmp_path / "model.onnx"
    case.onnx(path)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (3, *case.chain.image.item_shape)).astype(case.chain.image.dtype)
    feeds = [{"image": images}]
    ranges = quantiser.calibrate(path, feeds, method="min-max", percentile=99.9, scratch=tmp_path / "scratch")
    kind = {"cpu": quantiser.CPU, "tensorrt": quantiser.TENSORRT}[flavour]
    names = list(quantiser.weighted_nodes(path))
    made = [quantiser.quantise(onnx.load(path), ranges, kind, keep=kept) for kept in ((), names[:2])]
    return [model.SerializeToString() for model in made]


@pytest.mark.parametrize("name", ["every output of vgg13_bn", "in another order", "no classes", "features only"])
def test_an_output_behind_a_relu_stays_behind_it_in_int8(name: str, tmp_path: Path) -> None:
    """A quantiser takes the ReLU away where its range begins at 0, and the pair is taken away before an output."""
    case = CASES[name]
    data = quantised(case, "cpu", tmp_path)[0]
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(1).integers(0, 256, (2, *case.chain.image.item_shape), dtype=np.uint8)
    for output, values in zip(case.names, session.run(list(case.names), {"image": images}), strict=True):
        if output.startswith(("relu", "fc", "pool")):
            assert values.min() >= 0, output


def test_a_graph_out_of_order_is_admitted_and_one_in_a_circle_is_not(honest: bytes) -> None:
    model = onnx.load_from_string(honest)
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    check(model.SerializeToString())
    model.graph.node[-1].input[0] = model.graph.node[0].output[0]
    with pytest.raises(ForeignModelError, match="wait for each other"):
        check(model.SerializeToString())


def test_a_file_of_another_network_is_refused(honest: bytes) -> None:
    for name in ("vgg11", "a mean pool", "no classes", "low ranks", "before a ReLU", "one block"):
        with pytest.raises(ForeignModelError):
            check(honest, CASES[name])


@pytest.mark.parametrize("name", EDITS)
def test_anything_that_the_network_is_not_is_refused(name: str, honest: bytes) -> None:
    with pytest.raises(ForeignModelError):
        check(edited(honest, EDITS[name]))


@pytest.mark.parametrize("op", sorted(set(onnx.defs.get_all_schemas_with_history() and [
    s.name for s in onnx.defs.get_all_schemas() if s.domain == ""
]) - {"Identity"}))  # fmt: skip
def test_no_other_operator_of_onnx_is_admitted(op: str, honest: bytes) -> None:
    with pytest.raises(ForeignModelError):
        check(edited(honest, before_output(op)))


# The wire format, where two readers could differ.

RAW: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda d: d[:-1],
    "half of it": lambda d: d[: len(d) // 2],
    "nothing": lambda d: b"",
    "a second graph": lambda d: d + onnx.ModelProto(graph=onnx.GraphProto(name="x")).SerializeToString(),
    "a second version": lambda d: d + b"\x08\x0a",
    "a field that there is not": lambda d: d + b"\xf8\x07\x01",
    "a field of number 0": lambda d: d + b"\x00\x01",
    "a group": lambda d: d + b"\x0b\x0c",
    "a number in more bytes than it needs": lambda d: d.replace(b"\x08\x0a", b"\x08\x8a\x00", 1),
    "a number of 11 bytes": lambda d: b"\x08" + b"\x80" * 10 + b"\x01" + d[2:],
    "a number of 70 bits": lambda d: b"\x08" + b"\xff" * 9 + b"\x7f" + d[2:],
    "a length beyond the end": lambda d: d + b"\x3a\xff\xff\xff\xff\x7f",
    "a number where a message belongs": lambda d: d + b"\x38\x01",
    "a name that is no text": lambda d: d.replace(b"features.0.weight", b"features.0.\xff\xffight"),
    "a million numbers": lambda d: (
        onnx.ModelProto(graph=onnx.GraphProto(initializer=[onnx.TensorProto(dims=[1] * 10**6)])).SerializeToString() + d
    ),
    "a million nodes in nodes": lambda d: onnx.ModelProto(
        graph=onnx.GraphProto(node=[onnx.NodeProto(input=["x"] * 1000)] * 1000)
    ).SerializeToString(),
    "a million fields": lambda d: d + b"\x42\x04\x0a\x00\x10\x14" * 10**6,
}


@pytest.mark.parametrize("name", RAW)
def test_bytes_that_readers_could_understand_otherwise_are_refused(name: str, honest: bytes) -> None:
    changed = RAW[name](honest)
    assert changed != honest
    with pytest.raises(BundleError):
        check(changed)


def test_the_weights_are_passed_over(tmp_path: Path) -> None:
    """What it takes to check a file does not grow with its weights."""
    data = CASES["vgg19 of normalised images"].onnx(tmp_path / "model.onnx")
    tracemalloc.start()
    try:
        read_onnx_file(memoryview(data), "the file")
        assert tracemalloc.get_traced_memory()[1] < len(data) / 2
    finally:
        tracemalloc.stop()


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_leads_to_anything_but_an_answer_or_that_error(honest: bytes, data: st.DataObject) -> None:
    damaged = bytearray(honest)
    structure = onnx.load_from_string(honest)
    start = damaged.index(structure.graph.initializer[0].raw_data[:64])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, start))] = data.draw(st.integers(0, 255))  # weights may be any numbers
    made = bytes(damaged[: data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))])
    try:
        check(made)
    except VggdeployError:
        return
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(made, options, providers=["CPUExecutionProvider"])
    assert session.run(None, {"image": np.zeros((1, 32, 32, 3), np.uint8)})[0].shape == (1, 7)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_graph_of_other_parts_is_refused_or_answers_in_the_network_s_shape(
    honest: bytes, data: st.DataObject
) -> None:
    """Structured edits: nodes left out, doubled, exchanged and wired otherwise, attributes and sides changed."""
    model = onnx.load_from_string(honest)
    graph = model.graph
    names = [*(t.name for t in graph.initializer), *(n.output[0] for n in graph.node), "image", ""]
    for _ in range(data.draw(st.integers(1, 3))):
        node = graph.node[data.draw(st.integers(0, len(graph.node) - 1))]
        match data.draw(st.sampled_from(["drop", "wire", "type", "attribute", "side", "double"])):
            case "drop" if len(graph.node) > 1:
                graph.node.remove(node)
            case "wire" if node.input:
                node.input[data.draw(st.integers(0, len(node.input) - 1))] = data.draw(st.sampled_from(names))
            case "type":
                node.op_type = data.draw(
                    st.sampled_from(["Relu", "Identity", "Cast", "Mul", "Add", "Flatten", "Softmax"])
                )
            case "attribute" if node.attribute:
                changed = node.attribute[data.draw(st.integers(0, len(node.attribute) - 1))]
                changed.i = data.draw(st.integers(-3, 20))
                changed.ints[:] = [data.draw(st.integers(-3, 20)) for _ in changed.ints]
            case "side":
                tensor = graph.initializer[data.draw(st.integers(0, len(graph.initializer) - 1))]
                tensor.dims[0] = data.draw(st.integers(-1, 9))
            case "double":
                graph.node.append(node)
    made = model.SerializeToString()
    try:
        check(made)
    except VggdeployError:
        return
    session = ort.InferenceSession(made, providers=["CPUExecutionProvider"])
    assert session.run(None, {"image": np.zeros((1, 32, 32, 3), np.uint8)})[0].shape == (1, 7)


# The bundle: every way to a library.


@pytest.mark.parametrize("command", ["predict", "verify", "layers", "inspect", "bench", "embed", "package", "int8"])
@pytest.mark.parametrize("name", ["a loop of 2⁶² rounds", "a missing input", "no input at all"])
def test_no_verb_hands_a_foreign_graph_to_a_library(
    name: str, command: str, own_bundle: Path, digit_png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    bundle = Bundle.open(own_bundle)
    variant = bundle.manifest.variant("onnx-fp32")
    with update_bundle(bundle) as draft:
        draft.write(variant.path, edited(bundle.path(variant.path).read_bytes(), EDITS[name]))
    real = ort.InferenceSession
    bad = Bundle.open(own_bundle).path(variant.path)

    def session(source: object, *rest: object, **more: object) -> object:
        opened = source if isinstance(source, bytes) else Path(str(source)).read_bytes()
        assert opened != bad.read_bytes(), "the library was given the file"
        return real(source, *rest, **more)

    monkeypatch.setattr(ort, "InferenceSession", session)
    arguments = {
        "predict": ["predict", str(own_bundle), str(digit_png), "--variant", variant.name],
        "verify": ["verify", str(own_bundle), "--variant", variant.name, "--data", "golden"],
        "layers": ["verify", str(own_bundle), "--variant", variant.name, "--data", "golden", "--layers"],
        "inspect": ["inspect", str(own_bundle)],
        "bench": ["bench", str(own_bundle), "--variant", variant.name, "--seconds", "0.01", "--rounds", "3"],
        "embed": [
            "embed",
            str(own_bundle),
            str(digit_png.parent),
            "--variant",
            variant.name,
            "-o",
            str(tmp_path / "v.npy"),
        ],
        "package": [
            "package",
            str(own_bundle),
            "--target",
            "triton",
            "--variant",
            variant.name,
            "-o",
            str(tmp_path / "p"),
        ],
        "int8": ["optimize", str(own_bundle), "--step", "int8"],
    }
    assert run(arguments[command]) != 0
    shown = capsys.readouterr()
    assert "bug" not in shown.err and "Traceback" not in shown.err
    assert "vggdeploy writes" in " ".join((shown.out + shown.err).split())


def test_openvino_s_variant_is_that_file_and_is_checked_with_it(own_bundle: Path) -> None:
    from vggdeploy.export.openvino import openvino_variant
    from vggdeploy.types import Precision

    bundle = Bundle.open(own_bundle)
    variant = bundle.manifest.variant("onnx-fp32")
    with update_bundle(bundle) as draft:
        draft.write(variant.path, edited(bundle.path(variant.path).read_bytes(), EDITS["a Gather out of bounds"]))
    chosen = openvino_variant(variant, Precision.FP32)
    with pytest.raises(ForeignModelError, match="holds Gather"), open_session(Bundle.open(own_bundle), chosen):
        pass
