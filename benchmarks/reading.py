"""How many files of the package a reader opens to follow a command: those of which a function runs, in any of its processes.

``python benchmarks/reading.py`` exports a VGG-11 of random weights, loads and classifies, and benches; it prints the files of
each as JSON. A module's own body (imports, constants, class statements) does not count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import vggdeploy

PACKAGE = Path(vggdeploy.__file__).parent
# Python imports it at the start of every process whose path it is on: also of the workers of a benchmark.
WATCH = """
import atexit, os, sys, threading
seen = set()
def look(frame, event, argument):
    code = frame.f_code
    if event == "call" and not code.co_name.startswith("<") and code.co_flags & 2:
        seen.add(code.co_filename)
def write():
    with open(os.path.join(os.environ["READING"], str(os.getpid())), "w") as file:
        file.write("\\n".join(seen))
atexit.register(write)
threading.setprofile(look)
sys.setprofile(look)
"""
CLASSIFY = """
import sys, numpy, vggdeploy
with vggdeploy.load(sys.argv[1]) as engine:
    engine.classify(numpy.zeros((224, 224, 3), numpy.uint8))
"""


def files_run(home: Path, *command: str) -> list[str]:
    """The files of the package in which a function ran, in the process of ``command`` and in those that it started."""
    with tempfile.TemporaryDirectory(dir=home) as seen:
        path = os.pathsep.join([str(home), str(PACKAGE.parent)])
        environment = os.environ | {"READING": seen, "PYTHONPATH": path, "OMP_WAIT_POLICY": "passive"}
        subprocess.run([sys.executable, *command], check=True, env=environment, stdout=sys.stderr)
        names = {name for file in Path(seen).iterdir() for name in file.read_text().split("\n")}
    return sorted(str(Path(name).relative_to(PACKAGE)) for name in names if name.startswith(f"{PACKAGE}{os.sep}"))


def main() -> None:
    import torch
    from torchvision.models import vgg11

    with tempfile.TemporaryDirectory() as name:
        home, bundle = Path(name), f"{name}/bundle"
        (home / "sitecustomize.py").write_text(WATCH)
        torch.manual_seed(0)
        torch.save(vgg11(num_classes=10).state_dict(), home / "vgg11.pth")
        cli = ("-m", "vggdeploy")
        found = {
            "export": files_run(home, *cli, "export", str(home / "vgg11.pth"), "-o", bundle, "--image-size", "224"),
            "load and classify": files_run(home, "-c", CLASSIFY, bundle),
            "bench": files_run(home, *cli, "bench", bundle, "--seconds", "0.2", "--rounds", "3", "--batch", "1"),
        }
    print(json.dumps({key: {"files": len(files), "names": files} for key, files in found.items()}, indent=1))


if __name__ == "__main__":
    main()
