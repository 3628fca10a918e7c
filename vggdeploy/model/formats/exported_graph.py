"""The graph of a program of `torch.export`, followed node by node along the network's chain. Nothing of it is run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple

from vggdeploy.model.formats.chain import Chain, Shape, refused
from vggdeploy.model.formats.objects import Tensor
from vggdeploy.types import TensorSpec

_UINT8, _FLOATS = 1, (6, 7, 13)  # half, float, bfloat16: the numbers of PyTorch's schema
_IMAGES = {"uint8": _UINT8, "float32": 7}  # what a manifest calls them
_CPU, _STRIDED = {"type": "cpu", "index": None}, 7
# PyTorch evaluates the text of a size. One symbol, the batch, is all that a VGG has.
_SYMBOL = re.compile(r"Symbol\('(s[0-9]{1,6})', positive=True, integer=True\)")
# It becomes a name in code that PyTorch generates, which has one of its own that it does not guard.
_NAME = re.compile(r"(?!self$)[a-z_][a-z0-9_]{0,127}")
_MODULE = re.compile(r"[a-z0-9_.]{1,128}")
_NODES = 8  # that a step of the chain may take: itself, casts, assertions
_MOST = 2**31
_ASSERTION = "_assert_tensor_metadata.default"
_DOCUMENT = (
    "graph_module",
    "opset_version",
    "range_constraints",
    "schema_version",
    "verifiers",
    "torch_version",
    "guards_code",
)
_GRAPH_MODULE = ("graph", "signature", "module_call_graph", "metadata", "treespec_namedtuple_fields")
_GRAPH = {"sym_int_values": {}, "sym_bool_values": {}, "is_single_tensor_return": False, "custom_obj_values": {},
          "sym_float_values": {}}  # fmt: skip
_NODE = ("target", "inputs", "outputs", "metadata", "is_hop_single_tensor_return", "name")
_META = ("dtype", "sizes", "strides", "requires_grad", "device", "storage_offset", "layout")


class Value(NamedTuple):
    """What depends on the image, by its place in the chain."""

    place: int


class Weight(NamedTuple):
    """A tensor of the archive, by its name there."""

    key: str
    shape: Shape


def _same(found: Any, wanted: Any) -> bool:
    """Equal in type, too: 1 is not True."""
    return repr(found) == repr(wanted)


def ordinary(meta: Mapping[str, Any]) -> bool:
    """Whether what is said of a tensor beside its type and shape is what is so of every one here: on the CPU, strided."""
    plain = meta.keys() == set(_META) and isinstance(meta["requires_grad"], bool)
    return plain and _same((meta["device"], meta["storage_offset"], meta["layout"]), (_CPU, {"as_int": 0}, _STRIDED))


class Program:
    """One program: its document, and the tensors that lie beside it."""

    def __init__(self, document: Any, tensors: Mapping[str, Tensor], chain: Chain, file: str) -> None:
        self._document, self._tensors, self._chain, self._file = document, tensors, chain, file
        self._values: dict[str, Value | Weight] = {}
        self._made: dict[str, Value | Weight] = {}  # also what an operator in place has written over
        self._used: set[str] = set()
        self._symbols: set[str] = set()

    def check(self) -> None:
        """
        Raises:
            ForeignModelError: the graph is not the network's chain, or the document says anything beside it.
        """
        document = self._fields(self._document, _DOCUMENT)
        module = self._fields(document["graph_module"], _GRAPH_MODULE)
        graph = self._fields(module["graph"], ("inputs", "outputs", "nodes", "tensor_values", *_GRAPH))
        signature = self._fields(module["signature"], ("input_specs", "output_specs"))
        # PyTorch makes code of the guards, and Python's types of what the calls say.
        self._constants(document, {"guards_code": [], "verifiers": ["TRAINING"]})
        self._constants(module, {"metadata": {}, "treespec_namedtuple_fields": {}})
        self._constants(graph, _GRAPH)
        self._check_versions(document)
        self._check_calls(module["module_call_graph"])
        self._read_inputs(self._list(graph["inputs"]), self._list(signature["input_specs"]))
        nodes = self._list(graph["nodes"])
        if len(nodes) > _NODES * (len(self._chain.steps) + _NODES):
            raise refused(self._file, "it has more nodes than a network has layers")
        for node in nodes:
            self._follow(self._fields(node, _NODE))
        self._check_outputs(self._list(graph["outputs"]), signature["output_specs"])
        self._check_shapes(graph["tensor_values"])
        self._check_range(document["range_constraints"])
        if unused := self._tensors.keys() - self._used - {"scale", "shift"}:  # which normalised images do not need
            raise refused(self._file, f"it has numbers that belong to no layer: {min(unused)}")

    # What stands around the graph.

    def _fields(self, value: Any, names: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(value, dict) or value.keys() != set(names):
            told = ", ".join(value) if isinstance(value, dict) else type(value).__name__
            raise refused(self._file, f"it has {told[:200] or 'nothing'} where PyTorch writes {', '.join(names)}")
        return value

    def _list(self, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise refused(self._file, f"it has {str(value)[:100]} where PyTorch writes a list")
        return value

    def _constants(self, owner: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        for name, value in wanted.items():
            if not _same(owner[name], value):
                raise refused(self._file, f"it has {name}: {str(owner[name])[:100]}")

    def _check_versions(self, document: Mapping[str, Any]) -> None:
        numbers = [
            *self._fields(document["opset_version"], ("aten",)).values(),
            *self._fields(document["schema_version"], ("major", "minor")).values(),
        ]
        text = document["torch_version"]
        if not all(type(number) is int for number in numbers) or not isinstance(text, str) or len(text) > 64:
            raise refused(self._file, "its versions are none of PyTorch's")

    def _check_calls(self, calls: Any) -> None:
        whole, *parts = self._list(calls) or [None]
        if not _same(whole, _call(self._chain)):
            raise refused(self._file, "it is called otherwise than with one image")
        for part in parts:
            about = self._fields(part, ("fqn", "signature"))
            if about["signature"] is not None or not _MODULE.fullmatch(str(about["fqn"])):
                raise refused(self._file, f"its module {str(about['fqn'])[:100]!r} has a signature of its own")

    def _read_inputs(self, inputs: list[Any], specs: list[Any]) -> None:
        if len(inputs) != len(specs):
            raise refused(self._file, "its inputs are not those of its signature")
        image = self._chain.image.name
        for given, spec in zip(inputs, specs, strict=True):
            name = self._name(given)
            match spec:
                case {"parameter": {"parameter_name": str(key)}}:
                    wanted: Any = {"parameter": {"arg": {"name": name}, "parameter_name": key}}
                case {"buffer": {"buffer_name": str(key)}}:
                    wanted = {"buffer": {"arg": {"name": name}, "buffer_name": key, "persistent": False}}
                case _:
                    key, wanted = "", {"user_input": {"arg": {"as_tensor": {"name": image}}}}
            known = key in self._tensors if key else name == image
            if not _same(spec, wanted) or not known or name in self._values:
                raise refused(self._file, f"its input {name} is none of the network's")
            self._values[name] = Weight(key, self._tensors[key].shape) if key else Value(0)
        keys = [value.key for value in self._values.values() if isinstance(value, Weight)]
        if sorted(keys) != sorted(self._tensors) or image not in self._values:
            raise refused(self._file, "its inputs are not the image and each weight once")
        self._made = dict(self._values)

    def _name(self, argument: Any) -> str:
        name = self._fields(self._fields(argument, ("as_tensor",))["as_tensor"], ("name",))["name"]
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise refused(self._file, f"it has a value named {str(name)[:100]!r}")
        return name

    # Following.

    def _follow(self, node: dict[str, Any]) -> None:
        self._constants(node, {"metadata": {}, "is_hop_single_tensor_return": None})
        target = str(node["target"])
        operator = target.removeprefix("torch.ops.aten.")
        given = [self._fields(each, ("name", "arg", "kind")) for each in self._list(node["inputs"])]
        if operator == _ASSERTION:
            self._check_assertion(node, given)
            return
        names, rule = _OPERATORS.get(operator, ((), None))
        made = [self._name(each) for each in self._list(node["outputs"])]
        written = tuple(str(each["name"]) for each in given)
        plain = all(_same(each["kind"], 1) for each in given) and written and written == names[: len(written)]
        if rule is None or operator == target or not plain or made != [node["name"]] or made[0] in self._made:
            raise refused(self._file, f"it calls {target[:100]}, which no exported VGG does here")
        values = [self._argument(each["arg"]) for each in given]
        first, place = values[0], None
        if isinstance(first, Value):
            place = rule(self._chain, first.place, values[1:], self._file)
        if place is None:
            raise refused(self._file, f"it calls {operator} with {', '.join(str(v)[:60] for v in values[1:])[:300]}")
        self._used |= {value.key for value in values if isinstance(value, Weight)}
        if operator in _IN_PLACE:
            del self._values[self._name(given[0]["arg"])]
        self._values[made[0]] = self._made[made[0]] = Value(place)

    def _check_assertion(self, node: dict[str, Any], given: list[dict[str, Any]]) -> None:
        """It computes nothing: the type of a value is what it was when the program was made."""
        match given:
            case [{"name": "a", "arg": argument}, {"arg": {"as_scalar_type": int(kind)}}, *_] if (
                kind in (_UINT8, *_FLOATS) and node["outputs"] == [] and self._name(argument) in self._values
            ):
                wanted = [
                    ("dtype", {"as_scalar_type": kind}),
                    ("device", {"as_device": _CPU}),
                    ("layout", {"as_layout": _STRIDED}),
                ]
                rest = [{"name": name, "arg": arg, "kind": 2} for name, arg in wanted]
                if _same(given, [{"name": "a", "arg": argument, "kind": 1}, *rest]) and _NAME.fullmatch(
                    str(node["name"])
                ):
                    return
        raise refused(self._file, "it asserts something that no exported VGG does")

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, dict) and len(argument) == 1:
            ((kind, value),) = argument.items()
            if kind == "as_tensor":
                name = self._name(argument)
                if name not in self._values:
                    raise refused(self._file, f"it uses {name}, which is not there, or was written over")
                return self._values[name]
            if kind in _PLAIN and _PLAIN[kind](value):
                return None if kind == "as_none" else value
        raise refused(self._file, f"it has the argument {str(argument)[:100]}")

    # What it gives.

    def _check_outputs(self, outputs: list[Any], specs: Any) -> None:
        names = [self._name(each) for each in outputs]
        found = [self._values.get(name) for name in names]
        wanted = [Value(self._chain.ends[output.name]) for output in self._chain.outputs]
        told = [{"user_output": {"arg": {"as_tensor": {"name": name}}}} for name in names]
        if found != wanted or not all(isinstance(value, Value) for value in found) or not _same(specs, told):
            raise refused(self._file, "it gives other outputs than the manifest names")

    def _check_shapes(self, about: Any) -> None:
        metas = self._fields(about, tuple(self._made))
        for name, value in self._made.items():
            meta = self._fields(metas[name], _META)
            sizes = [self._size(each) for each in self._list(meta["sizes"])]
            strides = [self._size(each) for each in self._list(meta["strides"])]
            shape = [*value.shape] if isinstance(value, Weight) else ["N", *self._chain.shape(value.place)]
            known = meta["dtype"] in (_UINT8, *_FLOATS) and type(meta["dtype"]) is int
            if name == self._chain.image.name and not _as_given(meta, self._chain.image):
                raise refused(self._file, f"its {name} lies in memory otherwise than images are given")
            # Only the values before and behind the permutation have the image's axes in two orders.
            if not ordinary(meta) or not known or len(strides) != len(sizes) or sizes != shape:
                raise refused(self._file, f"{name} is {str(sizes)[:100]} where the network has {shape}")

    def _size(self, size: Any) -> int | str:
        match size:
            case {"as_int": int(number)} if len(size) == 1 and type(number) is int and 0 <= number < 2**40:
                return number
            case {"as_expr": {"expr_str": str(text), "hint": {"as_int": int(hint)}}} if (
                _same(size, {"as_expr": {"expr_str": text, "hint": {"as_int": hint}}}) and 0 < hint < _MOST
            ):
                if found := _SYMBOL.fullmatch(text):
                    self._symbols.add(found[1])
                    return "N"
        raise refused(self._file, f"it has the size {str(size)[:100]}")

    def _check_range(self, ranges: Any) -> None:
        if len(self._symbols) != 1:
            raise refused(self._file, "its batch is not one free size")
        about = self._fields(self._fields(ranges, tuple(self._symbols))[min(self._symbols)], ("min_val", "max_val"))
        if not all(type(number) is int and 0 <= number < _MOST for number in about.values()):
            raise refused(self._file, f"its batch is {str(about)[:100]}")


def _as_given(meta: Mapping[str, Any], image: TensorSpec) -> bool:
    """Whether an image's type and strides are those of the arrays that come: AOTInductor's code reads memory by them, and looks
    at no array's own."""
    steps = [{"as_int": prod(image.item_shape[axis:])} for axis in range(len(image.item_shape) + 1)]
    return _same((meta["dtype"], meta["strides"]), (_IMAGES.get(image.dtype), steps))


