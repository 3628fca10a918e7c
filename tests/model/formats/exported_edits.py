"""Edits of an honest ``.pt2`` archive."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

Change = Callable[[Any], object]


def contents(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}


def packed(entries: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as new:
        for name, content in entries.items():
            fresh = zipfile.ZipInfo(f"archive/{name}")
            fresh.create_system = 0
            new.writestr(fresh, content)
    return made.getvalue()


def edited(data: bytes, entry: str, change: Change) -> bytes:
    """Another document: ``change`` is given the parsed one."""
    entries = contents(data)
    document = json.loads(entries[entry])
    change(document)
    entries[entry] = json.dumps(document).encode()
    return packed(entries)


def graph(document: Any) -> Any:
    return document["graph_module"]["graph"]


def node(document: Any, operator: str) -> Any:
    return next(each for each in graph(document)["nodes"] if each["target"] == f"torch.ops.aten.{operator}")


def argument(document: Any, operator: str, name: str) -> Any:
    return next(each for each in node(document, operator)["inputs"] if each["name"] == name)


def tensor(name: str) -> Any:
    return {"as_tensor": {"name": name}}


def set_argument(operator: str, name: str, **value: Any) -> Change:
    return lambda document: argument(document, operator, name).update(arg=value)


def set_target(target: str) -> Change:
    return lambda document: node(document, "relu_.default").update(target=target)


def size_of_image(document: Any) -> Any:
    return graph(document)["tensor_values"]["image"]["sizes"][0]["as_expr"]


def signature(document: Any) -> Any:
    return document["graph_module"]["signature"]


def calls(document: Any) -> Any:
    return document["graph_module"]["module_call_graph"]
