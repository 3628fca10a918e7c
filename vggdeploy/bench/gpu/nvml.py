"""What NVML says of a GPU while something runs on it: clocks, temperature, power, throttling, memory, other processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from threading import Event, Thread
from types import TracebackType
from typing import Any, Self

import msgspec

from vggdeploy.bench.candidates import Candidate
from vggdeploy.bench.messages import TurnReply
from vggdeploy.errors import CudaError, IncompatibleError, first_line
from vggdeploy.records.gpu import GpuSamples
from vggdeploy.runtime.gpu import cuda
from vggdeploy.system.optional import installed
from vggdeploy.types import Device

# Reasons of nvml.h that slow a busy GPU down, by bit. (Idle clocks and clocks that somebody chose are none. Nor is the power
# limit: what a convolution runs at under it is the steady state of laptops, L4 and T4, and of an H200 at 700 W.)
_POWER_LIMIT = 0x04
_SLOWDOWNS = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
    0x200: "board limit",
    0x400: "reliability limit",
}
_PCI_LENGTH = 32


class GpuWatch:
    """Samples a GPU every ``seconds`` in a thread of its own, from ``__enter__`` to ``__exit__``.

    ``ours`` are process ids beside this process's that belong to the measurement.
    """

    def __init__(self, device: Device, *, seconds: float = 0.05, ours: Collection[int] = ()) -> None:
        self._device = device
        self._ours = {os.getpid(), *ours}
        self._interval = seconds
        self._stop = Event()
        self._thread: Thread | None = None
        self._seen: dict[str, list[float]] = {}
        self._slow = 0
        self._missing = ""
        self._energy: float | None = None
        self._others_use: float | None = None
        self._began = 0
        self._start = self._seconds = 0.0

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        try:
            self._nvml, self._handle = _open(self._device)
        except (IncompatibleError, CudaError) as error:
            self._missing = error.cause
            return self
        self._energy = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        self._began = time.time_ns() // 1000
        self._sample()
        self._thread = Thread(target=self._watch, name="nvml", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._sample()
            end = self._ask("nvmlDeviceGetTotalEnergyConsumption")
            self._energy = end - self._energy if end is not None and self._energy is not None else None
            self._others_use = self._use_of_others()
            self._nvml.nvmlShutdown()
        self._seconds = time.perf_counter() - self._start

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self._sample()

    def _ask(self, name: str, *arguments: Any) -> Any:
        """One number; None where this GPU does not tell."""
        try:
            return getattr(self._nvml, name)(self._handle, *arguments)
        except (self._nvml.NVMLError, AttributeError):  # not on this GPU; not in this version of NVML
            return None

    def _sample(self) -> None:
        nvml = self._nvml
        self._note("sm", self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM))
        self._note("mem", self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM))
        self._note("temperature", self._ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU))
        self._note("milliwatts", self._ask("nvmlDeviceGetPowerUsage"))
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:  # its name before driver 535
            reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        self._slow |= int(reasons or 0)
        self._note("others", self._others())
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        if memory is not None:
            self._note("used", memory.used)
            self._note("total", memory.total)
        self._note("time", time.perf_counter())

    def _others(self) -> int | None:
        """Processes on the GPU that are not ours. None where there are some and this one is not among them: in a container
        NVML gives the host's process ids, and its own may be any of those."""
        running = self._ask("nvmlDeviceGetComputeRunningProcesses")
        if running is None:
            return None
        pids = {process.pid for process in running}
        return None if pids and os.getpid() not in pids else len(pids - self._ours)

    def _use_of_others(self) -> float | None:
        """None where this process is not in NVML's list: in a container it may have another process id there."""
        running = self._ask("nvmlDeviceGetComputeRunningProcesses")
        if running is None or os.getpid() not in {p.pid for p in running}:
            return None
        if all(p.pid in self._ours for p in running):
            return 0.0
        use: dict[int, list[float]] = {}
        for sample in self._ask("nvmlDeviceGetProcessUtilization", self._began) or ():
            if sample.pid not in self._ours:
                use.setdefault(sample.pid, []).append(sample.smUtil / 100)
        return sum(sum(shares) / len(shares) for shares in use.values()) if use else None

    def _note(self, name: str, value: float | None) -> None:
        if value is not None:
            self._seen.setdefault(name, []).append(float(value))

    def result(self) -> GpuSamples:
        """What was seen, once the block has ended."""

        def over(name: str, of: Callable[[list[float]], float]) -> int | None:
            return int(of(self._seen[name])) if name in self._seen else None

        watts = [value / 1e3 for value in self._seen.get("milliwatts", [])]
        mean = sum(watts) / len(watts) if watts else None
        joules, how = (
            (self._energy / 1e3, "counter") if self._energy else (None, "")
        )  # a counter that stood still is none
        if joules is None and mean is not None:
            joules, how = mean * self._seconds, "power"
        return GpuSamples(
            samples=len(self._seen.get("time", [])),
            seconds=self._seconds,
            missing=self._missing,
            sm_clock_mhz_min=over("sm", min),
            sm_clock_mhz_max=over("sm", max),
            memory_clock_mhz_max=over("mem", max),
            temperature_c_max=over("temperature", max),
            power_watts_mean=mean,
            power_watts_max=max(watts, default=None),
            joules=joules,
            joules_from=how,
            power_limited=bool(self._slow & _POWER_LIMIT),
            throttled=tuple(name for bit, name in _SLOWDOWNS.items() if self._slow & bit),
            other_processes=over("others", max),
            others_use=self._others_use,
            memory_used_bytes_max=over("used", max),
            memory_total_bytes=over("total", max),
        )


