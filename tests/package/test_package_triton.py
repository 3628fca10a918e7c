"""A Triton model repository: what tritonclient's own protobuf reads in it, and which bytes lie in it.

No Triton server runs here. What these tests promise is the configuration's grammar, its values and the files' hashes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from vggdeploy.bundle import BuildRecord, Bundle, Variant, update_bundle
from vggdeploy.cli.app import run
from vggdeploy.errors import IntegrityError, UsageError
from vggdeploy.package.base import MARKER, Order
from vggdeploy.package.triton import SERVERS, Word, map_field, package_triton, servers_for, to_text
from vggdeploy.types import BatchRange, Precision


def parsed(repository: Path) -> Any:
    """The one configuration of a repository, as Triton's own schema reads it: an unknown field is an error."""
    (file,) = repository.glob("*/config.pbtxt")
    return text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())


def order(bundle: Path | Bundle, output: Path, *variants: str, **settings: Any) -> Order:
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    return Order(bundle=opened, output=output, variants=variants, **settings)


def with_engines(
    root: Path, *engines: tuple[str, tuple[str, ...], dict[str, Any]], profiles: tuple[BatchRange, ...] = ()
) -> Bundle:
    """The bundle with TensorRT engines of other machines: real ones cannot be built here, and none of them is opened."""
    with update_bundle(Bundle.open(root)) as draft:
        for name, targets, settings in engines:
            options, version = settings.pop("options", {}), settings.pop("version", "11.3.0")
            build = BuildRecord(
                library="tensorrt", version=version, source="onnx-fp16", source_sha256="0" * 64, targets=targets,
                options=options, seconds=1.0, gpu="NVIDIA L4", profiles=profiles,
            )  # fmt: skip
            path = f"variants/{name}/model.engine"
            draft.write(path, b"ftrt" + name.encode())
            about: dict[str, Any] = {"precision": Precision.FP16, "batch": BatchRange(1, 8, 16), **settings}
            assert draft.manifest is not None
            draft.manifest = draft.manifest.with_variants(
                Variant(name=name, format="tensorrt", path=path, build=build, **about)
            )
    return Bundle.open(root)


def test_the_tensors_are_the_manifests(bundle_dir: Path, tmp_path: Path) -> None:
    package_triton(order(bundle_dir, tmp_path / "repository", "onnx-fp16", name="digits"))
    config = parsed(tmp_path / "repository")
    assert (config.name, config.platform, config.max_batch_size) == ("digits", "onnxruntime_onnx", 32)
    (image,), (logits,) = config.input, config.output
    assert (image.name, image.data_type, list(image.dims)) == ("image", model_config_pb2.TYPE_UINT8, [32, 32, 1])
    assert (logits.name, logits.data_type, list(logits.dims)) == ("logits", model_config_pb2.TYPE_FP32, [10])
    labels = (tmp_path / "repository/digits" / logits.label_filename).read_text().splitlines()
    assert labels == list(Bundle.open(bundle_dir).manifest.labels)


def test_every_batch_is_warmed_up_and_the_batcher_is_on(bundle_dir: Path, tmp_path: Path) -> None:
    package_triton(order(bundle_dir, tmp_path / "repository", "onnx-fp32", max_batch=12, instances=2))
    config = parsed(tmp_path / "repository")
    assert [w.batch_size for w in config.model_warmup] == [1, 2, 4, 8, 12]
    assert all(list(w.inputs["image"].dims) == [32, 32, 1] and w.inputs["image"].zero_data for w in config.model_warmup)
    assert config.dynamic_batching.max_queue_delay_microseconds > 0
    (group,) = config.instance_group
    assert (group.count, group.kind) == (2, model_config_pb2.ModelInstanceGroup.KIND_AUTO)


def test_torchscript_is_named_as_triton_s_libtorch_backend_wants(bundle_dir: Path, tmp_path: Path) -> None:
    package_triton(order(bundle_dir, tmp_path / "repository", "torchscript-fp32", name="digits"))
    config = parsed(tmp_path / "repository")
    assert config.platform == "pytorch_libtorch"
    assert [t.name for t in (*config.input, *config.output)] == ["INPUT__0", "OUTPUT__0"]
    assert all(set(w.inputs) == {"INPUT__0"} for w in config.model_warmup)
    assert (tmp_path / "repository/digits/1" / config.default_model_filename).is_file()


