"""How often `bench` calls two identical bundles different, how wide its intervals are, and which slowdowns it finds.

    python benchmarks/harness_power.py [--runs 60]

Three experiments of ``bench OLD NEW --fail-if-slower 5%`` at the default duration, with a small model (the hardest: 0.1 ms a
call) and two bundles of the same bytes: as they are, with 5% and with 8% more time in every call of the new one, by a spin
inside the call (`slow_worker.py`). Runs in which a row is invalid are counted apart: nothing is concluded from them.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measuring import target, write_result

from vggdeploy.bench import crew
from vggdeploy.bench.compare import compare_bundles
from vggdeploy.bench.run import BenchPlan, Rounds, bench_bundle
from vggdeploy.bench.stats import RUN_SPREAD, ratio_interval
from vggdeploy.bundle import Bundle
from vggdeploy.export.bundle import ExportOptions, export_bundle
from vggdeploy.train.loop import train
from vggdeploy.train.recipe import Recipe

LIMIT = 0.05
PLANTED = (0.0, 0.05, 0.08)
NAMES = ("old", "new")
WORKER = Path(__file__).with_name("slow_worker.py")


def bundles(home: Path) -> list[Bundle]:
    recipe = Recipe(arch="vgg11_bn", width=0.125, hidden=128, dropout=0.0, dataset="digits", epochs=4)
    train(recipe, output=home / "checkpoint")
    export_bundle(home / "checkpoint", home / "old", ExportOptions(formats=["onnx-fp32"]))
    shutil.copytree(home / "old", home / "new")
    return [Bundle.open(home / name) for name in NAMES]


def one_run(pair: list[Bundle], planted: float) -> dict[str, Any]:
    os.environ["VGGDEPLOY_PLANTED"] = f"new:{planted}"
    report = bench_bundle(*pair, plan=BenchPlan(variants=["onnx-fp32"], batches=[1]), method=Rounds())
    gate = compare_bundles(report, NAMES, limit=LIMIT)
    (row,) = gate.rows
    return {
        "planted": planted,
        "valid": all(each.valid for each in report.rows),
        "ratio": row.ratio,
        "low": row.ratio_low,
        "high": row.ratio_high,
        "outcome": str(row.outcome),
        "passed": gate.passed,
        "too_slow": row.too_slow,
        "cannot_tell": row.cannot_rule_out,
        "rounds_ms": [list(each.round_medians_ms) for each in report.rows],
    }


def summary(runs: list[dict[str, Any]], planted: float) -> dict[str, Any]:
    """Of the valid runs with this slowdown."""
    valid = [run for run in runs if run["planted"] == planted and run["valid"]]
    truth = 1 / (1 + planted)
    halves = [math.sqrt(run["high"] / run["low"]) - 1 for run in valid]
    count = max(1, len(valid))
    return {
        "planted": planted,
        "runs": sum(run["planted"] == planted for run in runs),
        "valid": len(valid),
        "covers_the_truth": sum(run["low"] <= truth <= run["high"] for run in valid) / count,
        "called_slower": sum(run["outcome"] == "slower" for run in valid) / count,
        "called_faster": sum(run["outcome"] == "faster" for run in valid) / count,
        "gate_passed": sum(run["passed"] for run in valid) / count,
        "half_width_median": float(np.median(halves)) if halves else None,
    }


def simulated(trials: int = 20_000) -> dict[str, float]:
    """Coverage of the interval of twelve rounds in four processes, where processes and rounds differ by 1% each."""
    random, hits = np.random.default_rng(0), 0
    for _ in range(trials):
        sides = [
            np.exp(random.normal(0, 0.01, (4, 1)) + random.normal(0, 0.01, (4, 3))).ravel().tolist() for _ in range(2)
        ]
        _, low, high = ratio_interval(*sides, 4)
        hits += low <= 1 <= high
    return {"trials": trials, "coverage": hits / trials}


def between_runs(runs: list[dict[str, Any]]) -> float | None:
    """Standard deviation of the old side's time from one run to the next, as a share: what `RUN_SPREAD` stands for."""
    times = [float(np.log(np.median(run["rounds_ms"][0]))) for run in runs if run["valid"]]
    return float(np.std(times, ddof=1)) if len(times) > 1 else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=60, help="of each experiment")
    options = parser.parse_args()
    # The workers of this measurement are those of bench, with the slowdown in them.
    crew.WORKER_COMMAND = (sys.executable, "-P", str(WORKER))
    with tempfile.TemporaryDirectory() as home:
        pair = bundles(Path(home))
        runs = []
        for number in range(options.runs):
            runs += [one_run(pair, planted) for planted in PLANTED]
            print(
                f"{number + 1} of {options.runs}", *(f"{r['low']:.3f}–{r['high']:.3f}" for r in runs[-3:]), flush=True
            )
    found = [summary(runs, planted) for planted in PLANTED]
    same, five, eight = found
    exact = simulated()
    targets = [
        target("identical bytes called different", 1 - same["covers_the_truth"], 0.05, ""),
        target("valid runs missing", 1 - same["valid"] / same["runs"], 0.05, ""),
        target("5% slower and not called slower", 1 - five["called_slower"], 0.10, ""),
        target("8% slower and not called slower", 1 - eight["called_slower"], 0.10, ""),
        target("8% slower and passed by a gate of 5%", eight["gate_passed"], 0.05, ""),
        target("simulated coverage is off by", abs(exact["coverage"] - 0.95), 0.02, ""),
    ]
    measured = {
        "experiments": found,
        "simulated": exact,
        "run_spread": {"assumed": RUN_SPREAD, "measured": between_runs(runs)},
        "runs": runs,
    }
    command = f"python benchmarks/harness_power.py --runs {options.runs}"
    return write_result("harness_power", measured, targets, command=command)


if __name__ == "__main__":
    raise SystemExit(main())
