"""Under which conditions is measured: CPUs, environment, the commit of the user's own project."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vggdeploy.bench.load import governor
from vggdeploy.records import Conditions

# What the libraries take thread counts, waiting and instruction sets from.
_VARIABLES = (
    "OMP_",
    "KMP_",
    "GOMP_",
    "MKL_",
    "OPENBLAS_",
    "DNNL_",
    "ONEDNN_",
    "ORT_",
    "OV_",
    "TORCH_",
    "CUDA_",
    "NVIDIA_TF32",
)
_GIT_SECONDS = 5.0


def conditions(pin: Sequence[int] = ()) -> Conditions:
    """What holds for a whole run, before it starts. The counters are filled in by who measures."""
    return Conditions(
        affinity=tuple(sorted(pin or os.sched_getaffinity(0))),
        pinned=bool(pin),
        environment={name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)},
        governor=governor(),
        commit=git_commit(),
    )


def git_commit(directory: Path | None = None) -> str | None:
    """The commit that is checked out in the current directory, with ``-dirty`` where files differ; else None."""
    # fsmonitor: a repository may name a program there, which a look at it would run.
    command = ["git", "-c", "core.fsmonitor=false", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=_GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):  # no git here; a repository on a disk that does not answer
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