def test_the_record_has_the_hash_of_every_file_and_the_model_is_the_bundles(bundle_dir: Path, tmp_path: Path) -> None:
    made = package_triton(order(bundle_dir, tmp_path / "repository", "onnx-fp32", name="digits"))
    record = json.loads((tmp_path / "repository" / MARKER).read_bytes())
    written = {p.relative_to(tmp_path / "repository").as_posix() for p in (tmp_path / "repository").rglob("*.*")}
    assert {f["path"] for f in record["files"]} == written - {MARKER}
    for file in record["files"]:
        data = (tmp_path / "repository" / file["path"]).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (file["sha256"], file["size"])
    bundle = Bundle.open(bundle_dir)
    assert record["digest"] == bundle.manifest.digest
    hashes = {f.path: f.sha256 for f in made.package.files}
    assert hashes["digits/1/model.onnx"] == bundle.sha256("variants/onnx-fp32/model.onnx")


def test_engines_of_several_gpus_become_one_model(own_bundle: Path, tmp_path: Path) -> None:
    bundle = with_engines(own_bundle, ("trt-ampere", ("sm80", "sm86"), {}), ("trt-blackwell", ("sm120",), {}))
    package_triton(order(bundle, tmp_path / "repository", "trt-ampere", "trt-blackwell", name="digits"))
    config = parsed(tmp_path / "repository")
    assert config.platform == "tensorrt_plan"
    files = dict(config.cc_model_filenames)
    assert files == {"8.0": "model.sm80-sm86.plan", "8.6": "model.sm80-sm86.plan", "12.0": "model.sm120.plan"}
    version = tmp_path / "repository/digits/1"
    assert (version / files["8.6"]).read_bytes() == b"ftrttrt-ampere"
    assert (version / files["12.0"]).read_bytes() == b"ftrttrt-blackwell"
    assert (version / config.default_model_filename).is_file()
    assert config.max_batch_size == 16
    assert list(config.dynamic_batching.preferred_batch_size) == [8]
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU


def test_an_engine_of_several_profiles_is_given_all_of_them(own_bundle: Path, tmp_path: Path) -> None:
    """Without the list Triton's instance stays on the first profile, and refuses every batch above its largest."""
    ranges = (BatchRange(1, 1, 1), BatchRange(2, 8, 8), BatchRange(9, 16, 16))
    bundle = with_engines(own_bundle, ("trt", ("sm80",), {}), profiles=ranges)
    package_triton(order(bundle, tmp_path / "repository", "trt", name="digits"))
    config = parsed(tmp_path / "repository")
    assert list(config.instance_group[0].profile) == ["0", "1", "2"]
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 16]


def test_an_engine_for_all_gpus_from_ampere_is_named_for_none(own_bundle: Path, tmp_path: Path) -> None:
    bundle = with_engines(own_bundle, ("trt", ("sm80",), {"options": {"hardware_compatible": "ampere+"}}))
    package_triton(order(bundle, tmp_path / "repository", "trt", name="digits"))
    config = parsed(tmp_path / "repository")
    assert not config.cc_model_filenames
    assert config.default_model_filename == "model.plan"


@pytest.mark.parametrize(
    ("engines", "cause"),
    [
        ([("a", ("sm80",), {}), ("b", ("sm80",), {})], "both for compute capability 8.0"),
        ([("a", ("sm80",), {}), ("b", ("sm86",), {"precision": Precision.FP32})], "same precision"),
        ([("a", ("sm80",), {}), ("b", ("sm86",), {"batch": BatchRange(1, 4, 16)})], "same profiles"),
        ([("a", ("sm80",), {"batch": BatchRange(2, 4, 16)})], "takes batches from 2"),
        ([("a", ("sm80",), {}), ("b", ("sm86",), {"version": "11.4.0"})], "same release of TensorRT"),
    ],
)
def test_engines_that_do_not_go_together_are_refused(
    own_bundle: Path, tmp_path: Path, engines: list[Any], cause: str
) -> None:
    bundle = with_engines(own_bundle, *engines)
    with pytest.raises(UsageError, match=cause):
        package_triton(order(bundle, tmp_path / "repository", *(name for name, *_ in engines)))
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("version", "tags"),
    [
        ("10.8.0.43", ["25.01"]),
        ("10.8.0", ["25.01"]),
        ("10.7.0.99", ["24.12"]),
        ("10.8.1.1", []),  # another release: it does not load there
        ("10.13.3.9", []),
        ("11.4.0.1", []),
        ("1.8.0", []),
        ("10.8", []),
        ("10.8.0\nname: 'x'", []),
    ],
)
def test_the_server_is_named_whose_tensorrt_fits_and_none_is_guessed(
    own_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], version: str, tags: list[str]
) -> None:
    assert servers_for(version) == tags
    with_engines(own_bundle, ("trt", ("sm80",), {"version": version}))
    call = ["package", str(own_bundle), "--target", "triton", "--variant", "trt", "--name", "digits"]
    assert run([*call, "-o", str(tmp_path / "repository"), "--json"]) == 0
    shown = capsys.readouterr()
    json.loads(shown.out)
    text = (tmp_path / "repository/digits/config.pbtxt").read_text(encoding="ascii")
    config = parsed(tmp_path / "repository")  # comments are comments
    assert config.name == "digits"
    for said in (shown.err, text):
        assert [tag for tag in SERVERS if f"tritonserver:{tag}-py3" in said] == tags
        assert ("no server that we know has it" in said) == (not tags)


