"""What machine this is, as far as a measurement has to say. Reads /proc and asks NVML where it is installed."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

from vggdeploy.cgroups import memory_limit, usable_cores
from vggdeploy.optional import installed
from vggdeploy.records import Machine

# Features that decide how fast a convolution can be on a CPU.
_FEATURES = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "amx_fp16",
    "asimd",
    "i8mm",
)


@functools.cache
def machine() -> Machine:
    """This machine, as far as this process may use it: the limits of a container are its cores and its memory."""
    lines = _cpuinfo()
    flags = set((lines.get("flags") or lines.get("Features") or "").split())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(
        cpu=lines.get("model name") or platform.processor() or platform.machine(),
        cores=usable_cores(),
        memory_gib=round(min(memory, memory_limit() or memory) / 2**30, 1),
        features=tuple(f for f in _FEATURES if f in flags),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        gpu=_gpu(),
    )


def fingerprint() -> str:
    """What has to be equal for a latency measured elsewhere to mean something here."""
    here = machine()
    return f"{here.cpu}, {here.cores} cores, {here.gpu or 'no GPU'}"


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux: the record says less, and nothing depends on it
        return {}
    first = text.split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _gpu() -> str | None:
    if not installed("pynvml"):
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, so no GPU that a record could name
        return None
    try:
        if not pynvml.nvmlDeviceGetCount():
            return None
        return str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)))
    finally:
        pynvml.nvmlShutdown()
