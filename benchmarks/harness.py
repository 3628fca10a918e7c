"""The harness beside LoadGen: the same median for the same session, and what a session of it costs.

LoadGen takes its time in C++, from the query to the answer; `bench` takes its own in Python, around the call. Both measure
one open session in turns.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from main_job import make_vgg16
from measuring import run_process, target, write_result

from vggdeploy.bench.candidates import Candidate
from vggdeploy.bench.loadgen.drive import issue
from vggdeploy.bench.loadgen.scenarios import Load
from vggdeploy.bench.run import POOL, BenchPlan, Rounds, Scenarios, bench_bundle
from vggdeploy.bench.stats import ratio_interval
from vggdeploy.bundle import Bundle
from vggdeploy.parity.reference import Array
from vggdeploy.runtime import open_session
from vggdeploy.verify.samples import measuring_pool

VARIANT = "onnx-fp32"
MARGIN = 0.02
SHARE = 0.01


def same_median(bundle: Bundle, images: Array, *, seconds: float, rounds: int) -> dict[str, Any]:
    """`bench`'s median of a session over LoadGen's, in turns that change their order; with a 95% bootstrap interval."""
    found: dict[str, list[float]] = {"bench": [], "loadgen": []}
    queries: list[int] = []
    with open_session(bundle, bundle.manifest.variant(VARIANT)) as session:
        candidate = Candidate(session, images, 1)
        load = Load("single_stream", seconds=seconds)
        for number in range(rounds + 1):
            for name in ("bench", "loadgen") if number % 2 else ("loadgen", "bench"):
                if name == "bench":
                    found[name].append(float(np.median(candidate.turn(seconds).nanoseconds)) / 1e6)
                else:
                    issued = issue(session, images, load, "unique")
                    assert issued.p50_ms is not None
                    found[name].append(issued.p50_ms)
                    queries.append(issued.queries)
            print(f"  round {number}: " + "  ".join(f"{n} {v[-1]:.4f} ms" for n, v in found.items()), flush=True)
    times = {name: values[1:] for name, values in found.items()}  # the first round is a warm-up
    ratio, low, high = ratio_interval(times["bench"], times["loadgen"])
    return {
        "rounds": rounds,
        "seconds_a_round": seconds,
        "queries_a_round": float(np.median(queries)),
        "bench_p50_ms": times["bench"],
        "loadgen_p50_ms": times["loadgen"],
        "bench_over_loadgen": ratio,
        "low": low,
        "high": high,
    }


def own_share(bundle: Bundle, seconds: float, method: Rounds | Scenarios) -> dict[str, float]:
    """CPU time of the process that runs `bench`, over the time it took; its workers run the sessions."""
    wall, own = time.monotonic(), time.process_time()
    bench_bundle(bundle, plan=BenchPlan(variants=[VARIANT], batches=[1], seconds=seconds), method=method)
    wall, own = time.monotonic() - wall, time.process_time() - own
    return {"seconds": wall, "cpu_seconds": own, "share_of_a_core": own / wall}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a try on the digits alone: nothing is written")
    quick = parser.parse_args().quick
    seconds, rounds, session = (0.2, 3, 3.0) if quick else (5.0, 16, 60.0)
    medians: dict[str, dict[str, Any]] = {}
    shares: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        cli = [sys.executable, "-m", "vggdeploy"]
        print("digits: train and export …", flush=True)
        recipe = ["--arch", "vgg11_bn", "--width", "0.25", "--dataset", "digits", "--epochs", "1" if quick else "6"]
        run_process([*cli, "train", *recipe, "-o", home / "digits"])
        run_process([*cli, "export", home / "digits", "-o", home / "digits-bundle", "--formats", VARIANT])
        digits = Bundle.open(home / "digits-bundle")
        pool = measuring_pool(digits, "", POOL, None).images
        medians["digits"] = same_median(digits, pool, seconds=seconds, rounds=rounds)
        print(f"sessions of {session:g} s …", flush=True)
        shares["in_rounds"] = own_share(digits, session, Rounds())
        shares["under_load"] = own_share(digits, session, Scenarios(["single_stream"]))
        if not quick:
            print("VGG-16: export …", flush=True)
            make_vgg16(home / "vgg16")
            run_process([*cli, "export", home / "vgg16", "-o", home / "vgg16-bundle", "--formats", VARIANT])
            random = np.random.default_rng(0)
            images = random.integers(0, 256, (64, 224, 224, 3), dtype=np.uint8)
            medians["vgg16"] = same_median(Bundle.open(home / "vgg16-bundle"), images, seconds=seconds, rounds=rounds)
    targets = [
        target(
            f"bench's p50 beside LoadGen's, {name}: distance from 1",
            abs(m["bench_over_loadgen"] - 1),
            MARGIN,
            "× LoadGen's",
        )
        for name, m in medians.items()
    ]
    targets += [
        target(f"a session {name.replace('_', ' ')}, its own CPU time", s["share_of_a_core"], SHARE, "of a core")
        for name, s in shares.items()
    ]
    if quick:
        print(*targets, sep="\n")
        return 0
    return write_result("harness", {"medians": medians, "own_cpu": shares}, targets)


if __name__ == "__main__":
    sys.exit(main())
