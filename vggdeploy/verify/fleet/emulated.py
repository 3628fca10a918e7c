"""Processors that qemu-user emulates: this very Python on other x86 CPUs, and a Python of its own for aarch64."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from vggdeploy.types import OnProgress
from vggdeploy.verify.fleet.target import PREPARE, Missing, Prefix, Target, run_tool

_CHILD = ("-m", "vggdeploy.verify.fleet.child")
_QEMU = "install it: apt-get install qemu-user"
_DEBIAN = "use a Debian machine, or leave this target out"
# What the aarch64 Python needs to run a bundle's ONNX variants. ONNX Runtime 1.20.1, because 1.32 crashes when it is
# imported under qemu 7.2 (checked 2026-11).
_WHEELS = ("onnxruntime==1.20.1", "numpy", "msgspec", "pillow")
_DEBS = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
# What makes a library take the kernels of one kind of processor, which another one cannot run.
_KERNELS = ("OPENBLAS_CORETYPE", "ATEN_CPU_CAPABILITY", "NPY_ENABLE_CPU_FEATURES")
_PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")


@dataclass(frozen=True)
class X86(Target):
    """This Python with all that is installed for it, on another x86-64 CPU."""

    cpu: str = ""

    def missing(self) -> Missing | None:
        if platform.machine() != "x86_64":
            return Missing(f"this Python is for {platform.machine()}", "run it on an x86-64 machine")
        return None if shutil.which("qemu-x86_64") else Missing("qemu-x86_64 is not installed", _QEMU)

    def command(self, address: str, folder: Path) -> tuple[list[str], dict[str, str]]:
        path = [str(_package(folder)), *filter(None, [os.environ.get("PYTHONPATH")])]
        args = ["qemu-x86_64", "-cpu", self.cpu, sys.executable, "-P", *_CHILD, address]
        return args, {**_without(*_KERNELS), **_own(folder), "PYTHONPATH": os.pathsep.join(path)}


@dataclass(frozen=True)
class AArch64(Target):
    """Debian's Python for arm64, with ONNX Runtime, in a directory of the user's cache: nothing is installed on the system."""

    cpu: str = ""
    onnx_only = True

    def missing(self) -> Missing | None:
        if not shutil.which("qemu-aarch64"):
            return Missing("qemu-aarch64 is not installed", _QEMU)
        return None if _prefix().path() else Missing("there is no aarch64 Python with ONNX Runtime here", PREPARE)

    def prepare(self, on_progress: OnProgress) -> None:
        on_progress(None, "preparing Python for aarch64")
        _prefix().fill(_fill, lambda: on_progress(None, "waiting: another process prepares Python for aarch64"))

    def command(self, address: str, folder: Path) -> tuple[list[str], dict[str, str]]:
        prefix = _prefix().path()
        assert prefix is not None  # noqa: S101  # nothing is missing
        foreign = ("LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH")  # for this machine's programs
        kept = _without(*_KERNELS, *foreign)
        path = os.pathsep.join(map(str, (prefix / "site", _package(folder))))
        root = prefix / "root"
        args = ["qemu-aarch64", "-cpu", self.cpu, "-L", str(root), str(_python(root)), "-P", *_CHILD, address]
        return args, {**kept, **_own(folder), "PYTHONPATH": path}


def _without(*names: str) -> dict[str, str]:
    """This process's environment, but for these variables."""
    return {name: value for name, value in os.environ.items() if name not in names}


def _own(folder: Path) -> dict[str, str]:
    """A cache of its own: what this machine compiled and proved is nothing for another processor."""
    return {"VGGDEPLOY_CACHE": str(folder / "cache"), "OMP_WAIT_POLICY": "passive"}


def _package(folder: Path) -> Path:
    """A directory with this vggdeploy in it and nothing else: beside it may lie packages for this machine's processor."""
    path = folder / "package"
    path.mkdir(exist_ok=True)
    link = path / "vggdeploy"
    if not link.exists():
        link.symlink_to(Path(__file__).resolve().parents[2])
    return path


def _prefix() -> Prefix:
    return Prefix({"wheels": _WHEELS, "debs": _DEBS, "layout": 1})


def _python(root: Path) -> Path:
    return next(path for path in sorted((root / "usr/bin").glob("python3.*")) if path.suffix[1:].isdecimal())


def _fill(draft: Path) -> None:
    """Fetch Debian's packages and unpack them, then the wheels. apt checks Debian's signatures, and has lists of its own."""
    apt, root = draft / "apt", draft / "root"
    for part in ("lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True)
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State::lists": apt / "lists",
        "Dir::Cache": apt / "cache",
        "Dir::State::status": "/dev/null",  # as if nothing were installed: all that is needed is fetched
        "Debug::NoLocking": "1",
        "APT::Sandbox::User": "",
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    run_tool(["apt-get", "-q", *options, "update"], to="list Debian's packages for arm64", fix=_DEBIAN)
    fetch = ["install", "--download-only", "--no-install-recommends", "-y", *_DEBS]
    run_tool(["apt-get", "-q", *options, *fetch], to="fetch Python for arm64", fix=_DEBIAN)
    for package in sorted((apt / "cache/archives").glob("*.deb")):
        run_tool(["dpkg", "-x", package, root], to="unpack Python for arm64", fix=_DEBIAN)
    shutil.rmtree(apt)
    version = _python(root).name.removeprefix("python")
    wheels = [part for name in _PLATFORMS for part in ("--platform", name)]
    run_tool(
        [
            *(sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", draft / "site"),
            *(*wheels, "--python-version", version, "--only-binary=:all:", "--no-deps", *_WHEELS),
        ],
        to="fetch ONNX Runtime for aarch64",
        fix="install pip for this Python",
    )
