"""Inputs from good ones: bytes that are changed anywhere, and documents that are changed where their schema says."""

from __future__ import annotations

import copy
import datetime as dt
import json
import math
import random
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import inspect

_EDGES = (b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\x01", b"\xff" * 8, b"\0" * 8, b"\x80", b"{", b"[" * 64)
_TEXTS = (
    "", " ", "\0", "\n", "a" * 5000, "../../etc/passwd", "/dev/zero", "\u202egnp.exe", "\x1b[2J", "\ud800", "😀" * 40, "NaN",
    "1", "٣", "²", "9" * 5000, "-1", "1e999", "true", "null", "vgg11_bn", "custom", "init", "0x10", "1x64", "999x999999",
    "%s%n", "{0}", "[red]", "con", "model", "L", "sm89", "1.7.1", "uint8", "N", "0" * 64,
)  # fmt: skip
_NUMBERS = (
    0, 1, -1, 2, 3, 255, 256, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**400,
    0.0, -0.0, 0.5, -0.5, 1e-320, 1e308, math.inf, -math.inf, math.nan,
)  # fmt: skip


def changed_bytes(good: bytes, chance: random.Random) -> bytes:
    """One to four changes; often in the first hundred bytes, where the headers are, or in the last."""
    data = bytearray(good)
    for _ in range(chance.choice((1, 1, 2, 4))):
        if not data:
            break
        near = chance.random()
        at = chance.randrange(min(100, len(data)) if near < 0.4 else len(data))
        at = len(data) - 1 - at if near > 0.9 else at
        size = chance.choice((1, 1, 2, 4, 8, 20, 300))
        match chance.randrange(7):
            case 0:
                data[at] = chance.randrange(256)
            case 1:
                data[at] ^= 1 << chance.randrange(8)
            case 2:
                edge = chance.choice(_EDGES)
                data[at : at + len(edge)] = edge
            case 3:
                del data[at : at + size]
            case 4:
                data[at:at] = chance.randbytes(size)
            case 5:
                data[at:at] = data[at : at + size] * chance.choice((1, 2, 50))
            case 6:
                del data[max(at, 8) :]
    return bytes(data)


def odd(chance: random.Random, depth: int = 0) -> Any:
    """A value that hardly any field expects."""
    match chance.randrange(9 if depth < 3 else 5):
        case 0:
            return chance.choice((None, True, False))
        case 1 | 2:
            return chance.choice(_NUMBERS)
        case 3 | 4:
            return chance.choice(_TEXTS)
        case 5:
            return [odd(chance, depth + 1) for _ in range(chance.choice((0, 1, 2, 5)))]
        case 6:
            return {chance.choice(_TEXTS): odd(chance, depth + 1) for _ in range(chance.choice((0, 1, 3)))}
        case 7:
            nested: Any = []
            for _ in range(chance.choice((10, 60))):
                nested = [nested] if chance.random() < 0.5 else {"a": nested}
            return nested
        case _:
            return [odd(chance, 3)] * chance.choice((100, 2000))


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every (container, key) of a document."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found.append((value, key))
        _places(value[key], found)
    return found


def changed_document(good: Any, chance: random.Random) -> Any:
    """One to three changes of values, types, fields or lengths, anywhere."""
    document = copy.deepcopy(good)
    for _ in range(chance.choice((1, 1, 2, 3))):
        places = _places(document, [])
        if not places:
            return odd(chance)
        container, key = chance.choice(places)
        old = container[key]
        match chance.randrange(8):
            case 0 | 1 | 2:
                container[key] = odd(chance)
            case 3:
                container[key] = _near(old, chance)
            case 4:
                del container[key]
            case 5 if isinstance(container, dict):
                container[chance.choice(_TEXTS)] = odd(chance)
            case 5 | 6 if isinstance(container, list):
                container[key:key] = [copy.deepcopy(old)] * chance.choice((1, 2, 300))
            case _:
                other, there = chance.choice(places)
                container[key] = copy.deepcopy(other[there])
    return document


def fitting(good: Any, kind: type, chance: random.Random) -> Any:
    """One to three values of a good document replaced by others of their field's type: what passes the schema, mostly."""
    document = copy.deepcopy(good)
    for _ in range(chance.choice((1, 1, 2, 3))):
        places = _typed(document, inspect.type_info(kind), [])
        if places:
            container, key, field = chance.choice(places)
            container[key] = _of(field, chance, 3)
    return document


def _typed(value: Any, kind: inspect.Type, found: list[tuple[Any, Any, inspect.Type]]) -> list[Any]:
    """Every (container, key, type) of a document, fields that are left out included."""
    if isinstance(kind, inspect.UnionType):
        parts = [part for part in kind.types if isinstance(part, inspect.StructType) == isinstance(value, dict)]
        kind = parts[0] if parts else kind
    if isinstance(kind, inspect.StructType) and isinstance(value, dict):
        for field in kind.fields:
            found.append((value, field.encode_name, field.type))
            _typed(value.get(field.encode_name), field.type, found)
    elif isinstance(kind, inspect.ListType | inspect.VarTupleType) and isinstance(value, list):
        for index, inner in enumerate(value):
            found.append((value, index, kind.item_type))
            _typed(inner, kind.item_type, found)
    elif isinstance(kind, inspect.DictType) and isinstance(value, dict):
        for key, inner in value.items():
            found.append((value, key, kind.value_type))
            _typed(inner, kind.value_type, found)
    return found


def document_of(good: Any, kind: type, chance: random.Random) -> Any:
    """A changed document: of fitting values, of anything, or made anew."""
    way = chance.random()
    if way < 0.45:
        return fitting(good, kind, chance)
    return generated(kind, chance) if way < 0.6 else changed_document(good, chance)


def _near(value: Any, chance: random.Random) -> Any:
    """A value of the same type: it passes the schema, and reaches what computes with it."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return chance.choice((value + 1, value - 1, -value, 0, value * 1000, chance.choice(_NUMBERS)))
    if isinstance(value, float):
        return chance.choice((-value, 0.0, value * 1e300, value + 1, math.nan, 1e-320))
    if isinstance(value, str):
        return chance.choice((value[1:], value + value, value.upper(), value + chance.choice(_TEXTS), *_TEXTS[:6]))
    if isinstance(value, list):
        return chance.choice((value[1:], value + value, []))
    return {}


def generated(kind: type, chance: random.Random) -> Any:
    """A document of the schema of ``kind``: each value is of its field's type, most of the time."""
    return _of(inspect.type_info(kind), chance, 0)


def _of(kind: inspect.Type, chance: random.Random, depth: int) -> Any:
    if chance.random() < 0.02:
        return odd(chance)
    simple: dict[type, Callable[[], Any]] = {
        inspect.BoolType: lambda: chance.random() < 0.5,
        inspect.IntType: lambda: chance.choice((0, 1, 2, 3, 10, *[n for n in _NUMBERS if isinstance(n, int)])),
        inspect.FloatType: lambda: chance.choice((0.0, 0.5, 1.0, 1e-6, *_NUMBERS)),
        inspect.NoneType: lambda: None,
        inspect.AnyType: lambda: odd(chance),
    }
    if type(kind) in simple:
        return simple[type(kind)]()
    if isinstance(kind, inspect.StrType):
        return "0123456789abcdef" * 4 if kind.pattern and chance.random() < 0.9 else chance.choice(_TEXTS)
    if isinstance(kind, inspect.EnumType):
        return chance.choice([member.value for member in kind.cls])
    if isinstance(kind, inspect.LiteralType):
        return chance.choice(kind.values)
    if isinstance(kind, inspect.UnionType):
        return _of(chance.choice(kind.types), chance, depth)
    if isinstance(kind, inspect.TupleType):
        return [_of(part, chance, depth + 1) for part in kind.item_types]
    if isinstance(kind, inspect.ListType | inspect.VarTupleType):
        return [
            _of(kind.item_type, chance, depth + 1) for _ in range(0 if depth > 6 else chance.choice((0, 1, 1, 2, 5)))
        ]
    if isinstance(kind, inspect.DictType):
        keys = [_of(kind.key_type, chance, depth + 1) for _ in range(chance.choice((0, 1, 3)))]
        return {str(key): _of(kind.value_type, chance, depth + 1) for key in keys}
    if isinstance(kind, inspect.StructType):
        fields = [f for f in kind.fields if f.required or chance.random() < 0.6]
        return {f.encode_name: _of(f.type, chance, depth + 1) for f in fields if chance.random() > 0.01}
    raise TypeError(f"no values for {kind}")


def to_json(document: Any, chance: random.Random) -> bytes:
    """The document as JSON: sometimes with a key twice, cut off, or followed by something else."""
    text = json.dumps(document, ensure_ascii=chance.random() < 0.5)
    match chance.randrange(40):
        case 0:
            text = text.replace("{", '{"name": 1, ', 1)
        case 1:
            text = text[: chance.randrange(len(text) + 1)]
        case 2:
            text += chance.choice(("\0", "{}", " ", "\n\n"))
        case 3:
            text = chance.choice(("[" * 100_000, '{"a":' * 100_000, "\ufeff" + text, "9" * 10_000, "-", "nan"))
    return text.encode("utf-8", "surrogatepass")


def to_toml(document: Any, chance: random.Random) -> bytes:
    """A dictionary as TOML, with the types that JSON has not: moments, tables, tables of tables, infinities."""
    lines = []
    for key, value in document.items() if isinstance(document, dict) else ():
        name = key if key.isidentifier() and key.isascii() else json.dumps(key)
        lines.append(f"{name} = {_toml(value, chance)}")
    match chance.randrange(20):
        case 0:
            lines.append(f"[{chance.choice(('blocks', 'x', 'a.b', 'arch'))}]\nx = 1")
        case 1:
            lines.append(f"[[{chance.choice(('augment', 'x', 'blocks', 'trusted_keys'))}]]\nx = 1")
        case 2:
            lines.append(
                chance.choice(("a.b.c = 1", "x = " + "[" * 5000, "= 1", "\ufeff", "x = 1\nx = 2", "x = " + "9" * 5000))
            )
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _toml(value: Any, chance: random.Random) -> str:
    if chance.random() < 0.1:
        moment = dt.datetime(1979, 5, 27, 7, 32, tzinfo=dt.UTC)
        return chance.choice(
            (
                moment.isoformat(), moment.date().isoformat(), moment.time().isoformat(), "1979-05-27T07:32:00", "0xdead",
                "1_000", "inf", "-nan", "'''x'''", '"""\nx"""', "{}", "{a = {b = []}}", "0b1", "1e400",
            )
        )  # fmt: skip
    if isinstance(value, float):
        return "nan" if math.isnan(value) else ("-inf" if value < 0 else "inf") if math.isinf(value) else repr(value)
    if isinstance(value, list):
        return f"[{', '.join(_toml(inner, chance) for inner in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(inner, chance)}" for key, inner in value.items()) + "}"
    return '""' if value is None else json.dumps(value)


def builtins(record: Any) -> Any:
    """A record as JSON would give it back."""
    return json.loads(msgspec.json.encode(record))


def plain(kind: inspect.Type) -> Any:
    """A document with every field of a schema, each of its simplest value."""
    if isinstance(kind, inspect.StructType):
        return {field.encode_name: plain(field.type) for field in kind.fields}
    if isinstance(kind, inspect.UnionType):
        return plain(next(part for part in kind.types if not isinstance(part, inspect.NoneType)))
    if isinstance(kind, inspect.TupleType):
        return [plain(part) for part in kind.item_types]
    if isinstance(kind, inspect.ListType | inspect.VarTupleType):
        return [plain(kind.item_type)]
    if isinstance(kind, inspect.DictType):
        return {"x": plain(kind.value_type)}
    if isinstance(kind, inspect.EnumType):
        return next(iter(kind.cls)).value
    if isinstance(kind, inspect.LiteralType):
        return kind.values[0]
    if isinstance(kind, inspect.StrType):
        return "0" * 64 if kind.pattern else "x"
    simple = {inspect.BoolType: True, inspect.IntType: 1, inspect.FloatType: 0.5}
    return simple.get(type(kind))
