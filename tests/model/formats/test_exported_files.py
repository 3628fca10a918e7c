"""`torch.export.load` unpickles, evaluates and loads what an archive says: only exported VGGs get there."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from exported_edits import (
    Change,
    argument,
    calls,
    contents,
    edited,
    graph,
    node,
    packed,
    set_argument,
    set_target,
    signature,
    size_of_image,
    tensor,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import CASES, SMALL

from vggdeploy.bundle import Bundle, Variant, update_bundle
from vggdeploy.cli.app import run
from vggdeploy.errors import BundleError, VggdeployError
from vggdeploy.model.formats.exported import check_exported, exported_parameters
from vggdeploy.runtime import open_session
from vggdeploy.types import BatchRange, Precision

FOREIGN = "not what vggdeploy writes of this network"
GRAPH = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


def check(data: bytes, case=SMALL) -> None:
    check_exported(memoryview(data), case.chain, "the file")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return SMALL.program(tmp_path_factory.mktemp("honest") / "model.pt2")


@pytest.mark.parametrize("name", CASES)
def test_what_the_exporter_writes_is_admitted(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    data = case.program(tmp_path / "model.pt2")
    check(data, case)
    found = exported_parameters(memoryview(data), "the file")
    assert {tensor.type for key, tensor in found.items() if key.endswith("weight")} == {str(case.precision)}
    assert (
        os.fsencode(Path(__file__).parents[3]) not in data
    )  # where this machine keeps its sources is nobody's business


def test_a_file_of_another_network_is_refused(honest: bytes) -> None:
    for name in ("vgg11", "a mean pool", "no classes", "low ranks", "before a ReLU", "one block"):
        with pytest.raises(BundleError, match=FOREIGN):
            check(honest, CASES[name])


def test_an_archive_that_is_only_packed_anew_is_admitted(honest: bytes) -> None:
    check(packed(contents(honest)))
    check(edited(honest, GRAPH, lambda document: None))


# The attacks that PyTorch itself falls for.


def pickled(target: Path) -> bytes:
    class Planted:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(target),))

    return pickle.dumps(Planted(), protocol=2)


def torch_pickled(target: Path) -> bytes:
    """As `torch.save` writes it: a zip archive around the pickle."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(target))
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")
    return made.getvalue()


def with_pickled_weight(data: bytes, target: Path) -> bytes:
    entries = contents(edited(data, WEIGHTS, lambda d: next(iter(d["config"].values())).update(use_pickle=True)))
    return packed(entries | {"data/weights/weight_0": torch_pickled(target)})


def with_opaque_constant(data: bytes, target: Path) -> bytes:
    def change(document: Any) -> None:
        document["config"]["scale"] |= {"path_name": "opaque_obj_0", "use_pickle": True}

    return packed(contents(edited(data, CONSTANTS, change)) | {"data/constants/opaque_obj_0": pickled(target)})


def with_sample_inputs(data: bytes, target: Path) -> bytes:
    return packed(contents(data) | {"data/sample_inputs/model.pt": torch_pickled(target)})


def with_evaluated_size(data: bytes, target: Path) -> bytes:
    def change(document: Any) -> None:
        size = size_of_image(document)
        size["expr_str"] = f"__import__('os').mkdir({str(target)!r}) or {size['expr_str']}"

    return edited(data, GRAPH, change)


