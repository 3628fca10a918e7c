"""Make ``tensorrt_10_api.json``: every class, member and number of arguments of TensorRT 10.13, from its type stubs.

    pip download --no-deps tensorrt-stubs==10.13.0.35.1 && unzip tensorrt_stubs-*.whl
    python tests/golden/tensorrt_10_api.py tensorrt_bindings/tensorrt.pyi

The stubs themselves are not installed for tests: they would put a package ``tensorrt`` without a library on the path.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

TARGET = Path(__file__).with_suffix(".json")


def arity(function: ast.FunctionDef) -> list[int]:
    """Fewest and most positional arguments, without ``self``."""
    count = len(function.args.posonlyargs) + len(function.args.args)
    bound = 0 if any(getattr(d, "id", "") == "staticmethod" for d in function.decorator_list) else 1
    return [count - bound - len(function.args.defaults), count - bound]


def members(cls: ast.ClassDef) -> dict[str, list[list[int]]]:
    """Member → the argument counts of its overloads; none for an attribute, a property or an enumeration's member."""
    found: dict[str, list[list[int]]] = {}
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.setdefault(node.target.id, [])
        elif isinstance(node, ast.ClassDef):
            found.setdefault(node.name, [])
        elif isinstance(node, ast.FunctionDef):
            is_property = any(
                getattr(d, "id", getattr(d, "attr", "")) in ("property", "setter") for d in node.decorator_list
            )
            found.setdefault(node.name, [])
            if not is_property:
                found[node.name].append(arity(node))
    return found


def classes(body: list[ast.stmt], prefix: str = "") -> dict[str, dict[str, list[list[int]]]]:
    found = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            found[prefix + node.name] = members(node)
            found |= classes(node.body, f"{prefix}{node.name}.")
    return found


if __name__ == "__main__":
    text = Path(sys.argv[1]).read_text()
    # Two of their signatures are no Python: a default before an argument without one, and a keyword as a name.
    tree = ast.parse(text.replace("channel_axis: int)", "channel_axis: int = 0)").replace(", in: ", ", input: "))
    kept = {
        name: {member: shapes for member, shapes in sorted(content.items()) if not member.startswith("__")}
        for name, content in sorted(classes(tree.body).items())
        if not name.startswith("I")
        or not name.endswith("Layer")
        or name in ("ILayer", "IConstantLayer", "IConvolutionLayer")
    }
    TARGET.write_text(json.dumps(kept, separators=(",", ":")).replace('},"', '},\n"') + "\n")