def _call(chain: Chain) -> dict[str, Any]:
    """How the whole program is called: with one tensor, for a tuple of them."""

    def spec(kind: str | None, context: str | None, *children: Any) -> dict[str, Any]:
        return {"type": kind, "context": context, "children_spec": list(children)}

    leaf = spec(None, None)
    given = spec("builtins.tuple", "null", spec("builtins.tuple", "null", leaf), spec("builtins.dict", "[]"))
    made = spec("builtins.tuple", "null", *[leaf] * len(chain.outputs))
    about = {"inputs": [], "outputs": [], "in_spec": json.dumps([1, given]), "out_spec": json.dumps([1, made])}
    return {"fqn": "", "signature": {**about, "forward_arg_names": [chain.image.name]}}


_PLAIN: dict[str, Callable[[Any], bool]] = {
    "as_int": lambda value: type(value) is int,
    "as_ints": lambda value: isinstance(value, list) and all(type(each) is int for each in value),
    "as_float": lambda value: type(value) is float,
    "as_bool": lambda value: isinstance(value, bool),
    "as_none": lambda value: value is True,
    "as_scalar_type": lambda value: type(value) is int,
}
# An operator: the chain, the place of what comes in and the other arguments, to the place of what it makes. None: no such
# arguments are ours.
Rule = Callable[[Chain, int, list[Any], str], int | None]