def with_native_code(data: bytes, target: Path) -> bytes:
    """A library with a constructor, where AOTInductor's packages have theirs."""
    source = f'#include <sys/stat.h>\n__attribute__((constructor)) static void at_load() {{ mkdir("{target}", 0700); }}'
    library = target.with_suffix(".so")
    command = ["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(library)]
    subprocess.run(command, input=source, text=True, check=True)
    about = json.dumps({"AOTI_DEVICE_KEY": "cpu"}).encode()
    home = "data/aotinductor/model/"
    return packed(
        contents(data)
        | {
            f"{home}x.wrapper.so": library.read_bytes(),
            f"{home}x.wrapper.cpp": b"",
            f"{home}x.wrapper_metadata.json": about,
        }
    )


PLANTED: dict[str, Callable[[bytes, Path], bytes]] = {
    "a pickled weight": with_pickled_weight,
    "an opaque constant": with_opaque_constant,
    "pickled sample inputs": with_sample_inputs,
    "an evaluated size": with_evaluated_size,
    "native code": with_native_code,
}


def plant(attack: str, data: bytes, target: Path) -> bytes:
    if attack == "native code" and shutil.which("g++") is None:
        pytest.skip("there is no g++")
    return PLANTED[attack](data, target)


@pytest.mark.parametrize("attack", PLANTED)
def test_the_attack_works_on_pytorch_itself(attack: str, honest: bytes, tmp_path: Path) -> None:
    """Else the next two tests would prove nothing."""
    target = tmp_path / "made"
    file = tmp_path / "model.pt2"
    file.write_bytes(plant(attack, honest, target))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(Exception):  # what it says of what it got for a tensor comes too late
            torch.export.load(file).module()(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    assert target.is_dir()


@pytest.mark.parametrize("attack", PLANTED)
def test_it_is_refused(attack: str, honest: bytes, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=FOREIGN):
        check(plant(attack, honest, tmp_path / "made"))


@pytest.mark.late  # 20 whole commands
@pytest.mark.parametrize("attack", sorted(PLANTED.keys() - {"native code"}))
def test_no_verb_runs_it(
    attack: str, own_bundle: Path, digit_png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vggdeploy.export.torch_export import export_program
    from vggdeploy.model.deployable import Deployable
    from vggdeploy.model.vgg import fold_batch_norm
    from vggdeploy.model.weights import load_model

    bundle, target = Bundle.open(own_bundle), tmp_path / "made"
    manifest = bundle.manifest
    module = Deployable(fold_batch_norm(load_model(own_bundle / "checkpoint")), manifest.preprocess).eval()
    file = tmp_path / "model.pt2"
    export_program(module, file, image=manifest.input, batch=BatchRange(1, 4, 16))
    path = "variants/torch-export-fp32/model.pt2"
    variant = Variant(
        name="torch-export-fp32", format="torch-export", precision=Precision.FP32, path=path, batch=BatchRange(1, 4, 16)
    )
    with update_bundle(bundle) as draft:
        draft.write(path, plant(attack, file.read_bytes(), target))
        draft.manifest = manifest.with_variants(variant)
    chosen = ["--variant", variant.name]
    with pytest.raises(BundleError, match=FOREIGN), open_session(Bundle.open(own_bundle), variant):
        pass
    for command in (
        ["predict", str(own_bundle), str(digit_png), *chosen],
        ["verify", str(own_bundle), *chosen, "--data", "golden"],
        ["inspect", str(own_bundle)],
        ["bench", str(own_bundle), *chosen, "--seconds", "0.01", "--rounds", "3"],
    ):
        assert run(command) != 0
        assert "bug" not in capsys.readouterr().err
    assert not target.exists()


# Whatever else differs from what exporting gives.


def put(path: str, value: Any) -> Change:
    """Set what lies at ``a.b.c`` of the document."""

    def change(document: Any) -> None:
        *above, last = path.split(".")
        for name in above:
            document = document[int(name) if isinstance(document, list) else name]
        document[last] = value

    return change


def second_relu(document: Any) -> None:
    made = node(document, "relu_.default") | {"name": "relu_9", "outputs": [tensor("relu_9")]}
    graph(document)["nodes"].append(made)


def second_image(document: Any) -> None:
    graph(document)["inputs"].append(tensor("image2"))
    signature(document)["input_specs"].append({"user_input": {"arg": tensor("image2")}})


def mutated_buffer(document: Any) -> None:
    mutation = {"buffer_mutation": {"arg": {"name": "to_2"}, "buffer_name": "scale"}}
    signature(document)["output_specs"].append(mutation)


def other_type(document: Any) -> None:
    about = calls(document)[0]["signature"]
    about["in_spec"] = about["in_spec"].replace("builtins.dict", "os.environ")


AXES = {"as_ints": [0, 3, 1, 2]}
OTHER_SYMBOL = "Symbol('s1', positive=True, integer=True)"
ASSERTION = "_assert_tensor_metadata.default"
DOCUMENTS: dict[str, Change] = {
    "a custom operator": set_target("torch.ops.mine.relu.default"),
    "a function of the system": set_target("torch.os.system"),
    "an operator that writes files": set_target("torch.ops.aten.from_file.default"),
    "a higher-order operator": set_target("torch.ops.higher_order.cond"),
    "a second ReLU": second_relu,
    "a value that was written over": set_argument("max_pool2d.default", "self", **tensor("conv2d")),
    "a larger pool": set_argument("max_pool2d.default", "kernel_size", as_ints=[9, 9]),
    "another stride": set_argument("conv2d.default", "stride", as_ints=[2, 2]),
    "other pads": set_argument("conv2d.default", "padding", as_ints=[9, 9]),
    "dropout that is on": set_argument("dropout.default", "train", as_bool=True),
    "True for 1": set_argument("flatten.using_ints", "start_dim", as_int=True),
    "another axis order": set_argument("permute.default", "dims", as_ints=[0, 3, 2, 1]),
    "a cast to integers": set_argument("to.dtype", "dtype", as_scalar_type=5),
    "two kinds of argument": set_argument("permute.default", "dims", **AXES, as_int=1),
    "a shift for a scale": set_argument("mul.Tensor", "other", **tensor("b_shift")),
    "an assertion elsewhere": set_argument(ASSERTION, "device", as_device={"type": "cuda", "index": 0}),
    "a keyword": lambda d: argument(d, "permute.default", "dims").update(kind=2),
    "an argument of another name": lambda d: argument(d, "permute.default", "dims").update(name="out"),
    "a name that is code": lambda d: node(d, "to.dtype").update(name="x = 1", outputs=[tensor("x = 1")]),
    "a note on the source": lambda d: node(d, "relu_.default").update(metadata={"nn_module_stack": "a,b,c"}),
    "no nodes": lambda d: graph(d)["nodes"].clear(),
    "an output more": lambda d: graph(d)["outputs"].append(graph(d)["outputs"][0]),
    "a weight as an output": lambda d: graph(d).update(outputs=[graph(d)["inputs"][0]]),
    "inputs in another order": lambda d: graph(d)["inputs"].reverse(),
    "a weight twice": lambda d: signature(d)["input_specs"].__setitem__(0, signature(d)["input_specs"][1]),
    "a second image": second_image,
    "a mutated buffer": mutated_buffer,
    "another verifier": put("verifiers", ["EDGE"]),
    "a constraint on another symbol": put("range_constraints", {"s1": {"min_val": 1, "max_val": 2}}),
    "an endless batch": lambda d: next(iter(d["range_constraints"].values())).update(max_val=10**30),
    "a named tuple": put("graph_module.treespec_namedtuple_fields", {"os.system": {}}),
    "a type of another module": other_type,
    "a signature of a part": lambda d: calls(d)[1].update(signature=calls(d)[0]["signature"]),
    "a size that is a product": lambda d: size_of_image(d).update(expr_str="2*s40"),
    "a size of another symbol": lambda d: size_of_image(d).update(expr_str=OTHER_SYMBOL),
    "another shape": lambda d: graph(d)["tensor_values"]["image"]["sizes"][1].update(as_int=64),
    "a value more": lambda d: graph(d)["tensor_values"].update(x=graph(d)["tensor_values"]["image"]),
    "a custom object": lambda d: graph(d).update(custom_obj_values={"x": {"name": "x", "class_fqn": "os"}}),
    "a field more": put("extra", {}),
    "a guard": put("guards_code", ["L['image'].ndim == 4"]),
    "lists without end": lambda d: d.update(guards_code=json.loads("[" * 900 + "]" * 900)),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_that_exporting_does_not_give_is_refused(name: str, honest: bytes) -> None:
    made = edited(honest, GRAPH, DOCUMENTS[name])
    assert made != edited(honest, GRAPH, lambda document: None), "the edit changed nothing"
    with pytest.raises(BundleError, match=FOREIGN):
        check(made)


TENSORS: dict[str, Change] = {
    "use_pickle": lambda about: about.update(use_pickle=True),
    "1 for True": lambda about: about.update(use_pickle=0),
    "a path": lambda about: about.update(path_name="../../../etc/passwd"),
    "a file of another": lambda about: about.update(path_name="weight_1"),
    "a file that is not there": lambda about: about.update(path_name="weight_99"),
    "a larger shape": lambda about: about["tensor_meta"]["sizes"][0].update(as_int=64),
    "strides behind the data": lambda about: about["tensor_meta"]["strides"][0].update(as_int=10**6),
    "a negative stride": lambda about: about["tensor_meta"]["strides"][0].update(as_int=-1),
    "an offset": lambda about: about["tensor_meta"].update(storage_offset={"as_int": 4}),
    "an offset in two ways": lambda about: about["tensor_meta"].update(storage_offset={"as_int": 0, "as_expr": {}}),
    "a GPU": lambda about: about["tensor_meta"].update(device={"type": "cuda", "index": 0}),
    "a type of two bytes": lambda about: about["tensor_meta"].update(dtype=6),
    "a sparse layout": lambda about: about["tensor_meta"].update(layout=1),
    "an expression": lambda about: about["tensor_meta"]["sizes"][0].update(as_expr={"expr_str": "exit()"}),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_that_is_not_plain_numbers_is_refused(name: str, honest: bytes) -> None:
    with pytest.raises(BundleError, match=FOREIGN):
        check(edited(honest, WEIGHTS, lambda d: TENSORS[name](d["config"]["features.0.weight"])))


@pytest.mark.parametrize(
    "entry", ["extra/x", "data/weights/weight_99", "models/other.json", "data/aotinductor/model/x.so", "executorch/x",
              "data/constants/custom_obj_0", "data/constants/model.pt", "data/weights/model.pt", "MODELS/model.json"],
)  # fmt: skip
def test_an_entry_beside_the_network_is_refused(entry: str, honest: bytes) -> None:
    with pytest.raises(BundleError):
        check(packed(contents(honest) | {entry: b"x"}))


def test_a_name_that_stands_twice_is_refused(honest: bytes) -> None:
    """Readers differ in which one they take."""
    entries = contents(honest)
    entries[GRAPH] = entries[GRAPH].replace(b'{"graph_module"', b'{"guards_code": ["1"], "graph_module"', 1)
    with pytest.raises(BundleError, match=FOREIGN):
        check(packed(entries))


@settings(max_examples=200)
@given(data=st.data())
def test_no_damage_leads_to_anything_but_an_answer_or_that_error(honest: bytes, data: st.DataObject) -> None:
    damaged = bytearray(honest)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        check(bytes(damaged[: data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))]))
    except VggdeployError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.export.load(io.BytesIO(bytes(damaged))).module()
    assert module(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))[0].shape == (1, 7)
