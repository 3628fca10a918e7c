"""The process that compiles: ``python -m vggdeploy.runtime.aoti.child PROGRAM PACKAGE SETTINGS PARENT``.

In a process of its own, since Inductor's caches, settings and imports are those of a process, and since it can be ended. Its
parent has checked the program (`vggdeploy.model.formats.exported`), and gives the directory that all its files go to.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch._inductor import aoti_compile_and_package

from vggdeploy.runtime.exact import exact_fp32
from vggdeploy.system.ending import end_with_parent


def compile_program(program: Path, package: Path, settings: str) -> None:
    """Write the package. ``settings`` are Inductor's, as JSON. Errors are PyTorch's own."""
    with program.open("rb") as file:
        loaded = torch.export.load(file)
    [image] = [node for node in loaded.graph.nodes if node.name in loaded.graph_signature.user_inputs]
    shape, dtype = image.meta["val"].shape, image.meta["val"].dtype
    loaded.example_inputs = ((torch.zeros(2, *map(int, shape[1:]), dtype=dtype),), {})
    with torch.no_grad(), exact_fp32(torch):
        aoti_compile_and_package(loaded, package_path=str(package), inductor_configs=json.loads(settings))


if __name__ == "__main__":
    end_with_parent(signal.SIGKILL)
    if os.getppid() == int(sys.argv[4]):  # else it ended while PyTorch was imported
        compile_program(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