def test_the_next_command_starts_that_server_and_other_variants_need_none(
    own_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_engines(own_bundle, ("trt", ("sm80",), {"version": "10.7.0.23"}))
    call = ["package", str(own_bundle), "--target", "triton", "--name", "digits"]
    assert run([*call, "--variant", "trt", "-o", str(tmp_path / "one")]) == 0
    assert (
        f"-v {tmp_path / 'one'}:/models:ro nvcr.io/nvidia/tritonserver:24.12-py3 tritonserver"
        in capsys.readouterr().err
    )
    assert run([*call, "--variant", "onnx-fp32", "-o", str(tmp_path / "two")]) == 0
    assert "nvcr.io" not in capsys.readouterr().err
    assert "#" not in (tmp_path / "two/digits/config.pbtxt").read_text()


def test_a_file_that_is_no_engine_is_refused(own_bundle: Path, tmp_path: Path) -> None:
    bundle = with_engines(own_bundle, ("trt", ("sm80",), {}))
    with update_bundle(bundle) as draft:
        draft.write("variants/trt/model.engine", b"GIF89a")
    with pytest.raises(IntegrityError, match="no engine of TensorRT"):
        package_triton(order(own_bundle, tmp_path / "repository", "trt"))
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("variants", "settings", "cause"),
    [
        (["torch-fp32"], {}, "does not take torch-fp32"),
        (["onnx-fp32", "onnx-fp16"], {}, "only TensorRT engines go together"),
        (["onnx-fp32"], {"name": "../up"}, "cannot name a model"),
        (["onnx-fp32"], {"max_batch": 257}, "--max-batch is 257"),
        (["onnx-fp32"], {"max_batch": 0}, "--max-batch is 0"),
        (["onnx-fp32"], {"instances": 0}, "number of instances cannot be 0"),
        (["onnx-fp23"], {}, "variant 'onnx-fp23' is unknown"),
    ],
)
def test_what_makes_no_model_is_refused(
    bundle_dir: Path, tmp_path: Path, variants: list[str], settings: dict[str, Any], cause: str
) -> None:
    with pytest.raises(UsageError, match=cause):
        package_triton(order(bundle_dir, tmp_path / "repository", *variants, **settings))
    assert not (tmp_path / "repository").exists()


def test_a_bundle_whose_name_leads_elsewhere_names_no_directory(own_bundle: Path, tmp_path: Path) -> None:
    with update_bundle(Bundle.open(own_bundle)) as draft:
        assert draft.manifest is not None
        draft.manifest = msgspec.structs.replace(draft.manifest, name="../../escaped")
    assert run(["package", str(own_bundle), "--target", "triton", "-o", str(tmp_path / "repository")]) == 2
    assert not (tmp_path / "repository").exists()


def test_labels_stay_on_their_lines(own_bundle: Path, tmp_path: Path) -> None:
    with update_bundle(Bundle.open(own_bundle)) as draft:
        assert draft.manifest is not None
        labels = ("two\nlines", "écru", "\x1b[31mred", *(str(n) for n in range(7)))
        draft.manifest = msgspec.structs.replace(draft.manifest, labels=labels)
    package_triton(order(own_bundle, tmp_path / "repository", "onnx-fp32", name="digits"))
    lines = (tmp_path / "repository/digits/labels.txt").read_text().split("\n")
    assert lines[:3] == ["two lines", "écru", "\\x1b[31mred"]
    assert len(lines) == 11  # ten labels, and the end


texts = st.text()


@given(name=texts, file=texts, key=texts, size=st.integers(0, 2**31 - 1), flag=st.booleans())
def test_any_string_comes_back_from_protobuf(name: str, file: str, key: str, size: int, flag: bool) -> None:
    """The writer against protobuf's own parser, and against what protobuf's own writer would make of it."""
    text = to_text(
        [
            ("name", name),
            ("max_batch_size", size),
            ("input", [("name", file), ("data_type", Word("TYPE_UINT8")), ("dims", -1), ("dims", size)]),
            ("model_warmup", [("name", name), *map_field("inputs", [(key, [("zero_data", flag)])])]),
            *map_field("cc_model_filenames", [(key, file)]),
        ]
    )
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert (config.name, config.max_batch_size, dict(config.cc_model_filenames)) == (name, size, {key: file})
    assert (config.input[0].name, list(config.input[0].dims)) == (file, [-1, size])
    assert config.model_warmup[0].inputs[key].zero_data is flag
    assert text_format.Parse(text_format.MessageToString(config), model_config_pb2.ModelConfig()) == config
