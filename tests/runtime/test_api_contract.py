"""Every name of TensorRT and CUDA that our source uses, with the number of arguments, is in the real libraries.

The list is taken from the source itself. TensorRT for RTX and cuda-bindings are asked as they are installed here;
TensorRT 10 through a digest of its type stubs (``tests/golden/tensorrt_10_api.py``). TensorRT 11 has RTX's interface.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx
from cuda.bindings import runtime as cudart
from fakes.gpu import Cudart

import vggdeploy
from vggdeploy.errors import IncompatibleError
from vggdeploy.runtime.gpu.cuda import check_driver

ROOT = Path(vggdeploy.__file__).parent
TENSORRT_10 = json.loads((Path(__file__).parents[1] / "golden" / "tensorrt_10_api.json").read_text())

# What a variable, an attribute or a list of one object is called in our source → its class in the library.
OWNERS = {
    "builder": ("Builder",),
    "network": ("INetworkDefinition",),
    "parser": ("OnnxParser",),
    "profile": ("IOptimizationProfile",),
    "engine": ("ICudaEngine",),
    "loaded": ("ICudaEngine",),
    "context": ("IExecutionContext",),
    "held[]": ("IExecutionContext",),
    "runtime": ("Runtime",),
    "config": ("IBuilderConfig",),
    "_config": ("IRuntimeConfig",),
    "_kernels": ("IRuntimeCache",),
    "inspector": ("EngineInspector",),
    "layer": ("ILayer", "IConvolutionLayer", "IConstantLayer"),
    "tensor": ("ITensor",),
    "refitter": ("Refitter",),
    "parser_refitter": ("OnnxParserRefitter",),
}
# Names of the table that mean something else in a file: a class of ours.
NOT_HERE = {("runtime/tensorrt/session.py", "loaded"), ("build/engines.py", "engine")}
# Files of TensorRT for RTX alone, and what TensorRT 11 and RTX have beyond 10.
ONLY_RTX = {"runtime/tensorrt/rtx.py", "build/targets.py"}
# The floors on which TensorRT's objects are at hand: nothing above them is given one.
FLOORS = ("build", "runtime/tensorrt", "runtime/gpu")
OTHERS = {"dlpack.py"}  # what is called tensor there is another library's
SOURCES = [p for floor in FLOORS for p in sorted((ROOT / floor).glob("*.py")) if p.name not in OTHERS]


@dataclass(frozen=True)
class Use:
    """One ``owner.name``, or the call of it: ``arguments`` is None where it is not called there."""

    file: str
    line: int
    owner: str
    name: str
    arguments: int | None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.owner}.{self.name}" + (
            "" if self.arguments is None else f" with {self.arguments} arguments"
        )


def owner_of(node: ast.expr) -> str:
    """``engine``, ``self.engine`` → ``engine``; ``held[0]`` → ``held[]``."""
    if isinstance(node, ast.Subscript):
        return owner_of(node.value) + "[]"
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


@cache
def uses() -> list[Use]:
    found = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        calls = {id(n.func): n for n in ast.walk(tree) if isinstance(n, ast.Call)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            call = calls.get(id(node))
            starred = call is not None and any(isinstance(a, ast.Starred) for a in call.args)
            count = None if call is None or starred else len(call.args) + len(call.keywords)
            found.append(Use(str(path.relative_to(ROOT)), node.lineno, owner_of(node.value), node.attr, count))
    return found


def of_tensorrt() -> list[Use]:
    mine = [use for use in uses() if use.owner in OWNERS and not use.name.startswith("__")]
    return [use for use in mine if (use.file, use.owner) not in NOT_HERE]


def library_chains() -> Iterator[tuple[str, int, list[str]]]:
    """``library.A.B`` → file, line, ``["A", "B"]``; the longest chain of each place."""
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        inner = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        for node in ast.walk(tree):
            names: list[str] = []
            at: ast.expr = node if isinstance(node, ast.Attribute) and id(node) not in inner else ast.Constant(None)
            while isinstance(at, ast.Attribute) and owner_of(at) != "library":
                names.insert(0, at.attr)
                at = at.value
            if names and owner_of(at) == "library":
                yield str(path.relative_to(ROOT)), getattr(node, "lineno", 0), names


def overloads(doc: str, name: str) -> list[tuple[int, int]]:
    """Fewest and most arguments of each signature in a pybind11 docstring, without ``self``."""
    found = []
    for line in re.findall(rf"^(?:\d+\. )?{name}\((.*)\) -> ", doc, re.MULTILINE):
        if line.startswith("*args"):
            continue
        depth, parts = 0, [""]
        for character in line:
            depth += (character in "[(<") - (character in "])>")
            if character == "," and not depth:
                parts.append("")
            else:
                parts[-1] += character
        count = len([p for p in parts if p.strip()])
        optional = sum(" = " in part for part in parts)
        bound = line.startswith("self")
        found.append((count - bound - optional, count - bound))
    return found


def fits(count: int | None, shapes: list[Any]) -> bool:
    return count is None or not shapes or any(low <= count <= high for low, high in shapes)


def in_rtx(use: Use) -> bool:
    for name in OWNERS[use.owner]:
        cls = getattr(tensorrt_rtx, name)
        if hasattr(cls, use.name):
            return fits(use.arguments, overloads(getattr(cls, use.name).__doc__ or "", use.name))
    return False


def in_tensorrt_10(use: Use) -> bool:
    for name in OWNERS[use.owner]:
        if use.name in TENSORRT_10.get(name, {}):
            return fits(use.arguments, TENSORRT_10[name][use.name])
    return False


def test_the_list_is_not_empty_and_knows_its_owners():
    names = {(use.owner, use.name) for use in of_tensorrt()}
    for known in (
        ("held[]", "execute_async_v3"), ("held[]", "set_input_shape"), ("context", "set_device_memory"),
        ("engine", "create_execution_context"), ("engine", "device_memory_size_v2"), ("network", "num_layers"),
        ("_config", "create_runtime_cache"), ("_kernels", "serialize"), ("runtime", "deserialize_cuda_engine"),
    ):  # fmt: skip
        assert known in names


def test_every_method_and_its_arguments_are_in_tensorrt_for_rtx():
    assert [str(use) for use in of_tensorrt() if not in_rtx(use)] == []


def test_every_method_and_its_arguments_are_in_tensorrt_10():
    shared = [use for use in of_tensorrt() if use.file not in ONLY_RTX]
    assert [str(use) for use in shared if not in_tensorrt_10(use)] == []


def test_every_name_of_the_module_is_in_tensorrt_for_rtx():
    missing = []
    for file, line, names in library_chains():
        at: Any = tensorrt_rtx
        for name in names:
            if not hasattr(at, name):
                missing.append(f"{file}:{line}: {'.'.join(names)}")
                break
            at = getattr(at, name)
    assert missing == []


def test_every_name_of_the_module_is_in_tensorrt_10():
    missing = []
    for file, line, names in library_chains():
        if file in ONLY_RTX or names[0].startswith("__"):
            continue
        depth = 1
        while depth < len(names) and ".".join(names[: depth + 1]) in TENSORRT_10:
            depth += 1
        known = TENSORRT_10.get(".".join(names[:depth]))
        plain = len(names) == depth or names[depth].startswith("__")
        if known is None or not (plain or names[depth] in known):
            missing.append(f"{file}:{line}: {'.'.join(names)}")
    assert missing == []


def test_no_name_of_tensorrt_hides_behind_another_variable():
    """A method that only TensorRT has, called on something that is not in the table above, would go unchecked."""
    classes = [getattr(tensorrt_rtx, name) for names in OWNERS.values() for name in names]
    names = {n for cls in classes for n in vars(cls) if "_" in n.strip("_") and not n.startswith("__")}
    ours = {"num_outputs", "num_inputs"}
    hidden = [
        str(use)
        for use in uses()
        if use.name in names - ours and use.owner not in OWNERS and use.owner not in ("self", "library", "cuda")
    ]
    assert hidden == []


# CUDA


def cuda_uses() -> Iterator[tuple[str, str, int | None]]:
    """Place, name and number of arguments of every CUDA function that is called, now or by a finalizer."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if not isinstance(node, ast.Call):
                continue
            values = [a.value if isinstance(a, ast.Constant) else None for a in node.args]
            for index, value in enumerate(values):
                if isinstance(value, str) and re.fullmatch(r"cuda[A-Z]\w+", value):
                    rest = node.args[index + 1 :]
                    starred = any(isinstance(a, ast.Starred) for a in rest)
                    yield place, value, None if starred else len(rest)
            if isinstance(node.func, ast.Attribute) and re.fullmatch(r"cuda[A-Z]\w+", node.func.attr):
                yield place, node.func.attr, len(node.args)


