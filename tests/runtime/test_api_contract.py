"""Every name of TensorRT and CUDA that our source uses, with the number of arguments, is in the real libraries; and the fakes
have nothing that the real ones have not.

The list is taken from the source itself. TensorRT for RTX and cuda-bindings are asked as they are installed here; TensorRT 10
and 11 through what their real bindings answered (``tests/golden/tensorrt_api.py``), and the late test asks them again.
"""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx
from cuda.bindings import runtime as cudart
from fakes.gpu import Cudart
from golden import tensorrt_api
from golden.tensorrt_api import Surface

import vggdeploy
from vggdeploy.errors import IncompatibleError
from vggdeploy.runtime.gpu.cuda import check_driver

ROOT = Path(vggdeploy.__file__).parent
# Release → its classes and their members. The number of RTX's is not in any file: it is the one that is installed.
SURFACES: dict[str, Surface] = {"rtx": tensorrt_api.surface(tensorrt_rtx), **tensorrt_api.known()}
OLDEST, *_, NEWEST = tensorrt_api.known()

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
    "refitter": ("Refitter",),
    "onnx_refitter": ("OnnxParserRefitter",),
    "runtime": ("Runtime",),
    "config": ("IBuilderConfig",),
    "merged": ("ITimingCache",),
    "_config": ("IRuntimeConfig",),
    "_kernels": ("IRuntimeCache",),
    "inspector": ("EngineInspector",),
    "layer": ("ILayer", "IConvolutionLayer", "IConstantLayer"),
    "tensor": ("ITensor",),
}
# Names of the table that mean something else in a file: a class of ours.
NOT_HERE = {
    ("runtime/tensorrt/session.py", "loaded"), ("build/engines.py", "engine"), ("build/profiles.py", "profile"),
    ("build/memory.py", "profile"), ("build/memory.py", "layer"),
    *((f"runtime/gpu/{name}.py", "context") for name in ("lane", "graphs")),
}  # fmt: skip
# Files of TensorRT for RTX alone, and what TensorRT 11 and RTX have beyond 10.
ONLY_RTX = {"runtime/tensorrt/rtx.py", "build/targets.py"}
# What the source asks for first, with ``hasattr``: releases before 10.7 have it not.
GUARDED = {"IStreamWriter", "build_serialized_network_to_stream"}
# The floors on which TensorRT's objects are at hand: nothing above them is given one.
FLOORS = ("build", "runtime/tensorrt", "runtime/gpu")
OTHERS = {"dlpack.py"}  # what is called tensor there is another library's
SOURCES = [p for floor in FLOORS for p in sorted((ROOT / floor).glob("*.py")) if p.name not in OTHERS]


@dataclass(frozen=True)
class Use:
    """One ``owner.name``, or the call of it: ``arguments`` is None where it is not called there. ``set``: it is assigned to."""

    file: str
    line: int
    owner: str
    name: str
    arguments: int | None
    set: bool = False

    def __str__(self) -> str:
        how = "" if self.arguments is None else f" with {self.arguments} arguments"
        return f"{self.file}:{self.line}: {self.owner}.{self.name}{how}{' =' if self.set else ''}"


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
            assigned = isinstance(node.ctx, ast.Store)
            found.append(
                Use(str(path.relative_to(ROOT)), node.lineno, owner_of(node.value), node.attr, count, assigned)
            )
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


def fits(member: Any, count: int | None, assigned: bool) -> bool:
    """Whether a member of a surface can be used like that."""
    if assigned:
        return bool(member == "write")
    if not isinstance(member, list):
        return count is None
    return count is None or not member or any(low <= count <= high for low, high in member)


def knows(surface: Surface, use: Use, owners: tuple[str, ...] = ()) -> bool:
    classes = [surface.get(name, {}) for name in owners or OWNERS[use.owner]]
    return any(use.name in c and fits(c[use.name], use.arguments, use.set) for c in classes)


def missing_names(surface: Surface, chains: list[tuple[str, int, list[str]]]) -> list[str]:
    """Chains ``library.A.B`` of which a part is not there."""
    found = []
    for file, line, names in chains:
        depth = 1
        while depth < len(names) and ".".join(names[: depth + 1]) in surface:
            depth += 1
        cls = surface.get(".".join(names[:depth]))
        plain = len(names) == depth or names[depth].startswith("__")
        if cls is None or not (plain or names[depth] in cls):
            found.append(f"{file}:{line}: {'.'.join(names)}")
    return found


