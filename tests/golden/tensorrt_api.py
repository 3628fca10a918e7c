"""Every class, member and number of arguments of TensorRT's real Python bindings: ``tensorrt_api.json``, and how it is made.

    python tests/golden/tensorrt_api.py        # writes tensorrt_api.json anew; a late test does the same and compares

The bindings' wheels lie on PyPI, the library they bind does not. They import over shared libraries of the same names with
nothing in them but the symbols they ask for, which the C compiler makes here. Those do nothing: no object can be made.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DIGEST = HERE / "tensorrt_api.json"
PINS = HERE / "tensorrt_bindings.txt"
MODULE = "tensorrt_bindings"
# Of the layers' classes only what our builder looks at.
LAYERS = ("ILayer", "IConstantLayer", "IConvolutionLayer")

# Member → the fewest and most arguments of each overload, or what an attribute allows: "read", "write"; "name" of a class, or
# of a member of an enumeration.
Members = dict[str, Any]
Surface = dict[str, Members]


def pins() -> dict[str, str]:
    """Release → its requirement with the hashes of its files, as pip takes it."""
    found = re.finditer(r"^\S+==(\S+) ; .*\\\n(?:    --hash=sha256:\w{64}(?: \\)?\n)+", PINS.read_text(), re.MULTILINE)
    return {match[1]: match[0] for match in found}


def fetch(requirement: str, folder: Path) -> bool:
    """Download a wheel by its hash and unpack it; False where the release has none for this Python or machine."""
    (folder / "pin.txt").write_text(requirement)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command += ["--disable-pip-version-check", "-d", str(folder / "wheels"), "-r", str(folder / "pin.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    wheels = list((folder / "wheels").glob("*.whl"))  # none where the requirement's marker says so
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return bool(wheels)


def needed(library: Path) -> tuple[list[str], list[str]]:
    """The NVIDIA libraries that a shared library loads, and the symbols that it takes from them."""
    dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True
    ).stdout
    # Those of the C library carry its version: write@GLIBC_2.2.5.
    taken = re.findall(r"^\s+U ((?:create|get|init)\w+)$", symbols, re.MULTILINE)
    return re.findall(r"NEEDED.*\[(libnv[^\]]+)\]", dynamic), taken


def write_stubs(library: Path, folder: Path) -> None:
    """Compile the libraries that it asks for."""
    names, symbols = needed(library)
    assert names and symbols, library
    code = "".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in symbols)
    folder.mkdir()
    for name in names:
        command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(folder / name)]
        subprocess.run(command, input=code, text=True, check=True)


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


def members(cls: type[Any]) -> Members:
    found: Members = {}
    for name in sorted(n for n in dir(cls) if not n.startswith("__") or n == "__init__"):
        member = inspect.getattr_static(cls, name)
        if isinstance(member, property):
            found[name] = "read" if member.fset is None else "write"
        elif callable(getattr(cls, name)) and not isinstance(getattr(cls, name), type):
            found[name] = [list(shape) for shape in overloads(getattr(cls, name).__doc__ or "", name)]
        else:
            found[name] = "name"
    return found


def surface(module: Any) -> Surface:
    """Every class of a bindings' module, those within a class as ``Outer.Inner``."""
    found: Surface = {}
    todo = [(name, getattr(module, name)) for name in sorted(dir(module))]
    while todo:
        name, cls = todo.pop(0)
        last = name.rpartition(".")[2]
        layer = last.startswith("I") and last.endswith("Layer") and last not in LAYERS
        if not isinstance(cls, type) or name in found or layer or last.startswith("_"):
            continue
        found[name] = members(cls)
        todo += [(f"{name}.{inner}", vars(cls)[inner]) for inner in sorted(vars(cls))]
    return found


def installed(folder: Path) -> Surface:
    """The surface of unpacked bindings, read in a process of its own."""
    write_stubs(folder / MODULE / "tensorrt.so", folder / "stubs")
    environment = {**os.environ, "PYTHONPATH": str(folder), "LD_LIBRARY_PATH": str(folder / "stubs")}
    command = [sys.executable, "-W", "ignore", __file__, MODULE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    read: Surface = json.loads(done.stdout)
    return read


def known() -> dict[str, Surface]:
    """Release → its surface, from the file."""
    read: dict[str, Surface] = json.loads(DIGEST.read_text())
    return read


def main() -> None:
    if sys.argv[1:]:
        print(json.dumps(surface(import_module(sys.argv[1]))))
        return
    found = {}
    for release, requirement in pins().items():
        with tempfile.TemporaryDirectory() as folder:
            assert fetch(requirement, Path(folder)), f"{release} has no wheel for this Python"
            found[release] = installed(Path(folder))
    DIGEST.write_text(json.dumps(found, separators=(",", ":")).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main()
