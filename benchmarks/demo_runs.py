"""Which variant `vggdeploy demo` recommends in each of 20 runs, and how many of its rows are valid.

    python benchmarks/demo_runs.py [--runs 20] [--keep DIR]

Each run is the whole command, from training to the answer, in a directory of its own; a run takes about a minute. What it
recommends is what `vggdeploy.load` takes from its bundle afterwards. Which variant is the fastest is not taken from one run:
it is the one with the lowest median over all runs of the medians that the runs measured, at a batch of one image. Another
variant counts as equally fast where that median lies within 2 % of the lowest one, and both counts are printed. A row that
`bench` called invalid is in no bundle, and so the rows that are missing are the invalid ones.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from measuring import run_process, write_result

from vggdeploy.bundle import REFERENCE, Bundle
from vggdeploy.engine.selection import choices

TIE = 0.02
ENOUGH_RUNS, ENOUGH_ROWS = 0.95, 0.95


def one_run(home: Path) -> dict[str, Any]:
    """A demo's seconds, recommendation, and the medians of its valid rows in milliseconds, by variant and batch."""
    done = run_process([sys.executable, "-m", "vggdeploy", "demo", "-o", home])
    bundle = Bundle.open(home / "bundle")
    ranked = [choice for choice in choices(bundle) if choice.usable]
    rows = {f"{v.name} batch {m.batch}": m.p50_ms for v in bundle.manifest.variants for m in v.measured}
    return {
        "seconds": done.seconds,
        "recommended": ranked[0].variant.name,
        "proven": sorted(c.variant.name for c in ranked if c.variant.name != REFERENCE),
        "valid_rows_ms": rows,
    }


def judged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The fastest variant over all runs, how often it was recommended, and the share of rows that were valid."""
    variants = sorted({name for run in runs for name in run["proven"]})
    batches = sorted({row.rpartition(" ")[2] for run in runs for row in run["valid_rows_ms"]}, key=int)
    expected = [f"{name} batch {batch}" for name in variants for batch in batches]
    over_runs = {
        name: median(times)
        for name in variants
        if (times := [run["valid_rows_ms"][r] for run in runs if (r := f"{name} batch 1") in run["valid_rows_ms"]])
    }
    best = min(over_runs, key=lambda name: over_runs[name])
    equal = [name for name, ms in over_runs.items() if ms <= over_runs[best] * (1 + TIE)]
    invalid = Counter(row for run in runs for row in expected if row not in run["valid_rows_ms"])
    recommended = Counter(run["recommended"] for run in runs)
    return {
        "median_ms_at_batch_1": over_runs,
        "fastest": best,
        "as_fast_within_2_percent": equal,
        "recommended": dict(recommended),
        "runs_that_recommend_the_fastest": recommended[best],
        "runs_that_recommend_one_as_fast": sum(recommended[name] for name in equal),
        "rows": len(expected) * len(runs),
        "invalid_rows": dict(invalid),
        "valid_share": 1 - invalid.total() / (len(expected) * len(runs)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--keep", type=Path, help="Where the demos' directories stay. Default: they are removed.")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        runs = []
        for index in range(chosen.runs):
            runs.append(one_run((chosen.keep or Path(scratch)) / f"{index:02d}"))
            print(index, runs[-1]["recommended"], f"{runs[-1]['seconds']:.0f} s", flush=True)
    found = judged(runs)
    right, wanted = found["runs_that_recommend_one_as_fast"], ENOUGH_RUNS * chosen.runs
    targets = [
        {
            "what": "demos that recommend the fastest proven variant, or one within 2 % of it",
            "found": f"{right} of {chosen.runs} ({found['runs_that_recommend_the_fastest']} the fastest itself)",
            "target": f"≥ {wanted:g}",
            "met": right >= wanted,
        },
        {
            "what": "rows that are valid",
            "found": f"{found['valid_share']:.1%} of {found['rows']}",
            "target": f"≥ {ENOUGH_ROWS:.0%}",
            "met": found["valid_share"] >= ENOUGH_ROWS,
        },
    ]
    return write_result("demo_runs", {"runs": runs, **found}, targets, command=f"demo_runs.py --runs {chosen.runs}")


if __name__ == "__main__":
    sys.exit(main())