def test_the_list_is_not_empty_and_knows_its_owners():
    names = {(use.owner, use.name) for use in of_tensorrt()}
    for known in (
        ("held[]", "execute_async_v3"), ("held[]", "set_input_shape"), ("context", "set_device_memory"),
        ("context", "set_optimization_profile_async"), ("engine", "weight_streaming_budget_v2"),
        ("engine", "create_execution_context"), ("engine", "get_device_memory_size_for_profile_v2"), ("network", "num_layers"),
        ("_config", "create_runtime_cache"), ("_kernels", "serialize"), ("runtime", "deserialize_cuda_engine"),
    ):  # fmt: skip
        assert known in names


@pytest.mark.parametrize("release", SURFACES)
def test_every_method_and_its_arguments_are_in_the_library(release: str) -> None:
    asked = [use for use in of_tensorrt() if release == "rtx" or use.file not in ONLY_RTX]
    missing = [use for use in asked if not knows(SURFACES[release], use)]
    assert [str(use) for use in missing if not (release == OLDEST and use.name in GUARDED)] == []


@pytest.mark.parametrize("release", SURFACES)
def test_every_name_of_the_module_is_in_the_library(release: str) -> None:
    asked = [c for c in library_chains() if not c[2][0].startswith("__") and (release == "rtx" or c[0] not in ONLY_RTX)]
    if release == OLDEST:
        asked = [chain for chain in asked if chain[2][0] not in GUARDED]
    assert len(asked) >= 20
    assert missing_names(SURFACES[release], asked) == []


@pytest.mark.parametrize("release", SURFACES)
def test_every_object_of_the_library_is_made_with_as_many_arguments_as_it_takes(release: str) -> None:
    made = [use for use in uses() if use.owner == "library" and use.arguments is not None]
    classes = [use for use in made if use.name in SURFACES[release]]
    assert {use.name for use in classes} >= {"Builder", "OnnxParser", "Runtime"}
    wrong = [str(use) for use in classes if not fits(SURFACES[release][use.name]["__init__"], use.arguments, False)]
    assert wrong == []


def test_what_is_guarded_is_asked_for_first_and_is_what_the_oldest_release_lacks() -> None:
    asked = {
        node.args[1].value
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "hasattr"
        and isinstance(node.args[1], ast.Constant)
    }
    assert asked >= GUARDED
    for release, surface in SURFACES.items():
        names = {*surface, *surface["Builder"]}
        assert bool(names & GUARDED) == (release != OLDEST)
        assert not names & GUARDED or names >= GUARDED


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
    def known(release: str, owner: str, name: str, arguments: int | None, assigned: bool = False) -> bool:
        return knows(SURFACES[release], Use("x.py", 1, owner, name, arguments, assigned))

    for gone in ("rtx", NEWEST):
        assert not known(gone, "engine", "device_memory_size", None)  # TensorRT 10's
    assert known(OLDEST, "engine", "device_memory_size", None)
    for release, surface in SURFACES.items():
        assert known(release, "held[]", "set_tensor_address", 2)
        assert not known(release, "held[]", "set_tensor_address", 3)
        assert not known(release, "held[]", "execute_async_v3", 2)
        assert not known(release, "engine", "get_tensor_profile_shape", 1)
        assert known(release, "config", "progress_monitor", None, True)
        assert not known(release, "engine", "num_io_tensors", None, True)  # read only
        assert not known(release, "engine", "num_io_tensors", 0)  # no method
        assert known(release, "_config", "create_runtime_cache", 0) == (release == "rtx")
        assert missing_names(surface, [("x.py", 1, ["TensorIOMode", "INPUTS"]), ("x.py", 2, ["Tensor"])]) == [
            "x.py:1: TensorIOMode.INPUTS",
            "x.py:2: Tensor",
        ]
    assert cuda_arity("cudaStreamWaitEvent") == 3


# The real bindings, and the fakes


@pytest.mark.late
@pytest.mark.parametrize("release", tensorrt_api.pins())
def test_the_real_bindings_say_of_themselves_what_the_file_says(release: str, tmp_path: Path) -> None:
    """Their wheels, by the pinned hashes, imported over libraries with nothing in them."""
    for tool in ("gcc", "readelf", "nm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (Debian: apt-get install g++ binutils)")
    if not tensorrt_api.fetch(tensorrt_api.pins()[release], tmp_path):
        pytest.skip(f"TensorRT {release} has no bindings for this Python or machine")
    assert tensorrt_api.installed(tmp_path) == tensorrt_api.known()[release]


@pytest.mark.late
def test_a_wheel_with_another_hash_is_not_unpacked(tmp_path: Path) -> None:
    pin = next(iter(tensorrt_api.pins().values()))
    other = re.sub(r"sha256:\w+", "sha256:" + "0" * 64, pin)
    with pytest.raises(RuntimeError, match="DO NOT MATCH THE HASHES"):
        tensorrt_api.fetch(other, tmp_path)
    assert not (tmp_path / tensorrt_api.MODULE).exists()
