"""What machine this is, as far as a measurement has to say. Reads /proc and asks NVML where it is installed."""

from __future__ import annotations

import ctypes
import functools
import gc
import math
import os
import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vggdeploy.records import Machine
from vggdeploy.system.optional import installed

# Features that decide what kernels compute a convolution on a CPU, as /proc/cpuinfo has them.
_FEATURES = (
    *("ssse3", "sse4_1", "avx", "avx2", "fma", "f16c", "avx_vnni"),
    *("avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "amx_fp16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve"),
)
# With these a library is kept from instructions that the CPU has.
ISA_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "OV_CPU_MAX_ISA")
ROOT = Path("/")
CPUINFO = ROOT / "proc/cpuinfo"  # an emulated process puts another file here: qemu-user hands through that of its host


# Each multiplies bytes into 32 bits. An x86 CPU without any of them uses vpmaddubsw, whose sums of two products have 16.
_WIDE_INT8 = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
# Values of oneDNN's ONEDNN_MAX_CPU_ISA that hide _WIDE_INT8; OpenVINO follows it, too.
_NARROW_ISAS = frozenset({"SSE41", "AVX", "AVX2", "AVX512_CORE"})


@functools.cache
def machine() -> Machine:
    """This machine, as far as this process may use it: the limits of a container are its cores and its memory."""
    lines, flags = _cpuinfo(), set(instructions().split())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(
        cpu=lines.get("model name") or platform.processor() or platform.machine(),
        cores=usable_cores(),
        memory_gib=round(min(memory, memory_limit() or memory) / 2**30, 1),
        features=tuple(f for f in _FEATURES if f in flags),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        gpu=_gpu(),
        caches=_caches(),
        affinity=allowed_cores(),
        quota=cpu_quota(),
    )


def instructions() -> str:
    """Every feature of the CPU, as the system names it: what code for this very machine may use. "" where it does not tell."""
    lines = _cpuinfo()
    return lines.get("flags") or lines.get("Features") or ""


def int8_saturates() -> bool:
    """Whether INT8 kernels on this CPU may cut sums of two products off at 16 bits: see `vggdeploy.parity.saturation`."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return bool(_onednn_limits() & _NARROW_ISAS) or not _WIDE_INT8 & set(machine().features)


def multiplies_bf16() -> bool:
    """Whether this CPU has products in BF16, and oneDNN is not kept from them. Others take several times FP32's time."""
    narrow = _NARROW_ISAS | {"AVX512_CORE_VNNI", "AVX2_VNNI"}
    return bool(_BF16 & set(machine().features)) and not _onednn_limits() & narrow


def _onednn_limits() -> set[str]:
    return {os.environ.get(f"{name}_MAX_CPU_ISA", "").upper() for name in ("ONEDNN", "DNNL")}


def fingerprint() -> str:
    """What has to be equal for a latency or a proof from elsewhere to mean something here: the CPU's model, instructions
    and caches, the cores that this process may run on, its quota, and the GPU."""
    here = machine()
    quota = "no quota" if here.quota is None else f"quota {here.quota:g}"
    cpu = (here.cpu, " ".join(here.features), " ".join(here.caches), f"{here.affinity} cores", quota)
    return ", ".join((*filter(None, cpu), here.gpu or "no GPU"))


def _caches() -> tuple[str, ...]:
    """Level and size of the first core's caches, such as ``L2 1024K``, as far as the system tells."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if _text(index / "type") != "Instruction" and _text(index / "size"):
            found[f"L{_text(index / 'level')}"] = _text(index / "size")
    return tuple(f"{level} {size}" for level, size in found.items())


def available_memory(root: Path = ROOT) -> int:
    """Bytes that this process can still take: what the system has available, or what its control group leaves."""
    lines = (line.split() for line in _text(root / "proc/meminfo").splitlines())
    free = next((int(fields[1]) * 1024 for fields in lines if fields[:1] == ["MemAvailable:"]), None)
    if free is None:  # not Linux
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    limit, used = memory_limit(root), [_number(folder / "memory.current") or 0 for folder in _folders(root, "")]
    return free if limit is None else max(0, min(free, limit - max(used, default=0)))


def _cpuinfo() -> dict[str, str]:
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux: the record says less, and nothing depends on it
        return {}
    first = text.split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _gpu() -> str | None:
    """All of them: which one was used stands in each record's ``device``."""
    if not installed("pynvml"):
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, so no GPU that a record could name
        return None
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        counts = Counter(str(pynvml.nvmlDeviceGetName(handle)) for handle in handles)
        return ", ".join(name if number == 1 else f"{number} × {name}" for name, number in counts.items()) or None
    finally:
        pynvml.nvmlShutdown()


