"""WebAssembly and WebGPU: ONNX Runtime Web in Node.js, and in a page of Chromium."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from vggdeploy.types import OnProgress
from vggdeploy.verify.fleet.target import PREPARE, Missing, Prefix, Target, run_tool

_PACKAGE, _VERSION = "onnxruntime-web", "1.30.0"  # checked 2026-11
_NODE = "install it: apt-get install nodejs npm"
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class _Web(Target):
    """What runs ONNX files with ONNX Runtime Web, which npm brings; ``script`` is its file for this use."""

    script: str = ""

    onnx_only = True

    def missing(self) -> Missing | None:
        return None if _prefix().path() else Missing(f"{_PACKAGE} is not in the user's cache", PREPARE)

    def prepare(self, on_progress: OnProgress) -> None:
        on_progress(None, f"preparing {_PACKAGE}")
        _prefix().fill(_fill, lambda: on_progress(None, f"waiting: another process prepares {_PACKAGE}"))

    def library(self) -> Path | None:
        prefix = _prefix().path()
        return prefix and prefix / "node_modules" / _PACKAGE / "dist" / self.script


@dataclass(frozen=True)
class Node(_Web):
    def missing(self) -> Missing | None:
        return super().missing() if shutil.which("node") else Missing("Node.js is not installed", _NODE)

    def command(self, address: str, folder: Path) -> tuple[list[str], dict[str, str]]:
        return ["node", str(Path(__file__).with_name("harness.mjs")), address], dict(os.environ)


@dataclass(frozen=True)
class Chromium(_Web):
    def missing(self) -> Missing | None:
        if not _chromium():
            return Missing("Chromium is not installed", "install it: apt-get install chromium mesa-vulkan-drivers")
        return super().missing()

    def command(self, address: str, folder: Path) -> tuple[list[str], dict[str, str]]:
        args = [
            *(_chromium(), "--headless", f"--user-data-dir={folder / 'profile'}"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
            # SwiftShader computes what a GPU would; it is not offered to pages unless it is asked for.
            *("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"),
            *(("--no-sandbox",) if os.geteuid() == 0 else ()),  # Chromium's sandbox does not start as root
            address,
        ]
        return args, {**os.environ, "HOME": str(folder)}


def _chromium() -> str:
    return next((path for name in _CHROMIUM if (path := shutil.which(name))), "")


def _prefix() -> Prefix:
    return Prefix({"npm": f"{_PACKAGE}@{_VERSION}"})


def _fill(draft: Path) -> None:
    options = ("--ignore-scripts", "--no-audit", "--no-fund", "--prefix", draft)
    run_tool(["npm", "install", *options, f"{_PACKAGE}@{_VERSION}"], to=f"fetch {_PACKAGE}", fix=_NODE)
