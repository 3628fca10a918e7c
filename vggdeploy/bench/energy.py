"""Energy by the counters of the CPU (RAPL). Where they cannot be read there is no figure. (Of a GPU: ``nvml.py``.)"""

from __future__ import annotations

from pathlib import Path

Reading = dict[str, float]


class Rapl:
    """Packages and memory of the CPUs, in joules (Linux powercap; only root may read them since CVE-2020-8694).

    They count the whole machine, so other processes are in it; a busy machine is invalid for its own reason.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        zones = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))  # AMD's have this name too
        self._zones = {str(zone): zone for zone in zones if _text(zone / "name").startswith(("package", "dram"))}

    def read(self) -> Reading | None:
        """Joules of each counter now; None where one of them cannot be read, or there is none."""
        found = {name: _joules(zone / "energy_uj") for name, zone in self._zones.items()}
        counts = {name: joules for name, joules in found.items() if joules is not None}
        return counts if counts and len(counts) == len(found) else None

    def since(self, before: Reading | None) -> float | None:
        """Joules since ``before``, over all counters."""
        now = self.read()
        if now is None or before is None or now.keys() != before.keys():
            return None
        total = 0.0
        for name, zone in self._zones.items():
            used = now[name] - before[name]
            if used < 0:  # the counter starts again at zero; a turn is shorter than one lap (minutes)
                lap = _joules(zone / "max_energy_range_uj")
                if lap is None:
                    return None
                used += lap
            total += used
        return total


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:  # not there, or not for us
        return ""


def _joules(path: Path) -> float | None:
    text = _text(path)
    return int(text) / 1e6 if text.isdecimal() else None
