"""Changes to an honest ONNX file, by what they do: none of them is a chain of layers any more."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Edit = Callable[[onnx.ModelProto], None]


def before_output(op: str, *given: str, **attributes: object) -> Edit:
    """An operator between the last one and the output."""

    def apply(model: onnx.ModelProto) -> None:
        model.graph.node[-1].output[0] = "inner"
        made = model.graph.output[0].name
        model.graph.node.append(helper.make_node(op, ["inner", *given], [made], **attributes))

    return apply


def body() -> onnx.GraphProto:
    """What a loop repeats: nothing."""
    values = [helper.make_tensor_value_info(n, k, []) for n, k in (("i", TensorProto.INT64), ("c", TensorProto.BOOL))]
    node = helper.make_node("Identity", ["c"], ["c2"])
    return helper.make_graph([node], "body", values, [helper.make_tensor_value_info("c2", TensorProto.BOOL, [])])


def loop(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.int64(2**62), "often"))
    model.graph.initializer.append(numpy_helper.from_array(np.bool_(True), "on"))
    model.graph.node.append(helper.make_node("Loop", ["often", "on"], [], body=body()))


def branch(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.bool_(True), "on"))
    then = helper.make_graph([], "then", [], [])
    model.graph.node.append(helper.make_node("If", ["on"], ["x"], then_branch=then, else_branch=then))


def functions(depth: int) -> Edit:
    """Each calls the next one twice; the last calls the first."""

    def apply(model: onnx.ModelProto) -> None:
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
        for n in range(depth):
            twice = [
                helper.make_node(f"f{(n + 1) % depth}", [a], [b], domain="own") for a, b in (("x", "y"), ("y", "z"))
            ]
            model.functions.append(helper.make_function("own", f"f{n}", ["x"], ["z"], twice, opsets))
        model.opset_import.append(opsets[1])
        before_output("f0", domain="own")(model)

    return apply


def outside(location: str) -> Edit:
    def apply(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return apply


def constants(model: onnx.ModelProto) -> None:
    shape = numpy_helper.from_array(np.array([40_000, 40_000], np.int64), "large")
    model.graph.initializer.append(shape)
    model.graph.node.append(helper.make_node("ConstantOfShape", ["large"], ["gigabytes"]))


def on_node(op: str, **attributes: object) -> Edit:
    """Other attributes of the first operator of a kind."""

    def apply(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.op_type == op)
        kept = [a for a in node.attribute if a.name not in attributes]
        del node.attribute[:]
        node.attribute.extend([*kept, *(helper.make_attribute(k, v) for k, v in attributes.items())])

    return apply


def on_graph(change: Callable[[onnx.GraphProto], object]) -> Edit:
    return lambda model: (change(model.graph), None)[1]


def node_of(graph: onnx.GraphProto, op: str) -> onnx.NodeProto:
    return next(n for n in graph.node if n.op_type == op)


def large(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(numpy_helper.from_array(np.ones((64, 3, 3, 3), np.float32), tensor.name))


EDITS: dict[str, Edit] = {
    "a loop of 2⁶² rounds": loop,
    "a branch": branch,
    "functions that call each other without end": functions(3),
    "functions in functions": functions(30),
    "data in another file": outside("/etc/passwd"),
    "data in a file above": outside("../../secret"),
    "6 GB of constants": constants,
    "an operator of another domain": before_output("FusedConv", domain="com.microsoft"),
    "a name of ONNX's domain that no opset has": before_output("Sneaky"),
    "another opset": lambda m: m.opset_import.append(helper.make_opsetid("com.microsoft", 1)),
    "an opset of the future": lambda m: setattr(m.opset_import[0], "version", 2**40),
    "no opset": lambda m: m.ClearField("opset_import"),
    "metadata": lambda m: m.metadata_props.extend([onnx.StringStringEntryProto(key="ort_config", value="{}")]),
    "a comment": lambda m: setattr(m.graph, "doc_string", "x" * 1000),
    "training": lambda m: m.training_info.extend([onnx.TrainingInfoProto()]),
    "a sparse tensor": on_graph(lambda g: g.sparse_initializer.add()),
    "a graph in an attribute": on_node("Relu", body=body()),
    "a tensor in an attribute": on_node("Relu", x=numpy_helper.from_array(np.ones(3))),
    "an attribute that Conv has not": on_node("Conv", secret=1),
    "a million numbers in an attribute": on_node("Conv", pads=[0] * 10**6),
    "pads beyond the image": on_node("Conv", pads=[2**31 - 1] * 4),
    "negative pads": on_node("Conv", pads=[-5] * 4),
    "strides of 0": on_node("Conv", strides=[0, 0]),
    "dilations": on_node("Conv", dilations=[9, 9]),
    "groups": on_node("Conv", group=3),
    "a kernel of another size": on_node("Conv", kernel_shape=[9, 9]),
    "pads chosen by the library": on_node("Conv", auto_pad="SAME_UPPER"),
    "a text for a number": on_node("Conv", group="1"),
    "a pool of 0": on_node("MaxPool", kernel_shape=[0, 0]),
    "a pool with indices": on_graph(lambda g: node_of(g, "MaxPool").output.append("places")),
    "another permutation": on_node("Transpose", perm=[0, 3, 1, 9]),
    "a Cast to text": on_node("Cast", to=TensorProto.STRING),
    "an axis that is not there": before_output("Softmax", axis=7),
    "a Gather out of bounds": lambda m: (
        m.graph.initializer.append(numpy_helper.from_array(np.array([10**9], np.int64), "far")),
        before_output("Gather", "far", axis=1)(m),
    )[1],
    "a missing input": on_graph(lambda g: node_of(g, "Conv").input.pop(1)),
    "no input at all": on_graph(lambda g: node_of(g, "Conv").ClearField("input")),
    "an empty input": on_graph(lambda g: node_of(g, "Conv").input.__setitem__(1, "")),
    "an input that nothing makes": on_graph(lambda g: node_of(g, "Conv").input.__setitem__(1, "ghost")),
    "no output": on_graph(lambda g: node_of(g, "Conv").ClearField("output")),
    "a tensor twice": on_graph(lambda g: g.initializer.append(g.initializer[0])),
    "a value made twice": on_graph(lambda g: g.node.append(g.node[0])),
    "an operator's name twice": on_graph(lambda g: setattr(g.node[0], "name", g.node[1].name)),
    "an output twice": on_graph(lambda g: g.output.append(g.output[0])),
    "a second input": on_graph(lambda g: g.input.append(helper.make_tensor_value_info("x", 1, [1]))),
    "an input of another type": on_graph(lambda g: setattr(g.input[0].type.tensor_type, "elem_type", 1)),
    "an input of another shape": on_graph(
        lambda g: setattr(g.input[0].type.tensor_type.shape.dim[1], "dim_value", 10**6)
    ),
    "an output of another name": on_graph(lambda g: setattr(g.output[0], "name", g.node[-2].output[0])),
    "an output of another shape": on_graph(
        lambda g: setattr(g.output[0].type.tensor_type.shape.dim[1], "dim_value", 10**6)
    ),
    "a note of another shape": on_graph(
        lambda g: g.value_info.append(helper.make_tensor_value_info(g.node[-1].input[0] + "x", 1, [2] * 900))
    ),
    "a note of another type": on_graph(lambda g: [setattr(v.type.tensor_type, "elem_type", 9) for v in g.value_info]),
    "weights of another size": large,
    "weights with fewer numbers than they say": on_graph(lambda g: g.initializer[0].dims.__setitem__(0, 10**6)),
    "weights with a negative side": on_graph(lambda g: g.initializer[0].dims.__setitem__(0, -1)),
    "weights of a type that is none": on_graph(lambda g: setattr(g.initializer[0], "data_type", 99)),
    "weights that are texts": on_graph(lambda g: g.initializer[0].string_data.append(b"x" * 1000)),
    "weights in two places": on_graph(lambda g: g.initializer[0].float_data.append(1.0)),
    "numbers that nothing reads": on_graph(
        lambda g: g.initializer.append(numpy_helper.from_array(np.zeros(10**6, np.float32), "payload"))
    ),
    "a layer twice": on_graph(
        lambda g: g.node.append(helper.make_node("Relu", [node_of(g, "Relu").input[0]], ["again"]))
    ),
    "a thousand casts": on_graph(
        lambda g: g.node.extend(helper.make_node("Cast", ["image"], [f"x{i}"], to=1) for i in range(1000))
    ),
    "no node": on_graph(lambda g: g.ClearField("node")),
    "no graph": lambda m: m.ClearField("graph"),
}


def edited(data: bytes, edit: Edit) -> bytes:
    model = onnx.load_from_string(data)
    edit(model)
    made = model.SerializeToString()
    assert made != data
    return made
