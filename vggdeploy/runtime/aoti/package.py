"""Packages of AOTInductor, compiled where they run and kept in the user's cache.

A package is native code, so it is never taken from a bundle: what a bundle has is the program, which was followed node by node
before. The key of an entry covers all that decides the code: the program, vggdeploy, PyTorch, the compiler, the processor and
the settings. Of two processes that want the same package one compiles, and the other waits.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch

from vggdeploy._version import __version__
from vggdeploy.errors import BuildError, BundleError, IncompatibleError, one_line
from vggdeploy.records import Record, from_json, to_json
from vggdeploy.runtime.base import Source
from vggdeploy.system.cache import Cache, cache_home, key_of
from vggdeploy.system.drafts import temporary_directory
from vggdeploy.system.machine import ISA_VARIABLES, instructions, machine
from vggdeploy.system.sealed import HashedFile, SealedFile

PACKAGE, ENTRY = "model.pt2", "entry.json"
LIMIT_BYTES = 8 * 2**30  # of all packages
SECONDS = 900.0  # that a compilation may take
# Variables of PyTorch's compilers would change the code behind the key's back.
_FOREIGN = (
    "TORCHINDUCTOR_",
    "AOT_INDUCTOR_",
    "AOTINDUCTOR_",
    "INDUCTOR_",
    "TORCH_COMPILE",
    "TORCH_LOGS",
    "TORCHDYNAMO_",
)
_CHILD = "vggdeploy.runtime.aoti.child"
_MAX_ENTRY = 2**20
_ELSE = "take another variant of the bundle, for example onnx-fp32 or torch-export-fp32"


class Entry(Record, frozen=True, kw_only=True):
    """``entry.json``: the hash of the package beside it. ``about`` is what the key was made of."""

    schema_version: int = 1
    about: dict[str, str]
    sha256: str
    seconds: float


def settings(source: Source) -> str:
    """Inductor's settings, as JSON: weights are constants, and the number of threads is that of each session.

    Of an image with one channel PyTorch's own convolution takes the layout for contiguous and writes its output so, where
    Inductor's code then reads channels-last (pytorch/pytorch#121400): such a network keeps PyTorch's plain convolutions.
    """
    several = source.spec.in_channels > 1
    return json.dumps({"freezing": True, "cpp.dynamic_threads": True, "cpp.weight_prepack": several})


@functools.cache
def compiler() -> str:
    """The C++ compiler that Inductor would take, with its version; "" where there is none that answers."""
    name = shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++"))
    if name is None:
        return ""
    try:
        done = subprocess.run([name, "--version"], capture_output=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{name}: {one_line(done.stdout.decode(errors='replace').partition(chr(10))[0])}"


def about(source: Source) -> dict[str, str]:
    """All that decides the code of a source's package."""
    here = machine()
    return {
        "program": source.sha256,
        "vggdeploy": __version__,
        "torch": f"{torch.__version__} {torch.version.git_version}",
        "compiler": compiler(),
        "cpu": " ".join((here.cpu, here.system.rpartition(" ")[2], instructions(), *here.caches)),
        "settings": settings(source),
        **{name: os.environ[name] for name in ISA_VARIABLES if name in os.environ},
    }


@contextmanager
def packaged(source: Source) -> Iterator[tuple[SealedFile, str]]:
    """The package of a source's program, compiled now or taken from the cache, and its SHA-256: bytes that nobody can change
    any more.

    Raises:
        BuildError: it cannot be compiled, or not in `SECONDS`. BundleError, IntegrityError: as `Source.open`.
    """
    known = about(source)
    key, cache = key_of(known), Cache(cache_home() / "aoti", limit=LIMIT_BYTES)
    with ExitStack() as opened:

        def sealed(file: HashedFile) -> tuple[SealedFile, str]:
            return opened.enter_context(file.open()), file.sha256

        def find() -> tuple[SealedFile, str] | None:
            file, data = cache.open(key, PACKAGE), cache.read(key, ENTRY, limit=_MAX_ENTRY)
            if file is None:
                return None
            file.close()  # it is ours, and so is all above it: nobody else can exchange it
            if data is None:
                return None
            with suppress(BundleError):  # damaged: it is compiled anew
                entry = from_json(data, Entry, what=str(cache.path(key) / ENTRY))
                if entry.about == known:
                    return sealed(HashedFile(cache.path(key) / PACKAGE, entry.sha256))
            return None

        def make(directory: Path) -> tuple[SealedFile, str]:
            start = time.monotonic()
            _compile(source, directory / PACKAGE)
            file = HashedFile.of(directory / PACKAGE)
            entry = Entry(about=known, sha256=file.sha256, seconds=round(time.monotonic() - start, 3))
            (directory / ENTRY).write_bytes(to_json(entry))
            return sealed(file)

        if cache.writable():
            with cache.entry(key, find, make, on_wait=lambda: None) as (package, _):
                yield package
        else:
            with temporary_directory("vggdeploy-aoti-") as home:
                yield make(home)


def _compile(source: Source, package: Path) -> None:
    """Compile in a child with a directory of its own, which ends with what it started.

    Raises:
        BuildError: it failed, or took too long.
    """
    with temporary_directory("vggdeploy-aoti-") as home, source.open() as program, tempfile.TemporaryFile() as said:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        places = {name: str(home) for name in ("TMPDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
        process = subprocess.Popen(
            # -P: a numpy.py in the current directory is not NumPy.
            [sys.executable, "-P", "-m", _CHILD, str(program.path), str(package), settings(source), str(os.getpid())],
            env={**kept, **places, "TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"},
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            pass_fds=(program.fd,),
            process_group=0,
        )
        try:
            code = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            raise BuildError(f"AOTInductor did not compile {source.name} within {SECONDS:g} s", _ELSE) from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the compilers that it started
            process.wait()
        if code or not package.is_file():
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            why = next(
                (x for x in reversed(lines) if "error" in x.lower()), lines[-1] if lines else f"it ended with {code}"
            )
            raise BuildError(f"AOTInductor cannot compile {source.name}: {why[:300]}", _ELSE)


def missing() -> IncompatibleError | None:
    """What keeps this machine from compiling; None where nothing does."""
    if compiler():
        return None
    name = os.environ.get("CXX") or "g++"
    return IncompatibleError(
        f"AOTInductor compiles a network where it runs, and there is no C++ compiler ({name})",
        "install one: apt-get install g++; or take torch-export-fp32, which needs none",
    )