def cuda_arity(name: str) -> int | None:
    first = (getattr(cudart, name).__doc__ or "").splitlines()[0]
    inside = re.fullmatch(rf"{name}\((.*)\)", first.strip())
    return len([p for p in inside[1].split(",") if p.strip()]) if inside else None


def test_every_cuda_function_takes_as_many_arguments_as_we_give_it():
    found = list(cuda_uses())
    assert {"cudaMalloc", "cudaGraphLaunch", "cudaStreamWaitEvent", "cudaPointerGetAttributes"} <= {
        n for _, n, _ in found
    }
    wrong = [
        (place, name, count)
        for place, name, count in found
        if not hasattr(cudart, name) or (count is not None and cuda_arity(name) not in (None, count))
    ]
    assert wrong == []


def test_every_cuda_name_in_our_source_is_in_the_bindings():
    missing = []
    for path in sorted(ROOT.rglob("*.py")):
        text = path.read_text()
        for name in set(re.findall(r"\bcuda[A-Z]\w+", text)):
            enumerations = (cudart, *(getattr(cudart, n) for n in ("cudaError_t", "cudaMemcpyKind", "cudaDeviceAttr",
                                                                   "cudaStreamCaptureMode")))  # fmt: skip
            if not any(hasattr(e, name) for e in enumerations):
                missing.append(f"{path.relative_to(ROOT)}: {name}")
    assert missing == []