def _cast(chain: Chain, place: int, given: list[Any], file: str) -> int | None:
    return place if len(given) == 1 and given[0] in _FLOATS else None


def _itself(chain: Chain, place: int, given: list[Any], file: str) -> int | None:
    return place if not given else None


def _dropout(chain: Chain, place: int, given: list[Any], file: str) -> int | None:
    return place if len(given) == 2 and type(given[0]) is float and given[1] is False else None


def _step(kind: Any, *wanted: Any) -> Rule:
    return lambda chain, place, given, file: chain.follow(place, kind, file) if _same(given, list(wanted)) else None


def _scaled(kind: Any, key: str) -> Rule:
    def rule(chain: Chain, place: int, given: list[Any], file: str) -> int | None:
        match given:
            case [Weight(found, shape)] if found == key:
                return chain.follow(place, kind, file, weight=shape)
        return None

    return rule


def _product(chain: Chain, place: int, given: list[Any], file: str, **found: object) -> int | None:
    match given:
        case [Weight(_, shape), *rest] if len(rest) <= 1:
            bias = rest[0] if rest else None
            if bias is None or (isinstance(bias, Weight) and bias.shape == shape[:1]):
                kind: Any = "conv" if found else "linear"
                made = chain.follow(place, kind, file, weight=shape, **found)
                return made if bias is None or chain.steps[place].bias else None
    return None