def allowed_cores() -> int:
    """Cores that this process is bound to; all of them where the system binds none (macOS)."""
    bound = getattr(os, "sched_getaffinity", None)
    return len(bound(0)) if bound is not None else os.cpu_count() or 1


def usable_cores(root: Path = ROOT) -> int:
    """Cores this process may use: its affinity, or the CPU quota rounded up where that is less; at least 1."""
    cores = allowed_cores()
    quota = cpu_quota(root)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_quota(root: Path = ROOT) -> float | None:
    """The smallest CPU quota, in cores, of this process's control group and those above it; None without one."""
    quotas = [*_v2_quotas(root), *_v1_quotas(root)]
    return min(quotas, default=None)


def quota_stops(root: Path = ROOT) -> int | None:
    """How many periods the CPU quota has stopped this process's control group in, or one above it; None without a quota."""
    if cpu_quota(root) is None:
        return None
    counts = []
    for folder in (*_folders(root, ""), *_folders(root, "cpu")):
        fields = dict(line.split(" ", 1) for line in _text(folder / "cpu.stat").splitlines() if " " in line)
        if fields.get("nr_throttled", "").isdecimal():
            counts.append(int(fields["nr_throttled"]))
    return max(counts, default=None)


def memory_limit(root: Path = ROOT) -> int | None:
    """The smallest memory limit, in bytes, of this process's control group and those above it; None without one."""
    limits = [_number(folder / "memory.max") for folder in _folders(root, "")]
    limits += [_number(folder / "memory.limit_in_bytes") for folder in _folders(root, "memory")]
    # Version 1 writes "no limit" as the largest page-aligned number.
    return min((limit for limit in limits if limit is not None and 0 < limit < 2**62), default=None)


def _v2_quotas(root: Path) -> Iterator[float]:
    for folder in _folders(root, ""):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period):
            yield int(quota) / int(period)


def _v1_quotas(root: Path) -> Iterator[float]:
    for folder in _folders(root, "cpu"):
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota is not None and quota > 0 and period:  # -1 is no limit
            yield quota / period


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """This process's group of a controller (version 2: ``""``) and every group above it, as far as they can be seen.

    In a container the path that /proc names may lie outside of what is mounted: its own limits stand at the mount.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _number_of, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller not in names.split(","):
            continue
        mounts = {root / "sys/fs/cgroup" / name for name in ((names, controller) if controller else ("", "unified"))}
        for mount in sorted(mounts):
            group = mount.joinpath(*(part for part in path.split("/") if part not in ("", "..", ".")))
            while group != mount:
                yield group
                group = group.parent
            yield mount


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # not there: no such controller, another version, or no Linux
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.removeprefix("-").isdecimal() and len(text) < 25 else None


# glibc's mallopt(3), and the state that its rule for large blocks settles in (malloc.c, DEFAULT_MMAP_THRESHOLD_MAX).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
_USUAL = {_MMAP_MAX: 65_536, _MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 64 * 2**20}
_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1}


def release_memory() -> None:
    """Collect what is in reference cycles, and hand the allocator's free pages back to the system.

    For between two stages: each of them holds a whole model, and only one of them at a time may.
    """
    gc.collect()
    trim_heap()


def trim_heap() -> None:
    """Hand the allocator's free pages back to the system: some milliseconds, without Python's lock."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def limit_arenas() -> None:
    """Let glibc have one heap for each core, where it may have eight.

    Each new thread may begin a heap of its own, and a model that was opened in one of them leaves free pages there when it is
    closed: a server that reloads grows until every heap has held a model. It changes the whole process, so only a
    command calls it, never the library.
    """
    _set({_ARENA_MAX: max(2, usable_cores())})


def return_large_blocks_at_once() -> None:
    """Let glibc map every block above 1 MiB by itself, so that its pages go back to the system when it is freed.

    By default the limit grows to 32 MiB with use, and freed weights stay in the heap: 6% more peak memory in the
    export of a VGG-16. It changes the whole process, so only a command calls it, never the library.
    """
    _set({_MMAP_THRESHOLD: 2**20})


@contextmanager
def memory_kept() -> Iterator[None]:
    """Within the block, freed memory stays with the process; at its end it is given back.

    Every step of a training allocates the same activations again, and a builder a model's weights. By default glibc
    maps each large block anew and unmaps it when it is freed, so the kernel clears every page of it every time: up to a
    third of the time on a CPU. It changes the whole process, so only a command uses it.
    """
    _set(_KEEPING)
    try:
        yield
    finally:
        _set(_USUAL)
        release_memory()


def _set(options: Mapping[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in options.items():
            mallopt(option, value)
