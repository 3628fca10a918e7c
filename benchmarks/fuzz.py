"""Mutated inputs for every parser, each in a process that may die of it: what became of how many of them.

python benchmarks/fuzz.py --inputs 1000000              # shared out over all parsers, by what an input costs
python benchmarks/fuzz.py --inputs 250000 --seed 2 --result fuzz_again   # other inputs, beside the long run's counts
python benchmarks/fuzz.py --inputs 10000 --target manifest
python benchmarks/fuzz.py --guided 120                  # seconds a parser, with inputs that coverage chooses (Atheris)
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measuring import ROOT, target, write_result

sys.path.insert(0, str(ROOT / "tests"))
from fuzz import guided, runner  # of the tests
from fuzz.seeds import prepare
from fuzz.targets import LIBRARIES, OURS

# Of all inputs, how many parts each parser gets: those that open a whole bundle cost a hundred times as much.
PARTS = {
    "policy": 12, "array": 12, "image": 16, "recipe": 16, "engine": 12, "search": 12, "report": 6, "manifest": 4,
    "checkpoint": 6, "signature": 3, "key": 4, "weights": 6, "safetensors": 4, "engine-file": 0.5, "onnx": 1, "torchscript": 1,
}  # fmt: skip


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--inputs", type=int, default=20_000)
    options.add_argument("--target", choices=[*OURS, *LIBRARIES], help="only this parser; nothing is written")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument(
        "--result", default="fuzz", choices=["fuzz", "fuzz_again"], help="the file in benchmarks/results"
    )
    options.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options.add_argument("--limit", type=float, default=20.0, help="seconds that one input may take")
    options.add_argument("--guided", type=int, default=0, metavar="SECONDS", help="of each parser, by coverage")
    asked = options.parse_args()
    if asked.guided:
        return by_coverage([asked.target] if asked.target else [*OURS, *LIBRARIES], asked.guided, asked.processes)
    parts = {asked.target: 1} if asked.target else PARTS
    shares = {name: max(1, round(asked.inputs * part / sum(parts.values()))) for name, part in parts.items()}
    with tempfile.TemporaryDirectory(prefix="vggdeploy-fuzz-") as name:
        home = prepare(Path(name) / "home")
        with ThreadPoolExecutor(asked.processes) as pool:
            found = list(
                pool.map(lambda one: runner.count(home, *one, seed=asked.seed, limit=asked.limit), shares.items())
            )
    for count in found:
        print(f"{count.target:<12} {dict(count.outcomes)} in {count.seconds:.0f} s", flush=True)
        for number, kind, text in count.failures[:20]:
            print(f"  {kind} {number}: {text}")
    if asked.target:
        return 0 if not found[0].failed else 4
    tried, failed = sum(c.outcomes.total() for c in found), sum(c.failed for c in found)
    return write_result(
        asked.result,
        {"seed": asked.seed, "limit_s": asked.limit, "total": _outcomes(found), "targets": list(map(_record, found))},
        [
            {
                "what": "inputs that crash, hang, take the memory or end in a traceback",
                "found": f"{failed} of {tried:,}",
                "target": "0",
                "met": failed == 0,
            }
        ],
        command=f"fuzz.py --inputs {asked.inputs} --seed {asked.seed} --limit {asked.limit:g} --result {asked.result}",
    )


def by_coverage(names: list[str], seconds: int, processes: int) -> int:
    with tempfile.TemporaryDirectory(prefix="vggdeploy-fuzz-") as name:
        home = prepare(Path(name) / "home")
        with ThreadPoolExecutor(processes) as pool:
            found = list(pool.map(lambda name: guided.search(home, name, seconds), names))
        for one in found:
            print(f"{one.target:<12} {one.runs:>9,} inputs, {one.branches} branches {one.failure[-2000:]}")
    failed = [one for one in found if one.failure]
    if len(names) == 1:
        return 4 if failed else 0
    runs = sum(one.runs for one in found)
    return write_result(
        "fuzz_guided",
        {"seconds_each": seconds, "runs": runs, "targets": [asdict(one) for one in found]},
        [
            target(
                "parsers of which an input crashes, hangs, takes the memory or ends in a traceback", len(failed), 0, ""
            )
        ],
        command=f"fuzz.py --guided {seconds}",
    )


def _outcomes(found: list[runner.Count]) -> dict[str, int]:
    """Of all inputs together; "accepted" are those that answered as the golden pair, or asked for nothing that computes."""
    totals = {kind: sum(c.outcomes[kind] for c in found) for kind in runner.OUTCOMES}
    return {"tried": sum(totals.values()), **totals}


def _record(count: runner.Count) -> dict[str, Any]:
    failures = [{"input": number, "kind": kind, "text": text} for number, kind, text in count.failures[:50]]
    return {"target": count.target, **_outcomes([count]), "seconds": count.seconds, "failures": failures}


if __name__ == "__main__":
    sys.exit(main())