def _convolution(chain: Chain, place: int, given: list[Any], file: str) -> int | None:
    match given:
        case [weight, bias, strides, [int(top), int(left)]] if _same(strides, [1, 1]):
            return _product(chain, place, [weight, bias], file, pads=(top, left))
    return None


_IN_PLACE = ("relu_.default",)
_POOL = ("self", "kernel_size", "stride")
# Operator → the names of its arguments in order, of which the last may be missing, and the rule.
_OPERATORS: dict[str, tuple[tuple[str, ...], Rule]] = {
    "to.dtype": (("self", "dtype"), _cast),
    "clone.default": (("self",), _itself),
    "dropout.default": (("input", "p", "train"), _dropout),
    "permute.default": (("self", "dims"), _step("permute", [0, 3, 1, 2])),
    "mul.Tensor": (("self", "other"), _scaled("scale", "scale")),
    "add.Tensor": (("self", "other"), _scaled("shift", "shift")),
    "conv2d.default": (("input", "weight", "bias", "stride", "padding"), _convolution),
    "relu_.default": (("self",), _step("relu")),
    "relu.default": (("self",), _step("relu")),
    "max_pool2d.default": (_POOL, _step("pool", [2, 2], [2, 2])),
    "flatten.using_ints": (("self", "start_dim"), _step("flatten", 1)),
    "mean.dim": (("self", "dim"), _step("mean", [2, 3])),
    "amax.default": (("self", "dim"), _step("max", [2, 3])),
    "linear.default": (("input", "weight", "bias"), _product),
    "softmax.int": (("self", "dim"), _step("softmax", 1)),
}
