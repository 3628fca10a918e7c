"""Memory of `serve --workers`: what each worker has for itself, and what all share, for VGG-16 and the digits.

PSS counts a page that several processes map by its share in each, so the sum over all processes is what they take together.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import write_result
from serving import serving, two_bundles

WORKERS = (1, 2, 3)
MIB = 2**20


def rollup(pid: int) -> dict[str, float]:
    """``/proc/PID/smaps_rollup``: MiB by kind."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) * 1024 / MIB for line in lines}


def family(root: int) -> list[int]:
    """A process and all below it."""
    found = [root]
    for pid in found:  # it grows meanwhile
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def measure(bundle: Path, workers: int) -> dict[str, float]:
    """Of a server that is ready and idle."""
    with serving(bundle, "--workers", workers, workers=workers) as server:
        time.sleep(1)
        kinds = [rollup(pid) for pid in family(server.process.pid)]
    largest = max(kinds, key=lambda kind: kind["Private_Dirty"])
    return {
        "together_mib": sum(kind["Pss"] for kind in kinds),
        "worker_rss_mib": largest["Rss"],
        "worker_private_mib": largest["Private_Clean"] + largest["Private_Dirty"],
    }


def main() -> int:
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, bundle in zip(("digits", "vgg16"), two_bundles(Path(directory)), strict=True):
            rows = {str(workers): measure(bundle, workers) for workers in WORKERS}
            first, last = rows[str(WORKERS[0])], rows[str(WORKERS[-1])]
            more = (last["together_mib"] - rows["2"]["together_mib"]) / (WORKERS[-1] - 2)
            measured[name] = {
                "workers": rows,
                "one_more_worker_mib": more,
                "over_one_process": more / first["together_mib"],
            }
            print(name, measured[name], flush=True)
    return write_result("workers_memory", measured, [])


if __name__ == "__main__":
    sys.exit(main())
