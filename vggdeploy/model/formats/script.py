"""The code of a TorchScript archive, followed call by call along the network's chain. Nothing of it is run.

The serialised code is Python's syntax. It is parsed only after its characters, lines and brackets were counted.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vggdeploy.errors import ForeignModelError
from vggdeploy.model.formats.chain import Chain, refused
from vggdeploy.model.formats.objects import Module, Tensor

MAX_CODE, MAX_LINE, MAX_BRACKETS = 2**18, 2**14, 48
_CALLS = 8  # that a step of the chain may take: its modules', its own, casts
# Without comments, escapes, tabs, two texts side by side or numbers in other notations: Python and PyTorch read it alike.
_PLAIN = re.compile(r"[A-Za-z0-9_.,:()\[\]=\"\n >-]*")
_NUMBERS = re.compile(r"\b(?!\d+(e\d*)?\b)\d\w*")
_RESERVED = ("torch", "getattr", "ops", "CONSTANTS")


def _read_alike(text: str) -> bool:
    """Whether Python and PyTorch read ``text`` as the same tokens: plain numbers; texts without a prefix, and none beside
    another."""
    *before, last = text.split('"')[::2]  # outside of quotes
    apart = all(part.strip() and not (part[-1].isalnum() or part[-1] == "_") for part in before[1:] + before[:1])
    return apart and text.count('"') % 2 == 0 and not any(_NUMBERS.search(part) for part in (*before, last))


def _written(kind: ast.expr | None) -> str:
    """A type as it stands in the code."""
    match kind:
        case ast.Name(name):
            return name
        case ast.Attribute(owner, name):
            return f"{_written(owner)}.{name}"
        case None:
            return ""
    return ast.unparse(kind)


class Value(NamedTuple):
    """What depends on the image, by its place in the chain."""

    place: int


class _Class(NamedTuple):
    fields: Mapping[str, str]
    forward: ast.FunctionDef | None


class Script:
    """The classes of an archive.

    Raises:
        ForeignModelError: code that no tracing of a VGG gives.
    """

    def __init__(self, code: Mapping[str, str], chain: Chain, file: str) -> None:
        self._chain, self._file, self._calls = chain, file, 0
        self._classes: dict[str, _Class] = {}
        for module, text in code.items():
            self._read(module, text)
        self._unseen = set(self._classes)
        self._unrun = {name for name, about in self._classes.items() if about.forward}

    def run(self, root: Module) -> None:
        """
        Raises:
            ForeignModelError: calling the object is not the network's chain, or the archive has code beside that.
        """
        self._fits(root)
        image = self._chain.image.name
        made = self._forward(root, Value(0), only=image)
        found = made if isinstance(made, tuple) and not isinstance(made, Value) else (made,)
        wanted = tuple(Value(self._chain.ends[output.name]) for output in self._chain.outputs)
        if found != wanted:
            raise refused(self._file, "its code gives other outputs than the manifest names")
        if self._unseen or self._unrun:
            raise refused(self._file, f"it has code beside the network: {min(self._unseen | self._unrun)}")

    # Reading.

    def _read(self, module: str, text: str) -> None:
        depth = deepest = 0
        for character in text:
            depth += (character in "([") - (character in ")]")
            deepest = max(deepest, depth)
        longest = max(map(len, text.split("\n")))
        strange = not _read_alike(text)
        if (
            len(text) > MAX_CODE
            or longest > MAX_LINE
            or deepest > MAX_BRACKETS
            or strange
            or not _PLAIN.fullmatch(text)
        ):
            raise refused(
                self._file, f"the code of {module[:200]} has characters, lines or brackets that tracing does not write"
            )
        try:
            statements = ast.parse(text).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise refused(self._file, f"the code of {module[:200]} is not what PyTorch writes") from None
        for statement in statements:
            match statement:
                case ast.ClassDef(name, [ast.Name("Module")], [], body, []) if f"{module}.{name}" not in self._classes:
                    self._classes[f"{module}.{name}"] = self._class(f"{module}.{name}", body)
                case _:
                    raise self._unknown(statement, module)

    def _class(self, name: str, body: list[ast.stmt]) -> _Class:
        fields: dict[str, str] = {}
        listed: list[ast.expr] = []
        forward = None
        for statement in body:
            match statement:
                case ast.Assign([ast.Name("__parameters__" | "__buffers__")], ast.List(names)):
                    listed += names
                case ast.AnnAssign(ast.Name(field), kind, None) if field not in fields:
                    fields[field] = _written(kind)
                case ast.Assign([ast.Subscript(ast.Name("__annotations__"), ast.Constant(str(field)))], kind) if (
                    field not in fields
                ):
                    fields[field] = _written(kind)
                case ast.FunctionDef("forward", ast.arguments(kwonlyargs=[], defaults=[]), _, []) if forward is None:
                    forward = self._signature(name, statement)
                case _:
                    raise self._unknown(statement, name)
        for each in listed:
            if not isinstance(each, ast.Constant) or fields.get(str(each.value)) != "Tensor":
                raise self._unknown(each, name)
        if "forward" in fields:
            raise refused(self._file, f"forward of {name} is an attribute, too")
        return _Class(fields, forward)

    def _signature(self, name: str, method: ast.FunctionDef) -> ast.FunctionDef:
        given, made = method.args.args, _written(method.returns)
        types = [_written(argument.annotation) for argument in given]
        plain = not (method.args.posonlyargs or method.args.vararg or method.args.kwarg)
        if (
            not plain
            or types != [name, "Tensor"]
            or given[0].arg == given[1].arg
            or not re.fullmatch(r"Tensor|Tuple\[Tensor(, Tensor)*\]", made)
        ):
            raise refused(self._file, f"forward of {name} has another signature than tracing gives it")
        return method

    def _unknown(self, node: ast.AST, where: str) -> ForeignModelError:
        return refused(self._file, f"its code holds {ast.unparse(node)[:120]!r} in {where[:200]}")

    def _fits(self, module: Module) -> None:
        """An object has the attributes of its class, each of its type: PyTorch itself would believe the code."""
        name = module.kind.replace(":", ".")
        about = self._classes.get(name)
        if about is None or list(about.fields) != list(module.attributes):
            raise refused(self._file, f"its object of {name[:200]} does not fit the class")
        self._unseen.discard(name)
        for field, value in module.attributes.items():
            kind = about.fields[field]
            if isinstance(value, Module):
                fits = kind == value.kind.replace(":", ".")
                self._fits(value)
            elif isinstance(value, Tensor):
                fits = kind == "Tensor"
            elif value is None:
                fits = kind in ("Optional[bool]", "NoneType")
            else:
                fits = kind in ("bool", "Optional[bool]")
            if not fits:
                raise refused(self._file, f"{field} of {name[:200]} is not of the type {kind[:100]}")

    # Following.

    def _forward(self, module: Module, given: Any, only: str = "") -> Any:
        name = module.kind.replace(":", ".")
        about = self._classes.get(name)
        if about is None or about.forward is None:
            raise refused(self._file, f"{name[:200]} has no forward")
        self._unrun.discard(name)
        owner, argument = (argument.arg for argument in about.forward.args.args)
        if only and argument != only:
            raise refused(self._file, f"its input is {argument[:100]!r}, and the manifest's {only!r}")
        if {owner, argument} & {*_RESERVED}:
            raise refused(self._file, f"forward of {name} has an argument named as PyTorch's own are")
        names: dict[str, Any] = {owner: module, argument: given}
        for statement in about.forward.body:
            match statement:
                case ast.Assign([ast.Name(target)], value) if target not in _RESERVED:
                    names[target] = self._value(value, names, name)
                case ast.Return(value) if value is not None and statement is about.forward.body[-1]:
                    return self._value(value, names, name)
                case _:
                    raise self._unknown(statement, name)
        raise refused(self._file, f"forward of {name} gives nothing")

    def _value(self, node: ast.expr, names: Mapping[str, Any], where: str) -> Any:
        match node:
            case ast.Name(name) if name in names:
                return names[name]
            case ast.Constant(bool() | int() | float() | None):
                return node.value
            case ast.UnaryOp(ast.USub(), ast.Constant(int(number))):
                return -number
            case ast.List(items) | ast.Tuple(items):
                values = [self._value(item, names, where) for item in items]
                return values if isinstance(node, ast.List) else tuple(values)
            case ast.Attribute(owner, field):
                return self._attribute(self._value(owner, names, where), field)
            case ast.Call(function, given, []):
                return self._call(function, given, names, where)
        raise self._unknown(node, where)

    def _call(self, function: ast.expr, given: list[ast.expr], names: Mapping[str, Any], where: str) -> Any:
        match function, given:
            case ast.Name("getattr"), [owner, ast.Constant(str(field))]:
                return self._attribute(self._value(owner, names, where), field)
            case ast.Attribute(ast.Name("torch"), name), _:
                return self._operator(name, [self._value(item, names, where) for item in given])
            case ast.Attribute(owner, "forward"), [argument]:
                module = self._value(owner, names, where)
                if isinstance(module, Module):
                    self._count()
                    return self._forward(module, self._value(argument, names, where))
        raise self._unknown(function, where)

    def _attribute(self, owner: Any, field: str) -> Any:
        if not isinstance(owner, Module) or field not in owner.attributes:
            raise refused(self._file, f"its code asks for {field[:100]!r}, which is not there")
        return owner.attributes[field]

    def _count(self) -> None:
        self._calls += 1
        if self._calls > _CALLS * (len(self._chain.steps) + _CALLS):
            raise refused(self._file, "its code calls more than a network has layers")

    def _operator(self, name: str, given: list[Any]) -> Value:
        self._count()
        rule = _OPERATORS.get(name)
        if rule is None or not given or not isinstance(given[0], Value):
            raise refused(self._file, f"its code calls torch.{name[:100]}, which no traced VGG does here")
        made = rule(self._chain, given[0].place, given[1:], self._file)
        if made is None:
            told = ", ".join(str(item)[:60] for item in given[1:])
            raise refused(self._file, f"its code calls torch.{name} with {told[:300]}")
        return Value(made)


# An operator: the chain, the place of what comes in and the other arguments, to the place of what it makes. None: no such
# arguments are ours.
Rule = Callable[[Chain, int, list[Any], str], int | None]
_FLOATS = (5, 6, 15)  # half, float, bfloat16


def _same(given: list[Any], wanted: list[Any]) -> bool:
    """Equal in type, too: 1 is not True."""
    return repr(given) == repr(wanted)


def _plain(*wanted: list[Any]) -> Rule:
    """The value itself in another type or place, where the arguments are one of ``wanted``."""
    return lambda chain, place, given, file: place if any(_same(given, each) for each in wanted) else None


def _step(kind: Any, *wanted: list[Any]) -> Rule:
    return lambda chain, place, given, file: (
        chain.follow(place, kind, file) if any(_same(given, each) for each in wanted) else None
    )


def _scaled(kind: Any) -> Rule:
    def rule(chain: Chain, place: int, given: list[Any], file: str) -> int | None:
        if not given or not isinstance(given[0], Tensor) or not (given[1:] == [] or _same(given[1:], [1])):
            return None
        return chain.follow(place, kind, file, weight=given[0].shape)

    return rule


def _convolution(chain: Chain, place: int, given: list[Any], file: str) -> int | None:
    match given:
        case [Tensor(shape), bias, [1, 1], [int(top), int(left)], [1, 1], False, [0, 0], 1, *flags]:
            plain = all(type(flag) is bool for flag in flags) and len(flags) <= 4
        case [Tensor(shape), bias, [1, 1], [int(top), int(left)], [1, 1], 1]:
            plain = True
        case _:
            return None
    if not plain or not _bias(bias, shape):
        return None
    made = chain.follow(place, "conv", file, weight=shape, pads=(top, left))
    return made if bias is None or chain.steps[place].bias else None


def _linear(chain: Chain, place: int, given: list[Any], file: str) -> int | None:
    match given:
        case [Tensor(shape), *rest] if len(rest) <= 1:
            bias = rest[0] if rest else None
            if _bias(bias, shape):
                made = chain.follow(place, "linear", file, weight=shape)
                return made if bias is None or chain.steps[place].bias else None
    return None


def _bias(bias: Any, weight: tuple[int, ...]) -> bool:
    return bias is None or (isinstance(bias, Tensor) and bias.shape == weight[:1])


def _dropout(chain: Chain, place: int, given: list[Any], file: str) -> int | None:
    return place if len(given) == 2 and isinstance(given[0], (int, float)) and given[1] is False else None


_CASTS = [[kind, *more] for kind in _FLOATS for more in ([], [False, False, None], [False, False])]
_SQUARE = [[2, 2], [2, 2], [0, 0], [1, 1]]
_OPERATORS: dict[str, Rule] = {
    "to": _plain(*_CASTS),
    "clone": _plain([], [None]),
    "dropout": _dropout,
    "permute": _step("permute", [[0, 3, 1, 2]]),
    "mul": _scaled("scale"),
    "add": _scaled("shift"),
    "_convolution": _convolution,
    "conv2d": _convolution,
    "relu_": _step("relu", []),
    "relu": _step("relu", []),
    "max_pool2d": _step("pool", _SQUARE, [*_SQUARE, False]),
    "flatten": _step("flatten", [1], [1, -1]),
    "mean": _step("mean", [[2, 3]], [[2, 3], False]),
    "amax": _step("max", [[2, 3]], [[2, 3], False]),
    "linear": _linear,
    "softmax": _step("softmax", [1], [1, None]),
}