def has_driver() -> bool:
    try:
        check_driver()
    except IncompatibleError:
        return False
    return True


@pytest.mark.skipif(has_driver(), reason="on a machine with a driver these calls would do something")
def test_the_bindings_take_the_very_arguments_of_a_session(gpu: Callable[..., Any], source: Any) -> None:
    """Everything a session hands to the fake is handed to the real bindings, too: they refuse for want of a driver, and
    not for the type of an argument."""
    from test_gpu_faults import life

    from vggdeploy.runtime.tensorrt.session import EngineSession

    fake: Cudart
    fake, _ = gpu()
    life(EngineSession(source))
    tried = set()
    for name, arguments in zip(fake.calls, fake.arguments, strict=True):
        if name in tried:
            continue
        tried.add(name)
        if name in ("cudaHostAlloc", "cudaFreeHost"):
            continue  # without a driver they may use the CPU's memory
        status, *_ = getattr(cudart, name)(*arguments)
        assert status != cudart.cudaError_t.cudaSuccess, name
    assert len(tried) >= 20


def test_what_is_gone_or_called_wrongly_would_be_noticed():
    def use(owner: str, name: str, arguments: int | None) -> Use:
        return Use("x.py", 1, owner, name, arguments)

    assert not in_rtx(use("engine", "device_memory_size", None))  # TensorRT 10's, gone in 11
    assert not in_rtx(use("engine", "get_tensor_profile_shape", 1))
    assert not in_rtx(use("held[]", "execute_async_v3", 2))
    assert not in_tensorrt_10(use("_config", "create_runtime_cache", 0))  # RTX's alone
    assert not in_tensorrt_10(use("held[]", "set_tensor_address", 3))
    assert in_tensorrt_10(use("held[]", "set_tensor_address", 2))
    assert cuda_arity("cudaStreamWaitEvent") == 3