def _open(device: Device) -> tuple[Any, Any]:
    """NVML and its handle of the GPU: by the PCI address, since CUDA counts only the GPUs it is allowed to see."""
    if not installed("pynvml"):
        raise IncompatibleError("the Python package nvidia-ml-py is not installed", "pip install nvidia-ml-py")
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise IncompatibleError(f"NVML cannot start: {first_line(error)}", "check nvidia-smi") from error
    try:
        address = cuda.call("cudaDeviceGetPCIBusId", _PCI_LENGTH, device.index)
        return pynvml, pynvml.nvmlDeviceGetHandleByPciBusId(bytes(address).split(b"\0")[0])
    except pynvml.NVMLError as error:
        pynvml.nvmlShutdown()
        raise IncompatibleError(f"NVML does not know {device}: {first_line(error)}", "check nvidia-smi") from error
    except BaseException:
        pynvml.nvmlShutdown()
        raise


def describe_gpu(device: Device) -> dict[str, str]:
    """What NVML says of a GPU that a measurement depends on: driver, limits, clocks, memory, its bus. What this GPU or
    this driver does not tell is not in it.

    Raises:
        IncompatibleError: NVML is not here, or does not know the GPU.
    """
    nvml, handle = _open(device)
    try:
        found: dict[str, str] = {}
        for name, ask, show in _traits(nvml, handle):
            try:
                found[name] = show(ask())
            except (nvml.NVMLError, AttributeError):  # not on this GPU; not in this version of NVML
                continue
        return found
    finally:
        nvml.nvmlShutdown()


def _traits(nvml: Any, gpu: Any) -> list[tuple[str, Callable[[], Any], Callable[[Any], str]]]:
    def watts(value: Any) -> str:
        return f"{value / 1e3:.0f} W"

    def megahertz(value: Any) -> str:
        return f"{value} MHz"

    return [
        ("name", lambda: nvml.nvmlDeviceGetName(gpu), str),
        ("UUID", lambda: nvml.nvmlDeviceGetUUID(gpu), str),
        ("driver", nvml.nvmlSystemGetDriverVersion, str),
        ("memory", lambda: nvml.nvmlDeviceGetMemoryInfo(gpu), lambda memory: f"{memory.total / 2**30:.1f} GiB"),
        ("power limit", lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu), watts),
        ("power limit by default", lambda: nvml.nvmlDeviceGetPowerManagementDefaultLimit(gpu), watts),
        ("power now", lambda: nvml.nvmlDeviceGetPowerUsage(gpu), watts),
        ("SM clock now", lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM), megahertz),
        ("SM clock at most", lambda: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM), megahertz),
        ("memory clock at most", lambda: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_MEM), megahertz),
        ("temperature", lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU), lambda t: f"{t} °C"),
        ("PCIe generation", lambda: nvml.nvmlDeviceGetCurrPcieLinkGeneration(gpu), str),
        ("PCIe lanes", lambda: nvml.nvmlDeviceGetCurrPcieLinkWidth(gpu), str),
        ("ECC", lambda: nvml.nvmlDeviceGetEccMode(gpu)[0], lambda on: "on" if on else "off"),
        ("MIG", lambda: nvml.nvmlDeviceGetMigMode(gpu)[0], lambda on: "on" if on else "off"),
    ]


_LOOK_SECONDS = 0.5
WARM_SECONDS = 0.1  # of work before a clock runs: from idle clocks to those of a GPU at work


def gpu_turn(candidate: Candidate, seconds: float, device: Device, ours: Collection[int]) -> TurnReply:
    """`Candidate.turn`, with the energy of the GPU's own counter, what slowed it down, and who else used it."""
    candidate.warm_up(WARM_SECONDS)  # before the watch: its energy and its clocks are no part of what is measured
    with GpuWatch(device, seconds=_LOOK_SECONDS, ours=ours) as watch:
        turned = candidate.turn(seconds, warm=True)
    seen = watch.result()
    unchecked = [f"GPU: {seen.missing}"] if seen.missing else []
    if not seen.missing and seen.others_use is None:
        unchecked.append("other processes on the GPU: NVML does not tell them from ours here")
    return msgspec.structs.replace(
        turned,
        joules=seen.joules if seen.joules_from == "counter" else None,
        slowed=seen.throttled,
        gpu_others=seen.others_use,
        not_checked=tuple(unchecked),
    )
