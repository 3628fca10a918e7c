"""An NVML in memory, for what a GPU may answer or refuse. Its names are those of the real ``pynvml`` (a test asks)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml as real


class Nvml:
    """``pynvml``. ``lacks``: functions that this GPU does not support. ``reasons``: the bits of what slows it down."""

    NVMLError = real.NVMLError

    def __init__(self, *, lacks: tuple[str, ...] = (), reasons: int = 0, others: int = 0) -> None:
        self.lacks, self.reasons, self.others = lacks, reasons, others
        self.open = 0
        self.address = b""
        self._energy = 1_000_000

    def __getattr__(self, name: str) -> Any:
        return getattr(real, name)

    def _ask(self, name: str, value: Any) -> Any:
        if name in self.lacks:
            raise real.NVMLError(real.NVML_ERROR_NOT_SUPPORTED)
        return value

    def nvmlInit(self) -> None:
        self._ask("nvmlInit", None)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByPciBusId(self, pciBusId: bytes) -> str:
        self.address = pciBusId
        return self._ask("nvmlDeviceGetHandleByPciBusId", "handle")

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return self._ask("nvmlDeviceGetClockInfo", 1980 if kind == real.NVML_CLOCK_SM else 2619)

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return self._ask("nvmlDeviceGetTemperature", 61)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return self._ask("nvmlDeviceGetPowerUsage", 400_000)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        self._energy += 5_000
        return self._ask("nvmlDeviceGetTotalEnergyConsumption", self._energy)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:
        return self._ask("nvmlDeviceGetCurrentClocksEventReasons", self.reasons)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        return self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", self.reasons)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        import os

        pids = [os.getpid(), *range(10**7, 10**7 + self.others)]
        return self._ask("nvmlDeviceGetComputeRunningProcesses", [SimpleNamespace(pid=pid) for pid in pids])

    def nvmlDeviceGetProcessUtilization(self, handle: str, timeStamp: int) -> list[Any]:
        pids = range(10**7, 10**7 + self.others)
        samples = [SimpleNamespace(pid=pid, timeStamp=timeStamp + 1, smUtil=use) for pid in pids for use in (20, 40)]
        return self._ask("nvmlDeviceGetProcessUtilization", samples)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return self._ask("nvmlDeviceGetMemoryInfo", SimpleNamespace(used=3 << 30, total=80 << 30))
